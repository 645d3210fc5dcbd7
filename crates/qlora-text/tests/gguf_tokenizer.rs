//! Tokenizers of every kind out of GGUF metadata, against llama.cpp, `transformers` and SentencePiece; and back.
//!
//! `golden/make_tokenizers.py` makes the vocabularies and the ids.

use proptest::prelude::*;
use qlora_gguf::{Gguf, Metadata};
use qlora_text::{Error, TokenStream, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static BYTE_LEVEL: LazyLock<Value> = LazyLock::new(|| golden("byte_level.json"));
static SENTENCEPIECE: LazyLock<Value> = LazyLock::new(|| golden("sentencepiece.json"));

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

fn byte_level(pre: &str) -> Metadata {
    let tokens: Vec<String> = list(&BYTE_LEVEL["tokens"]);
    let count = u32::try_from(tokens.len()).unwrap();
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", list::<i32>(&BYTE_LEVEL["types"]));
    metadata.insert("tokenizer.ggml.merges", list::<String>(&BYTE_LEVEL["merges"]));
    metadata.insert("tokenizer.ggml.bos_token_id", count - 5);
    metadata.insert("tokenizer.ggml.eos_token_id", count - 2);
    metadata
}

fn sentencepiece(space_prefix: bool) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert("tokenizer.ggml.tokens", list::<String>(&SENTENCEPIECE["tokens"]));
    metadata.insert("tokenizer.ggml.scores", list::<f32>(&SENTENCEPIECE["scores"]));
    metadata.insert("tokenizer.ggml.token_type", list::<i32>(&SENTENCEPIECE["types"]));
    metadata.insert("tokenizer.ggml.unknown_token_id", 0u32);
    metadata.insert("tokenizer.ggml.bos_token_id", 1u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 2u32);
    metadata.insert("tokenizer.ggml.add_space_prefix", space_prefix);
    metadata
}

/// The texts of which the ids differ.
fn differing(tokenizer: &Tokenizer, texts: &Value, expected: &Value) -> Vec<String> {
    let texts: Vec<String> = list(texts);
    let expected: Vec<Vec<u32>> = list(expected);
    assert_eq!(texts.len(), expected.len());
    let differ =
        texts.into_iter().zip(expected).filter(|(text, ids)| &tokenizer.encode(text).unwrap() != ids);
    differ.map(|(text, _)| text).collect()
}

#[test]
fn byte_level_ids_are_those_of_llama_cpp() {
    // `e` and a combining accent: these kinds normalize to NFC, as `transformers` does and llama.cpp does not.
    let decomposed = "e\u{301} e\u{301}te\u{301} A\u{30a}";
    let kinds = BYTE_LEVEL["kinds"].as_object().unwrap();
    assert!(kinds.len() >= 21);
    for (pre, ids) in kinds {
        let tokenizer = Tokenizer::from_gguf(&byte_level(pre)).unwrap();
        let expected: &[&str] = match pre.as_str() {
            "olmo" | "command-r" | "qwen2" | "deepseek-r1-qwen" => &[decomposed],
            _ => &[],
        };
        let from = if ids["transformers"].is_array() { "transformers" } else { "llama_cpp" };
        assert_eq!(differing(&tokenizer, &BYTE_LEVEL["texts"], &ids[from]), expected, "{pre}");
    }
}

#[test]
fn sentencepiece_ids_are_those_of_llama_cpp() {
    for (kind, space_prefix) in [("space_prefix", true), ("no_space_prefix", false)] {
        let tokenizer = Tokenizer::from_gguf(&sentencepiece(space_prefix)).unwrap();
        let ids = &SENTENCEPIECE["kinds"][kind]["llama_cpp"];
        assert_eq!(differing(&tokenizer, &SENTENCEPIECE["texts"], ids), Vec::<String>::new(), "{kind}");
        assert!(tokenizer.adds_bos());
        for text in list::<String>(&SENTENCEPIECE["texts"]) {
            // A user-defined token, being special to nobody, has no space before what follows it.
            if !text.contains(['<', '▁']) && !text.contains("  ") && !text.contains("\n\n") {
                let ids = tokenizer.encode(&text).unwrap();
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            }
        }
    }
}

#[test]
fn a_tokenizer_model_is_read_without_a_tokenizer_json() {
    let alone = Tokenizer::from_sentencepiece(path("spm.model")).unwrap();
    let ids = &SENTENCEPIECE["kinds"]["space_prefix"]["llama_cpp"];
    assert_eq!(differing(&alone, &SENTENCEPIECE["texts"], ids), Vec::<String>::new());
    assert_eq!((alone.bos(), alone.eos()), (Some(1), &[2][..]));
    assert!(alone.adds_bos());

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(path("spm.model"), folder.path().join("tokenizer.model")).unwrap();
    let size = alone.vocab_size();
    let config = serde_json::json!({
        "add_bos_token": false, "legacy": false, "chat_template": "c",
        "added_tokens_decoder": {size.to_string(): {"content": "<|call|>", "special": true}}
    });
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    assert_eq!(tokenizer.id("<|call|>"), u32::try_from(size).ok());
    assert!(!tokenizer.adds_bos());
    // Not legacy: no space behind a special token.
    let hi = tokenizer.encode("hi").unwrap();
    let after = tokenizer.encode("<|call|>hi").unwrap();
    assert_eq!(hi, alone.encode("hi").unwrap());
    assert_ne!(hi, after[1..]);
    assert_eq!(alone.encode("</s>hi").unwrap()[1..], hi);
}

#[test]
fn damaged_tokenizer_models_are_refused() {
    let bytes = std::fs::read(path("spm.model")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.model");
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let error = Tokenizer::from_sentencepiece(&file).unwrap_err();
        assert!(matches!(error, Error::SentencePiece { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&[]).contains("no pieces"));
    assert!(refused(&bytes[..bytes.len() - 1]).contains("fetch it again"));
    assert!(refused(b"version https://git-lfs").contains("fetch it again"));
    assert!(refused(&bytes[..bytes.len() / 2]).contains("not a usable SentencePiece model"));
}

#[test]
fn written_metadata_give_the_same_ids() {
    let kinds = BYTE_LEVEL["kinds"].as_object().unwrap().keys().map(|pre| byte_level(pre));
    for metadata in kinds.chain([sentencepiece(true), sentencepiece(false)]) {
        let mut metadata = metadata;
        metadata.insert("tokenizer.chat_template", "d <|im_end|>");
        metadata.insert("tokenizer.chat_templates", vec!["tool_use".to_owned()]);
        metadata.insert("tokenizer.chat_template.tool_use", "t");
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        let rows = tokenizer.vocab_size() + 2;
        let written = tokenizer.to_gguf_metadata(rows, None).unwrap();
        assert_eq!(written.strings("tokenizer.ggml.tokens").unwrap().len(), rows);
        assert_eq!(written.i32s("tokenizer.ggml.token_type").unwrap()[rows - 1], 5);
        assert_eq!(written.string("tokenizer.chat_template.tool_use").unwrap(), "t");
        let again = Tokenizer::from_gguf(&written).unwrap();
        for text in list::<String>(&BYTE_LEVEL["texts"]) {
            assert_eq!(again.encode(&text).unwrap(), tokenizer.encode(&text).unwrap(), "{text:?}");
        }
        assert_eq!(
            (again.bos(), again.eos(), again.pad()),
            (tokenizer.bos(), tokenizer.eos(), tokenizer.pad())
        );
        assert_eq!((again.adds_bos(), again.adds_eos()), (tokenizer.adds_bos(), false));
        assert_eq!(again.chat_template_source(), tokenizer.chat_template_source());

        let error = tokenizer.to_gguf_metadata(rows - 3, None).unwrap_err();
        assert!(matches!(error, Error::NotInGguf { .. }), "{error}");
    }
}

#[test]
fn kinds_are_found_by_their_rules() {
    for (from, found) in [
        ("gpt-2", "gpt-2"),
        ("olmo", "olmo"),
        ("refact", "smollm"),
        ("llama-bpe", "llama-bpe"),
        ("smaug-bpe", "dbrx"),
        ("qwen2", "qwen2"),
        ("tekken", "tekken"),
        ("deepseek-v3", "deepseek-v3"),
    ] {
        let tokenizer = Tokenizer::from_gguf(&byte_level(from)).unwrap();
        let rows = tokenizer.vocab_size();
        let pre = |name| {
            let metadata = tokenizer.to_gguf_metadata(rows, name)?;
            Ok::<_, Error>(metadata.string("tokenizer.ggml.pre").unwrap().to_owned())
        };
        assert_eq!(pre(None).unwrap(), found);
        assert_eq!(pre(Some("command-r")).unwrap(), "command-r");
        assert!(pre(Some("none")).unwrap_err().to_string().contains("\"none\" is no known pre-tokenizer"));
    }
    // Rules that nobody has.
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::from_gguf(&byte_level("tekken")).unwrap().save(folder.path()).unwrap();
    let file = folder.path().join("tokenizer.json");
    let mut definition: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "x+".into();
    std::fs::write(&file, definition.to_string()).unwrap();
    let tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    let error = tokenizer.to_gguf_metadata(tokenizer.vocab_size(), None).unwrap_err().to_string();
    assert!(error.contains("it splits by x+") && error.contains("name the one that is meant"), "{error}");
}

#[test]
fn special_tokens_are_added() {
    for metadata in [byte_level("llama-bpe"), sentencepiece(true)] {
        let mut tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        let size = u32::try_from(tokenizer.vocab_size()).unwrap();
        let (tool, hi) = (tokenizer.id("<tool>").unwrap(), tokenizer.encode("hi").unwrap());
        assert!(!tokenizer.is_special(tool));
        let ids = tokenizer.add_special_tokens(&["<|think|>", "<tool>", "<|done|>", "<|think|>"]).unwrap();
        assert_eq!(ids, [size, tool, size + 1, size]);
        assert!(tokenizer.is_special(tool) && tokenizer.is_special(size));
        assert_eq!(tokenizer.vocab_size(), size as usize + 2);
        let ids = tokenizer.encode("<|think|>hi<|done|>").unwrap();
        assert_eq!((ids[0], ids[ids.len() - 1]), (size, size + 1));
        assert_eq!(ids[1..ids.len() - 1], hi);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hi");

        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let again = Tokenizer::from_directory(folder.path()).unwrap();
        assert_eq!(again.encode("<|think|>hi<|done|>").unwrap(), ids);
        let config = std::fs::read(folder.path().join("tokenizer_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(list::<String>(&config["additional_special_tokens"]), ["<|think|>", "<tool>", "<|done|>"]);
        let written = tokenizer.to_gguf_metadata(tokenizer.vocab_size(), None).unwrap();
        assert_eq!(written.i32s("tokenizer.ggml.token_type").unwrap()[size as usize], 3);
        assert_eq!(Tokenizer::from_gguf(&written).unwrap().encode("<|think|>hi<|done|>").unwrap(), ids);

        let error = tokenizer.add_special_tokens(&["<|a|>", " "]).unwrap_err();
        assert!(matches!(error, Error::SpecialToken { .. }));
        assert_eq!(tokenizer.id("<|a|>"), None);
    }
}

#[test]
fn phi3_special_tokens_swallow_spaces() {
    let mut metadata = sentencepiece(true);
    let ids = |metadata: &Metadata, text| Tokenizer::from_gguf(metadata).unwrap().encode(text).unwrap();
    let with_space = ids(&metadata, "<|im_start|> \n hi");
    metadata.insert("general.name", "Phi-3 Mini");
    assert_ne!(ids(&metadata, "<|im_start|> \n hi"), with_space);
    assert_eq!(ids(&metadata, "<|im_start|> \n hi"), ids(&metadata, "<|im_start|>hi"));
}

#[test]
fn every_end_of_a_vocabulary_stops() {
    let mut metadata = byte_level("qwen2");
    let mut tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().to_vec();
    let end = tokens.len() - 2;
    tokens.push("<|endoftext|>".to_owned());
    let mut types = metadata.i32s("tokenizer.ggml.token_type").unwrap().to_vec();
    types.push(3);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(tokenizer.eos(), [end as u32, end as u32 + 2]);
}

/// Gemma 3's, when `QLORA_TEST_GEMMA` names its GGUF file: its licence is not ours.
#[test]
fn gemma_ids_are_those_of_llama_cpp() {
    let Some(file) = std::env::var_os("QLORA_TEST_GEMMA") else {
        eprintln!("SKIPPED: set QLORA_TEST_GEMMA to gemma-3-270m-q4_k_m.gguf to run this test");
        return;
    };
    let tokenizer = Tokenizer::from_gguf(Gguf::open(file).unwrap().metadata()).unwrap();
    let vectors = golden("gemma3.json");
    for vector in vectors.as_array().unwrap() {
        let text = vector["text"].as_str().unwrap();
        let ids: Vec<u32> = list(&vector["ids"]);
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        // The mark of a space that stands in the text itself is a space from then on.
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.replace('▁', " "));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Spaces, byte tokens and special tokens: the pieces are the decoded text, unless bytes were no UTF-8.
    #[test]
    fn streams_give_the_decoded_text(text in "([ -~]|\\PC|<\\|im_end\\|>|<tool>|\n|  |é|你|😀|▁){0,30}", skip: bool, prefix: bool) {
        let tokenizer = Tokenizer::from_gguf(&sentencepiece(prefix)).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        let mut stream = TokenStream::new(&tokenizer, skip);
        let mut pieces = String::new();
        for &id in &ids {
            pieces += &stream.push(id).unwrap();
        }
        pieces += &stream.finish().unwrap();
        prop_assert_eq!(pieces, tokenizer.decode(&ids, skip).unwrap());
    }
}

#[test]
fn a_broken_run_of_bytes_keeps_what_was_given_out() {
    let tokenizer = Tokenizer::from_gguf(&sentencepiece(false)).unwrap();
    let byte = |byte: u8| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap();
    let mut stream = TokenStream::new(&tokenizer, false);
    let pieces: Vec<String> =
        [byte(0xe4), byte(0xbd), byte(0xa0), byte(0xff), byte(b'A'), tokenizer.id("▁").unwrap()]
            .into_iter()
            .map(|id| stream.push(id).unwrap())
            .collect();
    assert_eq!(pieces[..3], ["", "", "你"]);
    let rest = pieces[3..].concat() + &stream.finish().unwrap();
    assert!(rest.starts_with('\u{fffd}') && rest.ends_with(' '), "{rest:?}");
}

//! The real SmolLM2 tokenizer out of its GGUF file, against `transformers`' ids.

use proptest::prelude::*;
use qlora_gguf::{Gguf, Metadata};
use qlora_text::{Error, Message, RenderInput, TokenStream, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;

static SMOLLM2: LazyLock<Option<Tokenizer>> = LazyLock::new(|| {
    let gguf = Gguf::open(qlora_testing::model()?).unwrap();
    Some(Tokenizer::from_gguf(gguf.metadata()).unwrap())
});

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn ids_and_tokens_are_those_of_transformers() {
    let (Some(tokenizer), Some(golden)) = (&*SMOLLM2, qlora_testing::golden("smollm2/tokenizer.json")) else {
        return;
    };
    let golden = read_json(&golden);
    let vectors = golden.as_array().unwrap();
    assert!(vectors.len() >= 17);
    for vector in vectors {
        let text = vector["text"].as_str().unwrap();
        let expected = ids(&vector["ids"]);
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        let tokens: Vec<String> = expected.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
        assert_eq!(json!(tokens), vector["tokens"], "{text:?}");
        let round: Vec<u32> = tokens.iter().map(|token| tokenizer.id(token).unwrap()).collect();
        assert_eq!(round, expected);
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), text);
    }
}

#[test]
fn prompts_are_those_of_transformers() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let template = tokenizer.chat_template().unwrap();
    for file in ["smollm2/gguf_f32.json", "smollm2/hf_bf16.json"] {
        let Some(golden) = qlora_testing::golden(file) else { return };
        let golden = read_json(&golden);
        for prompt in golden["prompts"].as_array().unwrap() {
            let text = prompt["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&prompt["input_ids"]));
            if prompt["kind"] == "chat" {
                let messages = [Message::user(prompt["prompt"].as_str().unwrap())];
                let input = RenderInput {
                    messages: &messages,
                    add_generation_prompt: true,
                    ..RenderInput::default()
                };
                assert_eq!(template.render(&input).unwrap().text, text);
            }
            let greedy = ids(&prompt["greedy_ids"]);
            assert_eq!(tokenizer.decode(&greedy, false).unwrap(), prompt["greedy_text"].as_str().unwrap());
            if let Some(text) = prompt["greedy_text_skip_special"].as_str() {
                assert_eq!(tokenizer.decode(&greedy, true).unwrap(), text);
            }
        }
    }
}

#[test]
fn special_tokens_come_from_the_metadata() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(1), &[2, 0][..], Some(2)));
    assert!(!tokenizer.adds_bos());
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(17));
    assert!(matches!(
        tokenizer.decode(&[1, 49152], true),
        Err(Error::UnknownId { id: 49152, vocab_size: 49152 })
    ));
}

#[test]
fn a_saved_tokenizer_reads_back_equal() {
    let Some(tokenizer) = &*SMOLLM2 else { return };
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let again = Tokenizer::from_directory(folder.path()).unwrap();
    let text = "<|im_start|>user\n naïve 12²  你好 😀<|im_end|>\n";
    assert_eq!(again.encode_with_offsets(text).unwrap(), tokenizer.encode_with_offsets(text).unwrap());
    assert_eq!(again.chat_template_source(), tokenizer.chat_template_source());
    assert_eq!((again.bos(), again.eos(), again.pad()), (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()));
    assert_eq!((again.adds_bos(), again.vocab_size()), (tokenizer.adds_bos(), tokenizer.vocab_size()));
    let only = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(only.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    // Only what ends a text is known by its name.
    assert_eq!((only.eos(), only.bos()), (&[0][..], None));
    assert!(matches!(only.chat_template(), Err(Error::NoChatTemplate { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Text survives, offsets cover it without gaps, and a stream gives the same text.
    #[test]
    fn text_survives(text in "([ -~]|\\PC|<\\|im_end\\|>|\n|  |é|你|👩‍👩‍👧){0,40}") {
        let Some(tokenizer) = &*SMOLLM2 else { return Ok(()) };
        let spans = tokenizer.encode_with_offsets(&text).unwrap();
        let ids: Vec<u32> = spans.iter().map(|span| span.id).collect();
        prop_assert_eq!(&ids, &tokenizer.encode(&text).unwrap());
        let mut end = 0;
        for span in &spans {
            prop_assert!(span.start <= end && span.end >= end, "{:?}", spans);
            end = span.end;
        }
        prop_assert_eq!(end, text.len());
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    /// Whatever the ids, even halves of characters, the pieces of a stream are the decoded text.
    #[test]
    fn streams_give_the_decoded_text(ids in prop::collection::vec(prop_oneof![0u32..49152, 17u32..280], 0..40), skip: bool) {
        let Some(tokenizer) = &*SMOLLM2 else { return Ok(()) };
        let mut stream = TokenStream::new(tokenizer, skip);
        let mut text = String::new();
        for &id in &ids {
            let piece = stream.push(id).unwrap();
            let whole = !piece.ends_with('\u{fffd}');
            prop_assert!(whole);
            text += &piece;
        }
        text += &stream.finish().unwrap();
        prop_assert_eq!(text, tokenizer.decode(&ids, skip).unwrap());
    }
}

/// The bytes 0 to 255 as byte-level tokens, two merges, three added tokens.
fn small_metadata(pre: &str) -> Metadata {
    let mut tokens: Vec<String> = (0u32..256)
        .map(|byte| match byte {
            33..=126 | 161..=172 | 174..=255 => char::from_u32(byte).unwrap(),
            0..=32 => char::from_u32(256 + byte).unwrap(),
            127..=160 => char::from_u32(256 + byte - 94).unwrap(),
            _ => '\u{143}',
        })
        .map(String::from)
        .collect();
    tokens.extend(["ab", "Ġab", "<bos>", "<eos>", "<tool>"].map(String::from));
    let mut types = vec![1i32; 258];
    types.extend([3, 3, 4]);
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", vec!["a b".to_owned(), "Ġ ab".to_owned()]);
    metadata.insert("tokenizer.ggml.bos_token_id", 258u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 259u32);
    metadata
}

#[test]
fn each_supported_pre_tokenizer_splits_as_it_should() {
    let digits = |pre: &str| {
        let tokenizer = Tokenizer::from_gguf(&small_metadata(pre)).unwrap();
        let ids = tokenizer.encode(" ab<eos>12<tool>").unwrap();
        assert_eq!(ids, [257, 259, 49, 50, 260], "{pre}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), " ab<eos>12<tool>");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), " ab12<tool>");
        assert!(tokenizer.is_special(259) && !tokenizer.is_special(260));
        // NFC only where the model has it: e + combining acute is two bytes of é, or three.
        (tokenizer.encode("e\u{301}").unwrap().len(), tokenizer.adds_bos())
    };
    assert_eq!(digits("gpt-2"), (3, false));
    assert_eq!(digits("smollm"), (3, false));
    assert_eq!(digits("qwen2"), (2, false));
    assert_eq!(digits("llama-bpe"), (3, true));
}

#[test]
fn an_id_without_a_token_gives_no_text_where_a_model_chose_it() {
    let tokenizer = Tokenizer::from_gguf(&small_metadata("gpt-2")).unwrap();
    // Also between the two bytes of a character.
    let ids = [256, 300, 0xc3, u32::MAX, 0xa9, 259, 261, 257];
    assert!(matches!(tokenizer.decode(&ids, true), Err(Error::UnknownId { id: 300, vocab_size: 261 })));
    for skip in [true, false] {
        let text = if skip { "abé ab" } else { "abé<eos> ab" };
        assert_eq!(tokenizer.decode_generated(&ids, skip).unwrap(), text);
        let mut stream = TokenStream::new(&tokenizer, skip);
        let pieces: String = ids.iter().map(|&id| stream.push_generated(id).unwrap()).collect();
        assert_eq!(pieces + &stream.finish().unwrap(), text);
    }
    assert_eq!(tokenizer.decode_generated(&[261, 5000], true).unwrap(), "");
    assert!(TokenStream::new(&tokenizer, true).push(261).is_err());
}

#[test]
fn a_tokenizer_that_adds_bos_is_saved_so() {
    let tokenizer = Tokenizer::from_gguf(&small_metadata("llama-bpe")).unwrap();
    assert_eq!(tokenizer.encode("ab").unwrap(), [256]);
    assert_eq!(tokenizer.encode_with_bos("ab").unwrap(), [258, 256]);
    assert_eq!(tokenizer.encode_with_bos("<bos>ab").unwrap(), [258, 256]);
    let without = Tokenizer::from_gguf(&small_metadata("gpt-2")).unwrap();
    assert_eq!(without.encode_with_bos("ab").unwrap(), [256]);
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let config = folder.path().join("tokenizer_config.json");
    let mut value = read_json(&config);
    assert_eq!(value["bos_token"], "<bos>");
    // Older files say it by the post-processor alone.
    value.as_object_mut().unwrap().remove("add_bos_token");
    std::fs::write(&config, value.to_string()).unwrap();
    let again = Tokenizer::from_directory(folder.path()).unwrap();
    assert!(again.adds_bos());
    assert_eq!(again.encode("ab").unwrap(), [256]);
}

#[test]
fn hostile_metadata_is_refused_with_the_key() {
    let refused = |key: &str, value: qlora_gguf::Value, words: &str| {
        let mut metadata = small_metadata("smollm");
        metadata.insert(key, value);
        let error = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(words), "{error}");
    };
    refused("tokenizer.ggml.model", "bert".into(), "tokenizer.json instead");
    refused("tokenizer.ggml.pre", "viking".into(), "gpt-2, phi-2");
    refused("tokenizer.ggml.tokens", vec!["a".to_owned(); 261].into(), "twice");
    refused("tokenizer.ggml.token_type", vec![1i32; 7].into(), "7 types for 261 tokens");
    refused("tokenizer.ggml.merges", vec!["ab".to_owned()].into(), "not two tokens");
    refused("tokenizer.ggml.bos_token_id", 261u32.into(), "261 is no token");
    refused("tokenizer.ggml.eos_token_id", "x".into(), "eos_token_id");
    let mut metadata = small_metadata("smollm");
    metadata.insert("tokenizer.ggml.merges", vec!["a q\u{1f600}".to_owned()]);
    assert!(matches!(Tokenizer::from_gguf(&metadata), Err(Error::Definition { .. })));
    assert!(matches!(Tokenizer::from_gguf(&Metadata::new()), Err(Error::Gguf { .. })));
}

/// A model directory with a small tokenizer, to which a test adds files.
fn directory(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::from_gguf(&small_metadata("gpt-2")).unwrap().save(folder.path()).unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn stop_tokens_are_gathered_from_every_file() {
    let folder = directory(&[
        (
            "tokenizer_config.json",
            json!({"eos_token": {"content": "<eos>"}, "pad_token": "<pad>", "bos_token": null}),
        ),
        ("special_tokens_map.json", json!({"bos_token": "<bos>", "eos_token": "<tool>"})),
        ("generation_config.json", json!({"eos_token_id": [260, 259]})),
        ("config.json", json!({"eos_token_id": 97})),
    ]);
    let tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(258), &[259, 260, 97][..], None));
}

#[test]
fn chat_templates_are_found_where_transformers_puts_them() {
    let in_config = |template: Value| ("tokenizer_config.json", json!({"chat_template": template}));
    let source = |files: &[(&str, Value)]| {
        let tokenizer = Tokenizer::from_directory(directory(files).path()).unwrap();
        tokenizer.chat_template_source().map(str::to_owned)
    };
    assert_eq!(source(&[in_config(json!("config"))]).as_deref(), Some("config"));
    let named = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    assert_eq!(source(&[in_config(named)]).as_deref(), Some("d"));
    assert_eq!(
        source(&[in_config(json!("config")), ("chat_template.json", json!({"chat_template": "json"}))])
            .as_deref(),
        Some("json")
    );
    assert_eq!(
        source(&[in_config(json!("config")), ("chat_template.jinja", json!("jinja"))]).as_deref(),
        Some("jinja")
    );
    assert_eq!(source(&[]), None);
}

#[test]
fn damaged_directories_name_the_file() {
    let refused = |files: &[(&str, Value)], words: &str| {
        let error = Tokenizer::from_directory(directory(files).path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(&[("tokenizer_config.json", json!("{\"a\": "))], "tokenizer_config.json: not valid JSON");
    refused(&[("tokenizer_config.json", json!({"eos_token": "</s>"}))], "`eos_token` names \"</s>\"");
    refused(&[("tokenizer_config.json", json!({"chat_template": 3}))], "key `chat_template`");
    refused(
        &[("generation_config.json", json!({"eos_token_id": -1}))],
        "generation_config.json: key `eos_token_id`",
    );
    refused(&[("tokenizer.json", json!({"version": "1.0"}))], "not a usable tokenizer");
    refused(&[("tokenizer.json", json!("{\"version\": \"1.0\", \"decoder\": {"))], "not a usable tokenizer");
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_directory(empty.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let folder = directory(&[]);
    let tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    let file = folder.path().join("tokenizer.json");
    let error = tokenizer.save(&file).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error:?}");
    let words = error.to_string();
    assert!(words.starts_with("cannot write the tokenizer: ") && words.contains("tokenizer.json"), "{words}");
}

#[test]
fn what_the_tokenizer_cannot_encode_is_told() {
    let words = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"yes": 0}, "unk_token": "[UNK]"},
    });
    let files = [("tokenizer.json", words), ("tokenizer_config.json", json!({}))];
    let tokenizer = Tokenizer::from_directory(directory(&files).path()).unwrap();
    assert_eq!(tokenizer.encode("yes yes").unwrap(), [0, 0]);
    let error = tokenizer.encode("no").unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }), "{error:?}");
    assert!(error.to_string().starts_with("the tokenizer failed: "), "{error}");
}

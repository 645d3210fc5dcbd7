use super::ByteLevel;
use crate::Tokenizer;
use proptest::prelude::*;
use qlora_gguf::Metadata;

/// A small vocabulary: all bytes, some merges over them that come in each other's way, special tokens.
fn metadata(pre: &str) -> Metadata {
    let characters = super::alphabet::characters();
    let byte = |byte: u8| characters[usize::from(byte)].to_string();
    let mut tokens: Vec<String> = (0..=255).map(byte).collect();
    let mut merges = Vec::new();
    let pieces = "th in the he er an re on  t  a  th  the  in ing 's 're st es est \n\n 12 123 .. ... ...\n ç é 日 日本 \u{1f44d}  \
                  ab bc abc abcd cd aa aaaa naï 1 \u{a0} ,\n //";
    for piece in pieces.split(' ').chain([" t", " a", " th", " the", "  ", "    ", " \n", "\t\t"]) {
        // A merge for each way to cut the piece where both parts are tokens.
        let shown: Vec<String> = piece.bytes().map(byte).collect();
        for at in 1..shown.len() {
            let (left, right) = (shown[..at].concat(), shown[at..].concat());
            if tokens.contains(&left) && tokens.contains(&right) {
                let joined = format!("{left}{right}");
                if !tokens.contains(&joined) {
                    tokens.push(joined);
                }
                merges.push(format!("{left} {right}"));
            }
        }
    }
    let mut types = vec![1_i32; tokens.len()];
    for special in ["<|im_start|>", "<|im_end|>", "<|im|>", "<|é|>"] {
        tokens.push(special.to_owned());
        types.push(3);
    }
    tokens.push("<user defined>".to_owned());
    types.push(4);
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata
}

/// Of each kind: GPT-2's pattern with and without NFC, digits apart with and without, Llama 3's (which takes whole
/// pieces), the same without that, Qwen's with NFC and without.
const KINDS: [&str; 8] = ["gpt-2", "olmo", "smollm", "command-r", "llama-bpe", "dbrx", "qwen2", "stablelm2"];

fn compare(tokenizer: &Tokenizer, text: &str) {
    let fast: &ByteLevel = tokenizer.fast().expect("a kind that is known");
    let theirs = tokenizer.library().encode(text, false).unwrap();
    let offsets: Vec<(usize, usize)> =
        tokenizer.encode_with_offsets(text).unwrap().iter().map(|span| (span.start, span.end)).collect();
    assert_eq!(tokenizer.encode(text).unwrap(), theirs.get_ids(), "{text:?}");
    assert_eq!(offsets, theirs.get_offsets(), "{text:?}");
    let decoded = tokenizer.library().decode(theirs.get_ids(), false).unwrap();
    assert_eq!(fast.decode(theirs.get_ids()).unwrap(), decoded, "{text:?}");
}

const TEXTS: &str = "([a-d]{1,9}|the |in|ing|[0-9]{1,4}|[ \t]{1,5}|[\r\n]{1,3}|'(s|re|LL)|\\.{1,4}|<\\|im_(start|end)\\|>|\
    <\\|im\\|>|<\\|é\\|>|<user defined>|<\\||日本語|é|e\u{301}|\u{fb01}|👍🏽|\\PC){0,16}";

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn ids_offsets_and_text_are_those_of_the_library(texts in prop::collection::vec(TEXTS, 4)) {
        for kind in KINDS {
            let tokenizer = Tokenizer::from_gguf(&metadata(kind)).unwrap();
            // Twice: the second time from memory.
            texts.iter().chain(&texts).for_each(|text| compare(&tokenizer, text));
        }
    }
}

#[test]
fn a_real_vocabulary_gives_the_ids_of_the_library() {
    let Some(model) = qlora_testing::model() else { return };
    let gguf = qlora_gguf::Gguf::open(model).unwrap();
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    // What is known to be long, and every file of this crate: some hundred kilobytes of words.
    let mut texts = vec!["a".repeat(3000), " ".repeat(3000), "日本語".repeat(400), "\n ".repeat(500)];
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
        texts.extend(std::fs::read_to_string(entry.unwrap().path()));
    }
    assert!(texts.len() > 20);
    texts.iter().for_each(|text| compare(&tokenizer, text));
}

#[test]
fn ids_do_not_depend_on_the_threads_that_share_a_tokenizer() {
    let tokenizer = Tokenizer::from_gguf(&metadata("llama-bpe")).unwrap();
    let texts: Vec<String> = (0..500).map(|n| format!("the thing {n} abcd{} in 日本 the", n % 7)).collect();
    let alone: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (text, ids) in texts.iter().zip(&alone) {
                    assert_eq!(tokenizer.encode(text).unwrap(), *ids);
                }
            });
        }
    });
}

/// SmolLM2's vocabulary has no token for some bytes: the library drops them.
#[test]
fn bytes_without_a_token_are_left_to_the_library() {
    let mut metadata = metadata("smollm");
    let mut tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().to_vec();
    tokens[4] = "<unused>".to_owned();
    metadata.insert("tokenizer.ggml.tokens", tokens);
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(tokenizer.fast().unwrap().encode("a\u{4}b"), None);
    for text in ["a\u{4}b", "ab", "\u{4}", "the \u{4} thing", "the thing"] {
        let theirs = tokenizer.library().encode(text, false).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), theirs.get_ids());
        assert_eq!(tokenizer.encode_with_offsets(text).unwrap().len(), theirs.get_ids().len());
    }
}

/// What is not known to be the same is left to the library.
#[test]
fn other_kinds_are_not_taken() {
    for pre in ["tekken", "deepseek-v3", "falcon"] {
        assert!(Tokenizer::from_gguf(&metadata(pre)).unwrap().fast().is_none(), "{pre}");
    }
    let definition: serde_json::Value =
        serde_json::from_slice(Tokenizer::from_gguf(&metadata("qwen2")).unwrap().definition()).unwrap();
    let taken = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut definition = definition.clone();
        change(&mut definition);
        let bytes = serde_json::to_vec(&definition).unwrap();
        let inner = crate::tokenizer::parse_definition(&bytes, "test").unwrap();
        ByteLevel::new(&bytes, &inner).is_some()
    };
    assert!(taken(&|_| ()));
    assert!(taken(&|d| {
        // Merges as old files have them.
        let merges = d["model"]["merges"].as_array().unwrap().iter();
        let texts = merges.map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()));
        d["model"]["merges"] = texts.collect::<Vec<_>>().into();
    }));
    assert!(!taken(&|d| d["normalizer"] = serde_json::json!({"type": "NFKC"})));
    assert!(!taken(&|d| d["added_tokens"][0]["lstrip"] = true.into()));
    assert!(!taken(&|d| d["model"]["dropout"] = 0.5.into()));
    assert!(!taken(&|d| d["model"]["end_of_word_suffix"] = "</w>".into()));
    assert!(!taken(&|d| d["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext".into()));
    assert!(!taken(&|d| d["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into()));
}

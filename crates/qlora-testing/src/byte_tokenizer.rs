//! A byte-level tokenizer.

use serde_json::{Map, Value, json};

/// The `tokenizer.json` of all 256 bytes, then of merges (`"t h"`), then of special tokens, split by GPT-2's rules.
///
/// # Panics
/// Never.
#[must_use]
pub fn byte_tokenizer(merges: &[&str], special: &[&str]) -> Value {
    let bytes = (0..=255).map(|byte| byte_character(byte).to_string());
    let tokens = bytes.chain(merges.iter().map(|merge| merge.replace(' ', "")));
    let vocabulary: Map<String, Value> =
        tokens.zip(0_usize..).map(|(token, id)| (token, id.into())).collect();
    let added = (vocabulary.len()..).zip(special).map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges},
    })
}

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's rule): itself where it can be printed,
/// else one from U+0100 on.
fn byte_character(byte: u8) -> char {
    let printed = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printed(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printed(b)).count() as u32;
    char::from_u32(0x100 + before).expect("below the surrogates")
}

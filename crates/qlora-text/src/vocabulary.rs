//! A vocabulary as GGUF and SentencePiece hold it, and the `tokenizer.json` that means the same.

use crate::Error;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What a token is; the numbers of SentencePiece's `Type` and of `tokenizer.ggml.token_type`.
pub(crate) mod token_type {
    pub(crate) const NORMAL: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const CONTROL: i32 = 3;
    pub(crate) const USER_DEFINED: i32 = 4;
    pub(crate) const UNUSED: i32 = 5;
    pub(crate) const BYTE: i32 = 6;
}

/// SentencePiece's mark for a space.
pub(crate) const SPACE_MARK: &str = "\u{2581}";

/// Where a SentencePiece tokenizer puts a space that decoding takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpacePrefix {
    Never,
    /// Where the whole text begins.
    First,
    /// Where the text begins, and behind each special token.
    Each,
}

/// The tokens by id.
pub(crate) struct Vocabulary<'a> {
    pub(crate) tokens: &'a [String],
    /// One for each token, or empty: all are ordinary.
    pub(crate) types: &'a [i32],
    /// Whether a special token swallows the spaces behind it.
    pub(crate) strips_right: bool,
}

impl Vocabulary<'_> {
    /// `{token: id}`. When a token stands there twice: it, its first and its second id.
    pub(crate) fn ids(&self) -> Result<Map<String, Value>, (String, usize, usize)> {
        let mut ids = Map::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.clone(), id.into()) {
                let first = first.as_u64().and_then(|id| usize::try_from(id).ok()).unwrap_or_default();
                return Err((token.clone(), first, id));
            }
        }
        Ok(ids)
    }

    fn kind(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(token_type::NORMAL)
    }

    /// `added_tokens` of a `tokenizer.json`: what is found in a text before anything else.
    fn added(&self) -> Vec<Value> {
        let added = |id: usize, token: &String| {
            let special = match self.kind(id) {
                token_type::UNKNOWN | token_type::CONTROL => true,
                token_type::USER_DEFINED => false,
                _ => return None,
            };
            // Phi-3's: the tokens that begin or end a text keep their neighbours' spaces.
            let strips =
                special && self.strips_right && !["<unk>", "<s>", "<|endoftext|>"].contains(&token.as_str());
            (!token.is_empty()).then(|| {
                json!({
                    "id": id, "content": token, "special": special,
                    "single_word": false, "lstrip": false, "rstrip": strips, "normalized": false
                })
            })
        };
        self.tokens.iter().enumerate().filter_map(|(id, token)| added(id, token)).collect()
    }

    /// The `tokenizer.json` of a byte-level tokenizer. `bos` stands in front where a caller of another program
    /// asks for special tokens.
    pub(crate) fn byte_level(
        &self,
        ids: Map<String, Value>,
        merges: &[(&str, &str)],
        split: (Value, Value),
        ignore_merges: bool,
        bos: Option<u32>,
    ) -> Value {
        let (normalizer, pre_tokenizer) = split;
        let merges: Vec<Value> = merges.iter().map(|(left, right)| json!([left, right])).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(bos),
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": ignore_merges,
                "vocab": ids,
                "merges": merges,
            },
        })
    }

    /// The `tokenizer.json` of a SentencePiece BPE tokenizer: merges from `scores`, one for each token, unknown
    /// characters as bytes.
    pub(crate) fn sentencepiece(
        &self,
        ids: Map<String, Value>,
        scores: &[f32],
        unknown: Option<u32>,
        prefix: SpacePrefix,
        bos: Option<u32>,
    ) -> Value {
        let merges: Vec<Value> =
            self.merges(scores).into_iter().map(|(left, right)| json!([left, right])).collect();
        let mark_spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK});
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix != SpacePrefix::Never {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let (normalizer, pre_tokenizer) = match prefix {
            SpacePrefix::Never => (mark_spaces, Value::Null),
            SpacePrefix::Each => (
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE_MARK}, mark_spaces]}),
                Value::Null,
            ),
            SpacePrefix::First => (
                Value::Null,
                json!({"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "first", "split": false}),
            ),
        };
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(bos),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown.map(|id| &self.tokens[id as usize]),
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": true,
                "ignore_merges": false,
                "vocab": ids,
                "merges": merges,
            },
        })
    }

    /// The merges that scores stand for: every way to make an ordinary token of two, the best score first; of
    /// equal ones that with the longer left part, as `transformers` orders them.
    fn merges(&self, scores: &[f32]) -> Vec<(&str, &str)> {
        let ordinary: HashMap<&str, usize> = (self.tokens.iter().enumerate())
            .filter(|&(id, _)| self.kind(id) == token_type::NORMAL)
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let mut merges: Vec<(f32, usize, &str, &str)> = Vec::new();
        for (id, token) in
            self.tokens.iter().enumerate().filter(|&(id, _)| self.kind(id) == token_type::NORMAL)
        {
            // A hostile token of a megabyte would otherwise cost the square of its length.
            if token.len() > MAX_MERGED_BYTES {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if ordinary.contains_key(left) && ordinary.contains_key(right) {
                    merges.push((scores[id], id, left, right));
                }
            }
        }
        merges.sort_by(|a, b| {
            let lengths = || b.2.chars().count().cmp(&a.2.chars().count());
            b.0.total_cmp(&a.0).then_with(lengths).then(a.1.cmp(&b.1))
        });
        merges.into_iter().map(|(_, _, left, right)| (left, right)).collect()
    }

    /// Puts the beginning token in front where a caller of another program asks for special tokens.
    fn post_processor(&self, bos: Option<u32>) -> Value {
        let Some(id) = bos else { return Value::Null };
        let token = &self.tokens[id as usize];
        let bos = |type_id: u32| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
        let mut special_tokens = Map::new();
        special_tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        json!({
            "type": "TemplateProcessing",
            "single": [bos(0), text("A", 0)],
            "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
            "special_tokens": special_tokens,
        })
    }
}

/// How long a token may be that is made by merging. SentencePiece makes none of more than 16 characters unless told
/// to; Gemma's longest have 32.
const MAX_MERGED_BYTES: usize = 256;

/// What [`Vocabulary::ids`] refuses, in words.
pub(crate) fn twice((token, first, second): &(String, usize, usize)) -> String {
    format!("{token:?} stands there twice, as {first} and as {second}")
}

/// A definition as bytes, and read.
pub(crate) fn parse(value: &Value, origin: &str) -> Result<(Vec<u8>, tokenizers::Tokenizer), Error> {
    // A map of strings, numbers and lists: it always serializes.
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::Definition { origin: origin.to_owned(), reason: error.to_string() })?;
    let inner = crate::tokenizer::parse_definition(&bytes, origin)?;
    Ok((bytes, inner))
}

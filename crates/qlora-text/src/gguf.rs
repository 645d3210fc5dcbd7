//! The tokenizer that a GGUF file carries in its metadata.

use crate::Error;
use crate::pretrained::Templates;
use crate::tokenizer::{Parts, Tokenizer, parse_definition};
use qlora_gguf::Metadata;
use serde_json::{Map, Value, json};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// How a byte-level tokenizer splits text before merging, for one value of `tokenizer.ggml.pre`.
struct PreTokenizer {
    names: &'static [&'static str],
    split: Split,
    normalize_nfc: bool,
    /// Whether a piece that is a token as a whole is taken without merging.
    ignore_merges: bool,
    /// What holds when `tokenizer.ggml.add_bos_token` is absent.
    adds_bos: bool,
}

enum Split {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    DigitsThenGpt2,
    /// A pattern of the model's own.
    Pattern(&'static str),
}

const PRE_TOKENIZERS: [PreTokenizer; 4] = [
    PreTokenizer {
        names: &["gpt-2"],
        split: Split::Gpt2,
        normalize_nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["smollm"],
        split: Split::DigitsThenGpt2,
        normalize_nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Split::Pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        normalize_nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["qwen2"],
        split: Split::Pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        normalize_nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
];

impl Split {
    fn to_json(&self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let first = match self {
            Self::Gpt2 => return byte_level(true),
            Self::DigitsThenGpt2 => json!({"type": "Digits", "individual_digits": true}),
            Self::Pattern(pattern) => json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
            }),
        };
        let second = byte_level(matches!(self, Self::DigitsThenGpt2));
        json!({"type": "Sequence", "pretokenizers": [first, second]})
    }
}

/// The kinds of `tokenizer.ggml.token_type` that are not ordinary text.
mod token_type {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
}

impl Tokenizer {
    /// Reads the tokenizer and the chat template of a GGUF file.
    ///
    /// Byte-level BPE (`gpt2`) with the splitting rules `gpt-2`, `smollm`, `llama-bpe` and `qwen2`. The
    /// result can be [saved](Self::save) as a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other tokenizer, by name; [`Error::Gguf`] and [`Error::Metadata`] when a
    /// key is missing or wrong.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, Error> {
        let model = metadata.string(MODEL)?;
        if model != "gpt2" {
            return Err(Error::Unsupported {
                key: MODEL,
                found: model.to_owned(),
                supported: "gpt2".to_owned(),
            });
        }
        let pre = find_pre_tokenizer(metadata.opt_string(PRE)?)?;
        let tokens = metadata.strings(TOKENS)?;

        let id = |key: &'static str| -> Result<Option<u32>, Error> {
            match metadata.opt_u32(key)? {
                Some(id) if id as usize >= tokens.len() => Err(Error::Metadata {
                    key,
                    reason: format!("{id} is no token: there are {}", tokens.len()),
                }),
                id => Ok(id),
            }
        };
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let pad = id("tokenizer.ggml.padding_token_id")?;
        let unknown = id("tokenizer.ggml.unknown_token_id")?;
        let mut eos: Vec<u32> = Vec::new();
        for key in
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
        {
            eos.extend(id(key)?.filter(|id| !eos.contains(id)));
        }
        let adds_bos =
            metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pre.adds_bos) && bos.is_some();

        let text = |id: u32| tokens[id as usize].as_str();
        let definition = definition(metadata, pre, tokens, bos.filter(|_| adds_bos))?;
        // A map of strings, numbers and lists: it always serializes.
        let bytes = serde_json::to_vec(&definition)
            .map_err(|error| Error::Definition { origin: ORIGIN.to_owned(), reason: error.to_string() })?;
        let inner = parse_definition(&bytes, ORIGIN)?;

        let mut parts = Parts::new(bytes, ORIGIN.to_owned());
        let named = [
            ("bos_token", bos),
            ("eos_token", eos.first().copied()),
            ("unk_token", unknown),
            ("pad_token", pad),
        ];
        parts.config = named
            .into_iter()
            .filter_map(|(key, id)| Some((key.to_owned(), text(id?).into())))
            .chain([
                ("add_bos_token".to_owned(), adds_bos.into()),
                ("clean_up_tokenization_spaces".to_owned(), false.into()),
                ("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into()),
            ])
            .collect();
        parts.templates =
            metadata.opt_string("tokenizer.chat_template")?.map(Templates::single).unwrap_or_default();
        (parts.bos, parts.eos, parts.pad, parts.adds_bos) = (bos, eos, pad, Some(adds_bos));
        Self::from_parts(inner, parts)
    }
}

const ORIGIN: &str = "GGUF metadata";

fn find_pre_tokenizer(name: Option<&str>) -> Result<&'static PreTokenizer, Error> {
    PRE_TOKENIZERS.iter().find(|pre| name.is_some_and(|name| pre.names.contains(&name))).ok_or_else(|| {
        let supported: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        Error::Unsupported {
            key: PRE,
            found: name.unwrap_or("(absent)").to_owned(),
            supported: supported.join(", "),
        }
    })
}

/// The `tokenizer.json` that means the same.
fn definition(
    metadata: &Metadata,
    pre: &PreTokenizer,
    tokens: &[String],
    leading_bos: Option<u32>,
) -> Result<Value, Error> {
    let mut vocabulary = Map::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = vocabulary.insert(token.clone(), id.into()) {
            return Err(Error::Metadata {
                key: TOKENS,
                reason: format!("{token:?} stands there twice, as {first} and as {id}"),
            });
        }
    }
    let merges = metadata.strings(MERGES)?;
    let merges =
        merges.iter().enumerate().map(|(i, merge)| split_merge(merge).ok_or_else(|| wrong_merge(i, merge)));
    let merges: Vec<Value> =
        merges.map(|pair| pair.map(|(left, right)| json!([left, right]))).collect::<Result<_, _>>()?;

    let types = metadata.opt_i32s(TYPES)?.unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(Error::Metadata {
            key: TYPES,
            reason: format!("{} types for {} tokens", types.len(), tokens.len()),
        });
    }
    let added: Vec<Value> = types
        .iter()
        .zip(tokens)
        .enumerate()
        .filter(|(_, (kind, _))| {
            matches!(**kind, token_type::UNKNOWN | token_type::CONTROL | token_type::USER_DEFINED)
        })
        .map(|(id, (kind, token))| {
            json!({
                "id": id, "content": token, "special": *kind != token_type::USER_DEFINED,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
            })
        })
        .collect();

    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": pre.normalize_nfc.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre.split.to_json(),
        "post_processor": leading_bos.map(|bos| bos_processor(bos, &tokens[bos as usize])),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary,
            "merges": merges,
        },
    }))
}

/// Two tokens with a space between them; the first may itself begin with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge[first..].find(' ')?;
    Some((&merge[..space], &merge[space + 1..]))
}

fn wrong_merge(index: usize, merge: &str) -> Error {
    Error::Metadata { key: MERGES, reason: format!("number {index} is {merge:?}, not two tokens") }
}

/// Puts the beginning token in front where a caller of another program asks for special tokens.
fn bos_processor(id: u32, token: &str) -> Value {
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

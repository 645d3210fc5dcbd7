//! SentencePiece's `tokenizer.model`, for repositories that have no `tokenizer.json`.

use crate::Error;
use crate::special_tokens::set_added;
use crate::tokenizer::{Parts, Tokenizer};
use crate::vocabulary::{SPACE_MARK, SpacePrefix, Vocabulary, parse, token_type, twice};
use serde_json::Value;
use std::path::Path;

/// `TrainerSpec.model_type` of BPE.
const BPE: u64 = 2;

/// What of a `ModelProto` matters here. Field numbers are those of `sentencepiece_model.proto`.
struct Model {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    model_type: u64,
    byte_fallback: bool,
    add_dummy_prefix: bool,
    /// Unknown, beginning, end, padding, in `tokenizer_config.json`'s names.
    special: [(&'static str, i64); 4],
}

/// A `tokenizer.model`: its definition, and the special tokens that it names.
pub(crate) struct SentencePiece {
    pub(crate) definition: Vec<u8>,
    pub(crate) inner: tokenizers::Tokenizer,
    /// By the keys of `tokenizer_config.json`.
    pub(crate) special: Vec<(&'static str, String)>,
}

/// What `tokenizer_config.json` and `added_tokens.json` say about a `tokenizer.model`.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) adds_bos: bool,
    /// Whether a space is put in front; without it the model's own word counts.
    pub(crate) add_prefix_space: Option<bool>,
    /// Whether that space stands in front of the whole text only.
    pub(crate) prefix_first: bool,
    /// Entries of `added_tokens`, ordered by id.
    pub(crate) added: Vec<Value>,
}

/// Reads a `tokenizer.model` as `transformers` converts it.
pub(crate) fn read(path: &Path, bytes: &[u8], settings: &Settings) -> Result<SentencePiece, Error> {
    let wrong = |reason: String| Error::SentencePiece { path: path.to_owned(), reason };
    let model = Model::parse(bytes).map_err(|reason| wrong(reason.to_owned()))?;
    if model.model_type != BPE {
        return Err(wrong("it is no BPE model; take a repository with a tokenizer.json".to_owned()));
    }
    if !model.byte_fallback {
        return Err(wrong(
            "it does not fall back to bytes; take a repository with a tokenizer.json".to_owned(),
        ));
    }
    let id = |key: &str| -> Option<usize> {
        let (_, id) = model.special.iter().find(|(name, _)| *name == key)?;
        usize::try_from(*id).ok().filter(|&id| id < model.tokens.len())
    };
    let vocabulary = Vocabulary { tokens: &model.tokens, types: &model.types, strips_right: false };
    let ids = vocabulary.ids().map_err(|pair| wrong(twice(&pair)))?;
    let as_u32 = |id: usize| u32::try_from(id).ok();
    let bos = id("bos_token").filter(|_| settings.adds_bos).and_then(as_u32);
    let unknown = id("unk_token").and_then(as_u32);
    let prefix = match settings.add_prefix_space.unwrap_or(model.add_dummy_prefix) {
        false => SpacePrefix::Never,
        true if settings.prefix_first => SpacePrefix::First,
        true => SpacePrefix::Each,
    };
    let mut definition = vocabulary.sentencepiece(ids, &model.scores, unknown, prefix, bos);
    for entry in &settings.added {
        set_added(&mut definition["added_tokens"], entry);
    }
    let (definition, inner) = parse(&definition, &path.display().to_string())?;
    for entry in &settings.added {
        let (token, id) = (entry["content"].as_str().unwrap_or_default(), entry["id"].as_u64());
        if inner.token_to_id(token).map(u64::from) != id {
            return Err(wrong(format!("the added token {token:?} cannot have the id {}", entry["id"])));
        }
    }
    let special = model.special.iter().filter_map(|(key, _)| Some((*key, model.tokens[id(key)?].clone())));
    Ok(SentencePiece { definition, inner, special: special.collect() })
}

impl Tokenizer {
    /// Reads one `tokenizer.model` of SentencePiece (BPE with byte fallback: Llama 2, Mistral, Gemma), with the
    /// special tokens that it names and no chat template. [`from_directory`](Self::from_directory) does so too
    /// where there is no `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::SentencePiece`] when it is damaged or of another kind.
    pub fn from_sentencepiece(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let model = read(path, &bytes, &Settings { adds_bos: true, ..Settings::default() })?;
        let id = |key: &str| {
            let (_, token) = model.special.iter().find(|(name, _)| *name == key)?;
            model.inner.token_to_id(token)
        };
        let mut parts = Parts::new(model.definition, path.display().to_string());
        (parts.bos, parts.eos, parts.pad) =
            (id("bos_token"), id("eos_token").into_iter().collect(), id("pad_token"));
        parts.config = model
            .special
            .iter()
            .map(|(key, token)| ((*key).to_owned(), Value::from(token.as_str())))
            .collect();
        Self::from_parts(model.inner, parts)
    }
}

impl Model {
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut model = Self {
            tokens: Vec::new(),
            scores: Vec::new(),
            types: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            add_dummy_prefix: true,
            special: [("unk_token", 0), ("bos_token", 1), ("eos_token", 2), ("pad_token", -1)],
        };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => model.add_piece(piece)?,
                (2, Wire::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (3, Wire::Varint(flag)) = field? {
                            model.add_dummy_prefix = flag != 0;
                        }
                    }
                }
                _ => {}
            }
        }
        if model.tokens.is_empty() { Err("it has no pieces") } else { Ok(model) }
    }

    fn add_piece(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let (mut token, mut score, mut kind) = (None, 0.0, token_type::NORMAL);
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => {
                    token = Some(std::str::from_utf8(text).map_err(|_| "a piece is not UTF-8")?);
                }
                (2, Wire::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Wire::Varint(number)) => {
                    kind = i32::try_from(number)
                        .ok()
                        .filter(|kind| (1..=6).contains(kind))
                        .ok_or("a piece has an unknown type")?;
                }
                _ => {}
            }
        }
        let token = token.ok_or("a piece has no text")?;
        // User-defined pieces are looked for in the text itself, where spaces are spaces.
        let is_user_defined = kind == token_type::USER_DEFINED;
        self.tokens.push(if is_user_defined { token.replace(SPACE_MARK, " ") } else { token.to_owned() });
        self.scores.push(score);
        self.types.push(kind);
        Ok(())
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for field in Fields(bytes) {
            let (number, Wire::Varint(value)) = field? else { continue };
            match number {
                3 => self.model_type = value,
                35 => self.byte_fallback = value != 0,
                // Negative numbers are written as 64 bits in two's complement.
                40..=43 => self.special[number as usize - 40].1 = value as i64,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A value in protobuf's wire format.
enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a protobuf message, by number.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Other)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or("it ends in the middle of a field, or is no protobuf; fetch it again"))
    }
}

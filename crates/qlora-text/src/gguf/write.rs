use super::pre_tokenizer::PreTokenizer;
use super::{
    ADD_BOS, ADD_EOS, ADD_SPACE_PREFIX, BOS, CHAT_TEMPLATE, CHAT_TEMPLATES, EOM, EOS, EOT, MERGES, MODEL,
    PADDING, PRE, SCORES, TOKENS, TYPES, UNKNOWN,
};
use crate::Error;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{SPACE_MARK, token_type};
use qlora_gguf::Metadata;
use serde_json::Value;
use std::collections::HashMap;

/// The tokens of a definition, by id.
struct Table {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl Tokenizer {
    /// The `tokenizer.*` keys of a GGUF file of this tokenizer, for a model whose embedding has `rows` rows: rows
    /// without a token get unused ones. `pre` names the splitting rules (`tokenizer.ggml.pre`) of a byte-level
    /// tokenizer; without it the name is found by comparing the rules with those of all names known here.
    ///
    /// SentencePiece scores are minus the rank of a token's first merge, which gives the merges back.
    ///
    /// # Errors
    /// [`Error::NotInGguf`] when llama.cpp has no such tokenizer, as far as known, or `rows` is less than
    /// [`vocab_size`](Self::vocab_size).
    pub fn to_gguf_metadata(&self, rows: usize, pre: Option<&str>) -> Result<Metadata, Error> {
        let definition: Value = serde_json::from_slice(self.definition())
            .map_err(|error| self.not_in_gguf(format!("its definition is not valid JSON ({error})")))?;
        let model = &definition["model"];
        if model["type"] != "BPE" && !(model["type"].is_null() && model["merges"].is_array()) {
            let found = model["type"].as_str().unwrap_or("absent");
            return Err(self.not_in_gguf(format!("its model is {found}, not BPE")));
        }
        let merges =
            merges(model).ok_or_else(|| self.not_in_gguf("its merges are not pairs of tokens".into()))?;
        let mut table = self.table(&definition, rows)?;

        let mut metadata = Metadata::new();
        if model["byte_fallback"] == true {
            let space_prefix =
                sentencepiece_prefix(&definition).map_err(|reason| self.not_in_gguf(reason))?;
            table.mark_sentencepiece();
            metadata.insert(MODEL, "llama");
            metadata.insert(PRE, "default");
            metadata.insert(SCORES, scores(&table, &merges));
            metadata.insert(ADD_SPACE_PREFIX, space_prefix);
        } else {
            let name = match pre {
                Some(name) if PreTokenizer::by_name(name).is_some() => name,
                Some(name) => {
                    return Err(self.not_in_gguf(format!(
                        "{name:?} is no known pre-tokenizer, the known are {}",
                        PreTokenizer::names()
                    )));
                }
                None => {
                    let found = PreTokenizer::by_structure(&definition).map_err(|reason| {
                        self.not_in_gguf(format!(
                            "{reason}, which none of the known pre-tokenizers does: name the one that is meant \
                             ({})",
                            PreTokenizer::names()
                        ))
                    })?;
                    found.names[0]
                }
            };
            metadata.insert(MODEL, "gpt2");
            metadata.insert(PRE, name);
            let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
            metadata.insert(MERGES, merges);
        }
        metadata.insert(TOKENS, table.tokens);
        metadata.insert(TYPES, table.types);
        self.insert_special(&mut metadata);
        Ok(metadata)
    }

    fn not_in_gguf(&self, reason: String) -> Error {
        Error::NotInGguf { origin: self.origin().to_owned(), reason }
    }

    fn table(&self, definition: &Value, rows: usize) -> Result<Table, Error> {
        if rows < self.vocab_size() {
            let reason = format!("it has {} tokens, the model {rows} rows", self.vocab_size());
            return Err(self.not_in_gguf(reason));
        }
        // `rows` is the caller's, so that a file's largest id decides nothing about memory.
        let mut tokens: Vec<String> = vec![String::new(); rows];
        let mut types = vec![token_type::UNUSED; rows];
        let vocab = definition["model"]["vocab"].as_object().into_iter().flatten();
        for (token, id) in vocab {
            if let Some(id) = id.as_u64().map(|id| id as usize).filter(|&id| id < rows) {
                (tokens[id], types[id]) = (token.clone(), token_type::NORMAL);
            }
        }
        for added in definition["added_tokens"].as_array().into_iter().flatten() {
            let (Some(token), special) = (added["content"].as_str(), added["special"] == true) else {
                continue;
            };
            if let Some(id) = self.id(token).map(|id| id as usize).filter(|&id| id < rows) {
                let kind = if special { token_type::CONTROL } else { token_type::USER_DEFINED };
                (tokens[id], types[id]) = (token.to_owned(), kind);
            }
        }
        for (id, token) in tokens.iter_mut().enumerate() {
            if types[id] == token_type::UNUSED {
                *token = format!("[PAD{id}]");
            }
        }
        if let Some(unknown) = definition["model"]["unk_token"].as_str().and_then(|token| self.id(token)) {
            types[unknown as usize] = token_type::UNKNOWN;
        }
        Ok(Table { tokens, types })
    }

    fn insert_special(&self, metadata: &mut Metadata) {
        let config = |key: &str| self.config().get(key).and_then(crate::pretrained::token_text);
        let ids = [
            (BOS, self.bos()),
            (UNKNOWN, config("unk_token").and_then(|token| self.id(token))),
            (PADDING, self.pad()),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                metadata.insert(key, id);
            }
        }
        metadata.insert(ADD_BOS, self.adds_bos());
        metadata.insert(ADD_EOS, self.adds_eos());
        self.insert_chat(metadata);
    }

    /// What chatting needs of the `tokenizer.*` keys: the chat templates and the tokens that end generation.
    #[must_use]
    pub fn chat_gguf_metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        self.insert_chat(&mut metadata);
        metadata
    }

    fn insert_chat(&self, metadata: &mut Metadata) {
        if let Some(&id) = self.eos().first() {
            metadata.insert(EOS, id);
        }
        // The further ends, by the part that they play in the formats in use.
        for &id in self.eos().iter().skip(1) {
            let key = if self.token(id).as_deref() == Some("<|eom_id|>") { EOM } else { EOT };
            if !metadata.contains(key) {
                metadata.insert(key, id);
            }
        }
        let mut names = Vec::new();
        for (name, source) in self.chat_templates().iter() {
            if name == "default" {
                metadata.insert(CHAT_TEMPLATE, source);
            } else {
                metadata.insert(format!("{CHAT_TEMPLATE}.{name}"), source);
                names.push(name.to_owned());
            }
        }
        if !names.is_empty() {
            metadata.insert(CHAT_TEMPLATES, names);
        }
    }
}

impl Table {
    /// The types that only SentencePiece has, and its user-defined spaces, which GGUF holds as spaces.
    fn mark_sentencepiece(&mut self) {
        for (token, kind) in self.tokens.iter_mut().zip(&mut self.types) {
            let is_byte = token.len() == 6
                && token.starts_with("<0x")
                && token.ends_with('>')
                && u8::from_str_radix(&token[3..5], 16).is_ok();
            match *kind {
                token_type::NORMAL if is_byte => *kind = token_type::BYTE,
                token_type::USER_DEFINED => *token = token.replace(SPACE_MARK, " "),
                _ => {}
            }
        }
    }
}

/// `merges` of a BPE model: pairs, or in older files two tokens with a space between them.
fn merges(model: &Value) -> Option<Vec<(&str, &str)>> {
    model["merges"].as_array()?.iter().map(split_pair).collect()
}

fn split_pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) => match &pair[..] {
            [left, right] => Some((left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

/// Scores that order the tokens as the merges do: minus the rank of the first merge that makes a token.
fn scores(table: &Table, merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    // Ranks are made dense, so that each is exact as f32.
    let mut order: Vec<usize> = ranks.values().copied().collect();
    order.sort_unstable();
    let score = |(token, kind): (&String, &i32)| match (ranks.get(token), *kind) {
        (_, token_type::CONTROL | token_type::UNKNOWN | token_type::USER_DEFINED | token_type::UNUSED) => {
            -1000.0
        }
        (Some(rank), _) => -(order.partition_point(|other| other < rank) as f32) - 1.0,
        (None, _) => 0.0,
    };
    table.tokens.iter().zip(&table.types).map(score).collect()
}

/// Whether a SentencePiece tokenizer puts a space in front; fails when it is none that llama.cpp knows.
fn sentencepiece_prefix(definition: &Value) -> Result<bool, String> {
    let parts = |key: &str, list: &str| -> Vec<Value> {
        match (&definition[key], definition[key][list].as_array()) {
            (_, Some(parts)) => parts.clone(),
            (Value::Null, None) => Vec::new(),
            (one, None) => vec![one.clone()],
        }
    };
    let mut prefix = false;
    let mut marks = false;
    for part in parts("normalizer", "normalizers") {
        match part["type"].as_str() {
            Some("Prepend") if part["prepend"] == SPACE_MARK => prefix = true,
            Some("Replace") if part["pattern"]["String"] == " " && part["content"] == SPACE_MARK => {
                marks = true
            }
            other => return Err(format!("its normalizer has a part of type {}", other.unwrap_or("absent"))),
        }
    }
    for part in parts("pre_tokenizer", "pretokenizers") {
        match part["type"].as_str() {
            Some("Metaspace") if part["split"] == false && part["replacement"] == SPACE_MARK => {
                marks = true;
                // With `first`, llama.cpp still puts a space behind special tokens.
                prefix = part["prepend_scheme"] != "never";
            }
            // Finds no space: all are marked by then.
            Some("Split") if marks && part["pattern"]["String"] == " " => {}
            other => {
                return Err(format!("its pre-tokenizer has a part of type {}", other.unwrap_or("absent")));
            }
        }
    }
    if marks { Ok(prefix) } else { Err("it falls back to bytes, but does not mark spaces".to_owned()) }
}

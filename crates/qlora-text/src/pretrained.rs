//! A model directory's tokenizer, as `transformers` lays it out.

use crate::tokenizer::{Parts, SPECIAL_KEYS, Tokenizer, parse_definition};
use crate::{ChatTemplates, Error, sentencepiece};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The text of a special token: a string, or an object with `content`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

impl Tokenizer {
    /// Reads a model directory: `tokenizer.json`, or without one SentencePiece's `tokenizer.model`; where present `tokenizer_config.json`,
    /// `special_tokens_map.json`, the stop tokens of `generation_config.json` and `config.json`, and the chat
    /// template from `chat_template.jinja` and `additional_chat_templates/`, `chat_template.json`, or
    /// `tokenizer_config.json`, the first found.
    ///
    /// # Errors
    /// When a file cannot be read, is damaged, or names a token that the vocabulary lacks.
    pub fn from_directory(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let directory = directory.as_ref();
        let config_path = directory.join("tokenizer_config.json");
        let mut config = read_object(&config_path)?.unwrap_or_default();
        if let Some(map) = read_object(&directory.join("special_tokens_map.json"))? {
            for key in SPECIAL_KEYS {
                if let (None | Some(Value::Null), Some(token)) = (config.get(key), map.get(key)) {
                    config.insert(key.to_owned(), token.clone());
                }
            }
        }
        let templates = ChatTemplates::read(directory, &config_path, config.get("chat_template"))?;
        config.remove("chat_template");

        let (definition, inner) = read_definition(directory, &mut config)?;
        let mut parts = Parts::new(definition, directory.display().to_string());
        (parts.config, parts.templates) = (config, templates);

        let special = |key: &str| -> Result<Option<u32>, Error> {
            let Some(token) = parts.config.get(key).and_then(token_text) else { return Ok(None) };
            match inner.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                // A padding token that is not there is of no consequence: nothing pads.
                None if key == "pad_token" => Ok(None),
                None => Err(Error::NotInVocabulary {
                    origin: config_path.display().to_string(),
                    key: key.to_owned(),
                    token: token.to_owned(),
                }),
            }
        };
        parts.bos = special("bos_token")?;
        parts.pad = special("pad_token")?;
        parts.eos = special("eos_token")?.into_iter().collect();
        for name in ["generation_config.json", "config.json"] {
            let path = directory.join(name);
            let Some(object) = read_object(&path)? else { continue };
            for id in stop_ids(&path, &object)? {
                if !parts.eos.contains(&id) {
                    parts.eos.push(id);
                }
            }
        }
        parts.adds_bos =
            parts.config.get("add_bos_token").and_then(Value::as_bool).filter(|_| parts.bos.is_some());
        Self::from_parts(inner, parts)
    }
}

/// `tokenizer.json`, or what `tokenizer.model` means; the latter also fills in special tokens that `config` lacks.
fn read_definition(
    directory: &Path,
    config: &mut Map<String, Value>,
) -> Result<(Vec<u8>, tokenizers::Tokenizer), Error> {
    let path = directory.join("tokenizer.json");
    let missing = match fs::read(&path) {
        Ok(definition) => {
            let inner = parse_definition(&definition, &path.display().to_string())?;
            return Ok((definition, inner));
        }
        Err(source) => source,
    };
    let model_path = directory.join("tokenizer.model");
    if missing.kind() != ErrorKind::NotFound || !model_path.is_file() {
        return Err(Error::Read { path, source: missing });
    }
    let bytes = fs::read(&model_path).map_err(|source| Error::Read { path: model_path.clone(), source })?;
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let settings = sentencepiece::Settings {
        adds_bos: flag("add_bos_token").unwrap_or(true),
        add_prefix_space: flag("add_prefix_space"),
        prefix_first: flag("legacy") == Some(false),
        added: added_tokens(directory, config)?,
    };
    let model = sentencepiece::read(&model_path, &bytes, &settings)?;
    for (key, token) in model.special {
        if config.get(key).is_none_or(Value::is_null) {
            config.insert(key.to_owned(), token.into());
        }
    }
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    Ok((model.definition, model.inner))
}

/// `added_tokens` as `tokenizer.json` would hold them, by id, from where older repositories keep them.
fn added_tokens(directory: &Path, config: &Map<String, Value>) -> Result<Vec<Value>, Error> {
    let entry = |id: u64, content: &str, flags: &Value| {
        let flag = |key: &str, absent: bool| flags.get(key).and_then(Value::as_bool).unwrap_or(absent);
        json!({
            "id": id, "content": content, "special": flag("special", true), "single_word": flag("single_word", false),
            "lstrip": flag("lstrip", false), "rstrip": flag("rstrip", false), "normalized": flag("normalized", false)
        })
    };
    let mut tokens = BTreeMap::new();
    if let Some(map) = read_object(&directory.join("added_tokens.json"))? {
        for (content, id) in &map {
            let id = id.as_u64().ok_or_else(|| Error::Key {
                path: directory.join("added_tokens.json"),
                key: content.clone(),
                expected: "a token id",
            })?;
            tokens.insert(id, entry(id, content, &Value::Null));
        }
    }
    for (id, flags) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let content = flags.get("content").and_then(Value::as_str);
        let (Ok(id), Some(content)) = (id.parse::<u64>(), content) else {
            return Err(Error::Key {
                path: directory.join("tokenizer_config.json"),
                key: "added_tokens_decoder".to_owned(),
                expected: "objects with `content` by id",
            });
        };
        tokens.insert(id, entry(id, content, flags));
    }
    Ok(tokens.into_values().filter(|entry| entry["content"] != "").collect())
}

fn stop_ids(path: &Path, object: &Map<String, Value>) -> Result<Vec<u32>, Error> {
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| Error::Key {
            path: path.to_owned(),
            key: "eos_token_id".to_owned(),
            expected: "a token id or a list of token ids",
        })
    };
    match object.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// `None` when the file does not exist.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let value =
        serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(Some(value))
}

//! What of a `tokenizer.json` the fast path needs to know.

use super::splitting::{Pass, Rules};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// The parts of a definition; whatever else stands there is of no consequence for ids.
#[derive(Deserialize)]
pub(super) struct Definition {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    pub(super) model: Model,
}

#[derive(Deserialize)]
pub(super) struct Model {
    r#type: String,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) ignore_merges: Option<bool>,
    pub(super) vocab: HashMap<String, u32>,
    merges: Pairs,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pairs {
    Lists(Vec<(String, String)>),
    Texts(Vec<String>),
}

impl Model {
    /// Pairs of tokens, the first to be merged first; `None` when one is no pair.
    pub(super) fn merges(&self) -> Option<Vec<(&str, &str)>> {
        match &self.merges {
            Pairs::Lists(list) => {
                Some(list.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect())
            }
            Pairs::Texts(list) => list
                .iter()
                .map(|text| text.split_once(' ').filter(|(_, right)| !right.contains(' ')))
                .collect(),
        }
    }
}

/// What is done to a text before it is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Normalization {
    None,
    Nfc,
}

impl Definition {
    /// Whether the model is plain byte-pair encoding.
    pub(super) fn is_plain(&self) -> bool {
        let Model { r#type, dropout, continuing_subword_prefix, end_of_word_suffix, .. } = &self.model;
        let absent = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        r#type == "BPE"
            && dropout.is_none_or(|dropout| dropout == 0.0)
            && absent(continuing_subword_prefix)
            && absent(end_of_word_suffix)
    }

    pub(super) fn normalization(&self) -> Option<Normalization> {
        normalization(&self.normalizer)
    }

    /// How text is split, when that is known.
    pub(super) fn rules(&self) -> Option<Rules> {
        let mut passes = Vec::new();
        let byte_level = collect(&self.pre_tokenizer, &mut passes)?;
        Rules::of(&passes).filter(|_| byte_level)
    }

    pub(super) fn decodes_bytes(&self) -> bool {
        self.decoder["type"] == "ByteLevel"
    }
}

fn normalization(value: &Value) -> Option<Normalization> {
    if value.is_null() {
        return Some(Normalization::None);
    }
    match (value["type"].as_str()?, value["normalizers"].as_array().map(Vec::as_slice)) {
        ("NFC", _) => Some(Normalization::Nfc),
        ("Sequence", Some([])) => Some(Normalization::None),
        ("Sequence", Some([one])) => normalization(one),
        _ => None,
    }
}

/// The passes of a `pre_tokenizer`, and whether its last writes bytes as characters.
fn collect(value: &Value, passes: &mut Vec<Pass>) -> Option<bool> {
    match value["type"].as_str()? {
        "Sequence" => {
            let mut byte_level = false;
            for part in value["pretokenizers"].as_array()? {
                // What comes after would see other characters.
                if byte_level {
                    return None;
                }
                byte_level = collect(part, passes)?;
            }
            Some(byte_level)
        }
        "ByteLevel" if value["add_prefix_space"] == false => {
            if value["use_regex"] != false {
                passes.push(Pass::byte_level());
            }
            Some(true)
        }
        "Digits" if value["individual_digits"] == true => {
            passes.push(Pass::Digits);
            Some(false)
        }
        "Split" => {
            let isolated = value["behavior"] == "Isolated" && value["invert"] != true;
            // What does not match is taken away: nothing, as the known patterns match everything.
            let inverted = value["behavior"] == "Removed" && value["invert"] == true;
            let pattern = value["pattern"]["Regex"].as_str()?;
            passes.push(Pass::Pattern(pattern.to_owned()));
            (isolated || inverted).then_some(false)
        }
        _ => None,
    }
}

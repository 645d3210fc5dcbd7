//! Special tokens that a model did not come with.

use crate::Error;
use crate::pretrained::token_text;
use crate::tokenizer::{Tokenizer, parse_definition};
use serde_json::{Value, json};

impl Tokenizer {
    /// Makes special (control) tokens of texts, such as a new turn marker, and gives their ids. A text that is a
    /// token already keeps its id and becomes special; the others get the ids from
    /// [`vocab_size`](Self::vocab_size) on, in order: the model's embedding must have rows for them, and they
    /// mean nothing before they are trained.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] for an empty text or one of white space. The tokenizer is then as it was.
    pub fn add_special_tokens(&mut self, tokens: &[&str]) -> Result<Vec<u32>, Error> {
        if let Some(token) = tokens.iter().find(|token| token.trim().is_empty()) {
            return Err(Error::SpecialToken {
                token: (*token).to_owned(),
                reason: "it would be found in every text; take a text with letters, such as <|name|>",
            });
        }
        let damaged = |reason: String| Error::Definition { origin: self.origin().to_owned(), reason };
        let mut definition: Value =
            serde_json::from_slice(self.definition()).map_err(|error| damaged(error.to_string()))?;
        let mut config = self.config().clone();
        let mut next = self.vocab_size();
        let mut ids: Vec<u32> = Vec::with_capacity(tokens.len());
        for (at, &token) in tokens.iter().enumerate() {
            if let Some(before) = tokens[..at].iter().position(|&other| other == token) {
                ids.push(ids[before]);
                continue;
            }
            let id = match self.id(token) {
                Some(id) => id,
                None => {
                    next += 1;
                    u32::try_from(next - 1).map_err(|_| damaged("there are no ids left".to_owned()))?
                }
            };
            ids.push(id);
            let entry = json!({
                "id": id, "content": token, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
            });
            // `transformers` lets the configuration's list win over that of tokenizer.json.
            if let Some(Value::Object(list)) = config.get_mut("added_tokens_decoder") {
                let mut entry = entry.clone();
                entry.as_object_mut().expect("made above").remove("id");
                list.insert(id.to_string(), entry);
            }
            if let Value::Array(list) = config.entry("additional_special_tokens").or_insert_with(|| json!([]))
                && !list.iter().any(|old| token_text(old) == Some(token))
            {
                list.push(token.into());
            }
            set_added(&mut definition["added_tokens"], &entry);
        }
        let bytes = serde_json::to_vec(&definition).map_err(|error| damaged(error.to_string()))?;
        let inner = parse_definition(&bytes, self.origin())?;
        if let Some(at) = (0..tokens.len()).find(|&at| inner.token_to_id(tokens[at]) != Some(ids[at])) {
            // The `tokenizers` library numbers new tokens by the size of the vocabulary.
            return Err(damaged(format!("its ids have gaps, so that {:?} has no certain one", tokens[at])));
        }
        let parts = self.parts_with(bytes, config);
        *self = Self::from_parts(inner, parts)?;
        Ok(ids)
    }
}

/// Puts an entry into `added_tokens`, which is ordered by id; an existing one of the same text is replaced.
pub(crate) fn set_added(list: &mut Value, entry: &Value) {
    if !list.is_array() {
        *list = json!([]);
    }
    let Value::Array(list) = list else { return };
    if let Some(old) = list.iter_mut().find(|old| old["content"] == entry["content"]) {
        *old = entry.clone();
        return;
    }
    let at = list.partition_point(|old| old["id"].as_u64() < entry["id"].as_u64());
    list.insert(at, entry.clone());
}

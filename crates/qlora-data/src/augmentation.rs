//! More out of the same rows. Every choice follows from the seed and the row's place, not from the order of
//! threads; the settings are kept in the run's description.

use crate::keyed_hash::{is_within, keyed_hash};
use crate::turns::with_system;
use crate::{Error, Row};
use qlora_text::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is done to conversations before they are tokenized. The default does nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Decides every choice.
    pub seed: u64,
    /// System messages for conversations without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompts: Option<SystemPrompts>,
    /// Groups of phrasings that mean the same: a user's message that begins with one of them gets one of its
    /// group, each equally likely.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paraphrases: Vec<Vec<String>>,
    /// Conversations of several turns out of single ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_turns: Option<JoinTurns>,
}

/// System messages to choose from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemPrompts {
    /// Each equally likely.
    pub prompts: Vec<String>,
    /// The share of conversations that get one, 0 to 1.
    #[serde(default = "all")]
    pub share: f64,
}

fn all() -> f64 {
    1.0
}

/// Joins conversations of one question and one answer, whose system message is the same, in shuffled order.
///
/// Each row is used once; so there are fewer and longer ones. Conversations with tools or with several turns
/// stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTurns {
    /// The most questions of a conversation; from 1 up to it, each equally likely.
    pub max_turns: usize,
    /// Rows among which partners are looked for; what is held in memory.
    #[serde(default = "window")]
    pub window: usize,
}

fn window() -> usize {
    1024
}

impl Augmentation {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Option`] for the first that means nothing.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |option, found: String, expected| Err(Error::Option { option, found, expected });
        if let Some(SystemPrompts { prompts, share }) = &self.system_prompts {
            if prompts.is_empty() {
                return wrong("system_prompts.prompts", "empty".into(), "at least one text");
            }
            if !(0.0..=1.0).contains(share) {
                return wrong("system_prompts.share", share.to_string(), "a number from 0 to 1");
            }
        }
        let phrases = || self.paraphrases.iter().flatten();
        if phrases().any(|phrase| phrase.trim().is_empty()) {
            return wrong("paraphrases", "a blank text".into(), "texts");
        }
        let mut sorted: Vec<&String> = phrases().collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong("paraphrases", format!("{:?} twice", twice[0]), "each phrasing in one group, once");
        }
        match self.join_turns {
            Some(JoinTurns { max_turns: 0 | 1, .. }) => {
                wrong("join_turns.max_turns", "below 2".into(), "at least 2")
            }
            Some(JoinTurns { window: 0, .. }) => wrong("join_turns.window", "0".into(), "at least 1"),
            _ => Ok(()),
        }
    }

    /// Whether rows stay as they are.
    pub(crate) fn changes_rows(&self) -> bool {
        self.system_prompts.is_some() || !self.paraphrases.is_empty()
    }

    /// The row of a place, varied.
    pub(crate) fn vary(&self, row: Row, file: u32, number: usize) -> Row {
        let Row::Conversation { messages, mut trained_from, tools, variables } = row else { return row };
        let mut key = file.to_le_bytes().to_vec();
        key.extend((number as u64).to_le_bytes());
        let mut messages: Vec<Message> = messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| self.paraphrased(message, index, &key))
            .collect();
        if let Some(SystemPrompts { prompts, share }) = &self.system_prompts
            && is_within(keyed_hash(self.seed, "system share", &key), *share)
        {
            let choice = pick(keyed_hash(self.seed, "system", &key), prompts.len());
            let before = messages.len();
            messages = with_system(Some(prompts[choice].clone()), messages);
            trained_from += messages.len() - before;
        }
        Row::Conversation { messages, trained_from, tools, variables }
    }

    fn paraphrased(&self, message: Message, index: usize, key: &[u8]) -> Message {
        let Some(text) = message.text().filter(|_| message.role() == "user") else { return message };
        // The longest phrasing wins, so that one may begin with another.
        let found = self
            .paraphrases
            .iter()
            .flat_map(|group| group.iter().map(move |phrase| (phrase, group)))
            .filter(|(phrase, _)| begins_with(text, phrase))
            .max_by_key(|(phrase, _)| phrase.len());
        let Some((phrase, group)) = found else { return message };
        let key = [key, &(index as u64).to_le_bytes()].concat();
        let choice = &group[pick(keyed_hash(self.seed, "paraphrase", &key), group.len())];
        let content = format!("{choice}{}", &text[phrase.len()..]);
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&message) else { return message };
        fields.insert("content".into(), Value::String(content));
        Message::from_json(index, Value::Object(fields)).unwrap_or(message)
    }
}

/// Whether the text begins with the phrase, as whole words.
fn begins_with(text: &str, phrase: &str) -> bool {
    text.strip_prefix(phrase).is_some_and(|rest| {
        let inside = |c: char| c.is_alphanumeric();
        !(rest.chars().next().is_some_and(inside) && phrase.chars().last().is_some_and(inside))
    })
}

/// A hash as an index below `count`.
pub(crate) fn pick(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// How often the rows of each source stand in an epoch, so that sources have the wanted shares of the rows.
///
/// The source that is scarcest for its share stands once in full and sets the measure: with `oversample` none
/// loses a row (the others repeat), without none repeats (the others lose).
///
/// # Errors
/// [`Error::Option`] when the lists differ in length, a share is not above 0, or a source has no rows.
pub fn repeats_for_shares(shares: &[f64], rows: &[usize], oversample: bool) -> Result<Vec<f64>, Error> {
    let wrong = |found: String, expected| Err(Error::Option { option: "shares", found, expected });
    if shares.len() != rows.len() || shares.is_empty() {
        return wrong(
            format!("{} shares for {} sources", shares.len(), rows.len()),
            "a share for each source",
        );
    }
    if let Some(share) = shares.iter().find(|&&share| !(share > 0.0 && share.is_finite())) {
        return wrong(share.to_string(), "numbers above 0");
    }
    if rows.contains(&0) {
        return wrong("a source without rows".into(), "sources with rows");
    }
    let wanted: Vec<f64> = shares.iter().zip(rows).map(|(share, &rows)| share / rows as f64).collect();
    let measure = wanted.iter().copied().fold(wanted[0], if oversample { f64::min } else { f64::max });
    Ok(wanted.into_iter().map(|repeat| repeat / measure).collect())
}

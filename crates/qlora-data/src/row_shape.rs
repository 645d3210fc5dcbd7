use crate::RowProblem;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// The shapes a row can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RowShape {
    /// `{"messages": [{"role", "content"}, ..]}`, optionally with `tools` and `chat_template_kwargs`.
    Messages,
    /// `{"conversations": [{"from": "human", "value": ..}, ..]}`, optionally with `system` and `tools`.
    #[serde(alias = "share-gpt")]
    Sharegpt,
    /// `{"instruction", "input", "output"}`, optionally with `system` and `history`.
    Alpaca,
    /// `{"prompt", "completion"}`: two strings, or two lists of messages.
    PromptCompletion,
    /// `{"prompt", "chosen", "rejected"}`: strings or lists of messages.
    Preference,
    /// `{"prompt"}` with any other columns, which rewards may use.
    Prompt,
    /// `{"text"}`: a document, all of it trained.
    Text,
    /// `{"input_ids": [..], "labels": [..]}`; without `labels` every token is trained.
    Tokens,
}

impl RowShape {
    /// The name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::Alpaca => "alpaca",
            Self::PromptCompletion => "prompt-completion",
            Self::Preference => "preference",
            Self::Prompt => "prompt",
            Self::Text => "text",
            Self::Tokens => "tokens",
        }
    }

    /// Whether its rows are something to imitate.
    pub(crate) fn is_supervised(self) -> bool {
        !matches!(self, Self::Preference | Self::Prompt)
    }

    /// The shape that the keys of a row tell. A key that holds null counts as absent.
    pub(crate) fn detect(fields: &Map<String, Value>) -> Result<Self, RowProblem> {
        let has = |key: &str| fields.get(key).is_some_and(|value| !value.is_null());
        let candidates = [
            (has("messages"), Self::Messages),
            (has("conversations") || has("conversation"), Self::Sharegpt),
            (has("instruction") && has("output"), Self::Alpaca),
            (has("prompt") && has("completion"), Self::PromptCompletion),
            (has("chosen") && has("rejected"), Self::Preference),
            (has("text"), Self::Text),
            (has("input_ids"), Self::Tokens),
        ];
        let mut found = candidates.into_iter().filter_map(|(present, shape)| present.then_some(shape));
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(RowProblem::AmbiguousShape { first, second }),
            (Some(shape), None) => Ok(shape),
            // Only when nothing else fits: many data sets keep the prompt beside the conversation.
            (None, _) if has("prompt") => Ok(Self::Prompt),
            (None, _) => Err(RowProblem::UnknownShape { keys: fields.keys().cloned().collect() }),
        }
    }
}

impl fmt::Display for RowShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "`messages`",
            Self::Sharegpt => "`conversations`",
            Self::Alpaca => "`instruction` and `output`",
            Self::PromptCompletion => "`prompt` and `completion`",
            Self::Preference => "`chosen` and `rejected`",
            Self::Prompt => "`prompt`",
            Self::Text => "`text`",
            Self::Tokens => "`input_ids`",
        })
    }
}

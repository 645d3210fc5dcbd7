use qlora_text::Message;
use serde_json::{Map, Value};

/// One row, before tokenization.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Row {
    /// A conversation.
    Conversation {
        /// The messages.
        messages: Vec<Message>,
        /// Messages before this index are context: assistant turns among them are not trained.
        trained_from: usize,
        /// Tool definitions, for the chat template.
        tools: Option<Vec<Value>>,
        /// Further variables of the chat template (`chat_template_kwargs`).
        variables: Option<Map<String, Value>>,
    },
    /// Plain text, of which the second part is trained.
    Text {
        /// What is given.
        prompt: String,
        /// What follows.
        completion: String,
    },
    /// Token ids.
    Tokens {
        /// The ids.
        ids: Vec<u32>,
        /// The weight of the loss on predicting each of them.
        weights: Vec<f32>,
    },
}

/// A row of any shape.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// Something to imitate: for supervised fine-tuning.
    Row(Row),
    /// A better and a worse answer.
    Preference(Preference),
    /// Something to answer: for reinforcement learning.
    Prompt(Prompt),
}

/// A better and a worse answer to the same prompt. Plain texts are one message each.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// What is given: may be empty only for plain texts.
    pub prompt: Vec<Message>,
    /// The better continuation.
    pub chosen: Vec<Message>,
    /// The worse one.
    pub rejected: Vec<Message>,
}

/// Something to answer, and what a reward needs to judge the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The conversation so far; a plain text is one message of the user.
    pub messages: Vec<Message>,
    /// Every other column, as it stands in the row.
    pub columns: Map<String, Value>,
}

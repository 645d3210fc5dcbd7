//! Prompts with the columns that rewards read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qlora_data::{Sampler, SamplerState};
use qlora_rl::Task;
use qlora_text::{ChatTemplate, Message, RenderInput, Tokenizer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text, as rewards and reports show it.
    pub text: Arc<str>,
    /// The other columns of its row.
    pub columns: Arc<Map<String, Value>>,
}

/// How rows become prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptOptions {
    /// The longest prompt, in tokens.
    pub max_tokens: usize,
    /// Whether rows that can't be used are left out and counted, and not an error.
    pub skip_bad_rows: bool,
}

/// Prompts to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptSet {
    prompts: Vec<Prompt>,
    /// Lines that were left out, and why.
    skipped: Vec<(usize, String)>,
}

/// Prompts that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The file can't be read.
    #[error("can't read the prompts in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A row can't be used.
    #[error("{}, line {line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// There is no prompt.
    #[error("there is no prompt to train on{}", first.as_ref().map(|f| format!("; the first row was left out: {f}")).unwrap_or_default())]
    Empty {
        /// Why the first row was left out.
        first: Option<String>,
    },
    /// The tokenizer or its chat template can't be used.
    #[error(transparent)]
    Text(#[from] qlora_text::Error),
}

impl PromptSet {
    /// These prompts.
    ///
    /// # Errors
    /// There is none, or one has no tokens.
    pub fn new(prompts: Vec<Prompt>) -> Result<Self, PromptError> {
        if prompts.is_empty() || prompts.iter().any(|prompt| prompt.ids.is_empty()) {
            return Err(PromptError::Empty { first: None });
        }
        Ok(Self { prompts, skipped: Vec::new() })
    }

    /// The rows of a JSONL file, each an object with `prompt`: text, which is taken as it is, or a list of messages,
    /// which the chat template renders up to where the assistant's turn begins (`messages` is the same). `prefill`
    /// is text that the assistant's turn begins with. All other keys are columns that rewards read. Without a
    /// `template` the tokenizer's own is taken.
    ///
    /// # Errors
    /// The file can't be read, a row can't be used (unless such are skipped), or there is none.
    pub fn from_jsonl(
        path: impl AsRef<Path>,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        options: PromptOptions,
    ) -> Result<Self, PromptError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| PromptError::Read { path: path.to_path_buf(), source })?;
        let own = if template.is_none() { tokenizer.chat_template().ok() } else { None };
        let template = template.or(own.as_ref());
        let (mut prompts, mut skipped) = (Vec::new(), Vec::new());
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match row(line, tokenizer, template, options.max_tokens) {
                Ok(prompt) => prompts.push(prompt),
                Err(problem) if options.skip_bad_rows => skipped.push((index + 1, problem)),
                Err(problem) => {
                    return Err(PromptError::Row { path: path.to_path_buf(), line: index + 1, problem });
                }
            }
        }
        if prompts.is_empty() {
            let first = skipped.first().map(|(line, problem)| format!("line {line}: {problem}"));
            return Err(PromptError::Empty { first });
        }
        Ok(Self { prompts, skipped })
    }

    /// Problems of a built-in task, each a user's turn of the chat template after an optional system message.
    ///
    /// # Errors
    /// The chat template can't be used, or `count` is 0.
    pub fn from_task(
        task: Task,
        count: usize,
        seed: u64,
        system: Option<&str>,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let own = if template.is_none() { Some(tokenizer.chat_template()?) } else { None };
        let template = template.or(own.as_ref()).expect("one of the two is there");
        let prompt = |problem: qlora_rl::Problem| {
            let messages: Vec<Message> =
                system.map(Message::system).into_iter().chain([Message::user(&problem.question)]).collect();
            let input =
                RenderInput { messages: &messages, add_generation_prompt: true, ..RenderInput::default() };
            let text = template.render(&input)?.text;
            let ids = tokenizer.encode(&text)?;
            Ok(Prompt { ids, text: text.into(), columns: problem.columns.into() })
        };
        let prompts = task.problems(count, seed).into_iter().map(prompt);
        Self::new(prompts.collect::<Result<_, PromptError>>()?)
    }

    /// The prompts, in the order of the file.
    #[must_use]
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// Lines that were left out, from 1, and why.
    #[must_use]
    pub fn skipped(&self) -> &[(usize, String)] {
        &self.skipped
    }

    /// SHA-256 of tokens and columns.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for prompt in &self.prompts {
            hasher.update((prompt.ids.len() as u64).to_le_bytes());
            prompt.ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
            let columns = Value::Object((*prompt.columns).clone()).to_string();
            hasher.update((columns.len() as u64).to_le_bytes());
            hasher.update(columns);
        }
        format!("{:x}", hasher.finalize())
    }

    /// Which prompts are drawn after `drawn` others.
    pub(crate) fn draw(
        &self,
        drawn: u64,
        count: usize,
        shuffle_seed: Option<u64>,
    ) -> Result<Vec<usize>, qlora_data::Error> {
        let mut sampler = match shuffle_seed {
            Some(seed) => Sampler::shuffled(self.prompts.len(), 1, seed)?,
            None => Sampler::sequential(self.prompts.len(), 1)?,
        };
        let length = self.prompts.len() as u64;
        sampler.restore(SamplerState { epoch: drawn / length, cursor: (drawn % length) as usize })?;
        Ok((0..count).flat_map(|_| sampler.next_batch()).collect())
    }
}

fn row(
    line: &[u8],
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    max_tokens: usize,
) -> Result<Prompt, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("not valid JSON: {error}"))?;
    let Value::Object(mut columns) = value else {
        return Err("expected one JSON object a line".into());
    };
    let prompt = columns
        .remove("prompt")
        .or_else(|| columns.remove("messages"))
        .ok_or("expected `prompt`: text or a list of messages")?;
    let mut text = match prompt {
        Value::String(text) => text,
        Value::Array(list) => {
            let messages = Message::list_from_json(list).map_err(|error| format!("`prompt`: {error}"))?;
            if messages.is_empty() {
                return Err("`prompt`: the list of messages is empty".into());
            }
            let template = template
                .ok_or("`prompt`: messages need a chat template, and this tokenizer has none; give text")?;
            let input =
                RenderInput { messages: &messages, add_generation_prompt: true, ..RenderInput::default() };
            template.render(&input).map_err(|error| error.to_string())?.text
        }
        other => return Err(format!("`prompt`: expected text or a list of messages, found {other}")),
    };
    match columns.get("prefill") {
        None => {}
        Some(Value::String(prefill)) => text.push_str(prefill),
        Some(other) => return Err(format!("`prefill`: expected text, found {other}")),
    }
    let ids = tokenizer.encode(&text).map_err(|error| error.to_string())?;
    if ids.is_empty() {
        return Err("`prompt`: it is empty".into());
    }
    if ids.len() > max_tokens {
        return Err(format!(
            "the prompt has {} tokens, and at most {max_tokens} leave room for a completion; shorten it, or lower \
             grpo.max_completion_length",
            ids.len()
        ));
    }
    Ok(Prompt { ids, text: text.into(), columns: columns.into() })
}

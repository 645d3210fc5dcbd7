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
    /// Whether longer prompts are left out and counted, and not an error.
    pub skip_long_rows: bool,
}

/// Problems of a built-in task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskPrompts {
    /// Which task.
    pub task: Task,
    /// How many problems.
    pub count: usize,
    /// What they are drawn with.
    pub seed: u64,
    /// A system message before the question.
    pub system: Option<String>,
    /// What the assistant's turn begins with; not a part of the completion.
    pub prefill: Option<String>,
}

/// Prompts to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptSet {
    prompts: Vec<Prompt>,
    /// Lines or problems that were left out, and why.
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
    /// A problem of a task can't be used.
    #[error("problem {number} of task {}: {problem}", task.name())]
    Problem {
        /// The task.
        task: Task,
        /// Which problem, from 1.
        number: usize,
        /// What is wrong, and what to do.
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

    /// The rows of a JSONL file, each an object with `prompt`: text, which is taken as it is behind the token that the
    /// model expects before a text, or a list of messages, which the chat template renders up to where the assistant's
    /// turn begins (`messages` is the same). `prefill` is text that the assistant's turn begins with. All other keys are
    /// columns that rewards read. Without a `template` the tokenizer's own is taken.
    ///
    /// # Errors
    /// The file can't be read, a row can't be used or is too long (unless such are skipped), or there is none.
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
        let lines = bytes.split(|byte| *byte == b'\n').zip(1..);
        let rows = lines
            .filter(|(line, _)| !line.iter().all(u8::is_ascii_whitespace))
            .map(|(line, number)| (number, row(line, tokenizer, template)));
        let refuse = |line, problem| PromptError::Row { path: path.to_path_buf(), line, problem };
        Self::select(rows, options, refuse)
    }

    /// Problems of a built-in task, each a user's turn of the chat template.
    ///
    /// # Errors
    /// The chat template can't be used, a problem is too long (unless such are skipped), or there is none.
    pub fn from_task(
        wanted: &TaskPrompts,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        options: PromptOptions,
    ) -> Result<Self, PromptError> {
        let own = if template.is_none() { Some(tokenizer.chat_template()?) } else { None };
        let template = template.or(own.as_ref()).expect("one of the two is there");
        let TaskPrompts { task, count, seed, system, prefill } = wanted;
        let prompt = |problem: qlora_rl::Problem| {
            let system = system.iter().map(Message::system);
            let messages: Vec<Message> = system.chain([Message::user(&problem.question)]).collect();
            let input =
                RenderInput { messages: &messages, add_generation_prompt: true, ..RenderInput::default() };
            let text = template.render(&input)?.text + prefill.as_deref().unwrap_or_default();
            let ids = tokenizer.encode(&text)?;
            Ok(Prompt { ids, text: text.into(), columns: problem.columns.into() })
        };
        let prompts = task.problems(*count, *seed).into_iter().map(prompt);
        let prompts: Vec<Prompt> = prompts.collect::<Result<_, PromptError>>()?;
        let refuse = |number, problem| PromptError::Problem { task: *task, number, problem };
        Self::select((1..).zip(prompts.into_iter().map(Ok)), options, refuse)
    }

    /// The prompts that can be used, of numbered ones.
    fn select(
        found: impl Iterator<Item = (usize, Result<Prompt, String>)>,
        options: PromptOptions,
        refuse: impl Fn(usize, String) -> PromptError,
    ) -> Result<Self, PromptError> {
        let (mut prompts, mut skipped) = (Vec::new(), Vec::new());
        for (number, prompt) in found {
            let (problem, is_skipped) = match prompt {
                Ok(prompt) if prompt.ids.len() <= options.max_tokens => {
                    prompts.push(prompt);
                    continue;
                }
                Ok(prompt) => (too_long(&prompt, options.max_tokens), options.skip_long_rows),
                Err(problem) => (problem, options.skip_bad_rows),
            };
            if !is_skipped {
                return Err(refuse(number, problem));
            }
            skipped.push((number, problem));
        }
        if prompts.is_empty() {
            let first = skipped.first().map(|(number, problem)| format!("number {number}: {problem}"));
            return Err(PromptError::Empty { first });
        }
        Ok(Self { prompts, skipped })
    }

    /// The prompts, in the order of the file.
    #[must_use]
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// Lines, or problems of a task, that were left out, from 1, and why.
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

fn too_long(prompt: &Prompt, max_tokens: usize) -> String {
    format!(
        "the prompt has {} tokens, and at most {max_tokens} leave room for a completion; shorten it, lower \
         grpo.max_completion_length, or leave such prompts out (data.on_long = \"skip\")",
        prompt.ids.len()
    )
}

fn row(line: &[u8], tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Result<Prompt, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("not valid JSON: {error}"))?;
    let Value::Object(mut columns) = value else {
        return Err("expected one JSON object a line".into());
    };
    let prompt = columns
        .remove("prompt")
        .or_else(|| columns.remove("messages"))
        .ok_or("expected `prompt`: text or a list of messages")?;
    let is_plain = prompt.is_string();
    let mut text = match prompt {
        Value::String(text) => text,
        Value::Array(list) => rendered(list, template)?,
        other => return Err(format!("`prompt`: expected text or a list of messages, found {other}")),
    };
    match columns.get("prefill") {
        None => {}
        Some(Value::String(prefill)) => text.push_str(prefill),
        Some(other) => return Err(format!("`prefill`: expected text, found {other}")),
    }
    // A template writes the token that begins a text itself.
    let ids = if is_plain { tokenizer.encode_with_bos(&text) } else { tokenizer.encode(&text) };
    let ids = ids.map_err(|error| error.to_string())?;
    if text.is_empty() || ids.is_empty() {
        return Err("`prompt`: it is empty".into());
    }
    Ok(Prompt { ids, text: text.into(), columns: columns.into() })
}

/// Messages, up to where the assistant's turn begins.
fn rendered(list: Vec<Value>, template: Option<&ChatTemplate>) -> Result<String, String> {
    let messages = Message::list_from_json(list).map_err(|error| format!("`prompt`: {error}"))?;
    if messages.is_empty() {
        return Err("`prompt`: the list of messages is empty".into());
    }
    let template =
        template.ok_or("`prompt`: messages need a chat template, and this tokenizer has none; give text")?;
    let input = RenderInput { messages: &messages, add_generation_prompt: true, ..RenderInput::default() };
    Ok(template.render(&input).map_err(|error| error.to_string())?.text)
}

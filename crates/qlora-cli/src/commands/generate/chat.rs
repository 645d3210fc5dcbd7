//! A conversation in the terminal.
//!
//! Answers go to stdout; the prompt sign, timings and replies to commands to stderr, so that stdout holds the answers
//! alone.

use std::io::{self, BufRead, IsTerminal as _};

use qlora_core::kernels::KernelBackend;
use qlora_core::models::ModelError;
use qlora_core::text::{ChatTemplate, Message};

use super::speaker::Speaker;
use crate::failure::{Failure, with_causes};

const HELP: &str = "\
A line is a turn. A line that ends with \\ goes on in the next; lines between two \"\"\" are one turn.
/again           another answer to the last turn
/undo            forget the last turn and its answer
/reset           forget the conversation
/system TEXT     a new system message, and a new conversation
/adapter on|off  answer with the adapter, or as the base model
/adapter b       answer with the second of several adapters; a is the first
/adapter both    answer as the base model, then with the adapter, or with each of them
/help            this
/quit            leave, as does the end of input";

/// Which model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answering {
    /// That with the adapter of this number.
    Adapted(usize),
    Base,
    /// The base model, then that with each adapter.
    All,
}

enum Turn {
    Says(String),
    Commands(String),
}

/// Reads turns from stdin until its end.
pub(super) fn talk<B: KernelBackend>(
    speaker: &mut Speaker<'_, B>,
    opening: Vec<Message>,
    adapters: usize,
) -> Result<(), Failure> {
    let template = speaker.tokenizer().chat_template()?;
    let interactive = io::stdin().is_terminal();
    if interactive {
        eprintln!("/help tells what there is beside talking, /quit leaves");
    }
    let mut conversation = Conversation {
        speaker,
        template,
        messages: opening.clone(),
        opening,
        adapters,
        answering: Answering::Adapted(0),
        interactive,
        unanswered: 0,
    };
    let mut lines = io::stdin().lock();
    while let Some(turn) = read_turn(&mut lines, interactive)? {
        match turn {
            Turn::Says(text) => {
                let before = conversation.messages.clone();
                conversation.messages.push(Message::user(text));
                conversation.answer_or_explain(before)?;
            }
            Turn::Commands(command) => {
                if !conversation.obey(&command)? {
                    break;
                }
            }
        }
    }
    match conversation.unanswered {
        // Whoever sat there has read why.
        count if count > 0 && !interactive => {
            Err(Failure::message(format!("turns without an answer: {count}")))
        }
        _ => Ok(()),
    }
}

/// The next turn that is not empty; `None` at the end of input.
fn read_turn(input: &mut impl BufRead, interactive: bool) -> Result<Option<Turn>, Failure> {
    let ask = |sign: &str| {
        if interactive {
            eprint!("{sign}");
        }
    };
    let mut next = |sign: &str| -> Result<Option<String>, Failure> {
        ask(sign);
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let end = line.trim_end_matches(['\n', '\r']).len();
        line.truncate(end);
        Ok(Some(line))
    };
    loop {
        let Some(line) = next("> ")? else { return Ok(None) };
        let trimmed = line.trim();
        if trimmed.is_empty() {
            continue;
        }
        if trimmed.starts_with('/') {
            return Ok(Some(Turn::Commands(trimmed.to_owned())));
        }
        if trimmed == "\"\"\"" {
            let mut text: Vec<String> = Vec::new();
            while let Some(line) = next("| ")?
                && line.trim() != "\"\"\""
            {
                text.push(line);
            }
            return Ok(Some(Turn::Says(text.join("\n"))));
        }
        let mut text = trimmed.to_owned();
        while text.ends_with('\\') {
            text.pop();
            let Some(line) = next("| ")? else { break };
            text.push('\n');
            text.push_str(&line);
        }
        return Ok(Some(Turn::Says(text)));
    }
}

struct Conversation<'a, 'm, B: KernelBackend> {
    speaker: &'a mut Speaker<'m, B>,
    template: ChatTemplate,
    opening: Vec<Message>,
    messages: Vec<Message>,
    adapters: usize,
    answering: Answering,
    interactive: bool,
    /// Turns that could not be answered.
    unanswered: usize,
}

impl<B: KernelBackend> Conversation<'_, '_, B> {
    /// Whether the conversation goes on.
    fn obey(&mut self, command: &str) -> Result<bool, Failure> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, argument.trim()) {
            ("/quit" | "/exit", _) => return Ok(false),
            ("/help", _) => eprintln!("{HELP}"),
            ("/reset", _) => self.messages.clone_from(&self.opening),
            ("/undo", _) => self.forget_turn(),
            ("/again", _) => {
                let before = self.messages.clone();
                if self.messages.last().is_some_and(|message| message.role() == "assistant") {
                    self.messages.pop();
                }
                match self.messages.last().is_some_and(|message| message.role() == "user") {
                    true => self.answer_or_explain(before)?,
                    false => eprintln!("there is no turn to answer"),
                }
            }
            ("/system", "") => eprintln!("/system needs a text"),
            ("/system", text) => {
                self.opening = vec![Message::system(text)];
                self.messages.clone_from(&self.opening);
            }
            ("/adapter", _) if self.adapters == 0 => {
                eprintln!("no adapter was given: --adapter DIRECTORY");
            }
            ("/adapter", which) => match self.answering(which) {
                Some(answering) => self.answering = answering,
                None => eprintln!("/adapter takes {}on, off or both", self.letters()),
            },
            _ => eprintln!("{name} is not a command; /help tells which there are"),
        }
        Ok(true)
    }

    /// What an argument of `/adapter` stands for.
    fn answering(&self, which: &str) -> Option<Answering> {
        match which {
            "on" => Some(Answering::Adapted(0)),
            "off" => Some(Answering::Base),
            "both" => Some(Answering::All),
            which => {
                let adapter = (0..self.adapters).find(|adapter| letter(*adapter).to_string() == which)?;
                Some(Answering::Adapted(adapter))
            }
        }
    }

    /// What several adapters are called.
    fn letters(&self) -> String {
        let several = if self.adapters > 1 { self.adapters } else { 0 };
        (0..several).map(|adapter| format!("{}, ", letter(adapter))).collect()
    }

    /// Takes the last turn and whatever followed it away.
    fn forget_turn(&mut self) {
        let last = self.messages.iter().rposition(|message| message.role() == "user");
        match last.filter(|at| *at >= self.opening.len()) {
            Some(at) => self.messages.truncate(at),
            None => eprintln!("there is no turn to forget"),
        }
    }

    /// Answers the conversation so far. Where that fails it says why, and the conversation is what it was `before`.
    fn answer_or_explain(&mut self, before: Vec<Message>) -> Result<(), Failure> {
        let Err(failure) = self.answer() else { return Ok(()) };
        if failure.error().is::<io::Error>() {
            // Nobody reads the answers any more.
            return Err(failure);
        }
        self.messages = before;
        self.unanswered += 1;
        eprintln!("error: {}", with_causes(failure.error()));
        if let Some(ModelError::ContextTooLong { .. }) = failure.error().downcast_ref() {
            eprintln!("/undo and /reset make room, and so does a smaller --max-tokens");
        }
        Ok(())
    }

    /// Whether the adapter of which number answers, and how the answer is labelled.
    fn passes(&self) -> Vec<(Option<usize>, String)> {
        let labelled = |adapter| match self.adapters {
            1 => (Some(adapter), "adapter: ".to_owned()),
            _ => (Some(adapter), format!("adapter {}: ", letter(adapter))),
        };
        match self.answering {
            Answering::Adapted(adapter) => vec![(Some(adapter), String::new())],
            Answering::Base => vec![(None, String::new())],
            Answering::All => {
                let base = (None, "base: ".to_owned());
                std::iter::once(base).chain((0..self.adapters).map(labelled)).collect()
            }
        }
    }

    /// Answers the conversation so far. Of several answers the last is remembered.
    fn answer(&mut self) -> Result<(), Failure> {
        let ids = self.speaker.chat_ids(&self.template, &self.messages)?;
        let mut remembered = String::new();
        for (adapter, label) in self.passes() {
            eprint!("{label}");
            self.speaker.set_adapter(adapter);
            let answer = self.speaker.answer(&ids)?;
            if self.interactive {
                let speed = answer.timing.tokens_per_second();
                let speed = speed.map(|speed| format!(", {speed:.1} tokens/s")).unwrap_or_default();
                let first = answer.timing.first_token.as_secs_f64();
                eprintln!("[{} tokens, the first after {first:.2} s{speed}]", answer.timing.tokens);
            }
            remembered = answer.text;
        }
        self.messages.push(Message::assistant(remembered));
        self.speaker.next_seed();
        Ok(())
    }
}

/// What an adapter is called: the first is a.
fn letter(adapter: usize) -> char {
    char::from_u32('a' as u32 + adapter as u32).unwrap_or('?')
}

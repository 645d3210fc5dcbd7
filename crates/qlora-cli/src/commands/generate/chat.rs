//! A conversation in the terminal.
//!
//! Answers go to stdout; the prompt sign, timings and replies to commands to stderr, so that stdout holds the answers
//! alone.

use std::io::{self, BufRead, IsTerminal as _};

use qlora_core::kernels::KernelBackend;
use qlora_core::text::{ChatTemplate, Message};

use super::speaker::Speaker;
use crate::failure::Failure;

const HELP: &str = "\
A line is a turn. A line that ends with \\ goes on in the next; lines between two \"\"\" are one turn.
/again           another answer to the last turn
/undo            forget the last turn and its answer
/reset           forget the conversation
/system TEXT     a new system message, and a new conversation
/adapter on|off  answer with the adapter, or as the base model
/adapter both    answer twice: as the base model, then with the adapter
/help            this
/quit            leave, as does the end of input";

/// Which model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answering {
    Adapted,
    Base,
    Both,
}

enum Turn {
    Says(String),
    Commands(String),
}

/// Reads turns from stdin until its end.
pub(super) fn talk<B: KernelBackend>(
    speaker: &mut Speaker<'_, B>,
    opening: Vec<Message>,
    has_adapter: bool,
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
        has_adapter,
        answering: Answering::Adapted,
        interactive,
    };
    let mut lines = io::stdin().lock();
    while let Some(turn) = read_turn(&mut lines, interactive)? {
        match turn {
            Turn::Says(text) => {
                conversation.messages.push(Message::user(text));
                conversation.answer()?;
            }
            Turn::Commands(command) => {
                if !conversation.obey(&command)? {
                    break;
                }
            }
        }
    }
    Ok(())
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
    has_adapter: bool,
    answering: Answering,
    interactive: bool,
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
                if self.messages.last().is_some_and(|message| message.role() == "assistant") {
                    self.messages.pop();
                }
                match self.messages.last().is_some_and(|message| message.role() == "user") {
                    true => self.answer()?,
                    false => eprintln!("there is no turn to answer"),
                }
            }
            ("/system", "") => eprintln!("/system needs a text"),
            ("/system", text) => {
                self.opening = vec![Message::system(text)];
                self.messages.clone_from(&self.opening);
            }
            ("/adapter", _) if !self.has_adapter => eprintln!("no adapter was given: --adapter DIRECTORY"),
            ("/adapter", "on") => self.answering = Answering::Adapted,
            ("/adapter", "off") => self.answering = Answering::Base,
            ("/adapter", "both") => self.answering = Answering::Both,
            ("/adapter", _) => eprintln!("/adapter takes on, off or both"),
            _ => eprintln!("{name} is not a command; /help tells which there are"),
        }
        Ok(true)
    }

    /// Takes the last turn and whatever followed it away.
    fn forget_turn(&mut self) {
        let last = self.messages.iter().rposition(|message| message.role() == "user");
        match last.filter(|at| *at >= self.opening.len()) {
            Some(at) => self.messages.truncate(at),
            None => eprintln!("there is no turn to forget"),
        }
    }

    /// Answers the conversation so far. Of two answers the adapter's is the one that is remembered.
    fn answer(&mut self) -> Result<(), Failure> {
        let ids = self.speaker.chat_ids(&self.template, &self.messages)?;
        let passes: &[(bool, &str)] = match self.answering {
            Answering::Adapted => &[(true, "")],
            Answering::Base => &[(false, "")],
            Answering::Both => &[(false, "base: "), (true, "adapter: ")],
        };
        let mut remembered = String::new();
        for (adapters, label) in passes {
            eprint!("{label}");
            self.speaker.set_adapters(*adapters);
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

//! `qlora generate`: answers, token by token.

use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::time::Instant;

use qlora_core::kernels::KernelBackend;
use qlora_core::models::{Completion, Decoder, FinishReason, GenerateOptions, Pass, Sampling};
use qlora_core::text::{ChatTemplate, Message, RenderInput, TokenStream, Tokenizer};
use serde_json::json;

use crate::arguments::{GenerateArguments, GlobalOptions, SamplingArguments};
use crate::backend::{OnBackend, on_backend};
use crate::failure::Failure;
use crate::model::{LoadedModel, load_model};

struct Generate<'a> {
    global: &'a GlobalOptions,
    arguments: &'a GenerateArguments,
}

/// A model that answers.
struct Speaker<B: KernelBackend> {
    decoder: Decoder<B>,
    tokenizer: Tokenizer,
    options: GenerateOptions,
    json: bool,
}

pub(crate) fn run(global: &GlobalOptions, arguments: &GenerateArguments) -> Result<(), Failure> {
    on_backend(global, Generate { global, arguments })
}

impl OnBackend for Generate<'_> {
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Failure> {
        let Self { global, arguments } = self;
        let sampling = sampling(&arguments.sampling);
        sampling.validate().map_err(|error| Failure::Usage(Box::new(error)))?;
        let LoadedModel { checkpoint, decoder } = load_model::<B>(global, &arguments.model, device)?;
        let tokenizer = checkpoint.tokenizer()?;
        let options = GenerateOptions {
            max_new_tokens: arguments.sampling.max_tokens,
            sampling,
            stop_tokens: tokenizer.eos().to_vec(),
            seed: global.seed.unwrap_or(0),
            pass: Pass::default(),
            ..GenerateOptions::default()
        };
        let mut speaker = Speaker { decoder, tokenizer, options, json: global.json };
        match &arguments.prompt {
            Some(prompt) if arguments.raw => speaker.answer(&speaker.raw_ids(prompt)?).map(|_| ()),
            Some(prompt) => {
                let template = speaker.tokenizer.chat_template()?;
                let mut messages = opening(arguments);
                messages.push(Message::user(prompt));
                speaker.answer(&speaker.chat_ids(&template, &messages)?).map(|_| ())
            }
            None => speaker.chat(opening(arguments)),
        }
    }
}

impl<B: KernelBackend> Speaker<B> {
    /// The prompt as it is, behind the token that the model expects before a text.
    fn raw_ids(&self, prompt: &str) -> Result<Vec<u32>, Failure> {
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        Ok(bos.into_iter().chain(self.tokenizer.encode(prompt)?).collect())
    }

    fn chat_ids(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>, Failure> {
        let rendered = template.render(&RenderInput {
            messages,
            add_generation_prompt: true,
            ..RenderInput::default()
        })?;
        Ok(self.tokenizer.encode(&rendered.text)?)
    }

    /// Turns from stdin until its end. The prompt sign goes to stderr, so that stdout holds the answers alone.
    fn chat(&mut self, opening: Vec<Message>) -> Result<(), Failure> {
        let template = self.tokenizer.chat_template()?;
        let mut messages = opening.clone();
        let interactive = io::stdin().is_terminal();
        let mut lines = io::stdin().lock().lines();
        loop {
            if interactive {
                eprint!("> ");
            }
            let Some(line) = lines.next().transpose()? else { return Ok(()) };
            match line.trim() {
                "" => continue,
                "/quit" => return Ok(()),
                "/reset" => {
                    messages.clone_from(&opening);
                    continue;
                }
                turn => messages.push(Message::user(turn)),
            }
            let answer = self.answer(&self.chat_ids(&template, &messages)?)?;
            messages.push(Message::assistant(answer));
            // Another stream of random numbers for each turn, the same in each run.
            self.options.seed = self.options.seed.wrapping_add(1);
        }
    }

    /// Prints the answer as it is made, and returns it.
    fn answer(&self, prompt: &[u32]) -> Result<String, Failure> {
        let mut out = io::stdout().lock();
        let mut stream = TokenStream::new(&self.tokenizer, true);
        let mut answer = String::new();
        let mut failure: Option<Failure> = None;
        let start = Instant::now();
        let mut first = None;
        let completions = self.decoder.generate(&[prompt], &self.options, &mut |token| {
            first.get_or_insert_with(|| start.elapsed());
            let shown = stream.push(token.id).map_err(Failure::from).and_then(|text| {
                answer.push_str(&text);
                self.show(&mut out, &text)
            });
            failure = shown.err();
            failure.is_none()
        })?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let rest = stream.finish()?;
        answer.push_str(&rest);
        self.show(&mut out, &rest)?;
        let Some(completion) = completions.first() else { return Ok(answer) };
        if self.json {
            let seconds = start.elapsed().as_secs_f64();
            let first = first.unwrap_or_default().as_secs_f64();
            writeln!(out, "{}", summary(&answer, prompt, completion, first, seconds))?;
        } else {
            writeln!(out)?;
            if completion.finish == FinishReason::Length {
                eprintln!("(stopped after {} tokens: --max-tokens)", completion.ids.len());
            }
        }
        Ok(answer)
    }

    fn show(&self, out: &mut impl Write, text: &str) -> Result<(), Failure> {
        if !self.json && !text.is_empty() {
            write!(out, "{text}")?;
            out.flush()?;
        }
        Ok(())
    }
}

fn summary(
    answer: &str,
    prompt: &[u32],
    completion: &Completion,
    first_token: f64,
    seconds: f64,
) -> serde_json::Value {
    let finish = match completion.finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    };
    json!({
        "text": answer,
        "ids": completion.ids,
        "log_probs": completion.log_probs,
        "finish": finish,
        "prompt_tokens": prompt.len(),
        "seconds_to_first_token": first_token,
        "seconds": seconds,
    })
}

fn opening(arguments: &GenerateArguments) -> Vec<Message> {
    arguments.system.iter().map(Message::system).collect()
}

fn sampling(arguments: &SamplingArguments) -> Sampling {
    Sampling {
        temperature: if arguments.greedy { 0.0 } else { arguments.temperature },
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        ..Sampling::default()
    }
}

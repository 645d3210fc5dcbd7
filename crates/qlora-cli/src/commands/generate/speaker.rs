//! A model that answers, and keeps what it has read.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use qlora_core::kernels::KernelBackend;
use qlora_core::models::{
    AdapterSet, Completion, Decoder, FinishReason, Flow, Generator, GeneratorOptions, Request, Sampling,
};
use qlora_core::text::{ChatTemplate, Message, RenderInput, StopStrings, TokenStream, Tokenizer};
use serde_json::json;

use crate::arguments::{GlobalOptions, SamplingArguments};
use crate::failure::Failure;

/// Pages of 16 tokens that a conversation begins with.
const FIRST_PAGES: usize = 256;

pub(super) struct Speaker<'a, B: KernelBackend> {
    decoder: &'a Decoder<B>,
    /// Adapters beside the decoder's.
    others: Vec<AdapterSet>,
    tokenizer: Tokenizer,
    generator: Generator<B>,
    pages: usize,
    sampling: Sampling,
    max_tokens: usize,
    stops: Vec<String>,
    seed: u64,
    json: bool,
    adapter: Option<usize>,
}

/// What an answer took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) tokens: usize,
    pub(super) first_token: Duration,
    pub(super) total: Duration,
}

impl Timing {
    /// Tokens a second after the first, which waits for the prompt to be read.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        let rest = (self.total - self.first_token).as_secs_f64();
        (self.tokens > 1 && rest > 0.0).then(|| (self.tokens - 1) as f64 / rest)
    }
}

/// An answer, as text.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) timing: Timing,
}

impl<'a, B: KernelBackend> Speaker<'a, B> {
    pub(super) fn new(
        decoder: &'a Decoder<B>,
        others: Vec<AdapterSet>,
        tokenizer: Tokenizer,
        global: &GlobalOptions,
        arguments: &SamplingArguments,
        sampling: Sampling,
    ) -> Result<Self, Failure> {
        Ok(Self {
            decoder,
            generator: generator(decoder, &others, FIRST_PAGES)?,
            others,
            tokenizer,
            pages: FIRST_PAGES,
            sampling,
            max_tokens: arguments.max_tokens,
            stops: arguments.stop.clone(),
            seed: global.seed.unwrap_or(0),
            json: global.json,
            adapter: Some(0),
        })
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Which adapter takes part in the next answers, from 0; `None`: the base model answers.
    pub(super) fn set_adapter(&mut self, adapter: Option<usize>) {
        self.adapter = adapter;
    }

    /// Another stream of random numbers, the same in each run.
    pub(super) fn next_seed(&mut self) {
        self.seed = self.seed.wrapping_add(1);
    }

    /// The prompt as it is, behind the token that the model expects before a text.
    pub(super) fn raw_ids(&self, prompt: &str) -> Result<Vec<u32>, Failure> {
        Ok(self.tokenizer.encode_with_bos(prompt)?)
    }

    pub(super) fn chat_ids(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
    ) -> Result<Vec<u32>, Failure> {
        let rendered = template.render(&RenderInput {
            messages,
            add_generation_prompt: true,
            ..RenderInput::default()
        })?;
        Ok(self.tokenizer.encode(&rendered.text)?)
    }

    /// Asks for an answer, and sees to it that the cache holds it.
    fn submit(&mut self, prompt: &[u32]) -> Result<usize, Failure> {
        let request = Request {
            max_new_tokens: self.max_tokens,
            sampling: self.sampling,
            stop_tokens: self.tokenizer.eos().to_vec(),
            seed: self.seed,
            adapter: self.adapter,
            ..Request::new(prompt.to_vec())
        };
        // Before memory is taken for it.
        request.check(0, self.decoder.config())?;
        let pages = request.pages();
        if pages > self.pages {
            // Twice as many, so that a conversation seldom outgrows them; more than the context is never needed.
            let most = self.decoder.config().context_length().div_ceil(16);
            self.pages = pages.max(most.min(2 * pages));
            self.generator = generator(self.decoder, &self.others, self.pages)?;
        }
        Ok(self.generator.submit(request)?)
    }

    /// Prints the answer as it is made, and returns it. What the prompt has in common with earlier ones is not
    /// computed again.
    pub(super) fn answer(&mut self, prompt: &[u32]) -> Result<Answer, Failure> {
        let request = self.submit(prompt)?;
        let mut out = io::stdout().lock();
        let mut stream = TokenStream::new(&self.tokenizer, true);
        let mut stops = StopStrings::new(self.stops.iter().cloned());
        let mut text = String::new();
        let mut stopped = false;
        let mut failure: Option<Failure> = None;
        let start = Instant::now();
        let mut first_token = None;
        let json = self.json;
        self.generator.run(&mut |token| {
            first_token.get_or_insert_with(|| start.elapsed());
            let shown = stream.push_generated(token.id).map_err(Failure::from).and_then(|piece| {
                let (piece, stop) = stops.push(&piece);
                stopped = stop;
                text.push_str(&piece);
                show(&mut out, &piece, json)
            });
            match shown {
                Ok(()) if stopped => Flow::Stop,
                Ok(()) => Flow::Continue,
                Err(error) => {
                    failure = Some(error);
                    Flow::Cancel
                }
            }
        })?;
        let completions = self.generator.take(request);
        if let Some(failure) = failure {
            return Err(failure);
        }
        if !stopped {
            let (rest, stop) = stops.push(&stream.finish()?);
            let rest = if stop { rest } else { rest + &stops.finish() };
            text.push_str(&rest);
            show(&mut out, &rest, json)?;
        }
        let timing = Timing {
            tokens: completions.first().map_or(0, |made| made.ids.len()),
            first_token: first_token.unwrap_or_default(),
            total: start.elapsed(),
        };
        if let Some(completion) = completions.first() {
            if json {
                writeln!(out, "{}", summary(&text, prompt, completion, timing))?;
            } else {
                writeln!(out)?;
                if completion.finish == FinishReason::Length {
                    eprintln!("(stopped after {} tokens: --max-tokens)", completion.ids.len());
                }
            }
        }
        Ok(Answer { text, timing })
    }
}

fn generator<B: KernelBackend>(
    decoder: &Decoder<B>,
    others: &[AdapterSet],
    pages: usize,
) -> Result<Generator<B>, Failure> {
    let options = GeneratorOptions { max_sequences: 1, pages, ..GeneratorOptions::default() };
    let mut generator = Generator::new(decoder, options);
    for adapters in others {
        generator.add_adapters(adapters)?;
    }
    Ok(generator)
}

fn show(out: &mut impl Write, text: &str, json: bool) -> Result<(), Failure> {
    if !json && !text.is_empty() {
        write!(out, "{text}")?;
        out.flush()?;
    }
    Ok(())
}

fn summary(text: &str, prompt: &[u32], completion: &Completion, timing: Timing) -> serde_json::Value {
    let finish = match completion.finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    };
    json!({
        "text": text,
        "ids": completion.ids,
        "log_probs": completion.log_probs,
        "finish": finish,
        "prompt_tokens": prompt.len(),
        "seconds_to_first_token": timing.first_token.as_secs_f64(),
        "seconds": timing.total.as_secs_f64(),
        "tokens_per_second": timing.tokens_per_second(),
    })
}

//! Completions of prompts.

use qlora_kernels::KernelBackend;
use qlora_lora::Pass;

use crate::cache::pages_for;
use crate::generator::{Flow, Generator, GeneratorOptions, Request};
use crate::{Decoder, ModelError, Sampling};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most new tokens of a completion.
    pub max_new_tokens: usize,
    /// Completions of each prompt; they share its keys and values.
    pub completions: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a completion; they are part of it.
    pub stop_tokens: Vec<u32>,
    /// Seed; completion `c` of prompt `p` draws from stream `p · completions + c`.
    pub seed: u64,
    /// Whether adapters take part.
    pub pass: Pass,
    /// Sequences that are decoded together, at most; others wait until one ends. Which ones are does not change what
    /// is drawn. At least one is.
    pub max_sequences: usize,
}

impl Default for GenerateOptions {
    /// One completion a prompt, 256 tokens, greedy, no stop token, adapters on, 512 sequences at a time.
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            completions: 1,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            seed: 0,
            pass: Pass::default(),
            max_sequences: 512,
        }
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or text that the caller stops at.
    Stop,
    /// The number of new tokens asked for.
    Length,
    /// The caller's wish.
    Cancelled,
}

/// A completion of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// New tokens, the stop token included.
    pub ids: Vec<u32>,
    /// Log-probability of each under the distribution that it was drawn from.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// A token as it is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// Which prompt, or request, it continues.
    pub prompt: usize,
    /// Which of its completions.
    pub completion: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub log_prob: f32,
}

impl<B: KernelBackend> Decoder<B> {
    /// Continues each prompt: the completions of the first, then those of the second, and so on. Prompts may differ in
    /// length; sequences that end leave the batch at once.
    ///
    /// `on_token` sees every token as it is made, and ends all by returning `false`. For requests with options of their
    /// own, or to go on where an earlier request ended, use a [`Generator`].
    ///
    /// # Errors
    /// When a prompt is empty, has an unknown token or does not fit the context with its completion, or a
    /// sampling parameter is out of range.
    pub fn generate(
        &self,
        prompts: &[&[u32]],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(SampledToken) -> bool,
    ) -> Result<Vec<Completion>, ModelError> {
        let mut needed: Vec<usize> = (prompts.iter())
            .map(|prompt| pages_for(prompt.len().saturating_add(options.max_new_tokens)))
            .flat_map(|pages| std::iter::repeat_n(pages, options.completions))
            .collect();
        needed.sort_unstable_by(|a, b| b.cmp(a));
        let sequences = options.max_sequences.clamp(1, needed.len().max(1));
        let pages: usize = needed.iter().take(sequences).fold(0, |sum, pages| sum.saturating_add(*pages));
        let requests: Vec<Request> = (prompts.iter().enumerate())
            .map(|(index, prompt)| Request {
                prompt: prompt.to_vec(),
                completions: options.completions,
                max_new_tokens: options.max_new_tokens,
                sampling: options.sampling,
                stop_tokens: options.stop_tokens.clone(),
                seed: options.seed,
                first_stream: (index * options.completions) as u64,
                adapter: options.pass.adapters.then_some(0),
            })
            .collect();
        // Before memory is taken for them.
        requests.iter().enumerate().try_for_each(|(index, request)| request.check(index, self.config()))?;
        let limits = GeneratorOptions { max_sequences: sequences, pages, ..GeneratorOptions::default() };
        let mut generator = Generator::new(self, limits);
        for request in requests {
            generator.submit(request)?;
        }
        generator.run(&mut |token| if on_token(token) { Flow::Continue } else { Flow::Cancel })?;
        Ok(generator.take_all().into_iter().flatten().collect())
    }
}

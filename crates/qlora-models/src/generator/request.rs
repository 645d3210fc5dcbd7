//! What a generator is asked for, and how large it is.

use crate::cache::pages_for;
use crate::{DecoderConfig, ModelError, Sampling};

/// Prompts that are to be continued in one way.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// Completions, each drawn on its own.
    pub completions: usize,
    /// Most new tokens of a completion.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a completion; they are part of it.
    pub stop_tokens: Vec<u32>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Stream of the first completion; the others have those that follow.
    pub first_stream: u64,
    /// Which adapters take part, by their number in the [`Generator`](crate::Generator); `None`: the base model answers.
    pub adapter: Option<usize>,
}

impl Request {
    /// One greedy completion of at most 256 tokens, with the model's own adapters.
    #[must_use]
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            completions: 1,
            max_new_tokens: 256,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            seed: 0,
            first_stream: 0,
            adapter: Some(0),
        }
    }

    /// Tokens whose keys are kept, at most: the last token is never fed back.
    pub(super) fn tokens(&self) -> usize {
        self.prompt.len().saturating_add(self.max_new_tokens).saturating_sub(1)
    }

    /// Pages that a cache needs to serve one completion.
    #[must_use]
    pub fn pages(&self) -> usize {
        pages_for(self.tokens())
    }

    /// Checks that a model of this configuration can serve the request; `index` names it in errors.
    ///
    /// # Errors
    /// When its prompt is empty, has an unknown token or does not fit the context with its completion, or a sampling
    /// parameter is out of range.
    pub fn check(&self, index: usize, config: &DecoderConfig) -> Result<(), ModelError> {
        self.sampling.validate()?;
        let vocabulary = config.vocab_size;
        if self.prompt.is_empty() {
            return Err(ModelError::EmptyPrompt { index });
        }
        if let Some(&id) = self.prompt.iter().find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::TokenOutOfRange { id, vocabulary });
        }
        let (tokens, limit) = (self.tokens(), config.context_length());
        if tokens > limit {
            return Err(ModelError::ContextTooLong { tokens, limit });
        }
        Ok(())
    }
}

/// What goes on after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The completion goes on.
    Continue,
    /// This completion is done, as after a stop token.
    Stop,
    /// Everything ends.
    Cancel,
}

/// Sizes of a [`Generator`](crate::Generator).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Sequences that are decoded together, at most; at least one is.
    pub max_sequences: usize,
    /// Pages of 16 tokens of the cache: all sequences under way, with all tokens that they may get, have to fit; what is
    /// left keeps the beginnings of earlier ones.
    pub pages: usize,
    /// Tokens of prompts that are computed in one pass, at most; a longer prompt goes alone.
    pub prefill_tokens: usize,
}

impl Default for GeneratorOptions {
    /// 512 sequences, 8192 tokens of cache, 8192 tokens a pass.
    fn default() -> Self {
        Self { max_sequences: 512, pages: 512, prefill_tokens: 8192 }
    }
}

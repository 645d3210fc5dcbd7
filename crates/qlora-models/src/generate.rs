//! Decoding: prompts in, completions out, token by token, with a cache.

use burn::tensor::{Int, Tensor, TensorData};
use qlora_kernels::{KernelBackend, greedy};
use qlora_lora::Pass;

use crate::{Decoder, KvCache, ModelError, Sampler, Sampling, TokenBatch};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most new tokens of a completion.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a completion; they are part of it.
    pub stop_tokens: Vec<u32>,
    /// Seed; prompt `i` draws from stream `i`.
    pub seed: u64,
    /// Whether adapters take part.
    pub pass: Pass,
}

impl Default for GenerateOptions {
    /// 256 tokens, greedy, no stop token, adapters on.
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            seed: 0,
            pass: Pass::default(),
        }
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token.
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
    /// Which prompt it continues.
    pub prompt: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub log_prob: f32,
}

impl<B: KernelBackend> Decoder<B> {
    /// Continues each prompt. Prompts may differ in length; those that end leave the batch at once.
    ///
    /// `on_token` sees every token as it is made, and ends all by returning `false`.
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
        options.sampling.validate()?;
        self.check_prompts(prompts)?;
        let mut completions =
            vec![
                Completion { ids: Vec::new(), log_probs: Vec::new(), finish: FinishReason::Length };
                prompts.len()
            ];
        if prompts.is_empty() || options.max_new_tokens == 0 {
            return Ok(completions);
        }
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        // The last token is never fed back.
        let capacity = longest.saturating_add(options.max_new_tokens - 1);
        let dtype = B::activation_dtype(self.embed_tokens.compute());
        let mut cache = KvCache::<B>::new(self.config(), prompts.len(), capacity, dtype, &self.device())?;
        let mut samplers: Vec<Sampler> =
            (0..prompts.len()).map(|i| Sampler::new(options.sampling, options.seed, i as u64)).collect();

        let mut active: Vec<usize> = (0..prompts.len()).collect();
        let mut ids: Vec<u32> = prompts.concat();
        let mut lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        let vocabulary = self.config().vocab_size;
        loop {
            let batch = TokenBatch { ids: &ids, lengths: &lengths };
            let hidden = self.hidden_states_cached(batch, &active, &mut cache, options.pass);
            let logits = self.last_logits(hidden, &lengths);
            let chosen: Vec<(u32, f32)> = match options.sampling.is_greedy() {
                // Chosen where the logits are: they need not be read back.
                true => greedy(logits),
                false => {
                    let mut logits = read_rows(logits);
                    let rows = logits.chunks_exact_mut(vocabulary).zip(&active);
                    rows.map(|(row, &prompt)| {
                        let seen = [prompts[prompt], &completions[prompt].ids].concat();
                        samplers[prompt].sample(row, &seen)
                    })
                    .collect()
                }
            };
            let (mut next, mut going) = (Vec::new(), Vec::new());
            for ((id, log_prob), &prompt) in chosen.into_iter().zip(&active) {
                let completion = &mut completions[prompt];
                completion.ids.push(id);
                completion.log_probs.push(log_prob);
                let stopped = options.stop_tokens.contains(&id);
                if stopped {
                    completion.finish = FinishReason::Stop;
                }
                if !on_token(SampledToken { prompt, id, log_prob }) {
                    for &prompt in &active {
                        if completions[prompt].finish != FinishReason::Stop {
                            completions[prompt].finish = FinishReason::Cancelled;
                        }
                    }
                    return Ok(completions);
                }
                if !stopped && completions[prompt].ids.len() < options.max_new_tokens {
                    next.push(id);
                    going.push(prompt);
                }
            }
            if going.is_empty() {
                return Ok(completions);
            }
            lengths = vec![1; going.len()];
            (ids, active) = (next, going);
        }
    }

    fn check_prompts(&self, prompts: &[&[u32]]) -> Result<(), ModelError> {
        let vocabulary = self.config().vocab_size;
        for (index, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ModelError::EmptyPrompt { index });
            }
            if let Some(&id) = prompt.iter().find(|id| **id as usize >= vocabulary) {
                return Err(ModelError::TokenOutOfRange { id, vocabulary });
            }
        }
        Ok(())
    }

    /// Logits of the last token of each sequence: `[sequences, vocabulary]`.
    fn last_logits(&self, hidden: Tensor<B, 2>, lengths: &[usize]) -> Tensor<B, 2> {
        let mut end = 0;
        let last: Vec<i64> = lengths
            .iter()
            .map(|length| {
                end += length;
                end as i64 - 1
            })
            .collect();
        let count = last.len();
        let rows = match hidden.dims()[0] == count {
            true => hidden,
            false => {
                let last = Tensor::<B, 1, Int>::from_data(TensorData::new(last, [count]), &hidden.device());
                hidden.select(0, last)
            }
        };
        self.logits(rows)
    }
}

/// Logits on the host, row after row.
fn read_rows<B: KernelBackend>(logits: Tensor<B, 2>) -> Vec<f32> {
    let logits = logits.into_data();
    match logits.as_slice::<f32>() {
        Ok(values) => values.to_vec(),
        Err(_) => logits.iter::<f32>().collect(),
    }
}

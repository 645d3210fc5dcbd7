//! Continuous batching: requests come, share a cache, and leave when they end.

use std::collections::VecDeque;

use burn::tensor::{Int, Tensor, TensorData};
use qlora_kernels::{Draw, KernelBackend, sample};
use qlora_lora::Pass;

use crate::cache::{KvCache, pages_for};
use crate::{
    Completion, Decoder, DecoderConfig, FinishReason, ModelError, SampledToken, Sampler, Sampling, TokenBatch,
};

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
    /// Whether adapters take part.
    pub adapters: bool,
}

impl Request {
    /// One greedy completion of at most 256 tokens, with adapters.
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
            adapters: true,
        }
    }

    /// Tokens whose keys are kept, at most: the last token is never fed back.
    fn tokens(&self) -> usize {
        self.prompt.len().saturating_add(self.max_new_tokens).saturating_sub(1)
    }

    pub(crate) fn check(&self, index: usize, config: &DecoderConfig) -> Result<(), ModelError> {
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

/// Sizes of a [`Generator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Sequences that are decoded together, at most.
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

/// A model that serves requests, and a cache that they share.
///
/// Requests that begin alike share keys and values: a conversation that goes on computes only what is new. Adapters are
/// those that the model had when this was made.
#[derive(Debug)]
pub struct Generator<B: KernelBackend> {
    decoder: Decoder<B>,
    cache: KvCache<B>,
    options: GeneratorOptions,
    requests: Vec<Progress>,
    /// Completions that are not under way: request, and the first that is waiting.
    waiting: VecDeque<(usize, usize)>,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Progress {
    request: Request,
    completions: Vec<Completion>,
}

/// A completion under way.
#[derive(Debug)]
struct Running {
    request: usize,
    completion: usize,
    sequence: usize,
    sampler: Sampler,
    /// The token that was chosen last, whose keys are not in the cache yet.
    next: u32,
}

/// A prompt that enters the batch, with all of its completions that do.
struct Entering {
    /// Tokens of the prompt whose keys are known.
    known: usize,
    running: Vec<Running>,
}

impl<B: KernelBackend> Generator<B> {
    /// A generator with an empty cache.
    #[must_use]
    pub fn new(decoder: &Decoder<B>, options: GeneratorOptions) -> Self {
        let decoder = decoder.for_inference();
        let dtype = B::activation_dtype(decoder.head().compute());
        let cache = KvCache::new(decoder.config(), options.pages, dtype, &decoder.device());
        Self { decoder, cache, options, requests: Vec::new(), waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Queues a request, and gives its number.
    ///
    /// # Errors
    /// When its prompt is empty, has an unknown token or does not fit the context or the cache with its completion,
    /// or a sampling parameter is out of range.
    pub fn submit(&mut self, request: Request) -> Result<usize, ModelError> {
        let index = self.requests.len();
        request.check(index, self.decoder.config())?;
        let (tokens, room) = (request.tokens(), self.cache.pages());
        if pages_for(tokens) > room {
            return Err(ModelError::CacheTooSmall { tokens, pages: room });
        }
        let completion = Completion { ids: Vec::new(), log_probs: Vec::new(), finish: FinishReason::Length };
        let completions = vec![completion; request.completions];
        if request.max_new_tokens > 0 && request.completions > 0 {
            self.waiting.push_back((index, 0));
        }
        self.requests.push(Progress { request, completions });
        Ok(index)
    }

    /// Serves until all requests are done.
    ///
    /// # Errors
    /// None of its own: whatever a request lacks was refused when it was submitted.
    pub fn run(&mut self, on_token: &mut dyn FnMut(SampledToken) -> Flow) -> Result<(), ModelError> {
        while self.step(on_token)? {}
        Ok(())
    }

    /// One pass: over prompts that enter, or else over the next token of every sequence. Whether there is more to do.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn step(&mut self, on_token: &mut dyn FnMut(SampledToken) -> Flow) -> Result<bool, ModelError> {
        let entering = self.enter();
        if !entering.is_empty() {
            self.prefill(entering, on_token);
        } else {
            // A pass is with adapters or without.
            for adapters in [true, false] {
                self.decode(adapters, on_token);
            }
        }
        Ok(!self.running.is_empty() || !self.waiting.is_empty())
    }

    /// Takes the completions of a request, as they are; it is not known any more.
    pub fn take(&mut self, request: usize) -> Vec<Completion> {
        let progress = &mut self.requests[request];
        progress.request.prompt = Vec::new();
        std::mem::take(&mut progress.completions)
    }

    /// As [`take`](Self::take), of all requests in their order.
    pub fn take_all(&mut self) -> Vec<Vec<Completion>> {
        (0..self.requests.len()).map(|request| self.take(request)).collect()
    }

    /// Prompts for which there is room, in the order in which they were submitted.
    fn enter(&mut self) -> Vec<Entering> {
        let mut entering: Vec<Entering> = Vec::new();
        let mut tokens = 0;
        let mut sequences = self.running.len();
        while let Some(&(index, first)) = self.waiting.front() {
            let request = &self.requests[index].request;
            let mixed = entering.first().is_some_and(|one| {
                self.requests[one.running[0].request].request.adapters != request.adapters
            });
            let too_long =
                !entering.is_empty() && tokens + request.prompt.len() > self.options.prefill_tokens;
            if mixed || too_long || sequences >= self.options.max_sequences {
                break;
            }
            let needed = request.tokens();
            let Some(admitted) = self.cache.admit(&request.prompt, needed, request.adapters) else { break };
            let mut members = vec![admitted.sequence];
            while first + members.len() < request.completions
                && sequences + members.len() < self.options.max_sequences
            {
                let Some(member) = self.cache.fork(admitted.sequence, request.prompt.len(), needed) else {
                    break;
                };
                members.push(member);
            }
            let running = members.iter().zip(first..).map(|(sequence, completion)| Running {
                request: index,
                completion,
                sequence: *sequence,
                sampler: Sampler::new(
                    request.sampling,
                    request.seed,
                    request.first_stream + completion as u64,
                ),
                next: 0,
            });
            entering.push(Entering { known: admitted.known, running: running.collect() });
            tokens += request.prompt.len() - admitted.known;
            sequences += members.len();
            self.waiting.pop_front();
            let rest = first + members.len();
            if rest < request.completions {
                self.waiting.push_front((index, rest));
                break;
            }
        }
        entering
    }

    fn prefill(&mut self, entering: Vec<Entering>, on_token: &mut dyn FnMut(SampledToken) -> Flow) {
        let (mut ids, mut lengths, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        // The row of the last token of the prompt of each completion.
        let mut rows = Vec::new();
        for Entering { known, running } in &entering {
            let prompt = &self.requests[running[0].request].request.prompt;
            ids.extend_from_slice(&prompt[*known..]);
            lengths.push(prompt.len() - known);
            sequences.push(running[0].sequence);
            rows.extend(running.iter().map(|_| ids.len() as i64 - 1));
        }
        let adapters = self.requests[entering[0].running[0].request].request.adapters;
        let batch = TokenBatch { ids: &ids, lengths: &lengths };
        let hidden = self.decoder.hidden_states_cached(batch, &sequences, &mut self.cache, pass(adapters));
        self.cache.complete_forks();
        for Entering { running, .. } in &entering {
            let prompt = &self.requests[running[0].request].request.prompt;
            self.cache.register(running[0].sequence, prompt);
        }
        let running = entering.into_iter().flat_map(|one| one.running).collect();
        let count = rows.len();
        let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [count]), &hidden.device());
        self.choose(hidden.select(0, rows), running, on_token);
    }

    fn decode(&mut self, adapters: bool, on_token: &mut dyn FnMut(SampledToken) -> Flow) {
        let of_pass = |running: &Running| self.requests[running.request].request.adapters == adapters;
        let (running, others) = std::mem::take(&mut self.running).into_iter().partition(of_pass);
        self.running = others;
        let running: Vec<Running> = running;
        if running.is_empty() {
            return;
        }
        let ids: Vec<u32> = running.iter().map(|running| running.next).collect();
        let sequences: Vec<usize> = running.iter().map(|running| running.sequence).collect();
        let lengths = vec![1; ids.len()];
        let batch = TokenBatch { ids: &ids, lengths: &lengths };
        let hidden = self.decoder.hidden_states_cached(batch, &sequences, &mut self.cache, pass(adapters));
        self.choose(hidden, running, on_token);
    }

    /// Chooses the next token of each completion from the hidden state of its last one, and tells the caller.
    fn choose(
        &mut self,
        hidden: Tensor<B, 2>,
        mut running: Vec<Running>,
        on_token: &mut dyn FnMut(SampledToken) -> Flow,
    ) {
        let chosen = self.draw(hidden, &mut running);
        let mut cancelled = false;
        for (mut one, (id, log_prob)) in running.into_iter().zip(chosen) {
            let Running { request: prompt, completion, sequence, .. } = one;
            let Progress { request, completions } = &mut self.requests[prompt];
            let made = &mut completions[completion];
            let mut ended = true;
            if cancelled {
                made.finish = FinishReason::Cancelled;
            } else {
                made.ids.push(id);
                made.log_probs.push(log_prob);
                let flow = on_token(SampledToken { prompt, completion, id, log_prob });
                if request.stop_tokens.contains(&id) || flow == Flow::Stop {
                    made.finish = FinishReason::Stop;
                } else if flow == Flow::Cancel {
                    made.finish = FinishReason::Cancelled;
                } else {
                    ended = made.ids.len() >= request.max_new_tokens;
                }
                cancelled = flow == Flow::Cancel;
            }
            if ended {
                // All but the last token have keys.
                let known = made.ids.len().saturating_sub(1);
                let tokens = [&request.prompt, &made.ids[..known]].concat();
                self.cache.register(sequence, &tokens);
                self.cache.release(sequence);
            } else {
                one.next = id;
                self.running.push(one);
            }
        }
        if cancelled {
            self.cancel();
        }
    }

    /// Ends all that is under way or waiting.
    fn cancel(&mut self) {
        for one in std::mem::take(&mut self.running) {
            self.requests[one.request].completions[one.completion].finish = FinishReason::Cancelled;
            self.cache.release(one.sequence);
        }
        for (request, first) in std::mem::take(&mut self.waiting) {
            let waiting = &mut self.requests[request].completions[first..];
            waiting.iter_mut().for_each(|made| made.finish = FinishReason::Cancelled);
        }
    }

    fn draw(&self, hidden: Tensor<B, 2>, running: &mut [Running]) -> Vec<(u32, f32)> {
        let logits = self.decoder.logits(hidden);
        let draws: Vec<Draw> = running.iter_mut().map(|one| one.sampler.draw()).collect();
        if running.iter().all(|one| one.sampler.penalty() == 1.0) {
            // Where the logits are: they need not be read back.
            return sample(logits, &draws);
        }
        let vocabulary = logits.dims()[1];
        let mut values: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let rows = values.chunks_exact_mut(vocabulary).zip(running.iter().zip(&draws));
        rows.map(|(row, (one, draw))| {
            let Progress { request, completions } = &self.requests[one.request];
            one.sampler.penalise(row, &[&request.prompt, &completions[one.completion].ids]);
            qlora_kernels::sampling::sample_row(row, draw)
        })
        .collect()
    }
}

fn pass(adapters: bool) -> Pass {
    Pass { adapters, dropout: None }
}

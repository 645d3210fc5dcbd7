//! Continuous batching: requests come, share a cache, and leave when they end.

mod request;

use std::collections::VecDeque;

use burn::tensor::{Int, Tensor, TensorData};
use qlora_kernels::{Draw, KernelBackend, sample};
use qlora_lora::Pass;

use crate::cache::{Admitted, KvCache, pages_for};
use crate::{AdapterSet, Completion, Decoder, FinishReason, ModelError, SampledToken, Sampler, TokenBatch};

pub use self::request::{Flow, GeneratorOptions, Request};

/// A model that serves requests, and a cache that they share.
///
/// Requests that begin alike, with the same adapters, share keys and values: a conversation that goes on computes only
/// what is new. The first adapters, which have the number 0, are those that the model had when this was made.
#[derive(Debug)]
pub struct Generator<B: KernelBackend> {
    /// The model with each set of adapters; they share its weights.
    models: Vec<Decoder<B>>,
    cache: KvCache<B>,
    options: GeneratorOptions,
    requests: Vec<Progress>,
    /// Completions that are not under way: request, and the first that is waiting.
    waiting: VecDeque<(usize, usize)>,
    /// Completions whose keys have to be computed again, and whose sequences were given back. They enter before others.
    outgrown: VecDeque<Running>,
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

/// A text that enters the batch, with all of the completions that continue it.
struct Entering {
    text: Vec<u32>,
    /// Tokens of the text whose keys are known.
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
        Self {
            models: vec![decoder],
            cache,
            options: GeneratorOptions { max_sequences: options.max_sequences.max(1), ..options },
            requests: Vec::new(),
            waiting: VecDeque::new(),
            outgrown: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Holds other adapters beside those of the model. Gives the number by which requests choose them.
    ///
    /// # Errors
    /// When one does not fit its layer, or its layer does not exist.
    pub fn add_adapters(&mut self, adapters: &AdapterSet) -> Result<usize, ModelError> {
        let mut model = self.models[0].clone();
        model.attach_set(adapters, 0.0)?;
        self.models.push(model.for_inference());
        Ok(self.models.len() - 1)
    }

    /// Queues a request, and gives its number.
    ///
    /// # Errors
    /// When its prompt is empty, has an unknown token or does not fit the context or the cache with its completion, a
    /// sampling parameter is out of range, or nobody has added its adapters.
    pub fn submit(&mut self, request: Request) -> Result<usize, ModelError> {
        let index = self.requests.len();
        request.check(index, self.models[0].config())?;
        let (held, tokens, room) = (self.models.len(), request.tokens(), self.cache.pages());
        if let Some(adapter) = request.adapter.filter(|adapter| *adapter >= held) {
            return Err(ModelError::UnknownAdapter { adapter, held });
        }
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
            // A pass is with one set of adapters, or without.
            let mut adapters: Vec<_> = self.running.iter().map(|one| self.adapter(one)).collect();
            adapters.sort_unstable();
            adapters.dedup();
            adapters.into_iter().for_each(|adapter| self.decode(adapter, on_token));
        }
        Ok(!(self.running.is_empty() && self.outgrown.is_empty() && self.waiting.is_empty()))
    }

    /// Takes the completions of a request, as they are; it is not known any more. What of it is under way or waits ends
    /// as cancelled. None of a number that no request has.
    pub fn take(&mut self, request: usize) -> Vec<Completion> {
        self.cancel(|other| other == request);
        let Some(progress) = self.requests.get_mut(request) else { return Vec::new() };
        progress.request.prompt = Vec::new();
        std::mem::take(&mut progress.completions)
    }

    /// As [`take`](Self::take), of all requests in their order.
    pub fn take_all(&mut self) -> Vec<Vec<Completion>> {
        (0..self.requests.len()).map(|request| self.take(request)).collect()
    }

    fn adapter(&self, running: &Running) -> Option<usize> {
        self.requests[running.request].request.adapter
    }

    /// Texts for which there is room: those that enter again, then prompts in the order in which they were submitted.
    fn enter(&mut self) -> Vec<Entering> {
        let mut entering: Vec<Entering> = Vec::new();
        let (mut tokens, mut sequences) = (0, self.running.len());
        while sequences < self.options.max_sequences
            && let Some((text, adapter)) = self.next_text()
        {
            let mixed = entering.first().is_some_and(|one| self.adapter(&one.running[0]) != adapter);
            let too_long = !entering.is_empty() && tokens + text.len() > self.options.prefill_tokens;
            if mixed || too_long {
                break;
            }
            let room = self.options.max_sequences - sequences;
            let Some(one) = self.admit(text, room) else { break };
            tokens += one.text.len() - one.known;
            sequences += one.running.len();
            entering.push(one);
        }
        entering
    }

    /// What is next to enter, and its adapters.
    fn next_text(&self) -> Option<(Vec<u32>, Option<usize>)> {
        let (index, completion) = match (self.outgrown.front(), self.waiting.front()) {
            (Some(one), _) => (one.request, Some(one.completion)),
            (None, Some((index, _))) => (*index, None),
            (None, None) => return None,
        };
        let Progress { request, completions } = &self.requests[index];
        let made = completion.map_or(&[][..], |completion| &completions[completion].ids);
        Some(([&request.prompt, made].concat(), request.adapter))
    }

    /// Room for the [next text](Self::next_text), and for as many of its completions as there is room for.
    fn admit(&mut self, text: Vec<u32>, room: usize) -> Option<Entering> {
        let (index, first) = match self.outgrown.front() {
            Some(one) => (one.request, one.completion),
            None => *self.waiting.front()?,
        };
        let request = &self.requests[index].request;
        let needed = request.tokens();
        let Admitted { sequence, known } = self.cache.admit(&text, needed, request.adapter)?;
        if let Some(one) = self.outgrown.pop_front() {
            return Some(Entering { text, known, running: vec![Running { sequence, ..one }] });
        }
        let waiting = request.completions - first;
        let mut sequences = vec![sequence];
        while sequences.len() < waiting.min(room)
            && let Some(member) = self.cache.fork(sequence, text.len(), needed)
        {
            sequences.push(member);
        }
        self.waiting.pop_front();
        if sequences.len() < waiting {
            self.waiting.push_front((index, first + sequences.len()));
        }
        let running = sequences.into_iter().zip(first..).map(|(sequence, completion)| {
            let stream = request.first_stream + completion as u64;
            let sampler = Sampler::new(request.sampling, request.seed, stream);
            Running { request: index, completion, sequence, sampler, next: 0 }
        });
        Some(Entering { text, known, running: running.collect() })
    }

    fn prefill(&mut self, entering: Vec<Entering>, on_token: &mut dyn FnMut(SampledToken) -> Flow) {
        let (mut ids, mut lengths, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        // The row of the last token of the text of each completion.
        let mut rows = Vec::new();
        for Entering { text, known, running } in &entering {
            ids.extend_from_slice(&text[*known..]);
            lengths.push(text.len() - known);
            sequences.push(running[0].sequence);
            rows.extend(running.iter().map(|_| ids.len() as i64 - 1));
        }
        let adapter = self.adapter(&entering[0].running[0]);
        let hidden = self.hidden_states(&ids, &lengths, &sequences, adapter);
        self.cache.complete_forks();
        for Entering { text, running, .. } in &entering {
            self.cache.register(running[0].sequence, text);
        }
        let running = entering.into_iter().flat_map(|one| one.running).collect();
        let count = rows.len();
        let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [count]), &hidden.device());
        self.choose(hidden.select(0, rows), running, on_token);
    }

    fn decode(&mut self, adapter: Option<usize>, on_token: &mut dyn FnMut(SampledToken) -> Flow) {
        let all = std::mem::take(&mut self.running);
        let (running, others): (Vec<_>, _) = all.into_iter().partition(|one| self.adapter(one) == adapter);
        self.running = others;
        if running.is_empty() {
            return;
        }
        let ids: Vec<u32> = running.iter().map(|running| running.next).collect();
        let sequences: Vec<usize> = running.iter().map(|running| running.sequence).collect();
        let hidden = self.hidden_states(&ids, &vec![1; ids.len()], &sequences, adapter);
        self.choose(hidden, running, on_token);
    }

    fn hidden_states(
        &mut self,
        ids: &[u32],
        lengths: &[usize],
        sequences: &[usize],
        adapter: Option<usize>,
    ) -> Tensor<B, 2> {
        let model = &self.models[adapter.unwrap_or(0)];
        let pass = Pass { adapters: adapter.is_some(), dropout: None };
        model.hidden_states_cached(TokenBatch { ids, lengths }, sequences, &mut self.cache, pass)
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
            let length = request.prompt.len() + made.ids.len();
            let outgrown = !ended && self.models[0].config().rope_scaling.begins_anew_at(length);
            if ended || outgrown {
                // All but the last token have keys.
                let known = made.ids.len().saturating_sub(1);
                let tokens = [&request.prompt, &made.ids[..known]].concat();
                self.cache.register(sequence, &tokens);
                self.cache.release(sequence);
            }
            if outgrown {
                self.outgrown.push_back(one);
            } else if !ended {
                one.next = id;
                self.running.push(one);
            }
        }
        if cancelled {
            self.cancel(|_| true);
        }
    }

    /// Ends what is under way or waiting of these requests.
    fn cancel(&mut self, concerns: impl Fn(usize) -> bool) {
        let concerned = |one: &Running| concerns(one.request);
        let (running, rest): (Vec<_>, _) = std::mem::take(&mut self.running).into_iter().partition(concerned);
        self.running = rest;
        running.iter().for_each(|one| self.cache.release(one.sequence));
        let all = std::mem::take(&mut self.outgrown);
        let (outgrown, rest): (VecDeque<_>, _) = all.into_iter().partition(concerned);
        self.outgrown = rest;
        for one in running.iter().chain(&outgrown) {
            self.requests[one.request].completions[one.completion].finish = FinishReason::Cancelled;
        }
        let all = std::mem::take(&mut self.waiting);
        let (waiting, rest): (VecDeque<_>, _) = all.into_iter().partition(|(request, _)| concerns(*request));
        self.waiting = rest;
        for (request, first) in waiting {
            let waiting = &mut self.requests[request].completions[first..];
            waiting.iter_mut().for_each(|made| made.finish = FinishReason::Cancelled);
        }
    }

    fn draw(&self, hidden: Tensor<B, 2>, running: &mut [Running]) -> Vec<(u32, f32)> {
        let logits = self.models[0].logits(hidden);
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

//! Supervised fine-tuning: the mean loss of the rows' trained tokens.

use qlora_data::{Batch, Dataset, Sampler};
use qlora_kernels::{KernelBackend, TrainBackend};
use qlora_lora::Pass;
use qlora_models::{Checkpointing, Decoder, TokenBatch};

use crate::config::PackingKind;
use crate::objective::{BatchSize, Evaluation, Objective};
use crate::{Loss, Tape, TrainError};

/// Next-token prediction on a data set, the loss being `Σ weight · −log p(token) / Σ weight` of each optimizer step.
///
/// An epoch visits every row once. Its last optimizer step may have fewer rows; no step spans two epochs.
#[derive(Debug)]
pub struct SupervisedFineTuning {
    train: Dataset,
    eval: Option<Dataset>,
    sampler: Sampler,
    batch_size: usize,
    accumulate: usize,
    shuffle_seed: Option<u64>,
    /// The most tokens of a micro-batch, where those are not counted in rows.
    token_budget: Option<usize>,
    checkpointing: Checkpointing,
}

impl SupervisedFineTuning {
    /// Trains on `train` in micro-batches of `batch_size` rows, `accumulate` of them an optimizer step. With a
    /// seed each epoch has an order of its own, without one rows come in the order of the data.
    ///
    /// # Errors
    /// There are no rows.
    ///
    /// # Panics
    /// `batch_size` or `accumulate` is 0.
    pub fn new(
        train: Dataset,
        batch_size: usize,
        accumulate: usize,
        shuffle_seed: Option<u64>,
    ) -> Result<Self, TrainError> {
        assert!(batch_size > 0 && accumulate > 0, "batch_size and accumulate are at least 1");
        let sampler = match shuffle_seed {
            Some(seed) => Sampler::shuffled(train.len(), batch_size, seed)?,
            None => Sampler::sequential(train.len(), batch_size)?,
        };
        Ok(Self {
            train,
            eval: None,
            sampler,
            batch_size,
            accumulate,
            shuffle_seed,
            token_budget: None,
            checkpointing: Checkpointing::None,
        })
    }

    /// Trains in micro-batches of at most `tokens` tokens instead of so many rows, put together by `packing`.
    ///
    /// # Errors
    /// A row has more tokens.
    pub fn with_token_budget(mut self, tokens: usize, packing: PackingKind) -> Result<Self, TrainError> {
        let lengths = lengths(&self.train);
        self.sampler = match packing {
            PackingKind::BestFit => Sampler::packed(lengths, tokens, self.shuffle_seed)?,
            PackingKind::ByLength => Sampler::length_grouped(lengths, tokens, self.shuffle_seed)?,
        };
        self.token_budget = Some(tokens);
        Ok(self)
    }

    /// Micro-batches in which every row is seen once.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.sampler.batches_per_epoch()
    }

    /// Evaluates on this data.
    #[must_use]
    pub fn with_evaluation(mut self, eval: Dataset) -> Self {
        self.eval = Some(eval);
        self
    }

    /// Keeps less of a forward pass, and computes it again for the backward pass.
    #[must_use]
    pub fn with_checkpointing(mut self, checkpointing: Checkpointing) -> Self {
        self.checkpointing = checkpointing;
        self
    }

    /// Optimizer steps in which every row is seen once, the smaller last one counted.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.sampler.batches_per_epoch().div_ceil(self.accumulate) as u64
    }

    /// The batches of an optimizer step, counted from 0.
    fn batches(&mut self, step: u64) -> Result<Vec<Batch>, TrainError> {
        let steps = self.steps_per_epoch();
        let (epoch, step) = (step / steps, (step % steps) as usize);
        self.sampler.seek(epoch, step * self.accumulate);
        let left = self.sampler.batches_per_epoch() - step * self.accumulate;
        let batches = (0..left.min(self.accumulate)).map(|_| {
            let rows = self.sampler.next_batch();
            Batch::from_samples(&self.train.select(&rows))
        });
        Ok(batches.collect())
    }
}

impl<B: TrainBackend> Objective<B, Decoder<B>> for SupervisedFineTuning {
    type Batch = Batch;

    fn steps_per_epoch(&self) -> u64 {
        Self::steps_per_epoch(self)
    }

    fn fingerprint(&self) -> String {
        self.train.content_hash()
    }

    fn micro_batches(&mut self, _model: &Decoder<B>, step: u64) -> Result<Vec<Batch>, TrainError> {
        self.batches(step)
    }

    fn size(&self, batch: &Batch) -> BatchSize {
        BatchSize {
            tokens: batch.tokens() as u64,
            trained_tokens: batch.trained_tokens() as u64,
            weight: batch.trained_weight(),
        }
    }

    fn loss(&self, model: &Decoder<B>, batch: &Batch, pass: Pass) -> Loss<B, Decoder<B>> {
        let tokens = TokenBatch { ids: &batch.ids, lengths: &batch.lengths };
        let (hidden, tape) = model.hidden_states_checkpointed(tokens, pass, self.checkpointing);
        let value = model.loss_of(hidden, &batch.targets, &batch.weights);
        Loss { value, tape: tape.map(|tape| Box::new(tape) as Box<dyn Tape<B, Decoder<B>>>) }
    }

    fn first_non_finite_layer(
        &self,
        model: &Decoder<B::InnerBackend>,
        batch: &Batch,
        pass: Pass,
    ) -> Option<String> {
        let tokens = TokenBatch { ids: &batch.ids, lengths: &batch.lengths };
        // Where all hidden states are finite, the logits are not.
        model.first_non_finite_layer(tokens, pass).or_else(|| Some("lm_head".to_string()))
    }

    fn evaluate(&self, model: &Decoder<B::InnerBackend>) -> Result<Option<Evaluation>, TrainError> {
        let Some(eval) = &self.eval else { return Ok(None) };
        let sampler = match self.token_budget {
            None => Sampler::sequential(eval.len(), self.batch_size)?,
            Some(budget) => {
                let lengths = lengths(eval);
                // A held-out row may be longer than what is trained on.
                let budget = lengths.iter().copied().fold(budget, usize::max);
                Sampler::packed(lengths, budget, None)?
            }
        };
        Ok(Some(evaluate_batches(model, eval, sampler)))
    }
}

/// A model's losses on a data set, in batches of so many rows, adapters on.
///
/// # Errors
/// There are no rows.
///
/// # Panics
/// `batch_size` is 0.
pub fn evaluate<B: KernelBackend>(
    model: &Decoder<B>,
    data: &Dataset,
    batch_size: usize,
) -> Result<Evaluation, TrainError> {
    Ok(evaluate_batches(model, data, Sampler::sequential(data.len(), batch_size)?))
}

fn lengths(data: &Dataset) -> Vec<usize> {
    data.lengths().collect()
}

fn evaluate_batches<B: KernelBackend>(
    model: &Decoder<B>,
    data: &Dataset,
    mut sampler: Sampler,
) -> Evaluation {
    let mut evaluation = Evaluation::default();
    for _ in 0..sampler.batches_per_epoch() {
        let batch = Batch::from_samples(&data.select(&sampler.next_batch()));
        let tokens = TokenBatch { ids: &batch.ids, lengths: &batch.lengths };
        let found = model.token_losses(tokens, &batch.targets, &batch.weights, Pass::default());
        let weights = batch.weights.iter().filter(|&&weight| weight != 0.0);
        for ((&weight, &loss), &correct) in weights.zip(&found.losses).zip(&found.correct) {
            evaluation.loss_sum += f64::from(weight) * f64::from(loss);
            evaluation.weight += f64::from(weight);
            evaluation.tokens += 1;
            evaluation.correct += u64::from(correct);
        }
    }
    evaluation
}

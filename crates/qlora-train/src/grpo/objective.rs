//! The objective.

use std::cell::RefCell;

use burn::module::AutodiffModule as _;
use qlora_kernels::TrainBackend;
use qlora_lora::Pass;
use qlora_models::Decoder;
use qlora_rl::{LossBatch, Normalization, OptionProblem, Reward, loss, sampling_metrics};

use super::batch::GrpoBatch;
use super::options::GrpoOptions;
use super::prompts::PromptSet;
use super::rollout::{Roller, TextDecoder};
use super::state::State;
use super::step_log::StepLog;
use crate::objective::{BatchSize, Objective, StepReport};
use crate::{Loss, Tape, TrainError};

/// Trains a model to write completions that rewards like.
pub struct Grpo {
    prompts: PromptSet,
    rewards: Vec<Box<dyn Reward>>,
    weights: Vec<f64>,
    decode: TextDecoder,
    options: GrpoOptions,
    state: State,
    /// The step after the one whose batches were made last.
    next_step: u64,
    log: RefCell<StepLog>,
    /// Of the generation batch that was made for this step, if one was.
    report: StepReport,
}

impl Grpo {
    /// Rewards come with their weights; `decode` gives the text of completion tokens.
    ///
    /// # Errors
    /// Options that are out of range or contradict each other: all of them. No reward, or two of one name, are
    /// problems too.
    pub fn new(
        prompts: PromptSet,
        rewards: Vec<(Box<dyn Reward>, f64)>,
        decode: TextDecoder,
        options: GrpoOptions,
    ) -> Result<Self, Vec<OptionProblem>> {
        let mut problems = options.problems();
        let (rewards, weights): (Vec<_>, Vec<_>) = rewards.into_iter().unzip();
        let problem = |message: String| OptionProblem { option: "rewards", message };
        if rewards.is_empty() {
            problems.push(problem("there is none; give at least one".into()));
        }
        for (index, reward) in rewards.iter().enumerate() {
            if rewards[..index].iter().any(|other| other.name() == reward.name()) {
                problems.push(problem(format!("two have the name `{}`; name one otherwise", reward.name())));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            prompts,
            rewards,
            weights,
            decode,
            options,
            state: State::default(),
            next_step: 0,
            log: RefCell::default(),
            report: StepReport::default(),
        })
    }

    /// Optimizer steps in which every prompt is seen once.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        let prompts = self.prompts.prompts().len() as u64;
        prompts.div_ceil(self.options.prompts() as u64) * self.options.steps_of_generation()
    }

    /// The batches of an optimizer step from the generation batch in use.
    fn batches(&self, step: u64) -> Vec<GrpoBatch> {
        let Some(rollout) = &self.state.rollout else { return Vec::new() };
        let update = (step % self.options.updates_per_generation) as usize;
        let size = self.options.batch_size * self.options.accumulate;
        let rows = &rollout.rows[update * size..(update + 1) * size];
        let items: usize = rows.iter().filter(|row| !row.masked).map(|row| row.ids.len()).sum();
        let norm = Normalization { accumulate: self.options.accumulate as f64, items: items as f64 };
        let batches = rows.chunks(self.options.batch_size);
        batches.map(|rows| GrpoBatch::new(self.prompts.prompts(), rows, norm)).collect()
    }
}

impl<B: TrainBackend> Objective<B, Decoder<B>> for Grpo {
    type Batch = GrpoBatch;

    fn steps_per_epoch(&self) -> u64 {
        Self::steps_per_epoch(self)
    }

    fn fingerprint(&self) -> String {
        self.prompts.fingerprint()
    }

    fn generates(&self, step: u64) -> bool {
        let generation = step / self.options.steps_of_generation();
        self.state.rollout.as_ref().is_none_or(|rollout| rollout.generation != generation)
    }

    fn micro_batches(&mut self, model: &Decoder<B>, step: u64) -> Result<Vec<GrpoBatch>, TrainError> {
        let per = self.options.steps_of_generation();
        let generation = step / per;
        if self.state.rollout.as_ref().is_none_or(|rollout| rollout.generation != generation) {
            if !step.is_multiple_of(per) {
                return Err(TrainError::MissingRollout { step: step + 1 });
            }
            self.state.rollout = None;
            let roller = Roller {
                options: &self.options,
                prompts: &self.prompts,
                rewards: &self.rewards,
                weights: &self.weights,
                decode: &self.decode,
            };
            let (rollout, report) = roller.roll_out(&model.valid(), generation, &mut self.state)?;
            (self.state.rollout, self.report) = (Some(rollout), report);
        }
        self.next_step = step + 1;
        Ok(self.batches(step))
    }

    fn size(&self, batch: &GrpoBatch) -> BatchSize {
        BatchSize {
            tokens: batch.ids.len() as u64,
            trained_tokens: batch.mask.iter().filter(|counted| **counted).count() as u64,
            // The losses of micro-batches are parts of that of the step: they are added up.
            weight: 1.0 / batch.norm.accumulate,
        }
    }

    fn loss(&self, model: &Decoder<B>, batch: &GrpoBatch, pass: Pass) -> Loss<B, Decoder<B>> {
        let options = &self.options;
        let temperature = options.sampling.temperature as f32;
        let tokens = batch.tokens();
        let (hidden, tape) = model.hidden_states_checkpointed(tokens, pass, options.checkpointing);
        let found = model.policy_tokens_of(&hidden, &batch.targets, &batch.every_token(), temperature);
        let measured = LossBatch {
            lengths: &batch.completion_lengths,
            mask: &batch.mask,
            log_probs: &found.log_probs,
            old_log_probs: batch.old.as_deref(),
            ref_log_probs: batch.reference.as_deref(),
            sampling_log_probs: Some(&batch.sampled),
            entropies: Some(&found.entropies),
            advantages: &batch.advantages,
        };
        // Only a correction looks at the sampler's numbers.
        let corrected = options.loss.sampler_correction.is_some();
        let input =
            LossBatch { sampling_log_probs: measured.sampling_log_probs.filter(|_| corrected), ..measured };
        let out = loss(&options.loss, &input, batch.norm);
        let mut log = self.log.borrow_mut();
        log.add(out.metrics);
        log.add(sampling_metrics(&options.loss, &measured));

        // Its gradient is that of the loss, and its value is replaced by that of the loss.
        let weights = batch.at_places(out.d_log_probs.iter().map(|derivative| -*derivative as f32));
        let sum = model.policy_loss_of(hidden, &batch.targets, &weights, temperature);
        let value = sum.clone() - sum.detach() + out.loss;
        Loss { value, tape: tape.map(|tape| Box::new(tape) as Box<dyn Tape<B, Decoder<B>>>) }
    }

    fn first_non_finite_layer(
        &self,
        model: &Decoder<B::InnerBackend>,
        batch: &GrpoBatch,
        pass: Pass,
    ) -> Option<String> {
        let tokens = batch.tokens();
        model.first_non_finite_layer(tokens, pass).or_else(|| Some("lm_head".to_string()))
    }

    fn finish_step(&mut self) -> StepReport {
        let mut report = std::mem::take(&mut self.report);
        report.metrics.extend(self.log.borrow_mut().take());
        report
    }

    fn save_state(&self) -> Result<Option<String>, TrainError> {
        let mut state = self.state.clone();
        if self.next_step.is_multiple_of(self.options.steps_of_generation()) {
            state.rollout = None;
        }
        let text = serde_json::to_string(&state);
        text.map(Some).map_err(|error| TrainError::Objective { source: error.into() })
    }

    fn restore_state(&mut self, state: &str) -> Result<(), TrainError> {
        let state: State = serde_json::from_str(state)
            .map_err(|error| TrainError::Objective { source: format!("objective.json: {error}").into() })?;
        let prompts = self.prompts.prompts().len();
        let rows = state.rollout.iter().flat_map(|rollout| &rollout.rows);
        let good = |row: &super::state::Row| {
            let tokens = row.ids.len();
            let sized = |values: &[f32]| values.is_empty() || values.len() == tokens;
            row.prompt < prompts && row.sampled.len() == tokens && sized(&row.old) && sized(&row.reference)
        };
        let whole = state.rollout.as_ref().is_none_or(|r| r.rows.len() == self.options.completions());
        if !rows.into_iter().all(good) || !whole {
            let source = "objective.json: its generation batch is not of these prompts and options".into();
            return Err(TrainError::Objective { source });
        }
        self.state = state;
        Ok(())
    }
}

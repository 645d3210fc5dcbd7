//! Making a generation batch: completions, rewards, advantages, log-probabilities before the first update.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use qlora_kernels::KernelBackend;
use qlora_lora::Pass;
use qlora_models::{Completion, Decoder, FinishReason, GenerateOptions};
use qlora_rl::{
    Aggregation, Candidate, Normalization, Reward, RewardScale, RewardTable, Scores, advantages, score_during,
};
use qlora_text::Tokenizer;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use super::batch::GrpoBatch;
use super::options::GrpoOptions;
use super::prompts::PromptSet;
use super::state::{Rollout, Row, State};
use crate::TrainError;
use crate::objective::StepReport;
use crate::samples::SampleRecord;

/// Text of completion tokens, without special tokens.
pub type TextDecoder =
    Arc<dyn Fn(&[u32]) -> Result<String, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// The text that a tokenizer gives for completion tokens. Ids that it has no token for, which a model with more rows
/// in its head may sample, give none.
#[must_use]
pub fn text_decoder(tokenizer: Arc<Tokenizer>) -> TextDecoder {
    Arc::new(move |ids: &[u32]| {
        let text = tokenizer.decode_generated(ids, true);
        text.map_err(|error| Box::new(error) as Box<dyn std::error::Error + Send + Sync>)
    })
}

/// What a rollout needs beside the model.
pub(super) struct Roller<'a> {
    pub(super) options: &'a GrpoOptions,
    pub(super) prompts: &'a PromptSet,
    pub(super) rewards: &'a [Box<dyn Reward>],
    pub(super) weights: &'a [f64],
    pub(super) decode: &'a TextDecoder,
}

/// Completions of one prompt with what they were worth.
struct Group {
    prompt: usize,
    completions: Vec<Completion>,
    texts: Vec<String>,
    /// `rewards[k][i]`.
    rewards: Vec<Vec<Option<f64>>>,
    failed: Vec<bool>,
}

impl Group {
    fn has_spread(&self, weights: &[f64], names: &[String]) -> bool {
        let group = self.completions.len();
        let table = RewardTable { names, weights, rewards: &self.rewards, group };
        !advantages(table, RewardScale::None, Aggregation::SumThenNormalize).without_spread[0]
    }
}

/// The first number of a stream of ChaCha8 keyed by the seed.
fn draw(seed: u64, stream: u64) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng.next_u64()
}

impl Roller<'_> {
    /// Makes generation batch number `generation`, and says what there is to tell of it.
    pub(super) fn roll_out<B: KernelBackend>(
        &self,
        model: &Decoder<B>,
        generation: u64,
        state: &mut State,
    ) -> Result<(Rollout, StepReport), TrainError> {
        let started = Instant::now();
        let mut report = StepReport::default();
        let groups = self.groups(model, generation, state, &mut report)?;
        report.metrics.insert("seconds/rollout".into(), started.elapsed().as_secs_f64());
        let mut rows = self.score(&groups, state, &mut report);
        if self.options.updates_per_generation > 1 {
            shuffle(&mut rows, self.options.seed, (1 << 63) + generation);
        }
        let started = Instant::now();
        let mut is_timed = false;
        if self.options.leaves_policy() {
            is_timed = true;
            self.log_probs(model, &mut rows, Pass::default(), |row, found| row.old = found);
        }
        if self.options.loss.beta != 0.0 {
            is_timed = true;
            self.log_probs(model, &mut rows, Pass::base(), |row, found| row.reference = found);
        }
        if is_timed {
            report.metrics.insert("seconds/log_probs".into(), started.elapsed().as_secs_f64());
        }
        Ok((Rollout { generation, rows }, report))
    }

    /// Groups until there are enough, those without spread drawn anew as often as allowed.
    fn groups<B: KernelBackend>(
        &self,
        model: &Decoder<B>,
        generation: u64,
        state: &mut State,
        report: &mut StepReport,
    ) -> Result<Vec<Group>, TrainError> {
        let options = self.options;
        let names: Vec<String> = self.rewards.iter().map(|reward| reward.name().to_string()).collect();
        let (mut kept, mut flat) = (Vec::new(), Vec::new());
        let mut errors = vec![0; self.rewards.len()];
        let restarts: Vec<u64> = self.rewards.iter().map(|reward| reward.restarts()).collect();
        let mut rounds = 0;
        for round in 0..=u64::from(options.dynamic_sampling) {
            let missing = options.prompts() - kept.len();
            if missing == 0 {
                break;
            }
            rounds = round;
            let drawn = self.prompts.draw(state.drawn, missing, options.shuffle)?;
            state.drawn += missing as u64;
            let (completions, texts, scores) =
                self.generate(model, &drawn, draw(options.seed, generation * 256 + round))?;
            for (k, count) in scores.errors.iter().enumerate() {
                errors[k] += count;
                if let Some(message) = scores.messages.get(&k) {
                    report.warnings.push(format!(
                        "reward `{}` failed on {count} of {} completions, which are left out: {message}",
                        names[k],
                        completions.len()
                    ));
                }
            }
            for group in split(&drawn, completions, texts, &scores, options.num_generations) {
                if options.dynamic_sampling == 0 || group.has_spread(self.weights, &names) {
                    kept.push(group);
                } else {
                    flat.push(group);
                }
            }
        }
        let metrics = &mut report.metrics;
        if options.dynamic_sampling > 0 {
            metrics.insert("dynamic_sampling/rounds".into(), rounds as f64);
            metrics.insert("dynamic_sampling/groups_without_spread".into(), flat.len() as f64);
        }
        if errors.iter().any(|count| *count > 0) {
            for (name, count) in names.iter().zip(&errors) {
                metrics.insert(format!("rewards/{name}/errors"), *count as f64);
            }
        }
        for (reward, before) in self.rewards.iter().zip(restarts) {
            let count = reward.restarts() - before;
            if count > 0 {
                metrics.insert(format!("rewards/{}/restarts", reward.name()), count as f64);
            }
        }
        // Where no more rounds are allowed: they teach nothing, but fill the batch.
        let missing = options.prompts() - kept.len();
        kept.extend(flat.into_iter().rev().take(missing));
        Ok(kept)
    }

    /// Completions of the prompts, `num_generations` of each, scored while others are being made.
    fn generate<B: KernelBackend>(
        &self,
        model: &Decoder<B>,
        drawn: &[usize],
        seed: u64,
    ) -> Result<(Vec<Completion>, Vec<String>, Scores), TrainError> {
        let options = self.options;
        let group = options.num_generations;
        let all = self.prompts.prompts();
        let prompt = |index: usize| &all[drawn[index / group]];
        let count = drawn.len() * group;
        let ids: Vec<&[u32]> = drawn.iter().map(|index| all[*index].ids.as_slice()).collect();
        let limit = options.loss.max_completion_length;
        let generate = GenerateOptions {
            max_new_tokens: limit,
            completions: group,
            max_sequences: options.max_sequences,
            sampling: options.sampling,
            stop_tokens: options.stop_tokens.clone(),
            seed,
            pass: Pass::default(),
        };
        let mut texts = vec![String::new(); count];
        let mut failure = None;
        let (completions, scores) = score_during(self.rewards, count, options.reward_threads, |hand_over| {
            let mut made: Vec<Vec<u32>> = vec![Vec::new(); count];
            model.generate(&ids, &generate, &mut |token| {
                let index = token.prompt * group + token.completion;
                let ids = &mut made[index];
                ids.push(token.id);
                let finished = options.stop_tokens.contains(&token.id);
                if !finished && ids.len() < limit {
                    return true;
                }
                match (self.decode)(ids) {
                    Ok(text) => {
                        texts[index].clone_from(&text);
                        let prompt = prompt(index);
                        hand_over(Candidate {
                            index,
                            prompt: Arc::clone(&prompt.text),
                            columns: Arc::clone(&prompt.columns),
                            completion: text,
                            completion_ids: std::mem::take(ids),
                            finished,
                        });
                        true
                    }
                    Err(source) => {
                        failure = Some(TrainError::Objective { source });
                        false
                    }
                }
            })
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        let completions = completions.map_err(|error| TrainError::Objective { source: error.into() })?;
        Ok((completions, texts, scores))
    }

    /// Advantages and masks of the groups, and what there is to tell of them.
    fn score(&self, groups: &[Group], state: &mut State, report: &mut StepReport) -> Vec<Row> {
        let options = self.options;
        let names: Vec<String> = self.rewards.iter().map(|reward| reward.name().to_string()).collect();
        let rewards: Vec<Vec<Option<f64>>> = (0..names.len())
            .map(|k| groups.iter().flat_map(|group| group.rewards[k].iter().copied()).collect())
            .collect();
        let table = RewardTable {
            names: &names,
            weights: self.weights,
            rewards: &rewards,
            group: options.num_generations,
        };
        let found = advantages(table, options.scale_rewards, options.aggregation);
        report.metrics.extend(found.metrics.into_iter().filter(|(_, value)| value.is_finite()));

        let (mut rows, mut lengths) = (Vec::new(), Vec::new());
        for group in groups {
            for (i, completion) in group.completions.iter().enumerate() {
                let finished = completion.finish == FinishReason::Stop;
                lengths.push((completion.ids.len(), finished));
                let masked = group.failed[i] || (options.mask_truncated_completions && !finished);
                let advantage = found.values[rows.len()] as f32;
                let prompt = &self.prompts.prompts()[group.prompt];
                state.num_tokens += (prompt.ids.len() + completion.ids.len()) as u64;
                if rows.len() < options.logged_samples {
                    let scores = names.iter().zip(&group.rewards);
                    report.samples.push(SampleRecord {
                        step: 0,
                        prompt: prompt.text.to_string(),
                        completion: group.texts[i].clone(),
                        rewards: scores.map(|(name, rewards)| (name.clone(), rewards[i])).collect(),
                        advantage: f64::from(advantage),
                        masked,
                    });
                }
                rows.push(Row {
                    prompt: group.prompt,
                    ids: completion.ids.clone(),
                    sampled: completion.log_probs.clone(),
                    advantage,
                    masked,
                    ..Row::default()
                });
            }
        }
        length_metrics(&lengths, &mut report.metrics);
        let masked = rows.iter().filter(|row| row.masked).count() as f64;
        report.metrics.insert("completions/masked_ratio".into(), masked / rows.len().max(1) as f64);
        report.metrics.insert("num_tokens".into(), state.num_tokens as f64);
        rows
    }

    /// Log-probabilities of the completions, in the micro-batches of training.
    fn log_probs<B: KernelBackend>(
        &self,
        model: &Decoder<B>,
        rows: &mut [Row],
        pass: Pass,
        store: impl Fn(&mut Row, Vec<f32>),
    ) {
        let norm = Normalization { accumulate: 1.0, items: 1.0 };
        let temperature = self.options.sampling.temperature as f32;
        for rows in rows.chunks_mut(self.options.batch_size) {
            let batch = GrpoBatch::new(self.prompts.prompts(), rows, norm);
            let tokens = batch.tokens();
            let found = model.policy_tokens(tokens, &batch.targets, &batch.every_token(), temperature, pass);
            let mut found = found.log_probs.into_iter();
            for row in rows {
                let count = row.ids.len();
                store(row, found.by_ref().take(count).collect());
            }
        }
    }
}

/// Completions next to each other, as groups.
fn split(
    drawn: &[usize],
    completions: Vec<Completion>,
    texts: Vec<String>,
    scores: &Scores,
    group: usize,
) -> Vec<Group> {
    let mut made = completions.into_iter().zip(texts);
    let groups = drawn.iter().enumerate().map(|(index, prompt)| {
        let range = index * group..(index + 1) * group;
        let (completions, texts) = made.by_ref().take(group).unzip();
        let rewards = scores.rewards.iter().map(|rewards| rewards[range.clone()].to_vec()).collect();
        Group { prompt: *prompt, completions, texts, rewards, failed: scores.failed[range].to_vec() }
    });
    groups.collect()
}

/// Fisher and Yates' shuffle, with a stream of ChaCha8.
fn shuffle(rows: &mut [Row], seed: u64, stream: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    for last in (1..rows.len()).rev() {
        rows.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
    }
}

/// TRL's metrics of lengths; those of completions that ended by themselves only where there are such.
fn length_metrics(lengths: &[(usize, bool)], metrics: &mut BTreeMap<String, f64>) {
    let mut summarize = |lengths: Vec<f64>, kind: &str| {
        if lengths.is_empty() {
            return;
        }
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        metrics.insert(format!("completions/mean_{kind}"), mean);
        let min = lengths.iter().copied().fold(f64::INFINITY, f64::min);
        metrics.insert(format!("completions/min_{kind}"), min);
        let max = lengths.iter().copied().fold(0.0, f64::max);
        metrics.insert(format!("completions/max_{kind}"), max);
    };
    let ended: Vec<f64> = lengths.iter().filter(|(_, ended)| *ended).map(|(n, _)| *n as f64).collect();
    let cut = lengths.len() - ended.len();
    summarize(lengths.iter().map(|(length, _)| *length as f64).collect(), "length");
    summarize(ended, "terminated_length");
    metrics.insert("completions/clipped_ratio".into(), cut as f64 / lengths.len().max(1) as f64);
}

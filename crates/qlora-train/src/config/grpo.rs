//! `[grpo]`.

use std::collections::BTreeMap;

use qlora_data::{OnLong, TrainOn};
use qlora_models::Sampling;
use qlora_rl::{
    Aggregation, CorrectionMode, ImportanceLevel, LossKind, LossOptions, RewardConfig, RewardKind,
    RewardScale, SamplerCorrection, VespoOptions,
};
use serde::{Serialize, Serializer};
use toml::Value;

use super::check::{count, non_negative, number, positive, seed, text};
use super::problem::Place;
use super::reader::Reader;
use super::{DataConfig, TrainConfig};
use crate::grpo::GrpoOptions;

const SECTION: &str = "grpo";
const SECTION_OF_ROWS: &str = "data";

const LEVELS: [(&str, ImportanceLevel); 2] =
    [("token", ImportanceLevel::Token), ("sequence", ImportanceLevel::Sequence)];
const SCALES: [(&str, RewardScale); 3] =
    [("group", RewardScale::Group), ("batch", RewardScale::Batch), ("none", RewardScale::None)];
const AGGREGATIONS: [(&str, Aggregation); 2] = [
    ("sum_then_normalize", Aggregation::SumThenNormalize),
    ("normalize_then_sum", Aggregation::NormalizeThenSum),
];

/// `[grpo]`: completions of the model are scored, and those better than their group made likelier.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpoConfig {
    /// How completions are made and trained on. Sizes, seed, order and checkpointing are those of `[train]` and
    /// `[data]`; stop tokens are the model's, and empty here.
    pub options: GrpoOptions,
    /// What completions are worth: at least one.
    pub rewards: Vec<RewardConfig>,
    /// A system message before the questions of a built-in task.
    pub system: Option<String>,
    /// What the assistant's turn begins with, for a built-in task.
    pub prefill: Option<String>,
}

/// The name of a value.
fn name_of<T: PartialEq>(named: &[(&'static str, T)], value: &T) -> &'static str {
    named.iter().find(|(_, known)| known == value).map_or("", |(name, _)| name)
}

impl Serialize for GrpoConfig {
    /// The keys that the loss reads, and no others: the file must read back.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let GrpoOptions { loss, sampling, .. } = &self.options;
        let float = |value: f64| Value::Float(value);
        let text = |value: &str| Value::String(value.to_string());
        let whole = |value: u64| Value::Integer(i64::try_from(value).unwrap_or(i64::MAX));
        let mut keys: BTreeMap<&str, Value> = BTreeMap::from([
            ("loss_type", text(loss.kind.name())),
            ("importance_sampling_level", text(name_of(&LEVELS, &loss.importance))),
            ("beta", float(loss.beta)),
            ("top_entropy_quantile", float(loss.top_entropy_quantile)),
            ("num_generations", whole(self.options.num_generations as u64)),
            ("max_completion_length", whole(loss.max_completion_length as u64)),
            ("temperature", float(sampling.temperature)),
            ("top_p", float(sampling.top_p)),
            ("top_k", whole(sampling.top_k as u64)),
            ("min_p", float(sampling.min_p)),
            ("repetition_penalty", float(sampling.repetition_penalty)),
            ("max_sequences", whole(self.options.max_sequences as u64)),
            ("num_iterations", whole(self.options.num_iterations)),
            ("updates_per_generation", whole(self.options.updates_per_generation)),
            ("multi_objective_aggregation", text(name_of(&AGGREGATIONS, &self.options.aggregation))),
            ("mask_truncated_completions", Value::Boolean(self.options.mask_truncated_completions)),
            ("dynamic_sampling", whole(u64::from(self.options.dynamic_sampling))),
            ("logged_samples", whole(self.options.logged_samples as u64)),
            ("reward_threads", whole(self.options.reward_threads as u64)),
        ]);
        keys.extend(self.system.as_deref().map(|system| ("system", text(system))));
        keys.extend(self.prefill.as_deref().map(|prefill| ("prefill", text(prefill))));
        if self.options.aggregation == Aggregation::SumThenNormalize {
            keys.insert("scale_rewards", text(name_of(&SCALES, &self.options.scale_rewards)));
        }
        if loss.beta != 0.0 {
            keys.insert("use_bias_correction_kl", Value::Boolean(loss.bias_correction_kl));
        }
        if loss.kind.is_clipped() {
            keys.insert("epsilon", float(loss.epsilon));
        }
        if loss.kind.is_clipped() || loss.kind == LossKind::Cispo {
            keys.insert("epsilon_high", float(loss.epsilon_high));
        }
        keys.extend(loss.delta.map(|delta| ("delta", float(delta))));
        keys.extend(loss.off_policy_mask_threshold.map(|limit| ("off_policy_mask_threshold", float(limit))));
        if loss.kind == LossKind::Sapo {
            keys.insert("sapo_temperature_pos", float(loss.sapo_temperature_pos));
            keys.insert("sapo_temperature_neg", float(loss.sapo_temperature_neg));
        }
        if loss.kind == LossKind::Vespo {
            let VespoOptions { k_pos, lambda_pos, k_neg, lambda_neg } = loss.vespo;
            keys.insert("vespo_k_pos", float(k_pos));
            keys.insert("vespo_lambda_pos", float(lambda_pos));
            keys.insert("vespo_k_neg", float(k_neg));
            keys.insert("vespo_lambda_neg", float(lambda_neg));
        }
        if let Some(correction) = loss.sampler_correction {
            keys.insert("sampler_correction", text(correction.mode.name()));
            keys.insert("sampler_correction_max", float(correction.max));
            keys.extend(correction.min.map(|min| ("sampler_correction_min", float(min))));
        }
        let rewards = self.rewards.iter().map(|reward| {
            Value::try_from(reward.to_value()).expect("a reward is a table of text, numbers and lists")
        });
        keys.insert("rewards", Value::Array(rewards.collect()));
        keys.serialize(serializer)
    }
}

/// The section, if there is one.
pub(super) fn grpo(
    reader: &mut Reader,
    train: Option<&TrainConfig>,
    data: Option<&DataConfig>,
) -> Option<GrpoConfig> {
    if !reader.has_section(SECTION) {
        return None;
    }
    // Where keys were given, for problems that are found when all are known.
    let places = reader.places(SECTION);
    let loss = loss(reader);
    let sampling = sampling(reader);
    let whole = |reader: &mut Reader, key, default: usize| {
        reader.optional(SECTION, key, "a whole number of at least 1", |v| count(v, 1)).unwrap_or(default)
    };
    let default = GrpoOptions::default();
    let num_generations = whole(reader, "num_generations", default.num_generations);
    let max_sequences = whole(reader, "max_sequences", default.max_sequences);
    let num_iterations = whole(reader, "num_iterations", 1) as u64;
    let updates_per_generation = whole(reader, "updates_per_generation", 1) as u64;
    reader.unsupported(
        SECTION,
        "steps_per_generation",
        "set updates_per_generation: optimizer steps, where TRL counts micro-batches",
    );
    let aggregation =
        reader.choice(SECTION, "multi_objective_aggregation", &AGGREGATIONS, Aggregation::SumThenNormalize);
    let normalized = aggregation == Aggregation::NormalizeThenSum;
    let scale_rewards = match normalized {
        true => {
            refuse(
                reader,
                "scale_rewards",
                "\"normalize_then_sum\" scales by the batch; remove one of the two",
            );
            RewardScale::Group
        }
        false => reader.choice(SECTION, "scale_rewards", &SCALES, RewardScale::Group),
    };
    let mask_truncated_completions =
        reader.optional(SECTION, "mask_truncated_completions", "true or false", Value::as_bool);
    let dynamic_sampling =
        reader.optional(SECTION, "dynamic_sampling", "a whole number from 0 to 255", |v| {
            seed(v).and_then(|rounds| u8::try_from(rounds).ok())
        });
    let logged_samples =
        reader.optional(SECTION, "logged_samples", "a whole number of at least 0", |v| count(v, 0));
    let reward_threads = whole(reader, "reward_threads", default.reward_threads);
    let rewards = rewards(reader, data);
    let [system, prefill] = ["system", "prefill"].map(|key| of_task(reader, key, data));
    if let Some(data) = data {
        check_data(reader, data);
        check_length(reader, data, loss.max_completion_length);
    }
    if let Some(train) = train {
        let mut refuse = |key, given: bool, why| refuse_beside(reader, "train", key, given, why);
        refuse("tokens_per_batch", train.tokens_per_batch.is_some(), COMPLETIONS);
        refuse("eval_every", train.eval_every > 0, NO_EVALUATION);
    }
    let (train, data) = (train?, data?);
    let options = GrpoOptions {
        loss,
        num_generations,
        sampling,
        max_sequences,
        num_iterations,
        updates_per_generation,
        scale_rewards,
        aggregation,
        mask_truncated_completions: mask_truncated_completions.unwrap_or(false),
        dynamic_sampling: u32::from(dynamic_sampling.unwrap_or(0)),
        batch_size: train.batch_size,
        accumulate: train.accumulate,
        seed: train.seed,
        shuffle: data.shuffle.then_some(data.seed),
        checkpointing: train.checkpointing,
        logged_samples: logged_samples.unwrap_or(default.logged_samples),
        reward_threads,
        ..default
    };
    for problem in options.problems() {
        let place = places.get(problem.option).copied().unwrap_or(Place::Absent);
        reader.problem(place, &format!("{SECTION}.{}", problem.option), problem.message);
    }
    Some(GrpoConfig { options, rewards, system, prefill })
}

const COMPLETIONS: &str = "GRPO counts completions: set train.batch_size";
const NO_EVALUATION: &str = "GRPO has no evaluation on held-out rows; remove it";
const AS_THEY_ARE: &str = "GRPO takes prompts as they are; remove it";

/// Refuses what a key of another section says, which would change nothing here.
fn refuse_beside(reader: &mut Reader, section: &'static str, key: &'static str, given: bool, why: &str) {
    if given {
        let place = reader.taken_from(section, key);
        reader.problem(place, &format!("{section}.{key}"), why.to_string());
    }
}

/// What `[data]` says that is not for prompts. Resolved configurations have the defaults of all keys: these are let be.
fn check_data(reader: &mut Reader, data: &DataConfig) {
    let plain = data.train.plain_path();
    let mut refuse = |key, given: bool, why: &str| refuse_beside(reader, SECTION_OF_ROWS, key, given, why);
    refuse("train", plain.is_none(), "GRPO reads the prompts of one JSONL file, or a task: set it to a path");
    refuse("eval", data.eval.is_some(), NO_EVALUATION);
    refuse("eval_split", data.eval_split.is_some(), AS_THEY_ARE);
    refuse("augmentation", data.augmentation.is_some(), AS_THEY_ARE);
    refuse(
        "train_on",
        data.train_on != TrainOn::default(),
        "GRPO trains on what the model writes, all of it; remove it",
    );
    refuse(
        "on_long",
        data.on_long == OnLong::Truncate,
        "a prompt that is cut off asks something else; \"error\" or \"skip\"",
    );
    if plain.is_some_and(|name| name.starts_with("task:")) && data.task().is_none() {
        let names: Vec<&str> = qlora_rl::Task::NAMED.iter().map(|(name, _)| *name).collect();
        let message = format!(
            "{} given, expected task:NAME or task:NAME:COUNT with NAME one of {}",
            data.train,
            names.join(", ")
        );
        refuse("train", true, &message);
    }
}

/// A completion that takes all the room leaves none for its prompt.
fn check_length(reader: &mut Reader, data: &DataConfig, max_completion_length: usize) {
    if max_completion_length >= data.max_length {
        let place = reader.taken_from(SECTION, "max_completion_length");
        let message = format!(
            "{max_completion_length} leaves no room for a prompt within data.max_length = {}; lower the one or raise \
             the other",
            data.max_length
        );
        reader.problem(place, "grpo.max_completion_length", message);
    }
}

/// A text that only a built-in task reads.
fn of_task(reader: &mut Reader, key: &'static str, data: Option<&DataConfig>) -> Option<String> {
    let given = reader.optional(SECTION, key, "text", text)?;
    if data.is_some_and(|data| data.task().is_none()) {
        let place = reader.taken_from(SECTION, key);
        let message = "is for built-in tasks; the rows of a file have their own".to_string();
        reader.problem(place, &format!("{SECTION}.{key}"), message);
    }
    Some(given)
}

/// A key that means nothing beside others.
fn refuse(reader: &mut Reader, key: &'static str, why: &str) {
    if let Some(entry) = reader.take(SECTION, key) {
        reader.problem(entry.place, &format!("{SECTION}.{key}"), why.to_string());
    }
}

fn loss(reader: &mut Reader) -> LossOptions {
    let default = LossOptions::default();
    let kind = reader.choice(SECTION, "loss_type", &LossKind::NAMED, default.kind);
    let importance = reader.choice(SECTION, "importance_sampling_level", &LEVELS, default.importance);
    // A number that only some losses read.
    let mut read_if = |reads: bool, key, expected: &str, convert: fn(&Value) -> Option<f64>| match reads {
        true => reader.optional(SECTION, key, expected, convert),
        false => {
            refuse(reader, key, &format!("loss \"{}\" does not read it; remove it", kind.name()));
            None
        }
    };
    let clipped = kind.is_clipped();
    let epsilon = read_if(clipped, "epsilon", "a number above 0", positive).unwrap_or(default.epsilon);
    let high = read_if(clipped || kind == LossKind::Cispo, "epsilon_high", "a number above 0", positive);
    let delta = read_if(clipped, "delta", "a number above 1 + epsilon_high", positive);
    let sapo = kind == LossKind::Sapo;
    let sapo_temperature_pos = read_if(sapo, "sapo_temperature_pos", "a number above 0", positive);
    let sapo_temperature_neg = read_if(sapo, "sapo_temperature_neg", "a number above 0", positive);
    let mut vespo = |key| read_if(kind == LossKind::Vespo, key, "a number of at least 0", non_negative);
    let constants = VespoOptions {
        k_pos: vespo("vespo_k_pos").unwrap_or(default.vespo.k_pos),
        lambda_pos: vespo("vespo_lambda_pos").unwrap_or(default.vespo.lambda_pos),
        k_neg: vespo("vespo_k_neg").unwrap_or(default.vespo.k_neg),
        lambda_neg: vespo("vespo_lambda_neg").unwrap_or(default.vespo.lambda_neg),
    };
    if kind == LossKind::Cispo && high.is_none() {
        let message = "missing; loss \"cispo\" caps the ratio itself at it, as 5.0".to_string();
        reader.problem(Place::Absent, "grpo.epsilon_high", message);
    }
    let beta = reader.optional(SECTION, "beta", "a number of at least 0", non_negative);
    let bias_correction_kl =
        reader.optional(SECTION, "use_bias_correction_kl", "true or false", Value::as_bool);
    let entropy_coef = reader.optional(SECTION, "entropy_coef", "a number", number);
    let quantile =
        reader.optional(SECTION, "top_entropy_quantile", "a share above 0 and at most 1", positive);
    let threshold = reader.optional(SECTION, "off_policy_mask_threshold", "a number above 0", positive);
    let max_completion_length =
        reader.optional(SECTION, "max_completion_length", "a whole number of at least 1", |v| count(v, 1));
    LossOptions {
        kind,
        importance,
        epsilon,
        epsilon_high: high.unwrap_or(epsilon),
        delta,
        beta: beta.unwrap_or(default.beta),
        bias_correction_kl: bias_correction_kl.unwrap_or(false),
        entropy_coef: entropy_coef.unwrap_or(0.0),
        top_entropy_quantile: quantile.unwrap_or(1.0),
        off_policy_mask_threshold: threshold,
        sapo_temperature_pos: sapo_temperature_pos.unwrap_or(default.sapo_temperature_pos),
        sapo_temperature_neg: sapo_temperature_neg.unwrap_or(default.sapo_temperature_neg),
        vespo: constants,
        sampler_correction: correction(reader),
        max_completion_length: max_completion_length.unwrap_or(default.max_completion_length),
    }
}

fn correction(reader: &mut Reader) -> Option<SamplerCorrection> {
    let mut choices: Vec<(&str, Option<CorrectionMode>)> =
        CorrectionMode::NAMED.iter().map(|(name, mode)| (*name, Some(*mode))).collect();
    choices.push(("none", None));
    let Some(mode) = reader.choice(SECTION, "sampler_correction", &choices, None) else {
        for key in ["sampler_correction_min", "sampler_correction_max"] {
            refuse(reader, key, "limits nothing without sampler_correction");
        }
        return None;
    };
    let min = reader.optional(SECTION, "sampler_correction_min", "a number of at least 0", non_negative);
    let max = reader.optional(SECTION, "sampler_correction_max", "a number above 0", positive);
    Some(SamplerCorrection { mode, min, max: max.unwrap_or(3.0) })
}

fn sampling(reader: &mut Reader) -> Sampling {
    let default = Sampling { temperature: 1.0, ..Sampling::default() };
    let temperature = reader.optional(SECTION, "temperature", "a number above 0", positive);
    let top_p = reader.optional(SECTION, "top_p", "a number above 0 and at most 1", |value| {
        positive(value).filter(|p| *p <= 1.0)
    });
    let top_k = reader.optional(SECTION, "top_k", "a whole number, 0 for all", |value| count(value, 0));
    let min_p = reader.optional(SECTION, "min_p", "a number from 0 to 1", |value| {
        non_negative(value).filter(|p| *p <= 1.0)
    });
    let penalty = reader.optional(SECTION, "repetition_penalty", "a number above 0", positive);
    Sampling {
        temperature: temperature.unwrap_or(default.temperature),
        top_p: top_p.unwrap_or(default.top_p),
        top_k: top_k.unwrap_or(default.top_k),
        min_p: min_p.unwrap_or(default.min_p),
        repetition_penalty: penalty.unwrap_or(default.repetition_penalty),
        ..default
    }
}

fn rewards(reader: &mut Reader, data: Option<&DataConfig>) -> Vec<RewardConfig> {
    const KEY: &str = "grpo.rewards";
    let Some(entry) = reader.take(SECTION, "rewards") else {
        // A built-in task comes with its verifier.
        if data.is_some_and(|data| data.task().is_some()) {
            let kind = RewardKind::Task { extract: qlora_rl::Extract::LastNumber };
            return vec![RewardConfig { name: "task".into(), weight: 1.0, kind }];
        }
        let message =
            "missing; set it to a list as [{ kind = \"numeric\", column = \"answer\" }]".to_string();
        reader.problem(Place::Absent, KEY, message);
        return Vec::new();
    };
    let Some(list) = entry.value.as_array().filter(|list| !list.is_empty()) else {
        let message = format!("{} given, expected a list of tables with `kind`", entry.value);
        reader.problem(entry.place, KEY, message);
        return Vec::new();
    };
    let mut rewards: Vec<RewardConfig> = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let value = serde_json::to_value(value).unwrap_or_default();
        let found = RewardConfig::from_value(&value).and_then(|reward| {
            // Programs are started when the run is.
            reward.check()?;
            match rewards.iter().any(|other| other.name == reward.name) {
                true => Err(format!("a second reward named `{}`; give it a name", reward.name)),
                false => Ok(reward),
            }
        });
        match found {
            Ok(reward) => rewards.push(reward),
            Err(message) => {
                reader.problem(entry.place, KEY, format!("number {}: {message}", index + 1));
            }
        }
    }
    rewards
}

//! From keys to a checked configuration.

use std::path::PathBuf;

use qlora_lora::{LoraConfig, LoraError, Targets};
use qlora_models::Checkpointing;
use toml::Value;

use super::data::data;
use super::problem::{ConfigError, Place};
use super::reader::Reader;
use super::schedule_value;
use super::{
    AdapterConfig, BackendKind, ComputeKind, DeviceConfig, ModelConfig, OptimizerKind, OutputConfig,
    QuantKind, RunConfig, RunLength, TrainConfig,
};
use crate::schedule::ScheduleKind;

pub(super) const ALL_LINEAR: &str = "all-linear";
const DEFAULT_BATCH_SIZE: usize = 8;

pub(super) fn run_config(mut reader: Reader) -> Result<RunConfig, ConfigError> {
    let model = model(&mut reader);
    let device = device(&mut reader);
    let lora = lora(&mut reader);
    let train = train(&mut reader);
    let seed = train.as_ref().map_or(0, |train| train.seed);
    let token_budget = train.as_ref().is_some_and(|train| train.tokens_per_batch.is_some());
    let data = data(&mut reader, seed, token_budget);
    let grpo = super::grpo::grpo(&mut reader, train.as_ref(), data.as_ref());
    let output = reader.required("output", "dir", "the directory for results", path);
    let config = model.zip(lora).zip(data.zip(train)).zip(output);
    let config = config.map(|(((model, lora), (data, train)), dir)| RunConfig {
        model,
        device,
        lora,
        data,
        train,
        grpo,
        output: OutputConfig { dir },
    });
    reader.finish(config)
}

fn model(reader: &mut Reader) -> Option<ModelConfig> {
    const SECTION: &str = "model";
    let path = reader.required(SECTION, "path", "a model's name, hub id, directory or .gguf file", text);
    let quant = reader.choice(
        SECTION,
        "quant",
        &[("nf4", QuantKind::Nf4), ("none", QuantKind::None)],
        QuantKind::Nf4,
    );
    let double_quant = reader.optional(SECTION, "double_quant", "true or false", Value::as_bool);
    let dtype = reader.choice(
        SECTION,
        "dtype",
        &[
            ("auto", ComputeKind::Auto),
            ("bf16", ComputeKind::Bf16),
            ("f16", ComputeKind::F16),
            ("f32", ComputeKind::F32),
        ],
        ComputeKind::Auto,
    );
    Some(ModelConfig { path: path?, quant, double_quant: double_quant.unwrap_or(true), dtype })
}

fn device(reader: &mut Reader) -> DeviceConfig {
    const SECTION: &str = "device";
    let backend = reader.choice(
        SECTION,
        "backend",
        &[
            ("cpu", BackendKind::Cpu),
            ("cuda", BackendKind::Cuda),
            ("vulkan", BackendKind::Vulkan),
            ("webgpu", BackendKind::Webgpu),
            ("metal", BackendKind::Metal),
        ],
        BackendKind::Cpu,
    );
    let index = reader.optional(SECTION, "index", "a whole number of at least 0", |value| count(value, 0));
    DeviceConfig { backend, index }
}

fn lora(reader: &mut Reader) -> Option<AdapterConfig> {
    const SECTION: &str = "lora";
    let dropout = reader
        .optional(SECTION, "dropout", "a number from 0 to below 1", |value| {
            number(value).filter(|dropout| (0.0..1.0).contains(dropout))
        })
        .unwrap_or(0.0);
    let init_from = reader.optional(SECTION, "init_from", "the directory of an adapter", path);
    if let Some(directory) = init_from {
        for key in ["rank", "alpha", "targets", "rslora"] {
            if let Some(entry) = reader.take(SECTION, key) {
                let message = "comes from the adapter in lora.init_from; remove one of the two".into();
                reader.problem(entry.place, &format!("{SECTION}.{key}"), message);
            }
        }
        return Some(AdapterConfig::From { directory, dropout });
    }

    let default = LoraConfig::default();
    let rank = reader.optional(SECTION, "rank", "a whole number of at least 1", |value| count(value, 1));
    let alpha = reader.optional(SECTION, "alpha", "a number above 0", positive);
    let rslora = reader.optional(SECTION, "rslora", "true or false", Value::as_bool);
    let targets = targets(reader);
    Some(AdapterConfig::Fresh(LoraConfig {
        rank: rank.unwrap_or(default.rank),
        alpha: alpha.unwrap_or(default.alpha),
        dropout,
        rslora: rslora.unwrap_or(default.rslora),
        targets: targets.unwrap_or(default.targets),
    }))
}

fn targets(reader: &mut Reader) -> Option<Targets> {
    let entry = reader.take("lora", "targets")?;
    let targets = match &entry.value {
        Value::String(word) if word == ALL_LINEAR => Some(Targets::AllLinear),
        Value::String(pattern) => Some(Targets::Pattern(pattern.clone())),
        Value::Array(names) if !names.is_empty() => {
            names.iter().map(text).collect::<Option<_>>().map(Targets::Names)
        }
        _ => None,
    };
    match targets {
        None => {
            let message = format!(
                "{} given, expected \"{ALL_LINEAR}\", a list of layer names as [\"q_proj\", \"v_proj\"], \
                 or a regular expression over whole layer paths",
                entry.value
            );
            reader.problem(entry.place, "lora.targets", message);
            None
        }
        Some(targets) => match targets.matcher() {
            Ok(_) => Some(targets),
            Err(error) => {
                let message = match error {
                    LoraError::BadPattern { pattern, reason } => {
                        format!("`{pattern}` is not a regular expression: {reason}")
                    }
                    other => other.to_string(),
                };
                reader.problem(entry.place, "lora.targets", message);
                None
            }
        },
    }
}

fn train(reader: &mut Reader) -> Option<TrainConfig> {
    const SECTION: &str = "train";
    let length = run_length(reader);
    let batch_size =
        reader.optional(SECTION, "batch_size", "a whole number of at least 1", |value| count(value, 1));
    let tokens_per_batch =
        reader.optional(SECTION, "tokens_per_batch", "a whole number of at least 2", |value| count(value, 2));
    let accumulate =
        reader.optional(SECTION, "accumulate", "a whole number of at least 1", |value| count(value, 1));
    let learning_rate = reader.optional(SECTION, "learning_rate", "a number above 0, as 2e-4", positive);
    let schedule = schedule(reader);
    let warmup = reader.optional(SECTION, "warmup", "steps, or a share of them below 1", non_negative);
    let weight_decay = reader.optional(SECTION, "weight_decay", "a number of at least 0", non_negative);
    let clip = reader.optional(SECTION, "clip", "a number of at least 0 (0 for no clipping)", non_negative);
    let optimizer = optimizer(reader);
    let checkpointing = reader.choice(
        SECTION,
        "checkpointing",
        &[
            ("none", Checkpointing::None),
            ("layers", Checkpointing::Layers),
            ("offload", Checkpointing::Offload),
        ],
        Checkpointing::None,
    );
    let checkpoint_every =
        reader.optional(SECTION, "checkpoint_every", "steps, or 0 for none but the last", seed);
    let keep_checkpoints =
        reader.optional(SECTION, "keep_checkpoints", "a whole number of at least 1", |value| count(value, 1));
    let eval_every = reader.optional(SECTION, "eval_every", "steps, or 0 for only after the last", seed);
    let run_seed = reader.optional(SECTION, "seed", "a whole number of at least 0", seed);
    if let (Some(rows), Some(_)) = (batch_size, tokens_per_batch)
        && rows != DEFAULT_BATCH_SIZE
    {
        let message = "given beside train.tokens_per_batch; remove one of the two".into();
        reader.problem(Place::Absent, "train.batch_size", message);
    }
    Some(TrainConfig {
        length: length?,
        batch_size: batch_size.unwrap_or(DEFAULT_BATCH_SIZE),
        tokens_per_batch,
        accumulate: accumulate.unwrap_or(1),
        learning_rate: learning_rate.unwrap_or(2e-4),
        schedule,
        warmup: warmup.unwrap_or(0.0),
        weight_decay: weight_decay.unwrap_or(0.0),
        clip: clip.unwrap_or(1.0),
        optimizer,
        checkpointing,
        checkpoint_every: checkpoint_every.unwrap_or(100),
        keep_checkpoints: keep_checkpoints.unwrap_or(2),
        eval_every: eval_every.unwrap_or(0),
        seed: run_seed.unwrap_or(42),
    })
}

fn run_length(reader: &mut Reader) -> Option<RunLength> {
    let steps = reader.take("train", "steps");
    let epochs = reader.take("train", "epochs");
    match (steps, epochs) {
        (Some(steps), None) => {
            let length = count(&steps.value, 1).map(|steps| RunLength::Steps(steps as u64));
            if length.is_none() {
                let message = format!("{} given, expected a whole number of at least 1", steps.value);
                reader.problem(steps.place, "train.steps", message);
            }
            length
        }
        (None, Some(epochs)) => {
            let length = positive(&epochs.value).map(RunLength::Epochs);
            if length.is_none() {
                let message = format!("{} given, expected a number above 0", epochs.value);
                reader.problem(epochs.place, "train.epochs", message);
            }
            length
        }
        (Some(_), Some(epochs)) => {
            let message = "given beside train.steps; remove one of the two".into();
            reader.problem(epochs.place, "train.epochs", message);
            None
        }
        (None, None) => {
            let message = "missing; set it, or train.epochs, to how long to train".into();
            reader.problem(Place::Absent, "train.steps", message);
            None
        }
    }
}

fn schedule(reader: &mut Reader) -> ScheduleKind {
    let default = ScheduleKind::Linear;
    let Some(entry) = reader.take("train", "schedule") else { return default };
    schedule_value::read(&entry.value).unwrap_or_else(|message| {
        reader.problem(entry.place, "train.schedule", message);
        default
    })
}

fn optimizer(reader: &mut Reader) -> OptimizerKind {
    const EXPECTED: &str = "\"adamw\" or \"adamw8bit\"";
    let default = OptimizerKind::AdamW;
    let Some(entry) = reader.take("train", "optimizer") else { return default };
    let message = match entry.value.as_str() {
        Some("adamw") => return OptimizerKind::AdamW,
        Some("adamw8bit") => return OptimizerKind::AdamW8Bit,
        Some(name @ ("adamw_8bit" | "paged_adamw8bit" | "paged_adamw_8bit")) => {
            format!("\"{name}\" is called \"adamw8bit\" here")
        }
        Some(name @ ("sgd" | "lion" | "adafactor")) => {
            format!("\"{name}\" is not supported; use {EXPECTED}")
        }
        _ => format!("{} given, expected {EXPECTED}", entry.value),
    };
    reader.problem(entry.place, "train.optimizer", message);
    default
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(String::from)
}

fn path(value: &Value) -> Option<PathBuf> {
    text(value).map(PathBuf::from)
}

/// A finite number, written with or without a decimal point.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
    number.is_finite().then_some(number)
}

pub(super) fn positive(value: &Value) -> Option<f64> {
    number(value).filter(|&number| number > 0.0)
}

pub(super) fn non_negative(value: &Value) -> Option<f64> {
    number(value).filter(|&number| number >= 0.0)
}

pub(super) fn count(value: &Value, least: usize) -> Option<usize> {
    value.as_integer().and_then(|whole| usize::try_from(whole).ok()).filter(|&whole| whole >= least)
}

pub(super) fn seed(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|whole| u64::try_from(whole).ok())
}

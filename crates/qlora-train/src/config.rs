//! The TOML file of a run: read strictly, checked before anything is loaded, all problems at once.
//!
//! ```toml
//! [model]
//! path = "smollm2-135m"            # name, hub id, directory, or .gguf
//! quant = "nf4"                    # "nf4" | "none"
//! double_quant = true
//! dtype = "auto"                   # matrix products: "auto" | "bf16" | "f16" | "f32"
//!
//! [device]
//! backend = "cpu"                  # "cpu" | "cuda" | "vulkan" | "webgpu" | "metal"; --backend and --device come first
//! # index = 0                      # which of several
//!
//! [lora]
//! rank = 16
//! alpha = 32.0                     # the update is scaled by alpha / rank (rslora: alpha / sqrt(rank))
//! dropout = 0.0
//! targets = "all-linear"           # or names, ["q_proj", "v_proj"], or a regular expression over whole paths
//! rslora = false
//! # init_from = "adapter/"         # continue from a PEFT adapter; rank, alpha, targets, rslora come from it
//!
//! [data]
//! train = "data/train.jsonl"       # a path, a folder, a pattern, hf://datasets/..; a table of `path` and how it is read;
//!                                  # or a list of these: see docs/configuration.md
//! # eval = "data/eval.jsonl"       # likewise; or, in its place,
//! # eval_split = { fraction = 0.1 } # rows of train that are evaluated on instead
//! max_length = 2048                # tokens of a row
//! shuffle = true
//! # seed = 42                      # order of the rows; train.seed unless given
//! on_bad_row = "stop"              # "stop" | "skip": a row that can't be read or has nothing to learn
//! on_long = "error"                # "error" | "skip" | "truncate": a row longer than max_length
//! # template = "chatml"            # a chat template by name (alpaca, chatml, gemma, llama-2, llama-3, mistral, phi-3,
//!                                  # phi-4, vicuna, zephyr) or a Jinja file; the model's own unless given
//! # packing = "best-fit"           # "best-fit" | "by-length": how rows share batches of train.tokens_per_batch
//! # augmentation = { .. }          # system prompts, paraphrases, turns joined
//! train_on = "assistant"           # "assistant" | "last" | "completions" | "all": which tokens the loss counts
//!
//! [train]
//! steps = 60                       # or epochs = 3
//! batch_size = 8                   # rows of a micro-batch
//! # tokens_per_batch = 4096        # instead: the most tokens of a micro-batch, which holds as many whole rows as fit
//! accumulate = 1                   # micro-batches of an optimizer step
//! learning_rate = 2e-4
//! schedule = "linear"              # constant, linear, cosine, cosine_with_restarts, cosine_with_minimum,
//!                                  # polynomial, inverse_sqrt, wsd; with parameters as
//!                                  # { kind = "wsd", decay = 0.2 }
//! warmup = 0                       # steps; below 1, a share of all steps
//! weight_decay = 0.0
//! clip = 1.0                       # limit of the global gradient norm; 0 for none
//! optimizer = "adamw"              # "adamw" | "adamw8bit" (moments in eight bits: a quarter of the memory)
//! checkpointing = "none"           # "layers": keep the inputs of layers only, compute them twice; "offload": and
//!                                  # keep them in the memory of the host. The results are the same
//! checkpoint_every = 100           # steps; 0 for none but the last
//! keep_checkpoints = 2
//! eval_every = 0                   # steps; 0 for only after the last
//! seed = 42
//!
//! # [grpo]                         # with this section: reinforcement by rewards, see docs/formats.md
//!
//! [output]
//! dir = "runs/first"
//! ```
//!
//! Required are `model.path`, `data.train`, `output.dir` and one of `train.steps` and `train.epochs`; the others
//! are shown with their defaults. Unknown keys are errors. Relative paths are relative to the current directory,
//! not to the file: what completes on the command line works in the file.

mod check;
mod data;
mod grpo;
mod problem;
mod reader;
mod schedule_value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qlora_data::{Augmentation, EvalSplit, Mixing, OnBadRow, OnLong, Sources, TrainOn};
use qlora_lora::LoraConfig;
use qlora_models::Checkpointing;
use serde::{Serialize, Serializer};

pub use grpo::GrpoConfig;
pub use problem::{ConfigError, Problem};

use crate::schedule::ScheduleKind;

/// A checked configuration: every number is in its range, no key was unknown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunConfig {
    /// The model that is trained.
    pub model: ModelConfig,
    /// Where it is trained.
    pub device: DeviceConfig,
    /// The adapter.
    pub lora: AdapterConfig,
    /// The rows.
    pub data: DataConfig,
    /// The optimization.
    pub train: TrainConfig,
    /// Reinforcement in place of supervised fine-tuning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpo: Option<GrpoConfig>,
    /// Where results go.
    pub output: OutputConfig,
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// A short name, a hub id, a directory or a GGUF file.
    pub path: String,
    /// How the frozen weights are stored.
    pub quant: QuantKind,
    /// Whether the scales of NF4 blocks are quantized as well; without a meaning for [`QuantKind::None`].
    pub double_quant: bool,
    /// The type of matrix products.
    pub dtype: ComputeKind,
}

/// How frozen weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantKind {
    /// 4-bit NormalFloat (QLoRA).
    Nf4,
    /// As in the checkpoint (LoRA).
    None,
}

/// The type of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeKind {
    /// The best of the device ([`Compute::fastest_on`](qlora_kernels::Compute::fastest_on)).
    Auto,
    /// bfloat16 operands, f32 accumulation.
    Bf16,
    /// IEEE half operands, f32 accumulation; on a GPU gradients are f16 too, and the loss is scaled.
    F16,
    /// 32-bit floats.
    F32,
}

/// `[device]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceConfig {
    /// What computes.
    pub backend: BackendKind,
    /// Which device of several; without it, the backend's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
}

/// What computes. Whether a program can do so depends on the features that it was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The processor.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// GPUs through Vulkan.
    Vulkan,
    /// GPUs through WebGPU.
    Webgpu,
    /// Apple GPUs.
    Metal,
}

/// `[lora]`: a fresh adapter, or one to continue from.
#[derive(Clone, Debug, PartialEq)]
pub enum AdapterConfig {
    /// A fresh adapter.
    Fresh(LoraConfig),
    /// Training goes on from an adapter in PEFT's layout. Rank, alpha, targets and rslora come from it.
    From {
        /// The adapter's directory (`init_from`).
        directory: PathBuf,
        /// Dropout of this run.
        dropout: f64,
    },
}

impl AdapterConfig {
    /// The directory of the adapter that training goes on from.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Fresh(_) => None,
            Self::From { directory, .. } => Some(directory),
        }
    }
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataConfig {
    /// The rows to train on.
    pub train: Sources,
    /// The rows to evaluate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Sources>,
    /// Which rows of `train` are evaluated on instead of trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_split: Option<EvalSplit>,
    /// How sources with weights are mixed; only where they have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixing: Option<Mixing>,
    /// What is done to the conversations of `train`, those that are split off included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
    /// The longest row, in tokens.
    pub max_length: usize,
    /// Whether each epoch has an order of its own; else rows come as in the file.
    pub shuffle: bool,
    /// Seed of the orders.
    pub seed: u64,
    /// What happens to a row that can't be read or has no token to learn.
    pub on_bad_row: OnBadRow,
    /// What happens to a row longer than `max_length`.
    pub on_long: OnLong,
    /// The name of a chat template, or a Jinja file; the model's own where it is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// How rows share batches; only where [`TrainConfig::tokens_per_batch`] is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<PackingKind>,
    /// Which tokens the loss counts.
    pub train_on: TrainOn,
}

/// How rows share batches of a fixed number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackingKind {
    /// So that batches are as full as can be (best-fit decreasing).
    #[default]
    BestFit,
    /// Rows of similar length together.
    ByLength,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainConfig {
    /// How long to train.
    #[serde(flatten)]
    pub length: RunLength,
    /// Rows of a micro-batch: what is in memory at a time.
    pub batch_size: usize,
    /// Instead of rows: the most tokens of a micro-batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_batch: Option<usize>,
    /// Micro-batches of an optimizer step.
    pub accumulate: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate changes.
    #[serde(serialize_with = "schedule_value::write")]
    pub schedule: ScheduleKind,
    /// Steps over which the learning rate rises from 0; below 1, a share of all steps.
    pub warmup: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Limit of the global gradient norm; 0 for none.
    pub clip: f64,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// What the forward pass keeps for the backward pass.
    #[serde(serialize_with = "checkpointing_name")]
    pub checkpointing: Checkpointing,
    /// Optimizer steps between checkpoints; 0 for none but the last.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Optimizer steps between evaluations; 0 for only after the last.
    pub eval_every: u64,
    /// Seed of the adapter's initial values and of dropout.
    pub seed: u64,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunLength {
    /// Optimizer steps.
    Steps(u64),
    /// Times that every row is seen; may be a fraction.
    Epochs(f64),
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW with 32-bit moments.
    AdamW,
    /// AdamW with 8-bit moments.
    AdamW8Bit,
}

/// `[output]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputConfig {
    /// The run's directory: resolved config, metrics, checkpoints, adapter, report.
    pub dir: PathBuf,
}

impl DataConfig {
    /// The built-in task that `train` names in place of a file, `task:NAME` or `task:NAME:COUNT`, and how many of its
    /// problems; 1000 unless it says so. For `[grpo]` only.
    #[must_use]
    pub fn task(&self) -> Option<(qlora_rl::Task, usize)> {
        let name = self.train.plain_path()?.strip_prefix("task:")?;
        let (name, count) = match name.split_once(':') {
            Some((name, count)) => (name, count.parse().ok().filter(|count| *count > 0)?),
            None => (name, 1000),
        };
        Some((qlora_rl::Task::from_name(name)?, count))
    }
}

impl RunConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file can't be read, is no TOML, or has problems: all are in the error, each with its line and key.
    pub fn from_file(path: impl AsRef<Path>, overrides: &[impl AsRef<str>]) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
        Self::from_toml_str(path, &text, overrides)
    }

    /// Checks the text of a file after replacing keys by `overrides`, each `section.key=value` as given to `--set`.
    /// A value is read as TOML, and taken as text where it is none, so that quotes may be left out.
    ///
    /// `path` is only named in messages.
    ///
    /// # Errors
    /// The text is no TOML, or has problems: all are in the error, each with its line and key.
    ///
    /// # Examples
    /// ```
    /// use qlora_train::config::{RunConfig, RunLength};
    ///
    /// let text = r#"
    ///     model.path = "smollm2-135m"
    ///     data.train = "train.jsonl"
    ///     train.epochs = 2
    ///     output.dir = "runs/first"
    /// "#;
    /// let config = RunConfig::from_toml_str("run.toml", text, &["train.batch_size=4", "model.quant=none"])?;
    /// assert_eq!(config.train.length, RunLength::Epochs(2.0));
    /// assert_eq!(config.train.batch_size, 4);
    ///
    /// let error = RunConfig::from_toml_str("run.toml", text, &["train.batchsize=4"]).unwrap_err();
    /// assert!(error.to_string().contains("--set train.batchsize: unknown key; did you mean `batch_size`?"));
    /// # Ok::<(), qlora_train::config::ConfigError>(())
    /// ```
    pub fn from_toml_str(
        path: impl AsRef<Path>,
        text: &str,
        overrides: &[impl AsRef<str>],
    ) -> Result<Self, ConfigError> {
        check::run_config(reader::Reader::new(path.as_ref(), text, overrides)?)
    }

    /// The settings that decide how training goes, by key: what must be the same when a run is resumed. Left out is
    /// what only decides where files lie, how often something is saved or evaluated, where is computed and how much
    /// memory is used, and the paths of the data, whose content is compared instead.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        const FREE: [&str; 10] = [
            "device.backend",
            "device.index",
            "data.train",
            "data.eval",
            "train.checkpointing",
            "train.checkpoint_every",
            "train.keep_checkpoints",
            "train.eval_every",
            "grpo.reward_threads",
            "output.dir",
        ];
        let table = toml::Table::try_from(self).expect("the same tables as in `to_toml`");
        let keys = table.iter().filter_map(|(section, keys)| Some((section, keys.as_table()?)));
        keys.flat_map(|(section, keys)| {
            keys.iter().map(move |(key, value)| (format!("{section}.{key}"), value))
        })
        .filter(|(key, _)| !FREE.contains(&key.as_str()))
        .map(|(key, value)| (key, value.to_string()))
        .collect()
    }

    /// This configuration as a file that reads back to it, every default written out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has only tables of strings, numbers and lists")
    }
}

fn checkpointing_name<S: Serializer>(value: &Checkpointing, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match value {
        Checkpointing::None => "none",
        Checkpointing::Layers => "layers",
        Checkpointing::Offload => "offload",
    })
}

impl Serialize for AdapterConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum TargetsToml<'a> {
            Text(&'a str),
            Names(&'a [String]),
        }
        #[derive(Serialize)]
        struct Fresh<'a> {
            rank: usize,
            alpha: f64,
            dropout: f64,
            targets: TargetsToml<'a>,
            rslora: bool,
        }
        #[derive(Serialize)]
        struct From<'a> {
            init_from: &'a Path,
            dropout: f64,
        }
        match self {
            Self::Fresh(LoraConfig { rank, alpha, dropout, rslora, targets }) => Fresh {
                rank: *rank,
                alpha: *alpha,
                dropout: *dropout,
                targets: match targets {
                    qlora_lora::Targets::AllLinear => TargetsToml::Text(check::ALL_LINEAR),
                    qlora_lora::Targets::Names(names) => TargetsToml::Names(names),
                    qlora_lora::Targets::Pattern(pattern) => TargetsToml::Text(pattern),
                },
                rslora: *rslora,
            }
            .serialize(serializer),
            Self::From { directory, dropout } => {
                From { init_from: directory, dropout: *dropout }.serialize(serializer)
            }
        }
    }
}

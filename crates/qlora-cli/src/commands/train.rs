//! `qlora train`: supervised fine-tuning, or reinforcement where there is a `[grpo]` section, as a TOML file says.

mod data;
mod json_lines;
mod prompts;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use qlora_core::burn::backend::Autodiff;
use qlora_core::export::{PeftAdapter, SaveAdapter as _};
use qlora_core::hub::KNOWN_MODELS;
use qlora_core::kernels::{Compute, KernelBackend};
use qlora_core::models::{Checkpoint, Decoder, LoadOptions, LoraConfig, Quantization};
use qlora_core::quant::Nf4Options;
use qlora_core::train::config::{
    AdapterConfig, BackendKind as ConfigBackend, ComputeKind as ConfigCompute, ConfigError, QuantKind,
    RunConfig,
};
use qlora_core::train::{Engine, EngineOptions, Interrupt, Objective, ProgressDisplay, RunDirectory};
use serde_json::json;

use self::json_lines::JsonLines;
use crate::arguments::{BackendKind, ComputeKind, GlobalOptions, TrainArguments};
use crate::backend::{OnBackend, on_backend};
use crate::failure::Failure;
use crate::model::{compute, load_with_bar, open_checkpoint, with_template};

struct Train<'a> {
    global: &'a GlobalOptions,
    config: RunConfig,
    resume: bool,
}

pub(crate) fn run(global: &GlobalOptions, arguments: &TrainArguments) -> Result<(), Failure> {
    let mut overrides = arguments.set.clone();
    if let Some(seed) = global.seed {
        overrides.push(format!("train.seed={seed}"));
    }
    if let Some(backend) = global.backend {
        overrides.push(format!("device.backend={}", backend.name()));
    }
    if let Some(index) = global.device {
        overrides.push(format!("device.index={index}"));
    }
    if let Some(dtype) = global.dtype {
        let name = match dtype {
            ComputeKind::Auto => "auto",
            ComputeKind::Bf16 => "bf16",
            ComputeKind::F16 => "f16",
            ComputeKind::F32 => "f32",
        };
        overrides.push(format!("model.dtype=\"{name}\""));
    }
    let config = RunConfig::from_file(&arguments.config, &overrides).map_err(|error| match error {
        ConfigError::Unreadable { .. } => Failure::from(error),
        mistakes => Failure::Usage(Box::new(mistakes)),
    })?;
    let backend = match config.device.backend {
        ConfigBackend::Cpu => BackendKind::Cpu,
        ConfigBackend::Cuda => BackendKind::Cuda,
        ConfigBackend::Vulkan => BackendKind::Vulkan,
        ConfigBackend::Webgpu => BackendKind::Webgpu,
        ConfigBackend::Metal => BackendKind::Metal,
    };
    let global = &GlobalOptions { backend: Some(backend), device: config.device.index, ..global.clone() };
    on_backend(global, Train { global, config, resume: arguments.resume })
}

impl OnBackend for Train<'_> {
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Failure> {
        let Self { global, config, resume } = self;
        // What is quick to check comes before what takes long: directory, adapter, data, model.
        let directory = RunDirectory::new(&config, resume);
        directory.check()?;
        let initial = config.lora.directory();
        let adapter = initial.map(PeftAdapter::read).transpose()?;
        let checkpoint = open_checkpoint(&config.model.path)?;
        let checkpoint = with_template(checkpoint, config.data.template.as_deref(), initial)?;
        let run =
            Run { global, config: &config, directory, checkpoint: &checkpoint, initial: adapter.as_ref() };
        match &config.grpo {
            Some(grpo) => run.train::<B, _>(prompts::objective(&config, grpo, &checkpoint)?, device),
            None => run.train::<B, _>(data::objective(&config, &checkpoint)?, device),
        }
    }
}

/// A run whose directory, adapter and checkpoint are known to be there.
struct Run<'a> {
    global: &'a GlobalOptions,
    config: &'a RunConfig,
    directory: RunDirectory,
    checkpoint: &'a Checkpoint,
    initial: Option<&'a PeftAdapter>,
}

impl Run<'_> {
    /// Loads the model and trains it on an objective, to the end or until Ctrl-C.
    fn train<B: KernelBackend, O: Objective<Autodiff<B>, Decoder<Autodiff<B>>>>(
        self,
        mut objective: O,
        device: &B::Device,
    ) -> Result<(), Failure> {
        let Self { global, config, directory, checkpoint, initial } = self;
        let compute = products::<B>(global, config, device)?;
        let options = LoadOptions { quantization: quantization(config), compute };
        let mut model = load_with_bar::<Autodiff<B>>(checkpoint, options, device)?;
        let lora = attach(&mut model, config, initial)?;

        let options =
            EngineOptions::new(&config.train, objective.steps_per_epoch()).for_compute::<B>(compute);
        let adapter_path = config.output.dir.join("adapter");
        let mut engine =
            Engine::new(options).with_directory(directory.clone()).with_interrupt(Interrupt::on_ctrl_c()?);
        engine = if global.json {
            engine.with_observer(JsonLines)
        } else {
            engine.with_observer(ProgressDisplay::new())
        };
        let summary = engine.run(&mut model, &mut objective)?;
        if summary.interrupted {
            eprintln!("continue with --resume");
            return Ok(());
        }
        let base = base_model_name(&config.model.path);
        if checkpoint.has_tokenizer() {
            // With the chat template of the training: what a server needs beside the base model's weights.
            let tokenizer = checkpoint.tokenizer()?;
            model.save_adapter_with_tokenizer(&adapter_path, &lora, Some(&base), &tokenizer)?;
        } else {
            model.save_adapter(&adapter_path, &lora, Some(&base))?;
        }
        tell(global, config, &directory, &adapter_path)
    }
}

fn quantization(config: &RunConfig) -> Quantization {
    match config.model.quant {
        QuantKind::None => Quantization::None,
        QuantKind::Nf4 => {
            Quantization::Nf4(Nf4Options { double_quant: config.model.double_quant, ..Nf4Options::default() })
        }
    }
}

fn products<B: KernelBackend>(
    global: &GlobalOptions,
    config: &RunConfig,
    device: &B::Device,
) -> Result<Compute, Failure> {
    let kind = match config.model.dtype {
        ConfigCompute::Auto => ComputeKind::Auto,
        ConfigCompute::Bf16 => ComputeKind::Bf16,
        ConfigCompute::F16 => ComputeKind::F16,
        ConfigCompute::F32 => ComputeKind::F32,
    };
    compute::<B>(global, kind, device)
}

/// Attaches the adapter to be trained, and returns its configuration.
fn attach<B: KernelBackend>(
    model: &mut Decoder<B>,
    config: &RunConfig,
    initial: Option<&PeftAdapter>,
) -> Result<LoraConfig, Failure> {
    match (&config.lora, initial) {
        (AdapterConfig::From { dropout, .. }, Some(adapter)) => {
            model.attach_set(&adapter.adapter_set(), *dropout)?;
            Ok(LoraConfig { dropout: *dropout, ..adapter.config().lora_config() })
        }
        (AdapterConfig::From { .. }, None) => unreachable!("an adapter to continue from was read"),
        (AdapterConfig::Fresh(lora), _) => {
            model.attach(lora, config.train.seed)?;
            Ok(lora.clone())
        }
    }
}

/// What PEFT is to load the base model by: the hub id of a short name, else what the configuration says.
fn base_model_name(model: &str) -> String {
    let known = KNOWN_MODELS.iter().find(|known| known.name == model);
    known.map_or(model, |known| known.hub).to_owned()
}

fn tell(
    global: &GlobalOptions,
    config: &RunConfig,
    directory: &RunDirectory,
    adapter: &Path,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let (metrics, report): (PathBuf, PathBuf) = (directory.metrics_path(), directory.report_path());
    if global.json {
        writeln!(out, "{}", json!({"adapter": adapter, "metrics": metrics, "report": report}))?;
        return Ok(());
    }
    writeln!(out, "adapter  {}", adapter.display())?;
    writeln!(out, "metrics  {}", metrics.display())?;
    writeln!(out, "curves   {}", report.display())?;
    let quant = match config.model.quant {
        QuantKind::Nf4 if !config.model.double_quant => " --quant nf4 --no-double-quant",
        QuantKind::Nf4 => " --quant nf4",
        QuantKind::None => "",
    };
    writeln!(
        out,
        "try it   qlora generate --model {} --adapter {}{quant} --chat",
        config.model.path,
        adapter.display()
    )?;
    Ok(())
}

//! From what was typed to a model that is ready.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use qlora_core::data::Encoder;
use qlora_core::export::PeftAdapter;
use qlora_core::hub::ModelStore;
use qlora_core::kernels::{Compute, KernelBackend};
use qlora_core::models::{AdapterSet, Checkpoint, Decoder, LoadOptions, ModelError, Quantization, load};
use qlora_core::quant::Nf4Options;
use qlora_core::text::{ChatTemplates, Error as TextError};

use crate::arguments::{ComputeKind, GlobalOptions, ModelArguments, QuantKind};
use crate::backend::device_name;
use crate::failure::Failure;

/// A model with its checkpoint, which has the tokenizer.
pub(crate) struct LoadedModel<B: KernelBackend> {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) decoder: Decoder<B>,
    /// Adapters beside the one that is attached. They fit the model.
    pub(crate) others: Vec<AdapterSet>,
}

impl ModelArguments {
    /// Refuses several adapters where one answers.
    pub(crate) fn at_most_one_adapter(&self) -> Result<(), Failure> {
        match self.adapter.len() {
            0 | 1 => Ok(()),
            count => {
                let message =
                    format!("--adapter was given {count} times: only `generate --chat` takes several");
                Err(Failure::usage(message))
            }
        }
    }
}

/// Opens and loads a model, and attaches the first adapter if there is one. The tokenizer has the chat template that is
/// asked for, or that of the first adapter.
pub(crate) fn load_model<B: KernelBackend>(
    global: &GlobalOptions,
    arguments: &ModelArguments,
    template: Option<&str>,
    device: &B::Device,
) -> Result<LoadedModel<B>, Failure> {
    // Adapters first: they are small, and a mistake shows before the model is loaded.
    let adapters = arguments.adapter.iter().map(PeftAdapter::read).collect::<Result<Vec<_>, _>>()?;
    let checkpoint = open_checkpoint(&arguments.model)?;
    let checkpoint = with_template(checkpoint, template, arguments.adapter.first().map(PathBuf::as_path))?;
    let quantization = match arguments.quant {
        QuantKind::None => Quantization::None,
        QuantKind::Nf4 => Quantization::Nf4(Nf4Options {
            double_quant: !arguments.no_double_quant,
            ..Nf4Options::default()
        }),
    };
    let mut others: Vec<AdapterSet> = adapters.iter().map(PeftAdapter::adapter_set).collect();
    others.iter().try_for_each(|set| set.check(checkpoint.config()))?;
    let compute = compute::<B>(global, global.dtype.unwrap_or(ComputeKind::Auto), device)?;
    let mut decoder = load_with_bar(&checkpoint, LoadOptions { quantization, compute }, device)?;
    if !others.is_empty() {
        decoder.attach_set(&others.remove(0), 0.0)?;
    }
    Ok(LoadedModel { checkpoint, decoder, others })
}

/// Opens the checkpoint of a name, hub id, directory or `.gguf` file. Asks no network.
pub(crate) fn open_checkpoint(name_or_path: &str) -> Result<Checkpoint, Failure> {
    // A path needs no store, hence no home directory.
    if Path::new(name_or_path).is_file() {
        return Ok(Checkpoint::open(name_or_path)?);
    }
    Ok(Checkpoint::open(ModelStore::from_env()?.resolve(name_or_path)?.path())?)
}

/// A checkpoint with the chat template of a name or Jinja file; without one with that of the adapter, which is the one
/// that it was trained with; without that with its own.
pub(crate) fn with_template(
    checkpoint: Checkpoint,
    template: Option<&str>,
    adapter: Option<&Path>,
) -> Result<Checkpoint, Failure> {
    let templates = match (template, adapter) {
        (Some(name), _) => {
            let chosen = checkpoint.tokenizer()?.choose_template(name)?;
            if let Some(warning) = chosen.warning() {
                eprintln!("warning: {warning}");
            }
            Some(ChatTemplates::new(chosen.template.source()))
        }
        (None, Some(adapter)) if checkpoint.has_tokenizer() => ChatTemplates::from_directory(adapter)?,
        _ => None,
    };
    match templates {
        Some(templates) => Ok(checkpoint.with_chat_templates(templates)?),
        None => Ok(checkpoint),
    }
}

/// How the model reads rows: what training sees, and what `data` shows of it.
pub(crate) fn encoder(checkpoint: &Checkpoint) -> Result<Encoder, Failure> {
    let encoder = match checkpoint.tokenizer() {
        Ok(tokenizer) => Encoder::new(Arc::new(tokenizer)),
        // Rows of token ids need none; other rows say so themselves.
        Err(ModelError::Text(TextError::Read { source, .. })) if source.kind() == ErrorKind::NotFound => {
            Encoder::token_ids_only()
        }
        Err(error) => return Err(error.into()),
    };
    Ok(encoder.with_vocab_size(checkpoint.config().vocab_size))
}

/// Loads a checkpoint with a progress bar on stderr.
pub(crate) fn load_with_bar<B: KernelBackend>(
    checkpoint: &Checkpoint,
    options: LoadOptions,
    device: &B::Device,
) -> Result<Decoder<B>, Failure> {
    let bar = ProgressBar::new(0).with_message(checkpoint.path().display().to_string());
    if let Ok(style) = ProgressStyle::with_template("loading {msg} {wide_bar} {pos}/{len} tensors") {
        bar.set_style(style);
    }
    let decoder = load(checkpoint, options, device, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(decoder?)
}

/// The type of products, which the device has to know. Says on stderr where is computed, and what `auto` came to.
pub(crate) fn compute<B: KernelBackend>(
    global: &GlobalOptions,
    kind: ComputeKind,
    device: &B::Device,
) -> Result<Compute, Failure> {
    let (compute, why) = match kind {
        ComputeKind::Bf16 => (Compute::Bf16, None),
        ComputeKind::F16 => (Compute::F16, None),
        ComputeKind::F32 => (Compute::F32, None),
        ComputeKind::Auto => {
            let (compute, why) = Compute::fastest_on::<B>(device);
            (compute, Some(why))
        }
    };
    let backend = global.backend.unwrap_or_default().name();
    let name = device_name().map(|name| format!(" ({name})")).unwrap_or_default();
    let known = Compute::available_on::<B>(device);
    if !known.contains(&compute) {
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        return Err(Failure::usage(format!(
            "{backend}{name} has no products in {compute}: choose {} or auto, by --dtype or model.dtype",
            known.join(", ")
        )));
    }
    if !global.json {
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        eprintln!("computing on {backend}{name}, products in {compute}{why}");
    }
    Ok(compute)
}

//! `qlora export`: a model, with or without an adapter in its weights, in another form.

mod memory;
mod outcome;
mod verifying;

use std::collections::BTreeMap;

use qlora_core::export::{
    Bnb4BitOptions, ExportSource, FloatType, GgufOptions, MergeBase, Modelfile, ModelfileTemplate,
    PeftAdapter, Probe, SafetensorsOptions, Tolerance, check_gguf_target, check_ollama_target,
    export_bnb_4bit, export_gguf, export_gguf_lora, export_ollama, export_peft, export_safetensors,
    importance_matrix, verify_bnb_4bit, verify_gguf_lora, verify_peft,
};
use qlora_core::files::atomic::write_file;
use qlora_core::gguf::ImportanceMatrix;
use qlora_core::kernels::{Compute, KernelBackend};
use qlora_core::models::{Checkpoint, LoadOptions, Quantization};
use qlora_core::quant::Nf4Options;
use serde_json::json;

use self::memory::free_memory;
use self::outcome::{Outcome, with_bar};
use self::verifying::{Verifying, read_text, report, token_ids};
use crate::arguments::{ComputeKind, ExportArguments, ExportForm, GlobalOptions, MergeBaseKind};
use crate::backend::{OnBackend, on_backend};
use crate::failure::Failure;
use crate::model::{load_with_bar, open_checkpoint, with_template};

/// What Ollama makes of a model whose chat template it is not given.
const LOST_TEMPLATE: &str = "warning: no TEMPLATE, as what the chat template does cannot be said in turns. Ollama does \
    not run it: unless it knows one that is nearly the same, it joins messages without their roles. Write a TEMPLATE by \
    hand, or serve model.gguf by `llama-server --jinja`, which runs the chat template itself";
/// Tokens of a row of the calibration text, as llama.cpp cuts it.
const CALIBRATION_ROW: usize = 512;

pub(crate) fn run(global: &GlobalOptions, arguments: &ExportArguments) -> Result<(), Failure> {
    if matches!(arguments.to, ExportForm::Peft | ExportForm::GgufLora) && arguments.adapter.is_none() {
        return Err(Failure::usage("this form is of an adapter alone: give one with --adapter DIR"));
    }
    let is_adapter = matches!(arguments.to, ExportForm::Peft | ExportForm::GgufLora);
    if is_adapter && !arguments.special_tokens.is_empty() {
        return Err(Failure::usage(
            "--add-special-token is of a model, and this form is of an adapter alone",
        ));
    }
    if arguments.shard_size.is_nan() || arguments.shard_size <= 0.0 {
        return Err(Failure::usage("--shard-size must be a positive number of gigabytes"));
    }
    let has_importance = arguments.imatrix.is_some() || arguments.imatrix_from.is_some();
    if has_importance && !matches!(arguments.to, ExportForm::Gguf(_) | ExportForm::Ollama(_)) {
        return Err(Failure::usage("an importance matrix is for gguf:TYPE and ollama:TYPE"));
    }
    on_backend(global, Export { global, arguments })
}

struct Export<'a> {
    global: &'a GlobalOptions,
    arguments: &'a ExportArguments,
}

impl OnBackend for Export<'_> {
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Failure> {
        let Self { global, arguments } = self;
        // The adapter and texts first: they are small, and a mistake shows before the model is read.
        let adapter = arguments.adapter.as_ref().map(PeftAdapter::read).transpose()?;
        let set = adapter.as_ref().map(PeftAdapter::adapter_set);
        let text = arguments.text.as_deref().map(read_text).transpose()?;
        let calibration = arguments.imatrix_from.as_deref().map(read_text).transpose()?;
        let mut checkpoint = open_checkpoint(&arguments.model)?;
        let added = add_special_tokens(&mut checkpoint, &arguments.special_tokens)?;
        let checkpoint =
            with_template(checkpoint, arguments.template.as_deref(), arguments.adapter.as_deref())?;
        let mut source = ExportSource::new(&checkpoint).with_base(self.base());
        if let Some(set) = &set {
            source = source.with_adapter(set)?;
        }
        let verifying = self.verifying(&checkpoint, text.as_deref())?;
        let importance = self.importance::<B>(source, calibration.as_deref(), device)?;
        let options = |file_type| GgufOptions { file_type, importance: importance.as_ref() };
        let mut outcome = match (arguments.to, &adapter) {
            (ExportForm::Peft, Some(adapter)) => self.peft(&checkpoint, adapter)?,
            (ExportForm::GgufLora, Some(_)) => self.gguf_lora(source)?,
            (ExportForm::Bnb4Bit, _) => self.bnb_4bit::<B>(source, &verifying, device)?,
            (ExportForm::Gguf(kind), _) => self.gguf::<B>(source, options(kind), &verifying, device)?,
            (ExportForm::Ollama(kind), _) => self.ollama::<B>(source, options(kind), &verifying, device)?,
            _ => self.safetensors::<B>(source, &verifying, device)?,
        };
        if !added.is_empty() {
            let ids: Vec<String> = added.iter().map(|(token, id)| format!("{token} is {id}")).collect();
            outcome.line(format!("special tokens: {}", ids.join(", ")));
            outcome.value("special_tokens", json!(added));
        }
        if let (Some(_), Some(set)) = (arguments.merge_base, &set) {
            let weights = (self.nf4(), self.dtype());
            verifying.merge_report::<B>(&checkpoint, set, weights, device, &mut outcome)?;
        }
        outcome.print(global)
    }
}

/// The tokens with their ids.
fn add_special_tokens(
    checkpoint: &mut Checkpoint,
    tokens: &[String],
) -> Result<BTreeMap<String, u32>, Failure> {
    if tokens.is_empty() {
        return Ok(BTreeMap::new());
    }
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    Ok(tokens.iter().cloned().zip(checkpoint.add_special_tokens(&texts)?).collect())
}

impl Export<'_> {
    fn nf4(&self) -> Nf4Options {
        Nf4Options { double_quant: !self.arguments.no_double_quant, ..Nf4Options::default() }
    }

    fn base(&self) -> MergeBase {
        match self.arguments.merge_base {
            None | Some(MergeBaseKind::Original) => MergeBase::Original,
            Some(MergeBaseKind::Dequantized) => MergeBase::Dequantized(self.nf4()),
        }
    }

    fn dtype(&self) -> FloatType {
        match self.global.dtype.unwrap_or(ComputeKind::Auto) {
            ComputeKind::Auto | ComputeKind::Bf16 => FloatType::Bf16,
            ComputeKind::F16 => FloatType::F16,
            ComputeKind::F32 => FloatType::F32,
        }
    }

    fn shard_size(&self) -> u64 {
        (self.arguments.shard_size * 1e9) as u64
    }

    /// Models are compared to verify one that was written, and to report on `--merge-base`; the latter also without
    /// verification if there is a text for it.
    fn verifying(&self, checkpoint: &Checkpoint, text: Option<&str>) -> Result<Verifying, Failure> {
        let ExportArguments { to, merge_base, no_verify, .. } = *self.arguments;
        let writes_model = !matches!(to, ExportForm::Peft | ExportForm::GgufLora);
        let reports = merge_base.is_some() && (!no_verify || text.is_some());
        Verifying::new(checkpoint, text, (writes_model && !no_verify) || reports, !no_verify)
    }

    /// Read from a file or computed from a text, with the adapter in the model.
    fn importance<B: KernelBackend>(
        &self,
        source: ExportSource<'_>,
        calibration: Option<&str>,
        device: &B::Device,
    ) -> Result<Option<ImportanceMatrix>, Failure> {
        let ExportArguments { imatrix, imatrix_from, imatrix_out, .. } = self.arguments;
        if let Some(path) = imatrix {
            return Ok(Some(ImportanceMatrix::open(path)?));
        }
        let (Some(path), Some(text)) = (imatrix_from, calibration) else { return Ok(None) };
        self.check_target(source)?;
        let probe = Probe::of_text(source.checkpoint(), text, CALIBRATION_ROW)?;
        let compute = Compute::fastest_on::<B>(device).0;
        let options = LoadOptions { quantization: Quantization::None, compute };
        let mut model = load_with_bar::<B>(source.checkpoint(), options, device)?;
        if let Some(adapter) = source.adapter() {
            model.attach_set(adapter, 0.0)?;
        }
        let matrix = importance_matrix(&mut model, &probe, &path.display().to_string());
        if let Some(out) = imatrix_out {
            write_file(out, |file| matrix.write(file))?;
        }
        Ok(Some(matrix))
    }

    /// Finds what would end the export, before the long computation that precedes it.
    fn check_target(&self, source: ExportSource<'_>) -> Result<(), Failure> {
        // Which formats tensors get depends on its presence alone.
        let importance = Some(&ImportanceMatrix::default());
        let out = &self.arguments.out;
        match self.arguments.to {
            ExportForm::Gguf(file_type) => {
                check_gguf_target(source, GgufOptions { file_type, importance }, out)?;
            }
            ExportForm::Ollama(file_type) => {
                check_ollama_target(source, GgufOptions { file_type, importance }, out)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn peft(&self, checkpoint: &Checkpoint, adapter: &PeftAdapter) -> Result<Outcome, Failure> {
        let out = &self.arguments.out;
        let tokenizer = checkpoint.has_tokenizer().then(|| checkpoint.tokenizer()).transpose()?;
        export_peft(adapter, tokenizer.as_ref(), out)?;
        let mut outcome = Outcome::new(out, format!("an adapter of {} layers", adapter.layers().len()));
        outcome.value("layers", adapter.layers().len());
        outcome.value("tokenizer", tokenizer.is_some());
        if !self.arguments.no_verify {
            let tokens = verify_peft(adapter, tokenizer.as_ref(), out)?;
            outcome.line(format!("verified: the adapter reads back equal{}", token_ids(tokens)));
            outcome.value("verified", true);
            outcome.value("token_ids", tokens);
        }
        Ok(outcome)
    }

    fn safetensors<B: KernelBackend>(
        &self,
        source: ExportSource<'_>,
        verifying: &Verifying,
        device: &B::Device,
    ) -> Result<Outcome, Failure> {
        let (out, dtype) = (&self.arguments.out, self.dtype());
        let options = SafetensorsOptions { dtype, shard_size: self.shard_size() };
        let exported = with_bar(out, |progress| export_safetensors(source, options, out, progress))?;
        let mut outcome = Outcome::checkpoint(out, source, exported, dtype.torch_name());
        outcome.value("dtype", dtype.torch_name());
        verifying.checkpoint::<B>(source, out, dtype.tolerance(), device, &mut outcome)?;
        Ok(outcome)
    }

    fn bnb_4bit<B: KernelBackend>(
        &self,
        source: ExportSource<'_>,
        verifying: &Verifying,
        device: &B::Device,
    ) -> Result<Outcome, Failure> {
        let out = &self.arguments.out;
        let options = Bnb4BitOptions { nf4: self.nf4(), dtype: self.dtype(), shard_size: self.shard_size() };
        let exported = with_bar(out, |progress| export_bnb_4bit(source, options, out, progress))?;
        let mut outcome = Outcome::checkpoint(out, source, exported, "NF4");
        outcome.value("dtype", self.dtype().torch_name());
        if let Some(probe) = verifying.reopened_on() {
            report(&verify_bnb_4bit::<B>(source, options, out, probe, free_memory(), device)?, &mut outcome);
        }
        Ok(outcome)
    }

    fn gguf<B: KernelBackend>(
        &self,
        source: ExportSource<'_>,
        options: GgufOptions<'_>,
        verifying: &Verifying,
        device: &B::Device,
    ) -> Result<Outcome, Failure> {
        let (out, kind) = (&self.arguments.out, options.file_type);
        let exported = with_bar(out, |progress| export_gguf(source, options, out, progress))?;
        let mut outcome = Outcome::gguf(out, source, exported, kind);
        verifying.checkpoint::<B>(source, out, Tolerance::of_gguf(kind), device, &mut outcome)?;
        Ok(outcome)
    }

    fn gguf_lora(&self, source: ExportSource<'_>) -> Result<Outcome, Failure> {
        let out = &self.arguments.out;
        let Some(adapter) = source.adapter() else {
            return Err(Failure::usage("give an adapter with --adapter DIR"));
        };
        let config = source.checkpoint().config();
        let exported = export_gguf_lora(adapter, config, Some(&self.arguments.model), out)?;
        let folded = match exported.folded {
            0 => String::new(),
            layers => format!(", the scale of {layers} layers folded into their B"),
        };
        let what = format!("an adapter of {} layers, alpha {}{folded}", exported.layers, exported.alpha);
        let mut outcome = Outcome::new(out, what);
        outcome.value("layers", exported.layers);
        outcome.value("alpha", exported.alpha);
        outcome.value("folded", exported.folded);
        outcome.value("bytes", exported.bytes);
        if source.checkpoint().given_chat_templates().is_some() {
            outcome.line("note: this form holds no chat template: give the adapter's to llama.cpp by --chat-template-file");
        }
        if !self.arguments.no_verify {
            let tensors = verify_gguf_lora(adapter, config, out)?;
            outcome.line(format!("verified: {tensors} factors read back equal, scaled by alpha / rank"));
            outcome.value("verified", true);
        }
        Ok(outcome)
    }

    fn ollama<B: KernelBackend>(
        &self,
        source: ExportSource<'_>,
        options: GgufOptions<'_>,
        verifying: &Verifying,
        device: &B::Device,
    ) -> Result<Outcome, Failure> {
        let (out, kind) = (&self.arguments.out, options.file_type);
        let (exported, Modelfile { template, .. }) =
            with_bar(out, |progress| export_ollama(source, options, out, progress))?;
        let gguf = out.join("model.gguf");
        let mut outcome = Outcome::gguf(&gguf, source, exported, kind);
        let template = match template {
            ModelfileTemplate::Derived { dated: false } => "TEMPLATE derived from the chat template",
            ModelfileTemplate::Derived { dated: true } => {
                "TEMPLATE derived from the chat template, with a fixed date in place of today's"
            }
            ModelfileTemplate::Lost => LOST_TEMPLATE,
            _ => "TEMPLATE of the bare prompt, as the model has no chat template",
        };
        outcome.value("modelfile", json!(out.join("Modelfile")));
        outcome.value("template", template);
        outcome.line(format!("{}: {template}", out.join("Modelfile").display()));
        verifying.checkpoint::<B>(source, &gguf, Tolerance::of_gguf(kind), device, &mut outcome)?;
        outcome.line(format!("next: cd {} && ollama create NAME", out.display()));
        Ok(outcome)
    }
}

//! Comparing what was written, and saying what was compared.

use std::path::Path;

use qlora_core::export::{
    Difference, ExportSource, FloatType, MergeReport, MergedLayer, MergedLogits, Probe, Tolerance,
    Verification, verify,
};
use qlora_core::kernels::KernelBackend;
use qlora_core::models::{AdapterSet, Checkpoint};
use qlora_core::quant::Nf4Options;
use serde_json::{Map, Value, json};

use super::memory::free_memory;
use super::outcome::Outcome;
use crate::failure::Failure;

/// Tokens of a row of `--text`.
const ROW: usize = 256;
/// Layers of a report that are printed.
const WORST: usize = 5;

/// How is compared.
pub(super) struct Verifying {
    /// What models are compared on. `None`: they are not.
    pub(super) probe: Option<Probe>,
    /// Whether what was written is opened again.
    pub(super) reopens: bool,
}

impl Verifying {
    /// Makes the probe, of a text or of the built-in sentences, before anything is written.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        text: Option<&str>,
        compares_models: bool,
        reopens: bool,
    ) -> Result<Self, Failure> {
        let probe = match text {
            _ if !compares_models => None,
            Some(text) => Some(Probe::of_text(checkpoint, text, ROW)?),
            None => Some(Probe::of_checkpoint(checkpoint)?),
        };
        Ok(Self { probe, reopens })
    }

    /// What is opened again, and compared on these tokens.
    pub(super) fn reopened_on(&self) -> Option<&Probe> {
        self.probe.as_ref().filter(|_| self.reopens)
    }

    /// Opens a checkpoint that was written and compares it with its source.
    pub(super) fn checkpoint<B: KernelBackend>(
        &self,
        source: ExportSource<'_>,
        written: &Path,
        tolerance: Tolerance,
        device: &B::Device,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        if let Some(probe) = self.reopened_on() {
            let verified = verify::<B>(source, written, tolerance, probe, free_memory(), device)?;
            report(&verified, outcome);
        }
        Ok(())
    }

    /// What the choice of `--merge-base` changes.
    pub(super) fn merge_report<B: KernelBackend>(
        &self,
        checkpoint: &Checkpoint,
        adapter: &AdapterSet,
        (options, dtype): (Nf4Options, FloatType),
        device: &B::Device,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let Some(probe) = &self.probe else { return Ok(()) };
        let report =
            MergeReport::new::<B>(checkpoint, adapter, options, dtype, probe, free_memory(), device)?;
        outcome.line(format!(
            "the adapter on NF4 weights, as in training, against its merges in {}:",
            dtype.torch_name()
        ));
        let logits = report.logits.as_ref().ok();
        if let Some(MergedLogits { original, dequantized }) = logits {
            outcome.line(format!("  original: {}", describe(original)));
            outcome.line(format!("  dequantized: {}", describe(dequantized)));
        }
        for MergedLayer { path, original, dequantized } in report.worst(WORST) {
            outcome.line(format!("  {path}: off by {original:.4} original, {dequantized:.4} dequantized"));
        }
        if let Err(too_large) = report.logits {
            outcome.line(format!("note: {too_large}: these logits were not compared"));
        }
        let merge = |logits: Option<&Difference>, error: fn(&MergedLayer) -> f64| {
            let layers = report.layers.iter().map(|layer| (layer.path.clone(), json!(error(layer))));
            json!({"logits": logits.map(to_json), "layers": layers.collect::<Map<String, Value>>()})
        };
        let original = merge(logits.map(|logits| &logits.original), |layer| layer.original);
        let dequantized = merge(logits.map(|logits| &logits.dequantized), |layer| layer.dequantized);
        outcome.value("merge_original", original);
        outcome.value("merge_dequantized", dequantized);
        Ok(())
    }
}

/// Says what was found equal.
pub(super) fn report(verified: &Verification, outcome: &mut Outcome) {
    let Verification { tensors, tensor_error: error, tokens, logits } = verified;
    outcome.line(format!("verified: {tensors} tensors (largest error {error:.1e}){}", token_ids(*tokens)));
    outcome.value("verified", true);
    outcome.value("tensor_error", *error);
    outcome.value("token_ids", *tokens);
    match logits {
        Ok(difference) => {
            outcome.line(format!("against the live model: {}", describe(difference)));
            outcome.value("logits", to_json(difference));
        }
        Err(too_large) => outcome.line(format!("note: {too_large}: the logits were not compared")),
    }
}

/// `, 300 token ids`, or nothing.
pub(super) fn token_ids(count: usize) -> String {
    if count == 0 { String::new() } else { format!(", {count} token ids") }
}

pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::message(format!("cannot read {}: {error}", path.display())))
}

fn describe(difference: &Difference) -> String {
    let Difference { tokens, compared, largest, kl, same_top, reference_perplexity, perplexity, .. } =
        difference;
    let part = if compared < tokens {
        format!("; the perplexity is of all {tokens} tokens, as two models do not fit into memory at once")
    } else {
        String::new()
    };
    format!(
        "KL {kl:.2e} nats, perplexity {perplexity:.4} (live {reference_perplexity:.4}), same next token after \
         {:.1} % of {compared} tokens, logits off by at most {largest:.3}{part}",
        same_top * 100.0
    )
}

fn to_json(difference: &Difference) -> Value {
    json!({
        "tokens": difference.tokens,
        "compared": difference.compared,
        "relative": difference.relative,
        "largest": difference.largest,
        "kl": difference.kl,
        "same_top": difference.same_top,
        "perplexity": difference.perplexity,
        "live_perplexity": difference.reference_perplexity,
    })
}

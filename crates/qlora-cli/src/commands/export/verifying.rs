//! Comparing what was written, and saying what was compared.

use std::path::Path;

use qlora_core::export::{Difference, ExportSource, MergeReport, Probe, Tolerance, verify};
use qlora_core::kernels::KernelBackend;
use qlora_core::models::{AdapterSet, Checkpoint};
use qlora_core::quant::Nf4Options;
use serde_json::{Value, json};

use super::memory::free_memory;
use super::outcome::Outcome;
use crate::failure::Failure;

/// Tokens of a row of `--text`.
const ROW: usize = 256;
/// Layers of a report that are printed.
const WORST: usize = 5;

/// How is compared.
pub(super) struct Verifying<'a> {
    pub(super) text: Option<&'a Path>,
    pub(super) skip: bool,
}

impl Verifying<'_> {
    fn probe(&self, checkpoint: &Checkpoint) -> Result<Probe, Failure> {
        let Some(path) = self.text else { return Ok(Probe::of_checkpoint(checkpoint)?) };
        Ok(Probe::of_text(checkpoint, &read_text(path)?, ROW)?)
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
        if self.skip {
            return Ok(());
        }
        let probe = self.probe(source.checkpoint())?;
        let verified = verify::<B>(source, written, tolerance, &probe, free_memory(), device)?;
        let tokens = match verified.tokens {
            0 => String::new(),
            tokens => format!(", {tokens} token ids"),
        };
        let (tensors, error) = (verified.tensors, verified.tensor_error);
        outcome.line(format!("verified: {tensors} tensors (largest error {error:.1e}){tokens}"));
        outcome.value("verified", true);
        outcome.value("tensor_error", error);
        outcome.value("token_ids", verified.tokens);
        match verified.logits {
            Some(difference) => {
                outcome.line(format!("against the live model: {}", describe(&difference)));
                outcome.value("logits", to_json(&difference));
            }
            None => {
                outcome.line("note: the logits were not compared, the model is larger than the free memory")
            }
        }
        Ok(())
    }

    /// What the choice of `--merge-base` changes.
    pub(super) fn merge_report<B: KernelBackend>(
        &self,
        checkpoint: &Checkpoint,
        adapter: &AdapterSet,
        options: Nf4Options,
        device: &B::Device,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let probe = self.probe(checkpoint)?;
        let report = MergeReport::new::<B>(checkpoint, adapter, options, &probe, device)?;
        let layers: Vec<String> =
            report.worst(WORST).iter().map(|(path, error)| format!("{path} {error:.3}")).collect();
        outcome.line("the adapter on NF4 weights, as in training, against its merges:");
        outcome.line(format!("  original: {}", describe(&report.original)));
        outcome.line(format!("    weights differ most in {}", layers.join(", ")));
        outcome.line("  dequantized: the same weights, rounded to the type that was written");
        let layers: serde_json::Map<String, Value> =
            report.layers.iter().map(|(path, error)| (path.clone(), json!(error))).collect();
        outcome.value("merge_original", json!({"logits": to_json(&report.original), "layers": layers}));
        Ok(())
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::message(format!("cannot read {}: {error}", path.display())))
}

fn describe(difference: &Difference) -> String {
    let Difference { tokens, largest, kl, same_top, reference_perplexity, perplexity, .. } = difference;
    format!(
        "KL {kl:.2e} nats, perplexity {perplexity:.4} (live {reference_perplexity:.4}), same next token after \
         {:.1} % of {tokens} tokens, logits off by at most {largest:.3}",
        same_top * 100.0
    )
}

fn to_json(difference: &Difference) -> Value {
    json!({
        "tokens": difference.tokens,
        "relative": difference.relative,
        "largest": difference.largest,
        "kl": difference.kl,
        "same_top": difference.same_top,
        "perplexity": difference.perplexity,
        "live_perplexity": difference.reference_perplexity,
    })
}

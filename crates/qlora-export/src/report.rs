//! What merging an adapter into one base or the other changes, for an adapter that was trained on NF4 weights.

use qlora_kernels::KernelBackend;
use qlora_models::{AdapterSet, Checkpoint};
use qlora_quant::Nf4Options;

use crate::verify::{live_model, relative_error};
use crate::{Difference, ExportError, ExportSource, MergeBase, Probe};

/// The weights of a merge into the original weights, against those of the live adapter on NF4 weights.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// Layers in the order of the forward pass, and `‖(W + sBA) − (W₄ + sBA)‖ / ‖W₄ + sBA‖` of each: what a merge
    /// into the original weights changes. A merge into the dequantized ones changes nothing but rounds.
    pub layers: Vec<(String, f64)>,
    /// The model merged into the original weights, against the live one on NF4.
    pub original: Difference,
}

impl MergeReport {
    /// Compares on the tokens of `probe`. Two models are not in memory at once.
    ///
    /// # Errors
    /// When a tensor is damaged or the adapter belongs to another model.
    pub fn new<B: KernelBackend>(
        checkpoint: &Checkpoint,
        adapter: &AdapterSet,
        options: Nf4Options,
        probe: &Probe,
        device: &B::Device,
    ) -> Result<Self, ExportError> {
        let original = ExportSource::new(checkpoint).with_adapter(adapter)?;
        let dequantized = original.with_base(MergeBase::Dequantized(options));
        let layers = checkpoint.config().linears().map(|(path, shape)| {
            let name = format!("{path}.weight");
            let error = relative_error(&dequantized.tensor(&name, &shape)?, &original.tensor(&name, &shape)?);
            Ok((path, error))
        });
        let layers = layers.collect::<Result<_, ExportError>>()?;
        let live = probe.logits(&live_model::<B>(dequantized, device)?);
        let merged = probe.logits(&live_model::<B>(original, device)?);
        Ok(Self { layers, original: Difference::new(probe, &live, &merged) })
    }

    /// The layers with the largest changes, largest first.
    #[must_use]
    pub fn worst(&self, count: usize) -> Vec<(&str, f64)> {
        let mut layers: Vec<(&str, f64)> =
            self.layers.iter().map(|(path, error)| (path.as_str(), *error)).collect();
        layers.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        layers.truncate(count);
        layers
    }
}

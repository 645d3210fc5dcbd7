//! What merging an adapter into one base or the other changes, for an adapter that was trained on NF4 weights.

use qlora_kernels::{Compute, FrozenWeight, KernelBackend};
use qlora_models::{AdapterSet, Checkpoint, Decoder, Quantization};
use qlora_quant::Nf4Options;

use crate::verify::{Held, Reference, both_fit, live_model, load_f32, relative_error};
use crate::{Difference, ExportError, ExportSource, FloatType, MergeBase, Probe, TooLarge};

/// The two merges of an adapter against the live one on NF4 weights.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// Layers in the order of the forward pass.
    pub layers: Vec<MergedLayer>,
    /// The logits, unless comparing them takes more memory than was allowed.
    pub logits: Result<MergedLogits, TooLarge>,
}

/// The weight of a layer after either merge, against `W₄ + sBA`, which the live adapter computes with: a merge `M` is off
/// by `‖M − (W₄ + sBA)‖ / ‖W₄ + sBA‖`.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedLayer {
    /// Path of the layer.
    pub path: String,
    /// Of `W + sBA`, rounded.
    pub original: f64,
    /// Of `W₄ + sBA`, rounded.
    pub dequantized: f64,
}

/// The logits of either merge against those of the live adapter on NF4 weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergedLogits {
    /// Merged into the weights of the checkpoint.
    pub original: Difference,
    /// Merged into the weights as NF4 holds them.
    pub dequantized: Difference,
}

impl MergeReport {
    /// Compares the merges, their linear layers rounded to `dtype`, on the tokens of `probe`. Memory is used as in
    /// [`verify`](crate::verify).
    ///
    /// # Errors
    /// When a tensor is damaged or the adapter belongs to another model.
    pub fn new<B: KernelBackend>(
        checkpoint: &Checkpoint,
        adapter: &AdapterSet,
        options: Nf4Options,
        dtype: FloatType,
        probe: &Probe,
        memory: u64,
        device: &B::Device,
    ) -> Result<Self, ExportError> {
        let original = ExportSource::new(checkpoint).with_adapter(adapter)?;
        let dequantized = original.with_base(MergeBase::Dequantized(options));
        let layers = checkpoint.config().linears().map(|(path, shape)| {
            let name = format!("{path}.weight");
            let (live, mut merged) = (dequantized.tensor(&name, &shape)?, original.tensor(&name, &shape)?);
            dtype.round(&mut merged);
            let original = relative_error(&live, &merged);
            merged.copy_from_slice(&live);
            dtype.round(&mut merged);
            Ok(MergedLayer { path, original, dequantized: relative_error(&live, &merged) })
        });
        let layers = layers.collect::<Result<_, ExportError>>()?;
        let logits = match both_fit(checkpoint.config(), [Held::Nf4, Held::F32], probe, memory) {
            Err(too_large) => Err(too_large),
            Ok(both_fit) => {
                let live = live_model::<B>(dequantized, dequantized.quantization(), device)?;
                let live = Reference::new(live, probe, both_fit);
                let compare = |source| -> Result<Difference, ExportError> {
                    Ok(live.compare(probe, &merged_model::<B>(source, dtype, device)?))
                };
                Ok(MergedLogits { original: compare(original)?, dequantized: compare(dequantized)? })
            }
        };
        Ok(Self { layers, logits })
    }

    /// The layers that a merge into the original weights changes most, first.
    #[must_use]
    pub fn worst(&self, count: usize) -> Vec<&MergedLayer> {
        let mut layers: Vec<&MergedLayer> = self.layers.iter().collect();
        layers.sort_by(|a, b| b.original.total_cmp(&a.original));
        layers.truncate(count);
        layers
    }
}

/// The model with the linear layers of `source`, rounded.
fn merged_model<B: KernelBackend>(
    source: ExportSource<'_>,
    dtype: FloatType,
    device: &B::Device,
) -> Result<Decoder<B>, ExportError> {
    let mut model = load_f32::<B>(source.checkpoint(), Quantization::None, device)?;
    for (path, linear) in model.linears_mut() {
        let shape = linear.shape();
        let mut values = source.tensor(&format!("{path}.weight"), &shape)?;
        dtype.round(&mut values);
        linear.replace_weight(FrozenWeight::dense(values, shape, Compute::F32, device));
    }
    Ok(model)
}

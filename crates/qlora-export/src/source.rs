//! What is exported: the tensors of a checkpoint, with or without an adapter in them.

use std::collections::BTreeSet;

use qlora_models::{AdapterSet, Checkpoint, Quantization};
use qlora_quant::{Nf4Options, Nf4Tensor};

use crate::ExportError;
use crate::merge::merge;

/// Elements of a table that are in memory at a time.
const PIECE: usize = 1 << 24;

/// What an adapter is added to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MergeBase {
    /// The weights of the checkpoint.
    #[default]
    Original,
    /// The weights as NF4 holds them: what an adapter saw that was trained on a quantized model. Linear layers
    /// without an adapter are the quantized ones too. Of a checkpoint in NF4 they are its own, and what it has left
    /// in floats stays so.
    Dequantized(Nf4Options),
}

/// A checkpoint, an adapter to be merged into its weights, and what it is added to.
#[derive(Clone, Copy, Debug)]
pub struct ExportSource<'a> {
    checkpoint: &'a Checkpoint,
    adapter: Option<&'a AdapterSet>,
    base: MergeBase,
}

impl<'a> ExportSource<'a> {
    /// The weights of a checkpoint as they are.
    #[must_use]
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, adapter: None, base: MergeBase::Original }
    }

    /// With `W + scale · B A` in place of `W` where the adapter has factors, summed in f32.
    ///
    /// # Errors
    /// When the adapter belongs to another model.
    pub fn with_adapter(self, adapter: &'a AdapterSet) -> Result<Self, ExportError> {
        adapter.check(self.checkpoint.config())?;
        Ok(Self { adapter: Some(adapter), ..self })
    }

    /// With linear layers from this base.
    #[must_use]
    pub fn with_base(self, base: MergeBase) -> Self {
        Self { base, ..self }
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The adapter.
    #[must_use]
    pub fn adapter(&self) -> Option<&'a AdapterSet> {
        self.adapter
    }

    /// What the adapter is added to.
    #[must_use]
    pub fn base(&self) -> MergeBase {
        self.base
    }

    /// Layers that the adapter changes.
    #[must_use]
    pub fn merged_layers(&self) -> usize {
        self.adapter.map_or(0, |adapter| adapter.layers.len())
    }

    /// Whether a linear layer's weight is that of the checkpoint, with nothing added and nothing rounded.
    pub(crate) fn is_as_stored(&self, name: &str) -> bool {
        let is_adapted = |adapter: &AdapterSet| {
            name.strip_suffix(".weight").is_some_and(|layer| adapter.layers.contains_key(layer))
        };
        self.base == MergeBase::Original && !self.adapter.is_some_and(is_adapted)
    }

    /// How the live model holds its linear layers.
    pub(crate) fn quantization(&self) -> Quantization {
        match self.base {
            MergeBase::Original => Quantization::None,
            MergeBase::Dequantized(options) => Quantization::Nf4(options),
        }
    }

    /// Names of the weights that NF4 is for: of the linear layers, but for those that a checkpoint in NF4 has left in
    /// floats.
    pub(crate) fn quantized_weights(&self) -> BTreeSet<String> {
        let names = self.checkpoint.config().linears().map(|(path, _)| format!("{path}.weight"));
        names.filter(|name| !self.checkpoint.is_nf4() || self.checkpoint.has_in_nf4(name)).collect()
    }

    /// Calls `piece` with a tensor's values in order: whole, but for tables with a row for each token, of which some
    /// rows at a time are in memory.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and what `piece` fails with.
    pub(crate) fn pieces(
        &self,
        name: &str,
        shape: &[usize],
        mut piece: impl FnMut(Vec<f32>) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        match self.checkpoint.table_pieces(name, PIECE) {
            Some(mut pieces) => pieces.try_for_each(|values| piece(values?)),
            None => piece(self.tensor(name, shape)?),
        }
    }

    /// A tensor by its Hugging Face name as f32, row-major, merged: of exactly this shape.
    ///
    /// # Errors
    /// When it is absent, damaged, or of another shape, or holds a number that cannot be quantized.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ExportError> {
        let mut values = self.checkpoint.tensor(name, shape)?;
        let Some(layer) = name.strip_suffix(".weight") else { return Ok(values) };
        if let MergeBase::Dequantized(options) = self.base
            && !self.checkpoint.is_nf4()
            && self.checkpoint.config().linears().any(|(path, _)| path == layer)
        {
            let quantized = Nf4Tensor::quantize(&values, shape, options).map_err(|source| {
                let (path, name) = (self.checkpoint.path().to_owned(), name.to_owned());
                ExportError::Quantize { path, name, source }
            })?;
            quantized.dequantize_into(0, &mut values);
        }
        if let Some((factors, scale)) = self.adapter.and_then(|adapter| adapter.layers.get(layer)) {
            merge(&mut values, factors, *scale);
        }
        Ok(values)
    }
}

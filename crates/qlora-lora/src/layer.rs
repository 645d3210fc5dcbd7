//! A linear layer with a frozen weight and, where adapted, a low-rank update.

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use qlora_kernels::{
    Activation, Compute, FrozenWeight, KernelBackend, gated_activation, gated_linear, linear,
};

use crate::dropout::dropout;
use crate::{AdapterFactors, InputSquares, LoraAdapter, LoraConfig, LoraError, Pass};

/// `y = x Wᵀ + b`, plus `scale · (dropout(x) Aᵀ) Bᵀ` where an adapter is attached, its rows scaled if that has magnitudes.
#[derive(Module, Debug)]
pub struct AdaptedLinear<B: Backend> {
    weight: FrozenWeight<B>,
    bias: Option<Param<Tensor<B, 1>>>,
    adapter: Option<LoraAdapter<B>>,
    /// While merged: the weight without the update.
    unmerged: Option<FrozenWeight<B>>,
    #[module(skip)]
    observer: Option<Arc<InputSquares>>,
}

impl<B: Backend> AdaptedLinear<B> {
    /// A layer without an adapter. `bias` is `[out]`, frozen.
    #[must_use]
    pub fn new(weight: FrozenWeight<B>, bias: Option<Tensor<B, 1>>) -> Self {
        let bias = bias.map(|bias| Param::initialized(ParamId::new(), bias).set_require_grad(false));
        Self { weight, bias, adapter: None, unmerged: None, observer: None }
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// The weight: with the update while merged, else without.
    #[must_use]
    pub fn weight(&self) -> &FrozenWeight<B> {
        &self.weight
    }

    /// The adapter, if there is one.
    #[must_use]
    pub fn adapter(&self) -> Option<&LoraAdapter<B>> {
        self.adapter.as_ref()
    }

    /// The adapter, to train it.
    pub fn adapter_mut(&mut self) -> Option<&mut LoraAdapter<B>> {
        self.adapter.as_mut()
    }

    /// Attaches a fresh adapter, in place of any other. `path` names the layer.
    pub fn attach(&mut self, path: &str, config: &LoraConfig, seed: u64, device: &B::Device) {
        self.adapter = Some(LoraAdapter::init(path, self.shape(), config, seed, device));
    }

    /// Attaches an adapter with these factors, in place of any other.
    ///
    /// # Errors
    /// When the factors do not fit the layer.
    pub fn attach_factors(
        &mut self,
        path: &str,
        factors: AdapterFactors,
        scale: f64,
        dropout: f64,
        device: &B::Device,
    ) -> Result<(), LoraError> {
        let [outputs, inputs] = self.shape();
        let mismatch = |factor, found, expected| {
            Err(LoraError::ShapeMismatch { layer: path.to_owned(), factor, found, expected })
        };
        if factors.inputs != inputs {
            return mismatch("lora_A", [factors.rank, factors.inputs], [factors.rank, inputs]);
        }
        if factors.outputs != outputs {
            return mismatch("lora_B", [factors.outputs, factors.rank], [outputs, factors.rank]);
        }
        self.adapter = Some(LoraAdapter::from_factors(path, factors, scale, dropout, device));
        Ok(())
    }

    /// Takes the adapter away.
    pub fn detach_adapter(&mut self) -> Option<LoraAdapter<B>> {
        self.adapter.take()
    }

    /// From now on `observer` adds up the squares of the layer's inputs; `None` for no longer.
    pub fn observe_inputs(&mut self, observer: Option<Arc<InputSquares>>) {
        self.observer = observer;
    }

    /// Puts another frozen weight into the layer, in place of one that the update may be a part of. The adapter stays.
    ///
    /// # Panics
    /// When it has another shape.
    pub fn replace_weight(&mut self, weight: FrozenWeight<B>) {
        assert_eq!(weight.shape(), self.weight.shape(), "shape of the weight");
        self.weight = weight;
        self.unmerged = None;
    }

    /// Whether the update is part of the weight.
    #[must_use]
    pub fn is_merged(&self) -> bool {
        self.unmerged.is_some()
    }

    /// Undoes [`merge`](Self::merge): the very weight from before comes back, bit by bit.
    pub fn unmerge(&mut self) {
        if let Some(weight) = self.unmerged.take() {
            self.weight = weight;
        }
    }
}

impl<B: KernelBackend> AdaptedLinear<B> {
    /// Brings the adapter into the form that a product reads: no graph, and where products are in a narrow type, in
    /// that type with the scale as part of `B`. To train it, or to write it to a file, keep the layer from before.
    pub fn prepare_for_inference(&mut self) {
        let compute = self.weight.compute();
        if let Some(adapter) = &mut self.adapter {
            adapter.prepare_for_inference(compute);
        }
    }

    /// Applies the layer to rows `x` `[tokens, in]`: `[tokens, out]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<B, 2>, pass: Pass) -> Tensor<B, 2> {
        if let Some(observer) = &self.observer {
            observer.add(&x);
        }
        let bias = self.bias.as_ref().map(Param::val);
        let adapter = self.adapter.as_ref().filter(|_| pass.adapters && !self.is_merged());
        let Some(adapter) = adapter else {
            return linear(x, &self.weight, bias, None);
        };
        if let Some(magnitude) = adapter.magnitude() {
            return self.forward_dora(x, pass, adapter, magnitude);
        }
        match pass.dropout.filter(|_| adapter.dropout() > 0.0) {
            None => linear(x, &self.weight, bias, Some(adapter.operands())),
            Some(key) => {
                // Only the adapter sees the dropped input, so the two products do not share theirs.
                let dropped = dropout(x.clone(), adapter.dropout(), adapter.site(), key);
                let lora = adapter.operands();
                let dtype = x.dtype();
                let update = dropped.cast(DType::F32).matmul(lora.a.transpose()).matmul(lora.b.transpose());
                linear(x, &self.weight, bias, None) + (update * lora.scale).cast(dtype)
            }
        }
    }

    /// `g ⊙ (x Wᵀ + scale · x Aᵀ Bᵀ) + b` with `g = magnitude / ‖W + scale · B A‖`, row norms through which nothing is
    /// differentiated. With dropout `x Wᵀ + (g ⊙ (z Wᵀ + scale · z Aᵀ Bᵀ) − z Wᵀ) + b`, where z is the dropped x: as
    /// PEFT has it.
    fn forward_dora(
        &self,
        x: Tensor<B, 2>,
        pass: Pass,
        adapter: &LoraAdapter<B>,
        magnitude: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let dtype = x.dtype();
        let gain = (magnitude / row_norms(self.updated_weight(adapter))).transpose();
        let adapted =
            |x| linear(x, &self.weight, None, Some(adapter.operands())).cast(DType::F32) * gain.clone();
        let y = match pass.dropout.filter(|_| adapter.dropout() > 0.0) {
            None => adapted(x),
            Some(key) => {
                let dropped = dropout(x.clone(), adapter.dropout(), adapter.site(), key);
                let plain = |x| linear(x, &self.weight, None, None).cast(DType::F32);
                plain(x) + adapted(dropped.clone()) - plain(dropped)
            }
        };
        let y = match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        };
        y.cast(dtype)
    }

    /// Applies the layer to `act(gate) ⊙ up`, both `[tokens, in]`: `[tokens, out]`. In training the product of the
    /// two is not kept, but computed again.
    #[must_use]
    pub fn forward_gated(
        &self,
        activation: Activation,
        gate: Tensor<B, 2>,
        up: Tensor<B, 2>,
        pass: Pass,
    ) -> Tensor<B, 2> {
        let adapter = self.adapter.as_ref().filter(|_| pass.adapters && !self.is_merged());
        let drops = adapter.is_some_and(|adapter| pass.dropout.is_some() && adapter.dropout() > 0.0);
        let dora = adapter.is_some_and(|adapter| adapter.magnitude().is_some());
        if drops || dora || self.observer.is_some() {
            // Dropout acts on the product, and an observer sees it.
            return self.forward(gated_activation(activation, gate, up), pass);
        }
        let bias = self.bias.as_ref().map(Param::val);
        let lora = adapter.map(LoraAdapter::operands);
        gated_linear(activation, gate, up, &self.weight, bias, lora)
    }

    /// `W + scale · B A` in f32, rows brought to their magnitude with DoRA (the plain weight where there is no
    /// adapter): `[out, in]`.
    #[must_use]
    pub fn merged_weight(&self) -> Tensor<B, 2> {
        let Some(adapter) = &self.adapter else { return self.base_weight() };
        let updated = self.updated_weight(adapter);
        match adapter.magnitude() {
            Some(magnitude) => updated.clone() * (magnitude.detach() / row_norms(updated)),
            None => updated,
        }
    }

    fn base_weight(&self) -> Tensor<B, 2> {
        self.unmerged.as_ref().unwrap_or(&self.weight).dequantize(DType::F32)
    }

    /// `W + scale · B A`, nothing to differentiate.
    fn updated_weight(&self, adapter: &LoraAdapter<B>) -> Tensor<B, 2> {
        self.base_weight() + adapter.b().detach().matmul(adapter.a().detach()) * adapter.scale()
    }

    /// Makes the update part of the weight, which becomes dense in the given type. The weight from
    /// before is kept for [`unmerge`](Self::unmerge). Without an adapter, or merged already: nothing.
    pub fn merge(&mut self, compute: Compute) {
        if self.adapter.is_none() || self.is_merged() {
            return;
        }
        let merged = self.merged_weight().cast(compute.dtype());
        let merged = FrozenWeight::from_tensor(merged, compute);
        self.unmerged = Some(std::mem::replace(&mut self.weight, merged));
    }
}

/// L2 norms of rows: `[rows, 1]`.
fn row_norms<B: Backend>(weight: Tensor<B, 2>) -> Tensor<B, 2> {
    weight.powi_scalar(2).sum_dim(1).sqrt()
}

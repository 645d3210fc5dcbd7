//! One decoder layer: attention and a gated MLP, each behind a norm and a residual.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use qlora_kernels::{Activation, AttentionSpec, KernelBackend, RmsNormOptions};
use qlora_kernels::{attention, rms_norm, rope};
use qlora_lora::{AdaptedLinear, Pass};

use crate::KvCache;

/// `h + attention(norm(h))`, then `h + mlp(norm(h))`.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    pub(crate) input_norm: Param<Tensor<B, 1>>,
    pub(crate) q_proj: AdaptedLinear<B>,
    pub(crate) k_proj: AdaptedLinear<B>,
    pub(crate) v_proj: AdaptedLinear<B>,
    pub(crate) o_proj: AdaptedLinear<B>,
    pub(crate) post_attention_norm: Param<Tensor<B, 1>>,
    pub(crate) gate_proj: AdaptedLinear<B>,
    pub(crate) up_proj: AdaptedLinear<B>,
    pub(crate) down_proj: AdaptedLinear<B>,
}

/// What all layers of one forward pass share.
#[derive(Clone, Debug)]
pub(crate) struct LayerContext<B: Backend> {
    pub(crate) spec: AttentionSpec,
    /// Cosines of the positions, `[tokens, head_dim / 2]`.
    pub(crate) cos: Tensor<B, 2>,
    /// Sines of the positions.
    pub(crate) sin: Tensor<B, 2>,
    pub(crate) norm: RmsNormOptions,
    pub(crate) activation: Activation,
    pub(crate) pass: Pass,
}

impl<B: AutodiffBackend> LayerContext<B> {
    /// The same, for layers without autodiff.
    pub(crate) fn inner(self) -> LayerContext<B::InnerBackend> {
        let Self { spec, cos, sin, norm, activation, pass } = self;
        LayerContext { spec, cos: cos.inner(), sin: sin.inner(), norm, activation, pass }
    }
}

impl<B: Backend> DecoderLayer<B> {
    /// Whether a linear layer has an adapter that is not merged.
    pub(crate) fn is_adapted(&self) -> bool {
        self.linears().iter().any(|(_, linear)| linear.adapter().is_some() && !linear.is_merged())
    }

    /// The linear layers with their names below the layer, in the order of the forward pass.
    pub(crate) fn linears(&self) -> [(&'static str, &AdaptedLinear<B>); 7] {
        [
            ("self_attn.q_proj", &self.q_proj),
            ("self_attn.k_proj", &self.k_proj),
            ("self_attn.v_proj", &self.v_proj),
            ("self_attn.o_proj", &self.o_proj),
            ("mlp.gate_proj", &self.gate_proj),
            ("mlp.up_proj", &self.up_proj),
            ("mlp.down_proj", &self.down_proj),
        ]
    }

    /// As [`linears`](Self::linears), to change them.
    pub(crate) fn linears_mut(&mut self) -> [(&'static str, &mut AdaptedLinear<B>); 7] {
        [
            ("self_attn.q_proj", &mut self.q_proj),
            ("self_attn.k_proj", &mut self.k_proj),
            ("self_attn.v_proj", &mut self.v_proj),
            ("self_attn.o_proj", &mut self.o_proj),
            ("mlp.gate_proj", &mut self.gate_proj),
            ("mlp.up_proj", &mut self.up_proj),
            ("mlp.down_proj", &mut self.down_proj),
        ]
    }
}

impl<B: KernelBackend> DecoderLayer<B> {
    /// Rows `h` `[tokens, hidden]` through the layer. With a cache, `index` names the layer in it.
    pub(crate) fn forward(
        &self,
        h: Tensor<B, 2>,
        context: &LayerContext<B>,
        cache: Option<(&mut KvCache<B>, usize)>,
    ) -> Tensor<B, 2> {
        let pass = context.pass;
        let x = rms_norm(h.clone(), self.input_norm.val(), context.norm);
        let q = rope(self.q_proj.forward(x.clone(), pass), context.cos.clone(), context.sin.clone());
        let k = rope(self.k_proj.forward(x.clone(), pass), context.cos.clone(), context.sin.clone());
        let v = self.v_proj.forward(x, pass);
        let attended = match cache {
            Some((cache, index)) => cache.attend(index, q, k, v, &context.spec),
            None => attention(q, k, v, &context.spec),
        };
        let h = h + self.o_proj.forward(attended, pass);
        let x = rms_norm(h.clone(), self.post_attention_norm.val(), context.norm);
        let gate = self.gate_proj.forward(x.clone(), pass);
        let up = self.up_proj.forward(x, pass);
        h + self.down_proj.forward_gated(context.activation, gate, up, pass)
    }
}

//! One decoder layer: attention and a gated MLP, with norms and residuals.

use std::borrow::Cow;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use qlora_kernels::{AttentionSpec, KernelBackend};
use qlora_lora::{AdaptedLinear, Pass};

use crate::attention::SelfAttention;
use crate::config::{NormPlacement, RopePairs};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::residual::Residual;
use crate::tensors::{expert_name, gate_up_names, qkv_names};
use crate::{DecoderConfig, KvCache};

/// Attention, then an MLP, each between norms where [`NormPlacement`] has them, and added to its input.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    pub(crate) before_attention: Option<Norm<B>>,
    pub(crate) attention: SelfAttention<B>,
    pub(crate) after_attention: Option<Norm<B>>,
    pub(crate) before_mlp: Option<Norm<B>>,
    pub(crate) mlp: Mlp<B>,
    pub(crate) after_mlp: Option<Norm<B>>,
}

/// What all layers of one forward pass share.
#[derive(Clone, Debug)]
pub(crate) struct LayerContext<B: Backend> {
    pub(crate) config: Arc<DecoderConfig>,
    /// Without the window, which is a layer's own.
    pub(crate) spec: AttentionSpec,
    pub(crate) rope: RopeTable<B>,
    /// Of layers with frequencies of their own; `None` where there are none.
    pub(crate) local_rope: Option<RopeTable<B>>,
    pub(crate) pass: Pass,
}

/// The angles that queries and keys are rotated by.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable<B: Backend> {
    /// Cosines of the positions, `[tokens, rotated features / 2]`.
    pub(crate) cos: Tensor<B, 2>,
    /// Sines of the positions.
    pub(crate) sin: Tensor<B, 2>,
}

impl<B: Backend> RopeTable<B> {
    /// Whether every feature of a head is rotated, in the order of its features.
    pub(crate) fn turns_whole_heads(&self, config: &DecoderConfig) -> bool {
        2 * self.cos.dims()[1] == config.head_dim && config.rope_pairs == RopePairs::Halves
    }
}

impl<B: AutodiffBackend> LayerContext<B> {
    /// The same, for layers without autodiff.
    pub(crate) fn inner(self) -> LayerContext<B::InnerBackend> {
        let Self { config, spec, rope, local_rope, pass } = self;
        let inner = |RopeTable { cos, sin }: RopeTable<B>| RopeTable { cos: cos.inner(), sin: sin.inner() };
        LayerContext { config, spec, rope: inner(rope), local_rope: local_rope.map(inner), pass }
    }
}

impl<B: Backend> DecoderLayer<B> {
    /// Whether a linear layer has an adapter that is not merged.
    pub(crate) fn is_adapted(&self) -> bool {
        self.linears().iter().any(|(_, linear)| linear.adapter().is_some() && !linear.is_merged())
    }

    /// The linear layers with their names below the layer, in the order of the forward pass.
    pub(crate) fn linears(&self) -> Vec<(Cow<'static, str>, &AdaptedLinear<B>)> {
        let Self { attention, mlp, .. } = self;
        let mut linears = named(qkv_names(attention.qkv.len()), attention.qkv.iter(), None);
        linears.push(("self_attn.o_proj".into(), &attention.o_proj));
        for (index, expert) in mlp.experts.iter().enumerate() {
            let index = mlp.router.is_some().then_some(index);
            linears.extend(named(gate_up_names(expert.gate_up.len()), expert.gate_up.iter(), index));
            linears.push((expert_name("mlp.down_proj", index), &expert.down_proj));
        }
        linears
    }

    /// As [`linears`](Self::linears), to change them.
    pub(crate) fn linears_mut(&mut self) -> Vec<(Cow<'static, str>, &mut AdaptedLinear<B>)> {
        let Self { attention, mlp, .. } = self;
        let mut linears = named(qkv_names(attention.qkv.len()), attention.qkv.iter_mut(), None);
        linears.push(("self_attn.o_proj".into(), &mut attention.o_proj));
        let routed = mlp.router.is_some();
        for (index, expert) in mlp.experts.iter_mut().enumerate() {
            let index = routed.then_some(index);
            linears.extend(named(gate_up_names(expert.gate_up.len()), expert.gate_up.iter_mut(), index));
            linears.push((expert_name("mlp.down_proj", index), &mut expert.down_proj));
        }
        linears
    }
}

/// Linear layers with their names, as those of an expert where there is one.
fn named<L>(
    names: &[&'static str],
    linears: impl Iterator<Item = L>,
    expert: Option<usize>,
) -> Vec<(Cow<'static, str>, L)> {
    names.iter().map(|&name| expert_name(name, expert)).zip(linears).collect()
}

impl<B: KernelBackend> DecoderLayer<B> {
    /// The residual stream through the layer. With a cache, `index` names the layer in it.
    pub(crate) fn forward(
        &self,
        stream: Residual<B>,
        context: &LayerContext<B>,
        cache: Option<(&mut KvCache<B>, usize)>,
    ) -> Residual<B> {
        let dtype = B::activation_dtype(context.spec.compute);
        let normed = |norm: &Option<Norm<B>>, x: Tensor<B, 2>| match norm {
            Some(norm) => norm.forward(x, dtype),
            None => x,
        };
        let scale = context.config.residual_scale;
        let scaled = |x: Tensor<B, 2>| if scale == 1.0 { x } else { x * scale };
        let (stream, x) = stream.normed(self.before_attention.as_ref(), dtype);
        if context.config.norm_placement == NormPlacement::Parallel {
            let attended = self.attention.forward(x.clone(), context, cache);
            let stream = stream.plus(scaled(attended));
            return stream.plus(scaled(self.mlp.forward(x, context)));
        }
        let attended = self.attention.forward(x, context, cache);
        let stream = stream.plus(scaled(normed(&self.after_attention, attended)));
        let (stream, x) = stream.normed(self.before_mlp.as_ref(), dtype);
        stream.plus(scaled(normed(&self.after_mlp, self.mlp.forward(x, context))))
    }
}

//! The attention of one layer: projections, norms of queries and keys, rotation, window.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use qlora_kernels::{AttentionSpec, KernelBackend, attention, rope};
use qlora_lora::{AdaptedLinear, Pass};

use crate::config::{LayerAttention, LayerRope, RopePairs};
use crate::layer::{LayerContext, RopeTable};
use crate::norm::Norm;
use crate::{DecoderConfig, KvCache};

/// Attention of a decoder layer.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// To queries, keys and values; or one layer whose rows are those of all three.
    pub(crate) qkv: Vec<AdaptedLinear<B>>,
    pub(crate) q_norm: Option<Norm<B>>,
    pub(crate) k_norm: Option<Norm<B>>,
    pub(crate) o_proj: AdaptedLinear<B>,
    #[module(skip)]
    pub(crate) kind: LayerAttention,
}

impl<B: KernelBackend> SelfAttention<B> {
    /// Rows `x` `[tokens, hidden]` to `[tokens, hidden]`. With a cache, `index` names the layer in it.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        context: &LayerContext<B>,
        cache: Option<(&mut KvCache<B>, usize)>,
    ) -> Tensor<B, 2> {
        let (config, pass) = (&*context.config, context.pass);
        let [q, k, v] = self.project(x, config, pass);
        let normed = |x: Tensor<B, 2>, norm: &Option<Norm<B>>| match norm {
            Some(norm) => norm.forward_heads(x, config.qk_norm, config.head_dim),
            None => x,
        };
        let (q, k) = (normed(q, &self.q_norm), normed(k, &self.k_norm));
        let table = match self.kind.rope {
            LayerRope::Global => Some(&context.rope),
            LayerRope::Local => context.local_rope.as_ref(),
            LayerRope::None => None,
        };
        let spec = AttentionSpec { window: self.kind.window, ..context.spec.clone() };
        let attended = match (cache, table) {
            (Some((cache, index)), Some(table)) if table.turns_whole_heads(config) && cache.is_read() => {
                cache.attend_rotated(index, q, k, v, table, &spec)
            }
            (cache, table) => {
                let turn = |x| match table {
                    Some(table) => rotate(x, table, config.head_dim, config.rope_pairs),
                    None => x,
                };
                let (q, k) = (turn(q), turn(k));
                match cache {
                    Some((cache, index)) => cache.attend(index, q, k, v, &spec),
                    None => attention(q, k, v, &spec),
                }
            }
        };
        self.o_proj.forward(attended, pass)
    }

    /// Queries, keys and values of rows `x`.
    fn project(&self, x: Tensor<B, 2>, config: &DecoderConfig, pass: Pass) -> [Tensor<B, 2>; 3] {
        match &self.qkv[..] {
            [q_proj, k_proj, v_proj] => {
                let q = q_proj.forward(x.clone(), pass);
                let k = k_proj.forward(x.clone(), pass);
                [q, k, v_proj.forward(x, pass)]
            }
            fused => {
                let all = fused[0].forward(x, pass);
                let queries = config.heads * config.head_dim;
                let keys = config.kv_heads * config.head_dim;
                [
                    all.clone().narrow(1, 0, queries),
                    all.clone().narrow(1, queries, keys),
                    all.narrow(1, queries + keys, keys),
                ]
            }
        }
    }
}

/// Rotates the first features of every head of `x` `[tokens, heads · head_dim]`.
///
/// Of interleaved pairs the features come out sorted, first those of even number: queries and keys alike, so that their
/// products are the same.
fn rotate<B: KernelBackend>(
    x: Tensor<B, 2>,
    table: &RopeTable<B>,
    head_dim: usize,
    pairs: RopePairs,
) -> Tensor<B, 2> {
    let [tokens, width] = x.dims();
    let (heads, rotated) = (width / head_dim, 2 * table.cos.dims()[1]);
    let sorted = |x: Tensor<B, 2>| match pairs {
        RopePairs::Halves => x,
        RopePairs::Interleaved => {
            let [_, width] = x.dims();
            x.reshape([tokens, heads, width / heads / 2, 2]).swap_dims(2, 3).reshape([tokens, width])
        }
    };
    let turn = |x: Tensor<B, 2>| rope(sorted(x), table.cos.clone(), table.sin.clone());
    if rotated == head_dim {
        return turn(x);
    }
    let x = x.reshape([tokens, heads, head_dim]);
    let first = x.clone().narrow(2, 0, rotated).reshape([tokens, heads * rotated]);
    let first = turn(first).reshape([tokens, heads, rotated]);
    Tensor::cat(vec![first, x.narrow(2, rotated, head_dim - rotated)], 2).reshape([tokens, width])
}

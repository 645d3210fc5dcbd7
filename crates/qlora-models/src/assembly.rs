//! A model from its parts, wherever they come from: what all of them are, said once.

use std::sync::Arc;

use burn::tensor::Tensor;
use qlora_kernels::{FrozenWeight, KernelBackend};
use qlora_lora::AdaptedLinear;

use crate::attention::SelfAttention;
use crate::layer::DecoderLayer;
use crate::mlp::{GatedMlp, Mlp};
use crate::norm::Norm;
use crate::tensors::{LinearShape, QK_NORMS, ROUTER};
use crate::{Decoder, DecoderConfig};

/// Where the parts of a model come from. Names are those of Hugging Face checkpoints.
pub(crate) trait PartSource<B: KernelBackend> {
    /// Why a part is not to be had.
    type Error;

    /// A matrix that is not quantized.
    fn dense(&mut self, name: &str, shape: [usize; 2]) -> Result<FrozenWeight<B>, Self::Error>;

    /// The weight of a norm, flat.
    fn norm_weight(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<B, 1>, Self::Error>;

    /// A linear layer; `path` is the name of its weight without `.weight`.
    fn linear(&mut self, path: &str, linear: &LinearShape) -> Result<AdaptedLinear<B>, Self::Error>;
}

/// Takes every part once, in the order of the forward pass.
pub(crate) fn assemble<B: KernelBackend, S: PartSource<B>>(
    config: &DecoderConfig,
    source: &mut S,
) -> Result<Decoder<B>, S::Error> {
    let table = [config.vocab_size, config.hidden_size];
    let embed_tokens = source.dense("model.embed_tokens.weight", table)?;
    let layers = (0..config.layers).map(|index| layer(config, source, index)).collect::<Result<_, _>>()?;
    let norm = norm(config, source, "model.norm.weight", &[config.hidden_size])?;
    let lm_head = match config.tie_word_embeddings {
        true => None,
        false => Some(source.dense("lm_head.weight", table)?),
    };
    Ok(Decoder { embed_tokens, layers, norm, lm_head, config: Arc::new(config.clone()) })
}

fn norm<B: KernelBackend, S: PartSource<B>>(
    config: &DecoderConfig,
    source: &mut S,
    name: &str,
    shape: &[usize],
) -> Result<Norm<B>, S::Error> {
    Ok(Norm::new(source.norm_weight(name, shape)?, config.norm, config.rms_norm_eps))
}

fn layer<B: KernelBackend, S: PartSource<B>>(
    config: &DecoderConfig,
    source: &mut S,
    index: usize,
) -> Result<DecoderLayer<B>, S::Error> {
    let path = |name: &str| format!("model.layers.{index}.{name}");
    let norms = config.layer_norms();
    let hidden = [config.hidden_size];
    let around = |source: &mut S, name: Option<&str>| {
        name.map(|name| norm(config, source, &path(name), &hidden)).transpose()
    };
    let mut linears = config.layer_linears(index).into_iter();
    let mut take = |source: &mut S, count: usize| -> Result<Vec<AdaptedLinear<B>>, S::Error> {
        linears.by_ref().take(count).map(|linear| source.linear(&path(&linear.name), &linear)).collect()
    };
    let one = |mut linears: Vec<AdaptedLinear<B>>| linears.pop().expect("the layer lists it");
    let (projections, gates) = if config.fused_projections { (1, 1) } else { (3, 2) };

    let before_attention = around(source, norms.before_attention)?;
    let qkv = take(source, projections)?;
    let [q_norm, k_norm] = match config.qk_norm_shapes() {
        None => [None, None],
        Some([q, k]) => [
            Some(norm(config, source, &path(QK_NORMS[0]), &q)?),
            Some(norm(config, source, &path(QK_NORMS[1]), &k)?),
        ],
    };
    let o_proj = one(take(source, 1)?);
    let attention = SelfAttention { qkv, q_norm, k_norm, o_proj, kind: config.attention_of(index) };
    let after_attention = around(source, norms.after_attention)?;
    let before_mlp = around(source, norms.before_mlp)?;
    let experts = config.experts_of(index);
    let router = experts
        .map(|experts| source.dense(&path(ROUTER), [experts.count, config.hidden_size]))
        .transpose()?;
    let mut mlps = Vec::new();
    for _ in 0..experts.map_or(1, |experts| experts.count) {
        let gate_up = take(source, gates)?;
        mlps.push(GatedMlp { gate_up, down_proj: one(take(source, 1)?) });
    }
    let mlp = Mlp { experts: mlps, router };
    let after_mlp = around(source, norms.after_mlp)?;
    Ok(DecoderLayer { before_attention, attention, after_attention, before_mlp, mlp, after_mlp })
}

//! Models with random weights, made on the device: for measuring speed and memory at a size, without its checkpoint.

use std::sync::Arc;

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Distribution, Tensor};
use qlora_kernels::{FrozenWeight, KernelBackend, Nf4Weight};
use qlora_lora::AdaptedLinear;

use crate::layer::DecoderLayer;
use crate::tensors::LinearShape;
use crate::{Decoder, DecoderConfig, LoadOptions, Quantization};

impl<B: KernelBackend> Decoder<B> {
    /// A model of this configuration whose weights are uniform in `±1/√in`, as if freshly initialised.
    ///
    /// Nothing goes over the host but the scales of doubly quantized weights.
    #[must_use]
    pub fn random(config: &DecoderConfig, options: LoadOptions, seed: u64, device: &B::Device) -> Self {
        B::seed(device, seed);
        let maker = Maker::<B> { options, device };
        let table = [config.vocab_size, config.hidden_size];
        Self {
            embed_tokens: maker.dense(table),
            layers: (0..config.layers).map(|_| maker.layer(config)).collect(),
            norm: maker.norm(config.hidden_size),
            lm_head: (!config.tie_word_embeddings).then(|| maker.dense(table)),
            config: Arc::new(config.clone()),
        }
    }
}

struct Maker<'a, B: KernelBackend> {
    options: LoadOptions,
    device: &'a B::Device,
}

impl<B: KernelBackend> Maker<'_, B> {
    fn uniform(&self, shape: [usize; 2], bound: f64) -> Tensor<B, 2> {
        Tensor::random(shape, Distribution::Uniform(-bound, bound), (self.device, DType::F32))
    }

    fn dense(&self, [rows, columns]: [usize; 2]) -> FrozenWeight<B> {
        let bound = 1.0 / (columns as f64).sqrt();
        let dtype = self.options.compute.dtype();
        // In pieces, so that a large table never exists in f32.
        const PIECE: usize = 16_384;
        let pieces = (0..rows)
            .step_by(PIECE)
            .map(|start| self.uniform([PIECE.min(rows - start), columns], bound).cast(dtype))
            .collect();
        FrozenWeight::from_rows(pieces, self.options.compute)
    }

    fn norm(&self, width: usize) -> Param<Tensor<B, 1>> {
        let ones = Tensor::ones([width], (self.device, DType::F32));
        Param::initialized(ParamId::new(), ones).set_require_grad(false)
    }

    fn linear(&self, linear: LinearShape) -> AdaptedLinear<B> {
        let LinearShape { shape, bias, .. } = linear;
        let weight = match self.options.quantization {
            Quantization::None => self.dense(shape),
            Quantization::Nf4(options) => {
                let values = self.uniform(shape, 1.0 / (shape[1] as f64).sqrt());
                FrozenWeight::Nf4(Nf4Weight::quantize(values, options, self.options.compute))
            }
        };
        let bias = bias.then(|| Tensor::zeros([shape[0]], (self.device, DType::F32)));
        AdaptedLinear::new(weight, bias)
    }

    fn layer(&self, config: &DecoderConfig) -> DecoderLayer<B> {
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] =
            config.layer_linears().map(|linear| self.linear(linear));
        DecoderLayer {
            input_norm: self.norm(config.hidden_size),
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_norm: self.norm(config.hidden_size),
            gate_proj,
            up_proj,
            down_proj,
        }
    }
}

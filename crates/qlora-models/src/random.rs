//! Models with random weights, made on the device: for measuring speed and memory at a size, without its checkpoint.

use std::convert::Infallible;

use burn::tensor::{DType, Distribution, Tensor};
use qlora_kernels::{FrozenWeight, KernelBackend, Nf4Weight};
use qlora_lora::AdaptedLinear;

use crate::assembly::{PartSource, assemble};
use crate::config::NormKind;
use crate::tensors::LinearShape;
use crate::{Decoder, DecoderConfig, LoadOptions, Quantization};

impl<B: KernelBackend> Decoder<B> {
    /// A model of this configuration whose weights are uniform in `±1/√in`, as if freshly initialised.
    ///
    /// Nothing goes over the host but the scales of doubly quantized weights.
    #[must_use]
    pub fn random(config: &DecoderConfig, options: LoadOptions, seed: u64, device: &B::Device) -> Self {
        B::seed(device, seed);
        match assemble(config, &mut Maker::<B> { options, norm: config.norm, device }) {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }
}

struct Maker<'a, B: KernelBackend> {
    options: LoadOptions,
    norm: NormKind,
    device: &'a B::Device,
}

impl<B: KernelBackend> Maker<'_, B> {
    fn uniform(&self, shape: [usize; 2], bound: f64) -> Tensor<B, 2> {
        Tensor::random(shape, Distribution::Uniform(-bound, bound), (self.device, DType::F32))
    }

    fn table(&self, [rows, columns]: [usize; 2]) -> FrozenWeight<B> {
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
}

impl<B: KernelBackend> PartSource<B> for Maker<'_, B> {
    type Error = Infallible;

    fn dense(&mut self, _: &str, shape: [usize; 2]) -> Result<FrozenWeight<B>, Infallible> {
        Ok(self.table(shape))
    }

    /// So that the norm has a factor of one.
    fn norm_weight(&mut self, _: &str, shape: &[usize]) -> Result<Tensor<B, 1>, Infallible> {
        let (shape, device) = ([shape.iter().product::<usize>()], (self.device, DType::F32));
        Ok(match self.norm {
            NormKind::RmsUnitOffset => Tensor::zeros(shape, device),
            NormKind::Rms | NormKind::Layer => Tensor::ones(shape, device),
        })
    }

    fn linear(&mut self, _: &str, linear: &LinearShape) -> Result<AdaptedLinear<B>, Infallible> {
        let shape = linear.shape;
        let weight = match self.options.quantization {
            Quantization::None => self.table(shape),
            Quantization::Nf4(options) => {
                let values = self.uniform(shape, 1.0 / (shape[1] as f64).sqrt());
                FrozenWeight::Nf4(Nf4Weight::quantize(values, options, self.options.compute))
            }
        };
        let bias = linear.bias.then(|| Tensor::zeros([shape[0]], (self.device, DType::F32)));
        Ok(AdaptedLinear::new(weight, bias))
    }
}

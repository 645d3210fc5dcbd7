//! From a checkpoint to a model: one tensor at a time, quantized as it arrives.

use std::sync::Arc;

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Tensor, TensorData};
use qlora_kernels::{Compute, FrozenWeight, KernelBackend, Nf4Weight, device};
use qlora_lora::AdaptedLinear;
use qlora_quant::{Nf4Options, Nf4Tensor};

use crate::layer::DecoderLayer;
use crate::tensors::{LAYER_NORMS, LinearShape};
use crate::{Checkpoint, Decoder, ModelError};

/// How the linear layers are held. Embedding, head and norms are never quantized.
#[derive(Clone, Copy, Debug, Default)]
pub enum Quantization {
    /// As floats of the compute type.
    #[default]
    None,
    /// As 4-bit NormalFloat.
    Nf4(Nf4Options),
}

/// How a checkpoint becomes a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// How the linear layers are held.
    pub quantization: Quantization,
    /// In what type products are computed.
    pub compute: Compute,
}

/// Called with the number of tensors loaded and of all.
pub type LoadProgress<'a> = &'a mut dyn FnMut(usize, usize);

/// Loads the model of a checkpoint onto a device.
///
/// One tensor at a time is held as f32 on the host, whatever the size of the model.
///
/// # Errors
/// When a tensor is missing, damaged, of the wrong shape, or holds a number that cannot be quantized.
pub fn load<B: KernelBackend>(
    checkpoint: &Checkpoint,
    options: LoadOptions,
    device: &B::Device,
    progress: LoadProgress<'_>,
) -> Result<Decoder<B>, ModelError> {
    let config = checkpoint.config();
    let total = config.tensors().len();
    let mut loader = Loader::<B> { checkpoint, options, device, progress, done: 0, total };
    let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
    let embed_tokens = loader.dense("model.embed_tokens.weight", [vocabulary, hidden])?;
    let layers = (0..config.layers).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
    let norm = loader.vector("model.norm.weight", hidden)?;
    let lm_head = match config.tie_word_embeddings {
        true => None,
        false => Some(loader.dense("lm_head.weight", [vocabulary, hidden])?),
    };
    let norm = Param::initialized(ParamId::new(), norm).set_require_grad(false);
    Ok(Decoder { embed_tokens, layers, norm, lm_head, config: Arc::new(config.clone()) })
}

struct Loader<'a, B: KernelBackend> {
    checkpoint: &'a Checkpoint,
    options: LoadOptions,
    device: &'a B::Device,
    progress: LoadProgress<'a>,
    done: usize,
    total: usize,
}

impl<B: KernelBackend> Loader<'_, B> {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        device::enter(format!("loading {name}"));
        let values = self.checkpoint.tensor(name, shape)?;
        self.done += 1;
        (self.progress)(self.done, self.total);
        Ok(values)
    }

    fn dense(&mut self, name: &str, shape: [usize; 2]) -> Result<FrozenWeight<B>, ModelError> {
        Ok(FrozenWeight::dense(self.read(name, &shape)?, shape, self.options.compute, self.device))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Tensor<B, 1>, ModelError> {
        let values = TensorData::new(self.read(name, &[length])?, [length]);
        Ok(Tensor::from_data(values, (self.device, DType::F32)))
    }

    fn norm(&mut self, name: &str) -> Result<Param<Tensor<B, 1>>, ModelError> {
        let values = self.vector(name, self.checkpoint.config().hidden_size)?;
        Ok(Param::initialized(ParamId::new(), values).set_require_grad(false))
    }

    fn linear(&mut self, index: usize, linear: LinearShape) -> Result<AdaptedLinear<B>, ModelError> {
        let LinearShape { name, shape, bias } = linear;
        let path = format!("model.layers.{index}.{name}");
        let name = format!("{path}.weight");
        let weight = match self.options.quantization {
            Quantization::None => self.dense(&name, shape)?,
            Quantization::Nf4(options) => {
                let values = self.read(&name, &shape)?;
                let weight = Nf4Tensor::quantize(&values, &shape, options).map_err(|source| {
                    ModelError::Quantize { path: self.checkpoint.path().to_owned(), name, source }
                })?;
                FrozenWeight::Nf4(Nf4Weight::new(&weight, self.options.compute, self.device))
            }
        };
        let bias = if bias { Some(self.vector(&format!("{path}.bias"), shape[0])?) } else { None };
        Ok(AdaptedLinear::new(weight, bias))
    }

    fn layer(&mut self, index: usize) -> Result<DecoderLayer<B>, ModelError> {
        let [input_norm, post_attention_norm] =
            LAYER_NORMS.map(|name| format!("model.layers.{index}.{name}"));
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] =
            self.checkpoint.config().layer_linears();
        Ok(DecoderLayer {
            input_norm: self.norm(&input_norm)?,
            q_proj: self.linear(index, q_proj)?,
            k_proj: self.linear(index, k_proj)?,
            v_proj: self.linear(index, v_proj)?,
            o_proj: self.linear(index, o_proj)?,
            post_attention_norm: self.norm(&post_attention_norm)?,
            gate_proj: self.linear(index, gate_proj)?,
            up_proj: self.linear(index, up_proj)?,
            down_proj: self.linear(index, down_proj)?,
        })
    }
}

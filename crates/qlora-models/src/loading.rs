//! From a checkpoint to a model: one tensor at a time, quantized as it arrives.

use burn::tensor::{DType, Tensor, TensorData};
use qlora_kernels::{Compute, FrozenWeight, KernelBackend, Nf4Weight, device};
use qlora_lora::AdaptedLinear;
use qlora_quant::Nf4Options;

use crate::assembly::{PartSource, assemble};
use crate::tensors::LinearShape;
use crate::{Checkpoint, Decoder, ModelError};

/// How the linear layers are held. Embedding, head and norms are never quantized.
#[derive(Clone, Copy, Debug, Default)]
pub enum Quantization {
    /// As floats of the compute type.
    #[default]
    None,
    /// As 4-bit NormalFloat. What a checkpoint has in NF4 is taken as it is, and what it has left out stays dense.
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

/// Elements of a table that are in f32 at a time.
const PIECE: usize = 4 << 20;

/// Called with the number of tensors loaded and of all.
pub type LoadProgress<'a> = &'a mut dyn FnMut(usize, usize);

/// Loads the model of a checkpoint onto a device.
///
/// One tensor at a time is held as f32 on the host, whatever the size of the model.
///
/// # Errors
/// When tensors are missing, superfluous, damaged, of the wrong shape, or holds a number that cannot be quantized.
pub fn load<B: KernelBackend>(
    checkpoint: &Checkpoint,
    options: LoadOptions,
    device: &B::Device,
    progress: LoadProgress<'_>,
) -> Result<Decoder<B>, ModelError> {
    let config = checkpoint.config();
    checkpoint.check_tensors()?;
    let total = config.tensors().len();
    assemble(config, &mut Loader::<B> { checkpoint, options, device, progress, done: 0, total })
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
        self.advance();
        Ok(values)
    }

    fn advance(&mut self) {
        self.done += 1;
        (self.progress)(self.done, self.total);
    }

    fn stored_nf4(&mut self, name: &str, shape: [usize; 2]) -> Result<Option<FrozenWeight<B>>, ModelError> {
        device::enter(format!("loading {name}"));
        let Some(weight) = self.checkpoint.nf4_tensor(name, &shape)? else { return Ok(None) };
        self.advance();
        Ok(Some(FrozenWeight::Nf4(Nf4Weight::new(&weight, self.options.compute, self.device))))
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<B, 1>, ModelError> {
        let values = self.read(name, shape)?;
        let length = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [length]), (self.device, DType::F32)))
    }
}

impl<B: KernelBackend> PartSource<B> for Loader<'_, B> {
    type Error = ModelError;

    fn dense(&mut self, name: &str, shape: [usize; 2]) -> Result<FrozenWeight<B>, ModelError> {
        let (compute, device) = (self.options.compute, self.device);
        // The largest tensors of a model come some rows at a time.
        let Some(pieces) = self.checkpoint.table_pieces(name, PIECE) else {
            return Ok(FrozenWeight::dense(self.read(name, &shape)?, shape, compute, device));
        };
        device::enter(format!("loading {name}"));
        let weight = FrozenWeight::dense_pieces(pieces, shape, compute, device)?;
        self.advance();
        Ok(weight)
    }

    fn norm_weight(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<B, 1>, ModelError> {
        self.vector(name, shape)
    }

    fn linear(&mut self, path: &str, linear: &LinearShape) -> Result<AdaptedLinear<B>, ModelError> {
        let shape = linear.shape;
        let name = format!("{path}.weight");
        let weight = match self.options.quantization {
            Quantization::None => self.dense(&name, shape)?,
            Quantization::Nf4(_) if self.checkpoint.is_nf4() => match self.stored_nf4(&name, shape)? {
                Some(weight) => weight,
                None => self.dense(&name, shape)?,
            },
            Quantization::Nf4(options) => {
                device::enter(format!("loading {name}"));
                let weight = self.checkpoint.quantize(&name, &shape, options)?;
                self.advance();
                FrozenWeight::Nf4(Nf4Weight::new(&weight, self.options.compute, self.device))
            }
        };
        let bias = match linear.bias {
            true => Some(self.vector(&format!("{path}.bias"), &shape[..1])?),
            false => None,
        };
        Ok(AdaptedLinear::new(weight, bias))
    }
}

//! A frozen matrix, dense or NF4, as a burn module.

use std::convert::Infallible;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, bf16, f16};

use crate::KernelBackend;
use crate::device::persistent;
use crate::nf4::{Nf4Parts, Nf4Weight};
use crate::primitive::{primitive, tensor};

/// The type in which matrix products are computed.
///
/// On a GPU it is also the type of the activations. On the CPU activations stay f32, and a product in
/// [`Compute::Bf16`] rounds its operands and accumulates in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 operands, f32 accumulation.
    Bf16,
    /// IEEE half operands, f32 accumulation.
    F16,
}

impl Compute {
    /// The element type of that name.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// bf16 where this processor multiplies it faster than f32, and why, in words.
    ///
    /// Chosen by what the processor says of itself, not by a measurement: it must be the same in every run. AMD's
    /// processors with AVX-512 BF16 do twice the products of f32 in a cycle. Intel's do as many as of f32, with more
    /// work around them: a training step takes 1.2 times as long in bf16.
    fn fastest_on_cpu() -> (Self, &'static str) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512bf16") {
            let id = std::arch::x86_64::__cpuid(0);
            // "GenuineIntel", in the order of registers that the instruction has.
            let intel = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel";
            return if intel {
                (Self::F32, "this processor multiplies bf16 no faster")
            } else {
                (Self::Bf16, "this processor multiplies it in hardware")
            };
        }
        (Self::F32, "this processor has no instructions for products in bf16")
    }

    /// The best type of products on a device, and why, in words: on a CPU bf16 where that is faster than f32; on a GPU
    /// bf16, which has the range of f32, before f16, whose gradients need a scaled loss, before f32.
    #[must_use]
    pub fn fastest_on<B: KernelBackend>(device: &B::Device) -> (Self, &'static str) {
        // Activations that stay f32 whatever products are computed in: a CPU.
        if B::activation_dtype(Self::Bf16) == DType::F32 {
            return Self::fastest_on_cpu();
        }
        if B::computes_in(device, Self::Bf16) {
            (Self::Bf16, "the device computes in it, and it has the range of f32")
        } else if B::computes_in(device, Self::F16) {
            (Self::F16, "the device computes in it and not in bf16")
        } else {
            (Self::F32, "the device computes in neither bf16 nor f16")
        }
    }

    /// The types of products that a device knows, be it slowly.
    #[must_use]
    pub fn available_on<B: KernelBackend>(device: &B::Device) -> Vec<Self> {
        let known = |compute: &Self| {
            // A CPU rounds operands that it holds in f32.
            let dtype = B::activation_dtype(*compute);
            dtype == DType::F32 || B::supports_dtype(device, dtype)
        };
        [Self::F32, Self::F16, Self::Bf16].into_iter().filter(known).collect()
    }

    /// Rounds `x` to this type and back: what a product does with its operands when its input is wider.
    pub(crate) fn round<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match x.dtype() {
            DType::F32 if self != Self::F32 => x.cast(self.dtype()).cast(DType::F32),
            _ => x,
        }
    }
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// A frozen matrix `[out, in]`, row-major as torch stores it. Never receives a gradient.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful per layer, beside megabytes on the device")]
pub enum FrozenWeight<B: Backend> {
    /// Floats.
    Dense(DenseWeight<B>),
    /// 4-bit NormalFloat codes and block scales.
    Nf4(Nf4Weight<B>),
}

/// A frozen matrix of floats `[out, in]`.
#[derive(Module, Debug)]
pub struct DenseWeight<B: Backend> {
    values: Param<Tensor<B, 2>>,
    #[module(skip)]
    compute: Compute,
}

/// The primitives of a [`FrozenWeight`], as kernels take them.
#[derive(Clone, Debug)]
pub enum WeightParts<B: Backend> {
    /// Floats `[out, in]`.
    Dense(FloatTensor<B>, Compute),
    /// NF4.
    Nf4(Nf4Parts<B>),
}

impl<B: Backend> FrozenWeight<B> {
    /// A dense weight from f32 values, row-major `[out, in]`, stored in the type of `compute`.
    ///
    /// # Panics
    /// When `values` does not hold `shape[0] * shape[1]` elements.
    #[must_use]
    pub fn dense(values: Vec<f32>, shape: [usize; 2], compute: Compute, device: &B::Device) -> Self {
        match compute {
            Compute::F32 => Self::of_data(TensorData::new(values, shape), compute, device),
            _ => match Self::dense_pieces([Ok::<_, Infallible>(values)], shape, compute, device) {
                Ok(weight) => weight,
                Err(never) => match never {},
            },
        }
    }

    /// The same, of values that come in pieces: only one of them is in f32 at a time.
    ///
    /// # Errors
    /// That of a piece.
    ///
    /// # Panics
    /// When the pieces together do not hold `shape[0] * shape[1]` elements.
    pub fn dense_pieces<E>(
        pieces: impl IntoIterator<Item = Result<Vec<f32>, E>>,
        shape: [usize; 2],
        compute: Compute,
        device: &B::Device,
    ) -> Result<Self, E> {
        let data = match compute {
            Compute::F32 => TensorData::new(collect(pieces, shape, |value| value)?, shape),
            Compute::Bf16 => TensorData::new(collect(pieces, shape, bf16::from_f32)?, shape),
            Compute::F16 => TensorData::new(collect(pieces, shape, f16::from_f32)?, shape),
        };
        Ok(Self::of_data(data, compute, device))
    }

    fn of_data(data: TensorData, compute: Compute, device: &B::Device) -> Self {
        let values =
            persistent::<B, _, _>(device, data, |data| Tensor::from_data(data, (device, compute.dtype())));
        let values = Param::initialized(ParamId::new(), values.set_require_grad(false));
        Self::Dense(DenseWeight { values: values.set_require_grad(false), compute })
    }

    /// A dense weight of these rows, one piece after the other, in memory of its very size.
    #[must_use]
    pub fn from_rows(pieces: Vec<Tensor<B, 2>>, compute: Compute) -> Self {
        let device = pieces[0].device();
        Self::from_tensor(persistent::<B, _, _>(&device, pieces, |pieces| Tensor::cat(pieces, 0)), compute)
    }

    /// A dense weight that holds this tensor.
    #[must_use]
    pub fn from_tensor(values: Tensor<B, 2>, compute: Compute) -> Self {
        let values = Param::initialized(ParamId::new(), values.detach()).set_require_grad(false);
        Self::Dense(DenseWeight { values, compute })
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(w) => w.values.val().dims(),
            Self::Nf4(w) => w.shape(),
        }
    }

    /// In what type products with it are computed.
    #[must_use]
    pub fn compute(&self) -> Compute {
        match self {
            Self::Dense(w) => w.compute,
            Self::Nf4(w) => w.compute(),
        }
    }

    /// The primitives.
    #[must_use]
    pub fn parts(&self) -> WeightParts<B> {
        match self {
            Self::Dense(w) => WeightParts::Dense(primitive(w.values.val()), w.compute),
            Self::Nf4(w) => WeightParts::Nf4(w.parts()),
        }
    }

    /// Bytes that the weight takes on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(w) => {
                let values = w.values.val();
                values.shape().num_elements() * values.dtype().size()
            }
            Self::Nf4(w) => w.bytes(),
        }
    }
}

impl<B: KernelBackend> FrozenWeight<B> {
    /// The dense matrix in the given float type.
    #[must_use]
    pub fn dequantize(&self, dtype: DType) -> Tensor<B, 2> {
        tensor(self.parts().dequantize(dtype))
    }
}

impl<B: Backend> WeightParts<B> {
    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(values, _) => {
                let shape = values.shape();
                [shape[0], shape[1]]
            }
            Self::Nf4(parts) => parts.shape,
        }
    }

    /// In what type products with it are computed.
    #[must_use]
    pub fn compute(&self) -> Compute {
        match self {
            Self::Dense(_, compute) => *compute,
            Self::Nf4(parts) => parts.compute,
        }
    }
}

impl<B: KernelBackend> WeightParts<B> {
    /// The dense matrix in the given float type.
    #[must_use]
    pub fn dequantize(&self, dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Dense(values, _) if values.dtype() == dtype => values.clone(),
            Self::Dense(values, _) => B::float_cast(values.clone(), dtype.into()),
            Self::Nf4(parts) => B::nf4_dequantize(parts, dtype),
        }
    }
}

/// All pieces in another type.
fn collect<T, E>(
    pieces: impl IntoIterator<Item = Result<Vec<f32>, E>>,
    [rows, columns]: [usize; 2],
    convert: impl Fn(f32) -> T + Copy,
) -> Result<Vec<T>, E> {
    let mut all = Vec::with_capacity(rows * columns);
    for piece in pieces {
        all.extend(piece?.into_iter().map(convert));
    }
    Ok(all)
}

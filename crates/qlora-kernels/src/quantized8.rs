//! Numbers in eight bits with a scale for each block: the states of 8-bit optimizers ("8-bit Optimizers via
//! Block-wise Quantization", <https://arxiv.org/abs/2110.02861>).
//!
//! Element `i` is `map[codes[i]] · absmax[i / 256]`, with one of the two dynamic maps of
//! [`qlora_quant::dynamic_map`]. On a device four codes make a U32 word, the first in the lowest byte; a last
//! word that is not full is filled with zeros.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{BasicOps, DType, Int, Tensor, TensorData};
use qlora_quant::DynamicMap;

use crate::nf4;
use crate::primitive::{primitive, tensor};

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// Numbers in eight bits on a device.
#[derive(Clone, Debug)]
pub struct Quantized8<B: Backend> {
    /// Packed codes, dtype U32, `[ceil(count / 4)]`.
    pub codes: Tensor<B, 1, Int>,
    /// Block scales, f32, `[ceil(count / 256)]`.
    pub absmax: Tensor<B, 1>,
}

/// The primitives of a [`Quantized8`], as kernels take them.
#[derive(Clone, Debug)]
pub struct Quantized8Parts<B: Backend> {
    /// Packed codes, dtype U32, `[ceil(count / 4)]`.
    pub codes: IntTensor<B>,
    /// Block scales, f32, `[ceil(count / 256)]`.
    pub absmax: FloatTensor<B>,
}

impl<B: Backend> Quantized8<B> {
    /// `count` zeros.
    #[must_use]
    pub fn zeros(count: usize, map: &DynamicMap, device: &B::Device) -> Self {
        Self::from_host(&vec![map.zero(); count], vec![0.0; count.div_ceil(BLOCK)], device)
    }

    /// Puts one code an element and one scale a block onto a device.
    ///
    /// # Panics
    /// When there is not one scale for 256 codes.
    #[must_use]
    pub fn from_host(codes: &[u8], absmax: Vec<f32>, device: &B::Device) -> Self {
        let blocks = codes.len().div_ceil(BLOCK);
        assert_eq!(absmax.len(), blocks, "one scale for {BLOCK} codes");
        let words = nf4::pack_words(codes);
        let count = words.len();
        // The type must be said: without it the data is converted to the backend's integer type.
        let codes = Tensor::from_data(TensorData::new(words, [count]), (device, DType::U32));
        Self { codes, absmax: Tensor::from_data(TensorData::new(absmax, [blocks]), (device, DType::F32)) }
    }

    /// The codes of the first `count` elements, and the scales, read back.
    #[must_use]
    pub fn to_host(&self, count: usize) -> (Vec<u8>, Vec<f32>) {
        let words = self.codes.to_data();
        let mut codes: Vec<u8> = words.iter::<u32>().flat_map(u32::to_le_bytes).collect();
        codes.truncate(count);
        (codes, self.absmax.to_data().iter::<f32>().collect())
    }

    /// The primitives.
    #[must_use]
    pub fn into_parts(self) -> Quantized8Parts<B> {
        Quantized8Parts { codes: self.codes.into_primitive(), absmax: primitive(self.absmax) }
    }

    /// A tensor from its primitives.
    #[must_use]
    pub fn from_parts(parts: Quantized8Parts<B>) -> Self {
        Self { codes: Tensor::from_primitive(parts.codes), absmax: tensor(parts.absmax) }
    }

    /// The numbers, `[count]`, f32.
    #[must_use]
    pub fn dequantize(&self, map: &DynamicMap, count: usize) -> Tensor<B, 1> {
        let device = self.codes.device();
        let codes = nf4::unpack(self.codes.clone(), &[0, 8, 16, 24], 255, count);
        let values = Tensor::<B, 1>::from_data(*map.values(), (&device, DType::F32));
        values.select(0, codes) * nf4::spread(self.absmax.clone(), BLOCK, count)
    }

    /// The nearest codes of `values` `[count]`, each block scaled by its largest magnitude.
    ///
    /// With `keep_sign` a negative number whose nearest code is that of zero gets the code below.
    #[must_use]
    pub fn quantize(values: Tensor<B, 1>, map: &DynamicMap, keep_sign: bool) -> Self {
        let (device, [count]) = (values.device(), values.dims());
        let values = values.cast(DType::F32);
        let blocks = count.div_ceil(BLOCK);
        let zeros = Tensor::zeros([blocks * BLOCK - count], (&device, DType::F32));
        let absmax = followed_by(values.clone(), zeros).reshape([blocks, BLOCK]).abs();
        let absmax = absmax.max_dim(1).squeeze_dim::<1>(1);
        let divisor = absmax.clone() + absmax.clone().equal_elem(0.0).float().cast(DType::F32);
        let scaled = values.clone() / nf4::spread(divisor, BLOCK, count);
        // The code is the number of thresholds below: found bit by bit, from the highest.
        let thresholds = Tensor::<B, 1>::from_data(*map.thresholds(), (&device, DType::F32));
        let mut codes = values.zeros_like().int();
        for bit in (0..8).rev() {
            let step = 1i32 << bit;
            let threshold = thresholds.clone().select(0, codes.clone() + (step - 1));
            codes = codes + scaled.clone().greater(threshold).int() * step;
        }
        if keep_sign {
            let lost = values.lower_elem(0.0).int() * codes.clone().equal_elem(map.zero()).int();
            codes = codes - lost;
        }
        Self { codes: pack(codes), absmax }
    }
}

/// Codes as words.
fn pack<B: Backend>(codes: Tensor<B, 1, Int>) -> Tensor<B, 1, Int> {
    let (device, [count]) = (codes.device(), codes.dims());
    let words = count.div_ceil(4);
    // I64 holds every u32.
    let codes = codes.cast(DType::I64);
    let zeros = Tensor::zeros([4 * words - count], (&device, DType::I64));
    let codes = followed_by(codes, zeros).reshape([words, 4]);
    let shifts = Tensor::<B, 1, Int>::from_data([1i64, 1 << 8, 1 << 16, 1 << 24], (&device, DType::I64));
    (codes * shifts.unsqueeze::<2>()).sum_dim(1).squeeze_dim::<1>(1).cast(DType::U32)
}

fn followed_by<B: Backend, K: BasicOps<B>>(x: Tensor<B, 1, K>, rest: Tensor<B, 1, K>) -> Tensor<B, 1, K> {
    if rest.dims()[0] == 0 { x } else { Tensor::cat(vec![x, rest], 0) }
}

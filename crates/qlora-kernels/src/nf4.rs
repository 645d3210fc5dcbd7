//! A frozen NF4 matrix on a device: 4 bits a weight, and block scales, plain or quantized again.
//!
//! The layout is that of bitsandbytes (`docs/formats.md`). On a device four bytes make one
//! little-endian u32 word, so that element `e` of a word (0..8) sits at bit `8 * (e / 2) + 4 * (1 - e % 2)`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData};
use qlora_quant::{BlockSize, DoubleQuantized, Nf4Options, Nf4Tensor, Scales};
use rayon::prelude::*;

use crate::KernelBackend;
use crate::device::persistent;
use crate::primitive::{primitive, tensor};
use crate::weight::Compute;

/// A frozen matrix `[out, in]` of NF4 codes.
///
/// The codes are integer parameters of type U32: float casts, optimizers and gradients never see them,
/// while `to_device`, `fork` and `valid` do. burn's own recorders would convert them to the backend's
/// integer type: save the [`Nf4Tensor`] instead.
#[derive(Module, Debug)]
pub struct Nf4Weight<B: Backend> {
    codes: Param<Tensor<B, 1, Int>>,
    absmax: Absmax<B>,
    #[module(skip)]
    meta: Meta,
}

/// The scales of a [`Nf4Weight`].
#[derive(Module, Debug)]
enum Absmax<B: Backend> {
    /// One f32 a block.
    Plain(Param<Tensor<B, 1>>),
    /// One 8-bit code a block, one f32 for 256 of them.
    Double(DoubleAbsmax<B>),
}

#[derive(Module, Debug)]
struct DoubleAbsmax<B: Backend> {
    codes: Param<Tensor<B, 1, Int>>,
    nested_absmax: Param<Tensor<B, 1>>,
    #[module(skip)]
    offset: f32,
    #[module(skip)]
    nested_block: usize,
}

#[derive(Clone, Copy, Debug)]
struct Meta {
    shape: [usize; 2],
    block_size: usize,
    codebook: [f32; 16],
    compute: Compute,
}

/// The primitives of a [`Nf4Weight`], as kernels take them.
#[derive(Clone, Debug)]
pub struct Nf4Parts<B: Backend> {
    /// Packed codes, dtype U32, `[ceil(out * in / 8)]`.
    pub codes: IntTensor<B>,
    /// Block scales.
    pub absmax: AbsmaxParts<B>,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Consecutive elements that share a scale.
    pub block_size: usize,
    /// The values of the 16 codes.
    pub codebook: [f32; 16],
    /// In what type products are computed.
    pub compute: Compute,
}

/// The primitives of the scales.
#[derive(Clone, Debug)]
pub enum AbsmaxParts<B: Backend> {
    /// `[blocks]`, f32.
    Plain(FloatTensor<B>),
    /// `absmax[b] = map[codes[b]] * nested_absmax[b / nested_block] + offset`, with the signed dynamic map.
    Double {
        /// 8-bit codes, four in a U32 word, the first in the lowest byte: `[ceil(blocks / 4)]`.
        codes: IntTensor<B>,
        /// `[ceil(blocks / nested_block)]`, f32.
        nested_absmax: FloatTensor<B>,
        /// The mean that was taken off before quantizing.
        offset: f32,
        /// Scales that share a nested scale.
        nested_block: usize,
    },
}

impl<B: Backend> Nf4Weight<B> {
    /// Puts a quantized matrix onto a device.
    ///
    /// # Panics
    /// When `weight` is not a matrix.
    #[must_use]
    pub fn new(weight: &Nf4Tensor, compute: Compute, device: &B::Device) -> Self {
        let shape: [usize; 2] = weight.shape().try_into().expect("a matrix");
        let absmax = match weight.scales() {
            Scales::Plain(absmax) => Absmax::Plain(floats(absmax.clone(), device)),
            // Kernels know the one map that bitsandbytes makes; scales with another are decoded here.
            Scales::Double(double) if double.has_own_map() => {
                Absmax::Plain(floats(double.dequantize(), device))
            }
            Scales::Double(double) => Absmax::double(double, device),
        };
        let meta =
            Meta { shape, block_size: weight.block_size().get(), codebook: *weight.codebook(), compute };
        Self { codes: words(weight.codes(), device), absmax, meta }
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.meta.shape
    }

    /// In what type products with it are computed.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.meta.compute
    }

    /// Bytes that codes and scales take on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let scales = match &self.absmax {
            Absmax::Plain(absmax) => absmax.val().dims()[0],
            Absmax::Double(double) => double.codes.val().dims()[0] + double.nested_absmax.val().dims()[0],
        };
        (self.codes.val().dims()[0] + scales) * size_of::<u32>()
    }

    /// The primitives.
    #[must_use]
    pub fn parts(&self) -> Nf4Parts<B> {
        let absmax = match &self.absmax {
            Absmax::Plain(absmax) => AbsmaxParts::Plain(primitive(absmax.val())),
            Absmax::Double(double) => AbsmaxParts::Double {
                codes: double.codes.val().into_primitive(),
                nested_absmax: primitive(double.nested_absmax.val()),
                offset: double.offset,
                nested_block: double.nested_block,
            },
        };
        let Meta { shape, block_size, codebook, compute } = self.meta;
        Nf4Parts { codes: self.codes.val().into_primitive(), absmax, shape, block_size, codebook, compute }
    }
}

impl<B: KernelBackend> Nf4Weight<B> {
    /// Quantizes a matrix where it is. Scales that are to be quantized again go over the host and back: they are a
    /// 64th of the weights.
    #[must_use]
    pub fn quantize(values: Tensor<B, 2>, options: Nf4Options, compute: Compute) -> Self {
        let (shape, device) = (values.dims(), values.device());
        let block_size = options.block_size.get();
        let (codes, absmax) =
            persistent::<B, _, _>(&device, primitive(values), |values| B::nf4_quantize(values, block_size));
        let absmax = tensor::<B, 1>(absmax);
        let absmax = if options.double_quant {
            let scales: Vec<f32> = absmax.into_data().iter::<f32>().collect();
            let double = DoubleQuantized::quantize(&scales).expect("scales of finite weights");
            Absmax::double(&double, &device)
        } else {
            Absmax::Plain(Param::initialized(ParamId::new(), absmax).set_require_grad(false))
        };
        let codes = Param::initialized(ParamId::new(), Tensor::from_primitive(codes));
        let meta = Meta { shape, block_size, codebook: qlora_quant::nf4::CODEBOOK, compute };
        Self { codes, absmax, meta }
    }
}

impl<B: Backend> Absmax<B> {
    fn double(double: &DoubleQuantized, device: &B::Device) -> Self {
        Self::Double(DoubleAbsmax {
            codes: words(double.codes(), device),
            nested_absmax: floats(double.nested_absmax().to_vec(), device),
            offset: double.offset(),
            nested_block: double.nested_block().get(),
        })
    }
}

/// Reference: on the host.
pub(crate) fn quantize_reference<B: Backend>(
    values: FloatTensor<B>,
    block_size: usize,
) -> (IntTensor<B>, FloatTensor<B>) {
    let values = tensor::<B, 2>(values);
    let (device, shape) = (values.device(), values.dims());
    let values: Vec<f32> = values.into_data().iter::<f32>().collect();
    let block_size = BlockSize::new(block_size).expect("a block size of NF4");
    let options = Nf4Options { block_size, double_quant: false, ..Nf4Options::default() };
    let quantized = Nf4Tensor::quantize(&values, &shape, options).expect("finite weights");
    let codes = words::<B>(quantized.codes(), &device).val();
    let absmax = floats::<B>(quantized.absmax().into_owned(), &device).val();
    (codes.into_primitive(), primitive(absmax))
}

/// Bytes as little-endian words, the last one filled with zeros.
pub(crate) fn pack_words(bytes: &[u8]) -> Vec<u32> {
    /// Words that a thread copies at a time.
    const PIECE: usize = 1 << 18;
    let mut words = vec![0; bytes.len().div_ceil(4)];
    // From several threads: the codes of a large model are gigabytes, and all of their memory is new.
    words.par_chunks_mut(PIECE).zip(bytes.par_chunks(4 * PIECE)).for_each(|(words, bytes)| {
        let (whole, rest) = bytes.as_chunks::<4>();
        for (word, bytes) in words.iter_mut().zip(whole) {
            *word = u32::from_le_bytes(*bytes);
        }
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            words[whole.len()] = u32::from_le_bytes(last);
        }
    });
    words
}

fn words<B: Backend>(bytes: &[u8], device: &B::Device) -> Param<Tensor<B, 1, Int>> {
    let words = pack_words(bytes);
    let count = words.len();
    // The type must be said: without it the data is converted to the backend's integer type.
    let words = persistent::<B, _, _>(device, TensorData::new(words, [count]), |words| {
        Tensor::from_data(words, (device, DType::U32))
    });
    Param::initialized(ParamId::new(), words)
}

fn floats<B: Backend>(values: Vec<f32>, device: &B::Device) -> Param<Tensor<B, 1>> {
    let count = values.len();
    let values = persistent::<B, _, _>(device, TensorData::new(values, [count]), |values| {
        Tensor::from_data(values, (device, DType::F32))
    });
    Param::initialized(ParamId::new(), values).set_require_grad(false)
}

/// Reference: reads codes with integer tensor operations, looks them up, scales.
pub(crate) fn dequantize<B: Backend>(w: &Nf4Parts<B>, dtype: DType) -> FloatTensor<B> {
    let [rows, cols] = w.shape;
    let count = rows * cols;
    let blocks = count.div_ceil(w.block_size);
    let codes = Tensor::<B, 1, Int>::from_primitive(w.codes.clone());
    let device = codes.device();
    let codes = unpack(codes, &[4, 0, 12, 8, 20, 16, 28, 24], 15, count);
    let codebook = Tensor::<B, 1>::from_data(w.codebook, (&device, DType::F32));
    let absmax = match &w.absmax {
        AbsmaxParts::Plain(absmax) => tensor::<B, 1>(absmax.clone()),
        AbsmaxParts::Double { codes, nested_absmax, offset, nested_block } => {
            let codes = Tensor::<B, 1, Int>::from_primitive(codes.clone());
            let codes = unpack(codes, &[0, 8, 16, 24], 255, blocks);
            let map = TensorData::new(qlora_quant::dynamic_map::signed().values().to_vec(), [256]);
            let map = Tensor::<B, 1>::from_data(map, (&device, DType::F32));
            map.select(0, codes) * spread(tensor(nested_absmax.clone()), *nested_block, blocks) + *offset
        }
    };
    let values = codebook.select(0, codes) * spread(absmax, w.block_size, count);
    primitive(values.reshape([rows, cols]).cast(dtype))
}

/// The `count` bit fields of the words, which start at `shifts`.
pub(crate) fn unpack<B: Backend>(
    words: Tensor<B, 1, Int>,
    shifts: &[u32],
    mask: i32,
    count: usize,
) -> Tensor<B, 1, Int> {
    let [n] = words.dims();
    // I64 holds every u32, and shifts of a non-negative number bring in no sign.
    let words = words.cast(DType::I64).reshape([n, 1]);
    let fields = shifts
        .iter()
        .map(|shift| {
            words.clone().bitwise_right_shift_scalar((*shift).elem()).bitwise_and_scalar(mask.elem())
        })
        .collect();
    let fields: Tensor<B, 2, Int> = Tensor::cat(fields, 1);
    fields.reshape([n * shifts.len()]).narrow(0, 0, count)
}

/// Repeats every element `times` times, and cuts to `count`.
pub(crate) fn spread<B: Backend>(x: Tensor<B, 1>, times: usize, count: usize) -> Tensor<B, 1> {
    let [n] = x.dims();
    x.reshape([n, 1]).repeat_dim(1, times).reshape([n * times]).narrow(0, 0, count)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::AutodiffModule;

    use super::*;
    use crate::{Flex, FlexDevice};

    fn assert_same(found: &Nf4Weight<Flex>, expected: &Nf4Weight<Flex>) {
        assert_eq!((found.shape(), found.compute()), (expected.shape(), expected.compute()));
        assert_eq!(found.codes.val().dtype(), DType::U32);
        assert_eq!(found.codes.val().into_data(), expected.codes.val().into_data());
        let [found, expected] = [found, expected].map(|weight| {
            let values = dequantize(&weight.parts(), DType::F32);
            tensor::<Flex, 2>(values).into_data().to_vec::<f32>().unwrap()
        });
        assert_eq!(found, expected);
    }

    /// burn converts floats where it moves modules; codes stay the words that they are.
    #[test]
    fn codes_and_scales_move_with_the_module() {
        let values: Vec<f32> = (0..70 * 33).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        for double_quant in [false, true] {
            let options = Nf4Options { double_quant, ..Nf4Options::default() };
            let quantized = Nf4Tensor::quantize(&values, &[70, 33], options).unwrap();
            let weight = Nf4Weight::<Flex>::new(&quantized, Compute::Bf16, &FlexDevice);
            assert_same(&weight.clone().to_device(&FlexDevice), &weight);
            assert_same(&weight.clone().fork(&FlexDevice), &weight);
            let trained = Nf4Weight::<Autodiff<Flex>>::new(&quantized, Compute::Bf16, &FlexDevice);
            assert_same(&trained.to_device(&FlexDevice).fork(&FlexDevice).valid(), &weight);
        }
    }
}

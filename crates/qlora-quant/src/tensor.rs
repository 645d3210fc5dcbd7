//! A weight in NF4.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::nf4::{CODEBOOK, Nf4View, Output, TASK_ELEMENTS, packed_len, quantize_into};
use crate::{BlockSize, DoubleQuantized, QuantError};

/// The type that a weight had before it was quantized: what bitsandbytes dequantizes it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SourceDtype {
    /// 32-bit float.
    #[default]
    F32,
    /// IEEE 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
}

/// How a weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Nf4Options {
    /// Elements per scale; 64 unless said otherwise.
    pub block_size: BlockSize,
    /// Whether the scales are quantized too.
    pub double_quant: bool,
    /// The type that the values came in.
    pub dtype: SourceDtype,
}

/// One scale (absmax) per block.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// In f32.
    Plain(Vec<f32>),
    /// In eight bits.
    Double(DoubleQuantized),
}

impl Scales {
    /// f32 scales, quantized in turn if `double_quant`.
    ///
    /// # Errors
    /// [`QuantError::NonFinite`] when a scale to be quantized is NaN or infinite.
    pub fn new(absmax: Vec<f32>, double_quant: bool) -> Result<Self, QuantError> {
        Ok(if double_quant { Self::Double(DoubleQuantized::quantize(&absmax)?) } else { Self::Plain(absmax) })
    }

    /// Scales, one per block.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(absmax) => absmax.len(),
            Self::Double(double) => double.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scales in f32.
    #[must_use]
    pub fn absmax(&self) -> Cow<'_, [f32]> {
        self.range(0, self.len())
    }

    fn range(&self, start: usize, end: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Plain(absmax) => Cow::Borrowed(&absmax[start..end]),
            Self::Double(double) => {
                let mut absmax = vec![0.0; end - start];
                double.dequantize_into(start, &mut absmax);
                Cow::Owned(absmax)
            }
        }
    }

    /// Bytes stored.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Plain(absmax) => size_of_val(absmax.as_slice()),
            Self::Double(double) => double.memory_bytes(),
        }
    }
}

/// A weight in NF4: codes of four bits, scales, and its shape.
///
/// ```
/// use qlora_quant::{Nf4Options, Nf4Tensor};
///
/// let weight: Vec<f32> = (0..6 * 64).map(|i| (i as f32 * 0.1).sin()).collect();
/// let options = Nf4Options { double_quant: true, ..Nf4Options::default() };
/// let quantized = Nf4Tensor::quantize(&weight, &[6, 64], options)?;
///
/// assert_eq!(quantized.codes().len(), 6 * 64 / 2);
/// let worst = weight.iter().zip(quantized.dequantize()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
/// assert!(worst < 0.16);
/// # Ok::<(), qlora_quant::QuantError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Tensor {
    shape: Vec<usize>,
    block_size: BlockSize,
    codes: Vec<u8>,
    scales: Scales,
    codebook: [f32; 16],
    dtype: SourceDtype,
}

impl Nf4Tensor {
    /// Quantizes row-major `values` of the given shape.
    ///
    /// # Errors
    /// [`QuantError::NonFinite`] with the flat index of the first NaN or infinity;
    /// [`QuantError::Length`] when `values` does not fill the shape.
    pub fn quantize(values: &[f32], shape: &[usize], options: Nf4Options) -> Result<Self, QuantError> {
        let Nf4Options { block_size, double_quant, dtype } = options;
        let elements = elements(shape)?;
        expect("values", elements, values.len(), shape, block_size)?;
        let mut codes = vec![0; packed_len(elements)];
        let mut absmax = vec![0.0; block_size.count(elements)];
        quantize_into(values, block_size, &mut codes, &mut absmax)?;
        let scales = Scales::new(absmax, double_quant)?;
        Ok(Self { shape: shape.to_vec(), block_size, codes, scales, codebook: CODEBOOK, dtype })
    }

    /// Quantizes a weight that `read` gives piece by piece, from several threads: the elements of a range into a slice.
    /// The weight is never whole in f32, and neither is more than some kilobytes a thread.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize), and what `read` fails with.
    pub fn quantize_pieces<E: From<QuantError> + Send>(
        shape: &[usize],
        options: Nf4Options,
        read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        let Nf4Options { block_size, double_quant, dtype } = options;
        let elements = elements(shape)?;
        let mut codes = vec![0; packed_len(elements)];
        let mut absmax = vec![0.0; block_size.count(elements)];
        codes
            .par_chunks_mut(TASK_ELEMENTS / 2)
            .zip(absmax.par_chunks_mut(TASK_ELEMENTS / block_size.get()))
            .enumerate()
            .try_for_each_init(
                || vec![0.0; TASK_ELEMENTS.min(elements)],
                |buffer, (task, (codes, absmax))| -> Result<(), E> {
                    let start = task * TASK_ELEMENTS;
                    let values = &mut buffer[..TASK_ELEMENTS.min(elements - start)];
                    read(start..start + values.len(), values)?;
                    Ok(quantize_into(values, block_size, codes, absmax)
                        .map_err(|error| error.after(start))?)
                },
            )?;
        let scales = Scales::new(absmax, double_quant)?;
        Ok(Self { shape: shape.to_vec(), block_size, codes, scales, codebook: CODEBOOK, dtype })
    }

    /// Puts together parts made piece by piece with [`quantize_into`] or read from a checkpoint.
    /// `codebook` is [`CODEBOOK`] unless the checkpoint stores another.
    ///
    /// # Errors
    /// [`QuantError::Length`] when codes or scales do not fit the shape.
    pub fn from_parts(
        shape: Vec<usize>,
        block_size: BlockSize,
        codes: Vec<u8>,
        scales: Scales,
        codebook: [f32; 16],
        dtype: SourceDtype,
    ) -> Result<Self, QuantError> {
        let elements = elements(&shape)?;
        expect("codes", packed_len(elements), codes.len(), &shape, block_size)?;
        expect("absmax", block_size.count(elements), scales.len(), &shape, block_size)?;
        Ok(Self { shape, block_size, codes, scales, codebook, dtype })
    }

    /// The shape of the weight, such as `[out_features, in_features]`.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements of the weight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the weight has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements per scale.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The packed codes: element 2i in the high nibble of byte i, 2i+1 in the low one.
    #[must_use]
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales as stored.
    #[must_use]
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The scales in f32, one per block; computed when they are quantized too.
    #[must_use]
    pub fn absmax(&self) -> Cow<'_, [f32]> {
        self.scales.absmax()
    }

    /// The value of each code.
    #[must_use]
    pub fn codebook(&self) -> &[f32; 16] {
        &self.codebook
    }

    /// The type that the weight had before.
    #[must_use]
    pub fn dtype(&self) -> SourceDtype {
        self.dtype
    }

    /// Bytes of codes and scales.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.codes.len() + self.scales.memory_bytes()
    }

    /// Writes elements `start..start + out.len()` in f32, bf16 or f16: the f32 product `q[code] · absmax`,
    /// rounded once. Only the scales of the blocks concerned are computed.
    ///
    /// # Panics
    /// When the weight has fewer than `start + out.len()` elements.
    pub fn dequantize_into<T: Output>(&self, start: usize, out: &mut [T]) {
        let length = self.len();
        assert!(start <= length && out.len() <= length - start, "the range ends beyond the weight");
        if out.is_empty() {
            return;
        }
        let block = self.block_size.get();
        let (first, last) = (start / block, (start + out.len()).div_ceil(block));
        let absmax = self.scales.range(first, last);
        let bytes = first * block / 2..(last * block / 2).min(self.codes.len());
        Nf4View::new(&self.codes[bytes], &absmax, self.block_size, &self.codebook)
            .dequantize_into(start - first * block, out);
    }

    /// All elements in f32.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.dequantize_into(0, &mut values);
        values
    }
}

fn elements(shape: &[usize]) -> Result<usize, QuantError> {
    let product = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    product.ok_or_else(|| QuantError::ShapeOverflow { shape: shape.to_vec() })
}

fn expect(
    part: &'static str,
    expected: usize,
    found: usize,
    shape: &[usize],
    block_size: BlockSize,
) -> Result<(), QuantError> {
    if found == expected {
        Ok(())
    } else {
        Err(QuantError::Length { part, expected, found, shape: shape.to_vec(), block_size })
    }
}

//! An NF4 tensor to and from the entries of a checkpoint.

use std::borrow::Cow;

use super::quant_state::{Nested, QuantState};
use crate::nf4::packed_len;
use crate::{BlockSize, DoubleQuantized, Nf4Tensor, QuantError, Scales};

const QUANT_STATE: &str = ".quant_state.bitsandbytes__nf4";
const ABSMAX: &str = ".absmax";
const QUANT_MAP: &str = ".quant_map";
const NESTED_ABSMAX: &str = ".nested_absmax";
const NESTED_QUANT_MAP: &str = ".nested_quant_map";

/// The element types that bitsandbytes stores. Codes may be declared as any of them (`quant_storage`):
/// their bytes are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BnbDtype {
    /// Bytes: codes, 8-bit scales, JSON.
    U8,
    /// Scales and maps.
    F32,
    /// As `quant_storage` only.
    F16,
    /// As `quant_storage` only.
    Bf16,
}

impl BnbDtype {
    /// The name in a safetensors header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// From the name in a safetensors header.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::U8, Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.name() == name)
    }

    const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A tensor to be written: its name is that of the weight followed by `suffix`.
#[derive(Clone, Debug, PartialEq)]
pub struct BnbTensor<'a> {
    /// Empty for the codes, else such as `.absmax`.
    pub suffix: &'static str,
    /// Element type.
    pub dtype: BnbDtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Cow<'a, [u8]>,
}

/// A tensor of a checkpoint, as it was read.
#[derive(Clone, Copy, Debug)]
pub struct RawTensor<'a> {
    /// Element type.
    pub dtype: BnbDtype,
    /// Shape.
    pub shape: &'a [usize],
    /// Little-endian elements.
    pub bytes: &'a [u8],
}

/// Why the tensors of a checkpoint do not make an NF4 weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BnbError {
    /// A tensor that the quantization needs is not there.
    #[error("tensor `{tensor}` is missing: `{weight}` is stored in NF4 and cannot be read without it")]
    Missing {
        /// The missing tensor.
        tensor: String,
        /// The weight that needs it.
        weight: String,
    },
    /// A tensor of an unexpected type.
    #[error("tensor `{tensor}` has type {}: expected {}", found.name(), expected.name())]
    Dtype {
        /// The tensor.
        tensor: String,
        /// What it must be.
        expected: BnbDtype,
        /// What it is.
        found: BnbDtype,
    },
    /// A tensor whose size does not follow from the weight's shape and block size.
    #[error(
        "tensor `{tensor}` of shape {shape:?} has {found} bytes: expected {expected}; the file is damaged"
    )]
    Length {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A scale or a value of a map that is NaN or infinite.
    #[error("tensor `{tensor}` has {value} at index {index}: expected finite values; the file is damaged")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Index of the first such value.
        index: usize,
        /// The value, as text.
        value: String,
    },
    /// JSON that cannot be read, or says what cannot be.
    #[error("tensor `{tensor}`, key `{key}`: {reason}")]
    QuantState {
        /// The tensor that holds the JSON.
        tensor: String,
        /// The key, or empty when the whole is no JSON object.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Parts that do not fit each other.
    #[error("tensor `{tensor}`: {source}")]
    Parts {
        /// The weight.
        tensor: String,
        /// What does not fit.
        source: QuantError,
    },
}

/// Whether the checkpoint whose names `has` knows stores `weight` in NF4.
pub fn is_nf4(weight: &str, has: impl Fn(&str) -> bool) -> bool {
    has(&format!("{weight}{QUANT_STATE}"))
}

/// The tensors that bitsandbytes would store for this weight, equal to the last byte; only `nested_offset`,
/// a mean, may differ from it by a unit in the last place.
#[must_use]
pub fn to_tensors(weight: &Nf4Tensor) -> Vec<BnbTensor<'_>> {
    let codes = bytes("", weight.codes(), vec![weight.codes().len(), 1]);
    let mut tensors = vec![codes];
    let nested = match weight.scales() {
        Scales::Plain(absmax) => {
            tensors.push(floats(ABSMAX, absmax));
            tensors.push(floats(QUANT_MAP, weight.codebook()));
            None
        }
        Scales::Double(double) => {
            tensors.push(bytes(ABSMAX, double.codes(), vec![double.len()]));
            tensors.push(floats(QUANT_MAP, weight.codebook()));
            tensors.push(floats(NESTED_ABSMAX, double.nested_absmax()));
            tensors.push(floats(NESTED_QUANT_MAP, double.map()));
            Some(Nested { block_size: double.nested_block(), offset: double.offset() })
        }
    };
    let state = QuantState {
        block_size: weight.block_size(),
        dtype: weight.dtype(),
        shape: weight.shape().to_vec(),
        nested,
    };
    let json = state.to_json().into_bytes();
    let shape = vec![json.len()];
    tensors.push(bytes(QUANT_STATE, json, shape));
    tensors
}

/// Reads the weight named `weight` through `get`, which finds a tensor of the checkpoint by its full
/// name. The stored maps are used, not the constants of this crate. Nothing is allocated that the
/// tensors' own lengths do not justify.
///
/// # Errors
/// [`BnbError`], naming the tensor, when one is missing, damaged, or does not fit the others.
pub fn from_tensors<'a>(
    weight: &str,
    get: impl Fn(&str) -> Option<RawTensor<'a>>,
) -> Result<Nf4Tensor, BnbError> {
    let read = Reader { weight, get };
    let state_name = read.name(QUANT_STATE);
    let state = QuantState::from_json(read.get(QUANT_STATE, BnbDtype::U8, None)?).map_err(|fault| {
        BnbError::QuantState { tensor: state_name.clone(), key: fault.key, reason: fault.reason }
    })?;
    let elements = state.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let elements = elements.ok_or_else(|| BnbError::QuantState {
        tensor: state_name,
        key: "shape",
        reason: "more elements than this machine can address".to_owned(),
    })?;

    let codes = read.codes(packed_len(elements))?.to_vec();
    let codebook: [f32; 16] = read.floats(QUANT_MAP)?;
    let blocks = state.block_size.count(elements);
    let scales = match state.nested {
        None => Scales::Plain(read.float_list(ABSMAX, blocks)?),
        Some(Nested { block_size, offset }) => Scales::Double(read.nested(blocks, block_size, offset)?),
    };
    Nf4Tensor::from_parts(state.shape, state.block_size, codes, scales, codebook, state.dtype)
        .map_err(|source| BnbError::Parts { tensor: weight.to_owned(), source })
}

fn bytes<'a>(suffix: &'static str, bytes: impl Into<Cow<'a, [u8]>>, shape: Vec<usize>) -> BnbTensor<'a> {
    BnbTensor { suffix, dtype: BnbDtype::U8, shape, bytes: bytes.into() }
}

fn floats<'a>(suffix: &'static str, values: &[f32]) -> BnbTensor<'a> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    BnbTensor { suffix, dtype: BnbDtype::F32, shape: vec![values.len()], bytes }
}

struct Reader<'n, F> {
    weight: &'n str,
    get: F,
}

impl<'a, F: Fn(&str) -> Option<RawTensor<'a>>> Reader<'_, F> {
    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.weight)
    }

    fn raw(&self, suffix: &str) -> Result<RawTensor<'a>, BnbError> {
        let tensor = self.name(suffix);
        let raw = (self.get)(&tensor)
            .ok_or_else(|| BnbError::Missing { tensor: tensor.clone(), weight: self.weight.to_owned() })?;
        let bytes = raw.shape.iter().try_fold(raw.dtype.size(), |bytes, &size| bytes.checked_mul(size));
        match bytes {
            Some(bytes) if bytes == raw.bytes.len() => Ok(raw),
            bytes => Err(self.length(suffix, raw, bytes.unwrap_or(usize::MAX))),
        }
    }

    fn length(&self, suffix: &str, raw: RawTensor<'_>, expected: usize) -> BnbError {
        let (tensor, shape) = (self.name(suffix), raw.shape.to_vec());
        BnbError::Length { tensor, shape, expected, found: raw.bytes.len() }
    }

    /// The bytes of a tensor of this type and, if given, this many elements.
    fn get(&self, suffix: &str, dtype: BnbDtype, elements: Option<usize>) -> Result<&'a [u8], BnbError> {
        let raw = self.raw(suffix)?;
        if raw.dtype != dtype {
            let tensor = self.name(suffix);
            return Err(BnbError::Dtype { tensor, expected: dtype, found: raw.dtype });
        }
        match elements {
            Some(elements) if raw.bytes.len() / dtype.size() != elements => {
                Err(self.length(suffix, raw, elements.saturating_mul(dtype.size())))
            }
            _ => Ok(raw.bytes),
        }
    }

    fn codes(&self, bytes: usize) -> Result<&'a [u8], BnbError> {
        let raw = self.raw("")?;
        if raw.bytes.len() == bytes { Ok(raw.bytes) } else { Err(self.length("", raw, bytes)) }
    }

    fn float_list(&self, suffix: &str, elements: usize) -> Result<Vec<f32>, BnbError> {
        let (values, _) = self.get(suffix, BnbDtype::F32, Some(elements))?.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let (tensor, value) = (self.name(suffix), values[index].to_string());
                Err(BnbError::NonFinite { tensor, index, value })
            }
        }
    }

    fn floats<const N: usize>(&self, suffix: &str) -> Result<[f32; N], BnbError> {
        let values = self.float_list(suffix, N)?;
        Ok(values.try_into().expect("the length was checked"))
    }

    fn nested(&self, blocks: usize, block_size: BlockSize, offset: f32) -> Result<DoubleQuantized, BnbError> {
        let codes = self.get(ABSMAX, BnbDtype::U8, Some(blocks))?.to_vec();
        let absmax = self.float_list(NESTED_ABSMAX, block_size.count(blocks))?;
        let map = self.floats(NESTED_QUANT_MAP)?;
        DoubleQuantized::from_parts(codes, absmax, offset, block_size, &map)
            .map_err(|source| BnbError::Parts { tensor: self.name(ABSMAX), source })
    }
}

//! The types that weights are written in.

use std::io::{self, Write};

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use qlora_files::safetensors::Dtype;

/// Elements converted at a time.
const CHUNK: usize = 4096;

/// The type of the tensors of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatType {
    /// 32-bit floats: what is in memory, exactly.
    F32,
    /// IEEE half: 11 bits of precision, numbers up to 65504.
    F16,
    /// bfloat16: 8 bits of precision, the range of f32.
    #[default]
    Bf16,
}

impl FloatType {
    /// Its name in torch, and in `config.json`.
    #[must_use]
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Its name in safetensors.
    pub(crate) fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Index of the first value that is not finite, or would not be after rounding.
    pub(crate) fn first_unfit(self, values: &[f32]) -> Option<usize> {
        // Halfway between the largest number and what would follow it; ties go to the latter, which is even.
        let limit = match self {
            Self::F32 => f32::INFINITY,
            Self::F16 => 65_520.0,
            Self::Bf16 => f32::from_bits(0x7f7f_8000),
        };
        values.iter().position(|value| value.is_nan() || value.abs() >= limit)
    }

    /// Rounds values to nearest, as [`write`](Self::write) does.
    pub(crate) fn round(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::F16 => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
            Self::Bf16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        }
    }

    /// Writes values rounded to nearest, little-endian.
    pub(crate) fn write(self, values: &[f32], file: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(4 * CHUNK);
        for values in values.chunks(CHUNK) {
            bytes.clear();
            match self {
                Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
                Self::F16 => {
                    let mut halves = [f16::ZERO; CHUNK];
                    halves[..values.len()].convert_from_f32_slice(values);
                    bytes.extend(halves[..values.len()].iter().flat_map(|half| half.to_le_bytes()));
                }
                Self::Bf16 => {
                    bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()));
                }
            }
            file.write_all(&bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_what_rounds_to_a_number() {
        let round = |dtype: FloatType, value| {
            let mut values = [value];
            dtype.round(&mut values);
            values[0]
        };
        for dtype in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let edges = [65_504.0, 65_519.99, 65_520.0, 1e6, f32::MAX, f32::from_bits(0x7f7f_7fff)];
            for value in edges.into_iter().chain([f32::from_bits(0x7f7f_8000), f32::INFINITY, f32::NAN]) {
                let unfit = (!round(dtype, value).is_finite()).then_some(1);
                assert_eq!(dtype.first_unfit(&[0.0, -value]), unfit, "{value} as {dtype:?}");
            }
        }
    }
}

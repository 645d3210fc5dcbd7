//! A tensor in a mapped file.

use std::ops::Range;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Dtype;
use crate::Error;

/// How many half-precision elements are converted at a time: they stay in the first-level cache.
const CHUNK: usize = 1024;

/// A tensor of an open file: its type, shape and bytes, borrowed from the memory map.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    path: &'a Path,
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    pub(crate) fn new(
        path: &'a Path,
        name: &'a str,
        dtype: Dtype,
        shape: &'a [usize],
        bytes: &'a [u8],
    ) -> Self {
        Self { path, name, dtype, shape, bytes }
    }

    /// The file the tensor lies in.
    #[must_use]
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The tensor's name in the file.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The type its elements are stored in.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape, outermost dimension first; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its bytes, row-major, little-endian. They may lie at an odd address.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many elements it has; 1 for a scalar.
    #[must_use]
    pub fn elements(&self) -> usize {
        // The header check has multiplied the same numbers without overflow.
        self.shape.iter().product()
    }

    /// All elements of an F32, F16 or BF16 tensor, row-major.
    ///
    /// # Errors
    /// The tensor is stored in another type.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let mut values = vec![0.0; self.elements()];
        self.read_f32_into(&mut values)?;
        Ok(values)
    }

    /// All elements of an F32, F16 or BF16 tensor, row-major, into a slice.
    ///
    /// # Errors
    /// The tensor is stored in another type.
    ///
    /// # Panics
    /// `values.len()` is not [`elements`](Self::elements).
    pub fn read_f32_into(&self, values: &mut [f32]) -> Result<(), Error> {
        self.read_elements_f32_into(0..self.elements(), values)
    }

    /// Some rows (indices along the first dimension) of an F32, F16 or BF16 tensor into a slice: a loader that
    /// reads row by row never holds the whole tensor.
    ///
    /// # Errors
    /// The tensor is stored in another type.
    ///
    /// # Panics
    /// The rows are outside the first dimension, or `values.len()` is not their number of elements.
    pub fn read_rows_f32_into(&self, rows: Range<usize>, values: &mut [f32]) -> Result<(), Error> {
        let (&count, row) = self.shape.split_first().unwrap_or((&1, &[]));
        assert!(rows.start <= rows.end && rows.end <= count, "rows {rows:?} of a tensor with {count} rows");
        let width: usize = row.iter().product();
        self.read_elements_f32_into(rows.start * width..rows.end * width, values)
    }

    /// Some elements, row-major, of an F32, F16 or BF16 tensor into a slice.
    ///
    /// # Errors
    /// The tensor is stored in another type.
    ///
    /// # Panics
    /// The tensor has no such elements, or `values.len()` is not their number.
    pub fn read_elements_f32_into(&self, elements: Range<usize>, values: &mut [f32]) -> Result<(), Error> {
        assert_eq!(values.len(), elements.len(), "length of the slice for tensor `{}`", self.name);
        match self.dtype {
            Dtype::F32 => {
                let bytes = &self.bytes[elements.start * 4..elements.end * 4];
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::F16 | Dtype::BF16 => {
                let bytes = self.bytes[elements.start * 2..elements.end * 2].as_chunks::<2>().0;
                for (values, bytes) in values.chunks_mut(CHUNK).zip(bytes.chunks(CHUNK)) {
                    if self.dtype == Dtype::F16 {
                        let mut halves = [f16::ZERO; CHUNK];
                        for (half, bytes) in halves.iter_mut().zip(bytes) {
                            *half = f16::from_le_bytes(*bytes);
                        }
                        halves[..values.len()].convert_to_f32_slice(values);
                    } else {
                        for (value, bytes) in values.iter_mut().zip(bytes) {
                            *value = bf16::from_le_bytes(*bytes).to_f32();
                        }
                    }
                }
            }
            dtype => {
                return Err(Error::UnsupportedDtype {
                    path: self.path.to_path_buf(),
                    name: self.name.to_string(),
                    dtype,
                });
            }
        }
        Ok(())
    }
}

use std::ops::Range;
use std::path::Path;

use crate::{GgmlType, GgufError, blocks};

/// One entry of a file's tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The shape, row-major: outermost dimension first, the reverse of ggml's order. A linear layer's weight is
    /// `[out_features, in_features]`, as in torch. Empty for a scalar, at most four dimensions.
    pub shape: Vec<usize>,
    /// The format of the elements.
    pub ggml_type: GgmlType,
    /// Where the data start, in bytes from the start of the file.
    pub offset: u64,
    /// The number of elements: the product of `shape`.
    pub elements: usize,
    /// The bytes that the data take.
    pub byte_len: usize,
}

/// A tensor of an open file: its entry and its bytes, where they lie in the file.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    pub(crate) path: &'a Path,
    pub(crate) info: &'a TensorInfo,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The entry in the tensor table.
    #[must_use]
    pub fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// The shape, outermost dimension first; see [`TensorInfo::shape`].
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// The format of the elements.
    #[must_use]
    pub fn ggml_type(&self) -> GgmlType {
        self.info.ggml_type
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.info.elements
    }

    /// The data as stored: row-major blocks of [`ggml_type`](Self::ggml_type). They may start at any address.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All values, row-major. Integers and f64 are rounded to f32.
    ///
    /// # Errors
    /// [`NotDecodable`](GgufError::NotDecodable) when this crate does not know the format's values.
    pub fn dequantize(&self) -> Result<Vec<f32>, GgufError> {
        self.check_decodable()?;
        let mut values = vec![0.0; self.info.elements];
        self.dequantize_into(&mut values)?;
        Ok(values)
    }

    /// Writes all values, row-major, into `out`, in parallel when they are many.
    ///
    /// # Errors
    /// [`NotDecodable`](GgufError::NotDecodable).
    ///
    /// # Panics
    /// When `out` does not hold exactly [`elements`](Self::elements) values.
    pub fn dequantize_into(&self, out: &mut [f32]) -> Result<(), GgufError> {
        self.dequantize_range(0..self.info.elements, out)
    }

    /// Writes the values at the flat positions `elements` into `out`, in parallel when they are many: how a
    /// large tensor is read piece by piece.
    ///
    /// # Errors
    /// [`NotDecodable`](GgufError::NotDecodable).
    ///
    /// # Panics
    /// When the range is not inside the tensor, does not start and end at whole blocks, or differs in length
    /// from `out`.
    pub fn dequantize_range(&self, elements: Range<usize>, out: &mut [f32]) -> Result<(), GgufError> {
        self.check_decodable()?;
        let ggml_type = self.info.ggml_type;
        let block_len = ggml_type.block_len();
        assert!(
            elements.start <= elements.end && elements.end <= self.info.elements,
            "{elements:?} is not inside the {} elements of {:?}",
            self.info.elements,
            self.info.name,
        );
        assert!(
            elements.start.is_multiple_of(block_len) && elements.end.is_multiple_of(block_len),
            "{elements:?} of {:?} does not start and end at blocks of {block_len}",
            self.info.name,
        );
        assert_eq!(elements.len(), out.len(), "`out` must hold the values of {:?}", self.info.name);
        let bytes_at = |element: usize| element / block_len * ggml_type.block_bytes();
        blocks::dequantize(ggml_type, &self.bytes[bytes_at(elements.start)..bytes_at(elements.end)], out);
        Ok(())
    }

    fn check_decodable(&self) -> Result<(), GgufError> {
        if self.info.ggml_type.is_decodable() {
            return Ok(());
        }
        Err(GgufError::NotDecodable {
            path: self.path.to_owned(),
            tensor: self.info.name.clone(),
            ggml_type: self.info.ggml_type,
        })
    }
}

impl std::fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensor").field("path", &self.path).field("info", &self.info).finish_non_exhaustive()
    }
}

use half::f16;
use rayon::prelude::*;

use crate::search::{Isa, Rows};
use crate::{GgmlType, blocks};

/// Values that one task encodes, at least one row: large enough to outweigh handing the task over, small enough to
/// spread a matrix over many threads.
const TASK_LEN: usize = 1 << 15;

/// Why values cannot be quantized.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The format is not written.
    #[error("{ggml_type} is not written; take one of {}", GgmlType::encodable_names())]
    NotEncodable {
        /// The format asked for.
        ggml_type: GgmlType,
    },

    /// Rows are not whole blocks.
    #[error(
        "rows of {columns} values are not whole blocks of {ggml_type}, which hold {} values; \
         take another format for this tensor, such as F16",
        ggml_type.block_len()
    )]
    RaggedRow {
        /// The format asked for.
        ggml_type: GgmlType,
        /// The length of a row.
        columns: usize,
    },

    /// The values are not whole rows.
    #[error("{values} values are not whole rows of {columns}")]
    RaggedMatrix {
        /// How many values there are.
        values: usize,
        /// The length of a row.
        columns: usize,
    },

    /// There is not one importance for each column.
    #[error(
        "{found} importances for rows of {columns} values: the importance matrix is of another tensor or model"
    )]
    ImportanceLength {
        /// The length of a row.
        columns: usize,
        /// How many importances there are.
        found: usize,
    },

    /// An importance is negative or not finite.
    #[error("the importance of column {column} is {found}, expected a finite number, 0 or above")]
    InvalidImportance {
        /// The column.
        column: usize,
        /// Its importance.
        found: f32,
    },

    /// A value is NaN or infinite.
    #[error("row {row}, column {column} is {found}, expected a finite number; the model is broken")]
    NonFinite {
        /// The row of the value.
        row: usize,
        /// The column of the value.
        column: usize,
        /// The value.
        found: f32,
    },

    /// A scale does not fit an f16.
    #[error(
        "row {row}, columns {column} to {}: values of up to {largest} need a scale of {ggml_type} that f16 cannot \
         hold; keep this tensor in F32 or BF16",
        column + ggml_type.block_len() - 1
    )]
    ScaleOverflow {
        /// The format asked for.
        ggml_type: GgmlType,
        /// The row of the block.
        row: usize,
        /// The block's first column.
        column: usize,
        /// The largest magnitude in the block.
        largest: f32,
    },
}

impl GgmlType {
    /// Quantizes a row-major matrix of rows of `columns` values. The bytes are those that ggml writes, with and
    /// without `importance`, the weight of each column's errors: see [`ImportanceMatrix`](crate::ImportanceMatrix).
    ///
    /// `F32`, `F16`, `BF16` and `Q8_0` leave importance aside, and the three plain formats take values that are not
    /// finite as they are. Spread over rayon's threads by rows; the result does not depend on how many there are.
    ///
    /// # Errors
    /// [`QuantizeError`], before anything is quantized except for [`NonFinite`](QuantizeError::NonFinite) and
    /// [`ScaleOverflow`](QuantizeError::ScaleOverflow), which name the first such place.
    pub fn quantize(
        self,
        values: &[f32],
        columns: usize,
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, QuantizeError> {
        self.check(values, columns, importance)?;
        let mut out = vec![0; values.len() / self.block_len() * self.block_bytes()];
        self.quantize_rows(Isa::fastest(), Rows { values, columns, importance }, &mut out)?;
        Ok(out)
    }

    /// [`quantize`](Self::quantize) into `out`: how a large tensor is quantized piece by piece, each of whole rows.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize); `out` then holds nothing of use.
    ///
    /// # Panics
    /// When `out` does not hold exactly the bytes of the blocks: [`byte_len`](Self::byte_len) of the values.
    pub fn quantize_into(
        self,
        values: &[f32],
        columns: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), QuantizeError> {
        self.check(values, columns, importance)?;
        assert_eq!(self.byte_len(values.len()), Some(out.len()), "`out` must hold the blocks of {self}");
        self.quantize_rows(Isa::fastest(), Rows { values, columns, importance }, out)
    }

    fn check(self, values: &[f32], columns: usize, importance: Option<&[f32]>) -> Result<(), QuantizeError> {
        if !self.is_encodable() {
            return Err(QuantizeError::NotEncodable { ggml_type: self });
        }
        if columns == 0 || !columns.is_multiple_of(self.block_len()) {
            return Err(QuantizeError::RaggedRow { ggml_type: self, columns });
        }
        if !values.len().is_multiple_of(columns) {
            return Err(QuantizeError::RaggedMatrix { values: values.len(), columns });
        }
        let Some(importance) = importance else { return Ok(()) };
        if importance.len() != columns {
            return Err(QuantizeError::ImportanceLength { columns, found: importance.len() });
        }
        match importance.iter().position(|x| !x.is_finite() || *x < 0.0) {
            Some(column) => Err(QuantizeError::InvalidImportance { column, found: importance[column] }),
            None => Ok(()),
        }
    }

    /// Quantizes what has been checked.
    pub(crate) fn quantize_rows(self, isa: Isa, rows: Rows<'_>, out: &mut [u8]) -> Result<(), QuantizeError> {
        let columns = rows.columns;
        let task_rows = (TASK_LEN / columns).max(1);
        let task_len = task_rows * columns;
        let task_bytes = task_len / self.block_len() * self.block_bytes();
        let tasks = rows.values.par_chunks(task_len).zip(out.par_chunks_mut(task_bytes)).enumerate();
        let failed = tasks.filter_map(|(task, (values, out))| {
            let rows = Rows { values, ..rows };
            self.quantize_task(isa, rows, task * task_rows, out).err()
        });
        failed.find_first(|_| true).map_or(Ok(()), Err)
    }

    fn quantize_task(
        self,
        isa: Isa,
        rows: Rows<'_>,
        first_row: usize,
        out: &mut [u8],
    ) -> Result<(), QuantizeError> {
        let place = |index: usize| (first_row + index / rows.columns, index % rows.columns);
        // Asked for all first, without a branch for each.
        if self.block_len() > 1
            && !rows.values.iter().fold(true, |finite, x| finite & x.is_finite())
            && let Some(index) = rows.values.iter().position(|x| !x.is_finite())
        {
            let (row, column) = place(index);
            return Err(QuantizeError::NonFinite { row, column, found: rows.values[index] });
        }
        blocks::quantize_serial(isa, self, rows, out);
        let offsets = self.scale_offsets().expect("only encodable formats come here");
        let overflows = |block: &[u8]| {
            offsets.iter().any(|&at| !f16::from_le_bytes([block[at], block[at + 1]]).is_finite())
        };
        if offsets.is_empty() {
            return Ok(());
        }
        match out.chunks_exact(self.block_bytes()).position(overflows) {
            None => Ok(()),
            Some(block) => {
                let start = block * self.block_len();
                let (row, column) = place(start);
                let values = &rows.values[start..start + self.block_len()];
                let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                Err(QuantizeError::ScaleOverflow { ggml_type: self, row, column, largest })
            }
        }
    }
}

#[cfg(test)]
mod tests;

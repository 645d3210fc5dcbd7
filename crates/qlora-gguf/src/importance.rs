use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use crate::{Gguf, GgufError};

mod gguf_file;
mod legacy_file;

/// Which columns of a model's matrices matter, by the names of the tensors: llama.cpp's `imatrix`.
///
/// The importance of a column is the mean square of the inputs that it is multiplied with, over a calibration text.
/// A forward pass [adds](Self::add) what it sees; [`GgmlType::quantize`](crate::GgmlType::quantize) takes the
/// [importances](Importance::importances).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ImportanceMatrix {
    /// By name, such as `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, Importance>,
    /// The calibration texts, such as file names.
    pub datasets: Vec<String>,
    /// How many chunks of text were seen.
    pub chunks: u32,
    /// Tokens in a chunk.
    pub chunk_tokens: u32,
}

/// Sums over the inputs of one tensor: one matrix, or as many as there are experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    columns: usize,
    /// Sums of squared inputs, `[matrices, columns]`.
    sums: Vec<f64>,
    /// Inputs, that is tokens, of each matrix.
    counts: Vec<f64>,
}

impl Importance {
    /// No inputs so far.
    ///
    /// # Panics
    /// When one of the sizes is 0.
    #[must_use]
    pub fn new(matrices: usize, columns: usize) -> Self {
        assert!(matrices > 0 && columns > 0, "{matrices} matrices of {columns} columns");
        Self { columns, sums: vec![0.0; matrices * columns], counts: vec![0.0; matrices] }
    }

    /// How many matrices.
    #[must_use]
    pub fn matrices(&self) -> usize {
        self.counts.len()
    }

    /// The columns of a matrix.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The sums of squared inputs, `[matrices, columns]`.
    #[must_use]
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// How many inputs each matrix had.
    #[must_use]
    pub fn counts(&self) -> &[f64] {
        &self.counts
    }

    /// Adds what `inputs` inputs of matrix `matrix` had: sums of squares by column.
    ///
    /// # Panics
    /// When there is no such matrix, or not one sum for each column.
    pub fn add(&mut self, matrix: usize, squares: &[f64], inputs: usize) {
        assert_eq!(squares.len(), self.columns, "sums of squares");
        let sums = &mut self.sums[matrix * self.columns..][..self.columns];
        for (sum, square) in sums.iter_mut().zip(squares) {
            *sum += square;
        }
        self.counts[matrix] += inputs as f64;
    }

    /// The importance of every column of matrix `matrix`: the mean square, or 1 where nothing was seen.
    ///
    /// # Panics
    /// When there is no such matrix.
    #[must_use]
    pub fn importances(&self, matrix: usize) -> Vec<f32> {
        // In single precision, as llama.cpp divides.
        let count = self.counts[matrix] as f32;
        let sums = &self.sums[matrix * self.columns..][..self.columns];
        sums.iter().map(|&sum| if count > 0.0 { sum as f32 / count } else { 1.0 }).collect()
    }

    /// Refuses numbers that are no sums of squares or counts.
    fn check(&self, path: &Path, tensor: &str) -> Result<(), GgufError> {
        let invalid = |x: &&f64| !x.is_finite() || **x < 0.0;
        match self.sums.iter().chain(&self.counts).find(invalid) {
            None => Ok(()),
            Some(&found) => {
                Err(GgufError::InvalidImportance { path: path.to_owned(), tensor: tensor.to_owned(), found })
            }
        }
    }
}

impl ImportanceMatrix {
    /// Adds what `inputs` inputs of tensor `name`, one matrix, had: sums of squares by column.
    ///
    /// # Panics
    /// When the tensor had another number of columns before.
    pub fn add(&mut self, name: &str, squares: &[f64], inputs: usize) {
        self.add_expert(name, (0, 1), squares, inputs);
    }

    /// The same for expert `expert.0` of `expert.1` in tensor `name`.
    ///
    /// # Panics
    /// When the tensor had another number of columns or experts before, or there is no such expert.
    pub fn add_expert(&mut self, name: &str, expert: (usize, usize), squares: &[f64], inputs: usize) {
        let new = || Importance::new(expert.1, squares.len());
        let entry = match self.entries.get_mut(name) {
            Some(entry) => entry,
            None => self.entries.entry(name.to_owned()).or_insert_with(new),
        };
        assert_eq!(entry.matrices(), expert.1, "experts of {name}");
        entry.add(expert.0, squares, inputs);
    }

    /// The importances of a tensor of `matrices` matrices of `columns` columns, `[matrices, columns]`; `None` when
    /// there are none, or for another shape. What was seen of all experts together is taken for each.
    #[must_use]
    pub fn importances(&self, name: &str, matrices: usize, columns: usize) -> Option<Vec<f32>> {
        let entry = self.entries.get(name)?;
        if entry.columns != columns {
            // An old file has the sums of all experts in one, and one count.
            let whole = entry.matrices() == 1 && Some(entry.columns) == matrices.checked_mul(columns);
            return whole.then(|| entry.importances(0));
        }
        match entry.matrices() {
            1 => Some(entry.importances(0).repeat(matrices)),
            count if count == matrices => Some((0..count).flat_map(|i| entry.importances(i)).collect()),
            _ => None,
        }
    }

    /// Reads a file of llama.cpp's, in either of its formats.
    ///
    /// # Errors
    /// [`GgufError`]: the file cannot be opened, or is not what it should be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let file = Gguf::open(path);
        match file {
            Ok(gguf) => gguf_file::read(&gguf),
            Err(GgufError::NotGguf { .. } | GgufError::Truncated { offset: 0, .. }) => {
                let bytes = std::fs::read(path)
                    .map_err(|source| GgufError::Open { path: path.to_owned(), source })?;
                legacy_file::read(path, &bytes)
            }
            Err(other) => Err(other),
        }
    }

    /// Reads a file that is already in memory. Errors name `<memory>` as the file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        if bytes.starts_with(b"GGUF") {
            gguf_file::read(&Gguf::from_bytes(bytes)?)
        } else {
            legacy_file::read(Path::new("<memory>"), &bytes)
        }
    }

    /// Writes the current format, a GGUF file.
    ///
    /// # Errors
    /// What `out` fails with, and [`InvalidInput`](io::ErrorKind::InvalidInput) for names that GGUF cannot hold.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        gguf_file::write(self, out)
    }

    /// Writes the first format, `imatrix.dat`, which knows means only: a matrix without inputs gets ones.
    ///
    /// # Errors
    /// What `out` fails with.
    pub fn write_legacy(&self, out: &mut impl Write) -> io::Result<()> {
        legacy_file::write(self, out)
    }
}

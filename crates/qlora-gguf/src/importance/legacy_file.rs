//! The first format, `imatrix.dat`. All numbers are little-endian, 32 bits:
//!
//! `matrices | (name length | name | calls | columns | f32[columns] mean square × calls)… | chunks | dataset length |
//! dataset`. The first files end after the matrices. Experts' columns follow one another.

use std::io::{self, Write};
use std::path::Path;

use super::{Importance, ImportanceMatrix};
use crate::GgufError;
use crate::cursor::{Cursor, Item};

/// Name length, calls and columns.
const MIN_ENTRY_BYTES: usize = 12;

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<ImportanceMatrix, GgufError> {
    let cursor = &mut Cursor::new(path, bytes);
    let mut matrix = ImportanceMatrix::default();
    let offset = cursor.position();
    let count = cursor.u32(Item::MatrixCount)?;
    cursor.fits(count.into(), MIN_ENTRY_BYTES, offset, Item::MatrixCount)?;
    if count == 0 {
        return Err(GgufError::NoImportances { path: path.to_owned() });
    }
    for entry in 0..count {
        let start = cursor.position();
        let item = Item::MatrixName { entry };
        let length = cursor.u32(item)?;
        let name = cursor.text(length.into(), item)?;
        let calls = cursor.u32(Item::MatrixCalls { name })?;
        let item = Item::MatrixValues { name };
        let offset = cursor.position();
        let columns = cursor.u32(item)?;
        let columns = cursor.fits(columns.into(), 4, offset, item)?;
        if columns == 0 {
            return Err(GgufError::ImportanceShape {
                path: path.to_owned(),
                tensor: name.to_owned(),
                sums: vec![1, 0],
                counts: vec![1, 1],
            });
        }
        let values = cursor.take(columns as u64 * 4, item)?.as_chunks::<4>().0;
        let sums = values.iter().map(|&value| f64::from(f32::from_le_bytes(value))).collect();
        // Of a file without calls, the values are means.
        let importance = Importance { columns, sums, counts: vec![f64::from(calls.max(1))] };
        importance.check(path, name)?;
        if matrix.entries.insert(name.to_owned(), importance).is_some() {
            return Err(GgufError::DuplicateTensor {
                path: path.to_owned(),
                tensor: name.to_owned(),
                offset: start,
            });
        }
    }
    if cursor.remaining() > 0 {
        matrix.chunks = cursor.u32(Item::ChunkCount)?;
        let length = cursor.u32(Item::DatasetName)?;
        matrix.datasets = vec![cursor.text(length.into(), Item::DatasetName)?.to_owned()];
    }
    match cursor.remaining() {
        0 => Ok(matrix),
        length => Err(GgufError::TrailingBytes {
            path: path.to_owned(),
            offset: cursor.position(),
            length: length as u64,
        }),
    }
}

pub(super) fn write(matrix: &ImportanceMatrix, out: &mut impl Write) -> io::Result<()> {
    out.write_all(&(matrix.entries.len() as u32).to_le_bytes())?;
    for (name, entry) in &matrix.entries {
        write_text(name, out)?;
        let most = entry.counts.iter().fold(1.0_f64, |most, &count| most.max(count));
        let calls = (most / f64::from(matrix.chunk_tokens.max(1))).ceil() as u32;
        out.write_all(&calls.to_le_bytes())?;
        out.write_all(&(entry.sums.len() as u32).to_le_bytes())?;
        for i in 0..entry.matrices() {
            let values = entry.importances(i);
            let bytes: Vec<u8> =
                values.iter().flat_map(|value| (value * calls as f32).to_le_bytes()).collect();
            out.write_all(&bytes)?;
        }
    }
    out.write_all(&matrix.chunks.to_le_bytes())?;
    write_text(matrix.datasets.last().map_or("", String::as_str), out)
}

fn write_text(text: &str, out: &mut impl Write) -> io::Result<()> {
    out.write_all(&(text.len() as u32).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

use super::{BUFFER, Content, MAX_ROW_BYTES, RawRow, RawRows, file_error};
use crate::{Error, Position, RowProblem};
use serde_json::{Map, Value};
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A table whose first line names the columns. An empty cell is an empty text.
pub(super) fn open(reader: Box<dyn BufRead + Send>, path: &Path, delimiter: u8) -> Result<RawRows, Error> {
    let allowance = Arc::new(AtomicUsize::new(MAX_ROW_BYTES));
    let limited = Limited { reader, allowance: Arc::clone(&allowance) };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .buffer_capacity(BUFFER)
        .from_reader(limited);
    let header = reader.byte_headers().map_err(|error| csv_error(path, error))?;
    let mut columns: Vec<String> = Vec::new();
    for (index, name) in header.iter().enumerate() {
        let name = std::str::from_utf8(name)
            .map_err(|_| file_error(path, "the first line is not valid UTF-8; save the file as UTF-8"))?;
        let name = if index == 0 { name.trim_start_matches('\u{feff}') } else { name };
        if columns.iter().any(|other| other == name) {
            return Err(file_error(path, format!("two columns have the name {name:?}; rename one")));
        }
        columns.push(name.to_owned());
    }
    Ok(Box::new(Records { reader, path: path.to_owned(), columns, allowance, over: false }))
}

struct Records<R> {
    reader: csv::Reader<R>,
    path: PathBuf,
    columns: Vec<String>,
    allowance: Arc<AtomicUsize>,
    over: bool,
}

impl<R: Read> Iterator for Records<R> {
    type Item = Result<RawRow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        self.allowance.store(MAX_ROW_BYTES, Ordering::Relaxed);
        let mut record = csv::ByteRecord::new();
        match self.reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => {
                self.over = true;
                return None;
            }
            Err(error) => {
                self.over = true;
                return Some(Err(csv_error(&self.path, error)));
            }
        }
        let line = record.position().map_or(0, |position| position.line() as usize);
        Some(Ok(RawRow { position: Position::line(line), content: content(&self.columns, &record) }))
    }
}

fn content(columns: &[String], record: &csv::ByteRecord) -> Content {
    if record.len() != columns.len() {
        return Content::Bad(RowProblem::Cells { expected: columns.len(), found: record.len() });
    }
    let mut row = Map::new();
    for (name, cell) in columns.iter().zip(record) {
        match std::str::from_utf8(cell) {
            Ok(text) => row.insert(name.clone(), Value::String(text.to_owned())),
            Err(error) => return Content::Bad(RowProblem::NotUtf8 { byte: error.valid_up_to() }),
        };
    }
    Content::Value(Value::Object(row), record.as_slice().len())
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Read { path: path.to_owned(), source },
        other => file_error(path, format!("not a valid table: {other:?}")),
    }
}

/// Refuses to read more than one row's worth of bytes for one row: a quote that is never closed would take
/// the whole file as one cell.
struct Limited<R> {
    reader: R,
    allowance: Arc<AtomicUsize>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.load(Ordering::Relaxed);
        if left == 0 {
            let problem = format!("a row is larger than {MAX_ROW_BYTES} bytes; is a quote not closed?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let length = buffer.len().min(left);
        let read = self.reader.read(&mut buffer[..length])?;
        self.allowance.store(left - read, Ordering::Relaxed);
        Ok(read)
    }
}

use super::{BUFFER, Content, MAX_ROW_BYTES, RawRow, RawRows, file_error, without_byte_order_mark};
use crate::{Error, Position, RowProblem};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A table whose first line names the columns. An empty cell is an empty text.
pub(super) fn open(reader: Box<dyn BufRead + Send>, path: &Path, delimiter: u8) -> Result<RawRows, Error> {
    let allowance = Arc::new(AtomicUsize::new(MAX_ROW_BYTES));
    let reader = without_byte_order_mark(reader, path)?;
    let limited = Limited { reader, allowance: Arc::clone(&allowance), quotes: Quotes::new(delimiter) };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .buffer_capacity(BUFFER)
        .from_reader(limited);
    let header = reader.byte_headers().map_err(|error| csv_error(path, error))?;
    let (mut columns, mut seen) = (Vec::new(), HashSet::new());
    for name in header {
        let name = std::str::from_utf8(name)
            .map_err(|_| file_error(path, "the first line is not valid UTF-8; save the file as UTF-8"))?;
        if !seen.insert(name) {
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
        // What `Limited` has to say.
        csv::ErrorKind::Io(problem) if problem.kind() == io::ErrorKind::InvalidData => {
            file_error(path, problem.to_string())
        }
        csv::ErrorKind::Io(source) => Error::Read { path: path.to_owned(), source },
        other => file_error(path, format!("not a valid table: {other:?}")),
    }
}

/// Refuses to read more than one row's worth of bytes for one row, and a file that ends within a quoted cell: a quote
/// that is never closed takes the rest of the file as one cell.
struct Limited<R> {
    reader: R,
    allowance: Arc<AtomicUsize>,
    quotes: Quotes,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.load(Ordering::Relaxed);
        let refuse = |problem| Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        if left == 0 {
            return refuse(match self.quotes.open() {
                Some(line) => format!("a row is larger than {MAX_ROW_BYTES} bytes; {}", not_closed(line)),
                None => format!("a row is larger than {MAX_ROW_BYTES} bytes; is a line end missing?"),
            });
        }
        let length = buffer.len().min(left);
        let read = self.reader.read(&mut buffer[..length])?;
        self.allowance.store(left - read, Ordering::Relaxed);
        self.quotes.follow(&buffer[..read]);
        match self.quotes.open() {
            Some(line) if read == 0 && length > 0 => {
                refuse(format!("the file ends within a cell; {}", not_closed(line)))
            }
            _ => Ok(read),
        }
    }
}

fn not_closed(line: usize) -> String {
    format!(
        "the quote that opens in line {line} is not closed: close it, or write quotes within a cell twice"
    )
}

/// Where quoted cells begin and end, by the rules of the `csv` crate.
struct Quotes {
    delimiter: u8,
    within: Within,
    line: usize,
    /// The line of the last quote that opened a cell.
    opened: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Within {
    /// Before the first byte of a cell.
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted cell: its end, or the first of two that stand for one.
    MaybeEnd,
}

impl Quotes {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, within: Within::Start, line: 1, opened: 0 }
    }

    fn follow(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.within = match (self.within, byte) {
                (Within::Start, b'"') => {
                    self.opened = self.line;
                    Within::Quoted
                }
                (Within::Quoted, b'"') => Within::MaybeEnd,
                (Within::MaybeEnd, b'"') | (Within::Quoted, _) => Within::Quoted,
                (_, b'\n' | b'\r') => Within::Start,
                (_, byte) if byte == self.delimiter => Within::Start,
                _ => Within::Plain,
            };
            self.line += usize::from(byte == b'\n');
        }
    }

    /// The line in which a cell opens that has not ended yet.
    fn open(&self) -> Option<usize> {
        (self.within == Within::Quoted).then_some(self.opened)
    }
}

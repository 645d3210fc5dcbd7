//! Files as streams of rows. A reader holds one row at a time, and a row has a largest size.

mod csv_rows;
mod decoder_panic;
mod json_list;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet_guard;
#[cfg(feature = "parquet")]
mod parquet_rows;
#[cfg(feature = "parquet")]
mod parquet_thrift;
mod text;

pub use decoder_panic::panic_is_caught;
pub use text::TextSplit;

use crate::{Error, FileFormat, Position, RowProblem, SourceFile, bounded_json};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

/// The largest row, in bytes: a longer one is a damaged file, and must not fill the memory.
pub(crate) const MAX_ROW_BYTES: usize = 64 << 20;
const BUFFER: usize = 1 << 18;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A row as it stands in its file.
#[derive(Debug)]
pub(crate) struct RawRow {
    pub(crate) position: Position,
    pub(crate) content: Content,
}

/// What a reader found.
#[derive(Debug)]
pub(crate) enum Content {
    /// JSON, not yet parsed: that is left to the threads that tokenize.
    Json(Vec<u8>),
    /// Parsed, of about so many bytes.
    Value(Value, usize),
    /// Nothing usable.
    Bad(RowProblem),
}

impl RawRow {
    /// About how much memory the row takes.
    pub(crate) fn bytes(&self) -> usize {
        64 + match &self.content {
            Content::Json(bytes) => bytes.len(),
            Content::Value(_, bytes) => *bytes,
            Content::Bad(_) => 0,
        }
    }

    pub(crate) fn parse(self) -> Result<Value, RowProblem> {
        match self.content {
            Content::Json(bytes) => {
                let text = std::str::from_utf8(&bytes)
                    .map_err(|error| RowProblem::NotUtf8 { byte: error.valid_up_to() })?;
                bounded_json::parse(text)
            }
            Content::Value(value, _) => Ok(value),
            Content::Bad(problem) => Err(problem),
        }
    }
}

/// The rows of one file. An error ends it.
pub(crate) type RawRows = Box<dyn Iterator<Item = Result<RawRow, Error>> + Send>;

/// Opens a file.
pub(crate) fn open(file: &SourceFile, split: Option<TextSplit>) -> Result<RawRows, Error> {
    let path = &file.path;
    match file.format {
        #[cfg(feature = "parquet")]
        FileFormat::Parquet => parquet_rows::open(path),
        #[cfg(not(feature = "parquet"))]
        FileFormat::Parquet => Err(file_error(
            path,
            "is Parquet, which this build does not read; build with `--features parquet`",
        )),
        FileFormat::Jsonl => Ok(Box::new(lines(plain(path)?, path))),
        FileFormat::Json => json_list::open(plain(path)?, path),
        FileFormat::Csv => csv_rows::open(plain(path)?, path, b','),
        FileFormat::Tsv => csv_rows::open(plain(path)?, path, b'\t'),
        FileFormat::Text => text::open(plain(path)?, path, split, false),
        FileFormat::Markdown => text::open(plain(path)?, path, split, true),
    }
}

/// The lines of a JSONL source.
pub(crate) fn lines<R: BufRead + Send>(reader: R, path: &Path) -> jsonl::Lines<R> {
    jsonl::Lines::new(reader, path)
}

/// The bytes of a file, unpacked when its name ends in `.gz`.
fn plain(path: &Path) -> Result<Box<dyn BufRead + Send>, Error> {
    let file = File::open(path).map_err(read_error(path))?;
    let is_gzip = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
    Ok(if is_gzip {
        Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(BufReader::new(file))))
    } else {
        Box::new(BufReader::with_capacity(BUFFER, file))
    })
}

fn read_error(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Read { path: path.to_owned(), source }
}

fn file_error(path: &Path, problem: impl Into<String>) -> Error {
    Error::File { path: path.to_owned(), problem: problem.into() }
}

/// The file after its byte order mark, if it has one.
fn without_byte_order_mark<R: BufRead>(mut reader: R, path: &Path) -> Result<impl BufRead + use<R>, Error> {
    let mut start = Vec::new();
    (&mut reader).take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start).map_err(read_error(path))?;
    if start == BYTE_ORDER_MARK {
        start.clear();
    }
    Ok(Cursor::new(start).chain(reader))
}

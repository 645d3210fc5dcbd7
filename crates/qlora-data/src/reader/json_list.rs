//! `[row, row, ..]` and `{"data": [row, row, ..]}`, element by element.

use super::{Content, MAX_ROW_BYTES, RawRow, RawRows, file_error, read_error, without_byte_order_mark};
use crate::{Error, Position, RowProblem};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

/// The key under which an object keeps its rows.
const DATA: &[u8] = b"data";

/// The rows of a JSON file. JSONL under the name of JSON, which is common, is read as what it is.
pub(super) fn open(reader: Box<dyn BufRead + Send>, path: &Path) -> Result<RawRows, Error> {
    let mut reader = without_byte_order_mark(reader, path)?;
    let mut start = Vec::new();
    let is_jsonl = is_jsonl(&mut reader, &mut start).map_err(read_error(path))?;
    let reader = Cursor::new(start).chain(reader);
    if is_jsonl {
        return Ok(Box::new(super::lines(reader, path)));
    }
    let mut list =
        JsonList { reader, path: path.to_owned(), number: 0, state: State::First, in_object: false };
    list.enter()?;
    Ok(Box::new(list))
}

/// Whether the first line that is not blank is an object, and no `{"data": [..]}` that is all there is. What was read
/// to tell comes into `start`, a row at most.
fn is_jsonl(reader: &mut impl BufRead, start: &mut Vec<u8>) -> io::Result<bool> {
    if blank(reader, start)? != Some(b'{') {
        return Ok(false);
    }
    let from = start.len();
    let left = MAX_ROW_BYTES.saturating_sub(from) as u64;
    reader.by_ref().take(left).read_until(b'\n', start)?;
    let line = &start[from..];
    if serde_json::from_slice::<IgnoredAny>(line).is_err() {
        return Ok(false);
    }
    let has_data = serde_json::from_slice::<DataList>(line).is_ok();
    Ok(!has_data || blank(reader, start)?.is_some())
}

/// Reads white space, a row's worth at most; the byte after it.
fn blank(reader: &mut impl BufRead, start: &mut Vec<u8>) -> io::Result<Option<u8>> {
    while start.len() < MAX_ROW_BYTES {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let solid = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
        let (length, byte) = (solid.unwrap_or(buffer.len()), solid.map(|at| buffer[at]));
        start.extend_from_slice(&buffer[..length]);
        reader.consume(length);
        if byte.is_some() {
            return Ok(byte);
        }
    }
    Ok(None)
}

/// An object with a list under `data`. The line may be large: elements without content take no memory.
#[derive(Deserialize)]
struct DataList {
    #[serde(rename = "data")]
    _data: Vec<IgnoredAny>,
}

#[derive(Clone, Copy)]
enum State {
    /// Before the first element.
    First,
    /// After an element.
    Next,
    Over,
}

struct JsonList<R> {
    reader: R,
    path: PathBuf,
    number: usize,
    state: State,
    /// Whether the list stands in an object, which has to end too.
    in_object: bool,
}

impl<R: BufRead> JsonList<R> {
    fn peek(&mut self) -> Result<Option<u8>, Error> {
        Ok(self.reader.fill_buf().map_err(read_error(&self.path))?.first().copied())
    }

    fn peek_solid(&mut self) -> Result<Option<u8>, Error> {
        while self.peek()?.is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.reader.consume(1);
        }
        self.peek()
    }

    fn wrong(&self, problem: &str) -> Error {
        let place = match self.number {
            0 => String::new(),
            number => format!(" after row {number}"),
        };
        file_error(&self.path, format!("not valid JSON{place}: {problem}"))
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        match self.peek_solid()? {
            Some(found) if found == byte => {
                self.reader.consume(1);
                Ok(())
            }
            Some(found) => {
                Err(self.wrong(&format!("expected `{}`, found `{}`", byte as char, found.escape_ascii())))
            }
            None => Err(self.wrong(&format!("expected `{}`, found the end of the file", byte as char))),
        }
    }

    /// Goes to the first element.
    fn enter(&mut self) -> Result<(), Error> {
        match self.peek_solid()? {
            None => self.state = State::Over,
            Some(b'[') => self.reader.consume(1),
            Some(b'{') => {
                self.reader.consume(1);
                self.in_object = true;
                self.find_data()?;
            }
            Some(_) => {
                return Err(file_error(
                    &self.path,
                    "expected a list of rows, or {\"data\": [rows]}; for one JSON object per line use the ending .jsonl",
                ));
            }
        }
        Ok(())
    }

    fn find_data(&mut self) -> Result<(), Error> {
        while self.peek_solid()? != Some(b'}') {
            let key = self.key()?;
            if key.get(1..key.len() - 1) == Some(DATA) && self.peek_solid()? == Some(b'[') {
                self.reader.consume(1);
                return Ok(());
            }
            self.value(&mut None)?;
            if self.peek_solid()? == Some(b',') {
                self.reader.consume(1);
            }
        }
        Err(file_error(
            &self.path,
            "an object without a list under `data`; write the rows as a list, [row, row, ..]",
        ))
    }

    /// A key with its quotes, and the colon after it.
    fn key(&mut self) -> Result<Vec<u8>, Error> {
        let mut key = Vec::new();
        self.value(&mut Some(&mut key))?;
        if key.first() != Some(&b'"') {
            return Err(self.wrong("expected a key in quotes"));
        }
        self.expect(b':')?;
        Ok(key)
    }

    /// What stands after the list: the rest of its object, then white space to the end of the file.
    fn leave(&mut self) -> Result<(), Error> {
        if self.in_object {
            while self.peek_solid()? == Some(b',') {
                self.reader.consume(1);
                let key = self.key()?;
                if key.get(1..key.len() - 1) == Some(DATA) {
                    return Err(self.wrong("`data` stands there twice; put all rows into one list"));
                }
                self.value(&mut None)?;
            }
            self.expect(b'}')?;
        }
        match self.peek_solid()? {
            None => Ok(()),
            Some(found) => Err(self.wrong(&format!(
                "expected the end of the file after the list, found `{}`; remove it, put all rows into one list, or \
                 write one object per line and use the ending .jsonl",
                found.escape_ascii()
            ))),
        }
    }

    /// Reads one value, whose brackets match; what else is wrong with it the parser of the row will say.
    fn value(&mut self, into: &mut Option<&mut Vec<u8>>) -> Result<(), Error> {
        let (mut depth, mut in_string, mut escaped, mut size) = (0_usize, false, false, 0_usize);
        self.peek_solid()?;
        loop {
            let buffer = self.reader.fill_buf().map_err(read_error(&self.path))?;
            if buffer.is_empty() {
                return if depth == 0 && !in_string && size > 0 {
                    Ok(())
                } else {
                    Err(self.wrong("the file ends within a value; it is cut off"))
                };
            }
            let mut used = buffer.len();
            let mut over = false;
            for (at, &byte) in buffer.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => {
                            in_string = false;
                            over = depth == 0;
                        }
                        _ => {}
                    }
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'[' | b'{' => depth += 1,
                        // The end of what holds this value.
                        b']' | b'}' | b',' | b':' if depth == 0 => {
                            used = at;
                            over = true;
                            break;
                        }
                        b']' | b'}' => {
                            depth -= 1;
                            over = depth == 0;
                        }
                        _ => {}
                    }
                }
                if over {
                    used = at + 1;
                    break;
                }
            }
            size += used;
            if let Some(bytes) = into {
                bytes.extend_from_slice(&buffer[..used]);
            }
            self.reader.consume(used);
            if over {
                return if size == 0 { Err(self.wrong("expected a value")) } else { Ok(()) };
            }
            if size > MAX_ROW_BYTES {
                return Err(self.wrong(&RowProblem::TooLarge { limit: MAX_ROW_BYTES }.to_string()));
            }
        }
    }

    fn element(&mut self) -> Result<Option<RawRow>, Error> {
        match (self.peek_solid()?, self.state) {
            (_, State::Over) => return Ok(None),
            (Some(b']'), _) => {
                self.reader.consume(1);
                self.state = State::Over;
                self.leave()?;
                return Ok(None);
            }
            (_, State::First) => {}
            (_, State::Next) => self.expect(b',')?,
        }
        self.state = State::Next;
        let mut bytes = Vec::new();
        self.value(&mut Some(&mut bytes))?;
        self.number += 1;
        Ok(Some(RawRow { position: Position::row(self.number), content: Content::Json(bytes) }))
    }
}

impl<R: BufRead> Iterator for JsonList<R> {
    type Item = Result<RawRow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let element = self.element().transpose();
        if matches!(element, Some(Err(_))) {
            self.state = State::Over;
        }
        element
    }
}

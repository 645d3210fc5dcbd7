//! `[row, row, ..]` and `{"data": [row, row, ..]}`, element by element.

use super::{BYTE_ORDER_MARK, Content, MAX_ROW_BYTES, RawRow, RawRows, file_error, read_error};
use crate::{Error, Position, RowProblem};
use std::io::{BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

/// The key under which an object keeps its rows.
const DATA: &[u8] = b"data";
/// How much of the file is looked at to tell JSON from JSONL.
const FIRST_LINE: u64 = 1 << 20;

/// The rows of a JSON file. JSONL under the name of JSON, which is common, is read as what it is.
pub(super) fn open(mut reader: Box<dyn BufRead + Send>, path: &Path) -> Result<RawRows, Error> {
    let mut start = Vec::new();
    (&mut reader).take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start).map_err(read_error(path))?;
    if start == BYTE_ORDER_MARK {
        start.clear();
    }
    (&mut reader).take(FIRST_LINE).read_until(b'\n', &mut start).map_err(read_error(path))?;
    let first_line: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&start).ok();
    let is_jsonl = first_line.is_some_and(|row| !row.get("data").is_some_and(serde_json::Value::is_array));
    let reader = Cursor::new(start).chain(reader);
    if is_jsonl {
        return Ok(Box::new(super::lines(reader, path)));
    }
    let mut list = JsonList { reader, path: path.to_owned(), number: 0, state: State::First };
    list.enter()?;
    Ok(Box::new(list))
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
            let mut key = Vec::new();
            self.value(&mut Some(&mut key))?;
            if key.first() != Some(&b'"') {
                return Err(self.wrong("expected a key in quotes"));
            }
            self.expect(b':')?;
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
                self.state = State::Over;
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

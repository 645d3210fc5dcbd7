use super::decoder_panic::caught;
use super::parquet_guard::Guarded;
use super::{Content, RawRow, RawRows, file_error, read_error};
use crate::{Error, Position};
use parquet::errors::ParquetError;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The rows of a Parquet file. Nulls are left out at every depth: a column that has no value in a row is not
/// there, as in JSON.
pub(super) fn open(path: &Path) -> Result<RawRows, Error> {
    let file = File::open(path).map_err(read_error(path))?;
    let rows = guarded(|| {
        let reader = Guarded::open(file)?;
        Ok(RowIter::from_file_into(Box::new(reader)))
    })
    .map_err(|problem| file_error(path, format!("not a readable Parquet file: {problem}")))?;
    Ok(Box::new(Rows { rows: Some(rows), path: path.to_owned(), number: 0 }))
}

struct Rows {
    /// `None` after an error.
    rows: Option<RowIter<'static>>,
    path: PathBuf,
    number: usize,
}

impl Iterator for Rows {
    type Item = Result<RawRow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        let read = guarded(|| {
            let row = rows.next().transpose()?;
            Ok(row.map(|row| {
                let mut bytes = 0;
                (Value::Object(object(&row, &mut bytes)), bytes)
            }))
        });
        match read {
            Ok(row) => {
                let (value, bytes) = row?;
                self.number += 1;
                let content = Content::Value(value, bytes);
                Some(Ok(RawRow { position: Position::row(self.number), content }))
            }
            Err(problem) => {
                self.rows = None;
                let row = self.number + 1;
                Some(Err(file_error(&self.path, format!("damaged Parquet data at row {row}: {problem}"))))
            }
        }
    }
}

/// The decoder of the `parquet` crate panics on some damaged files.
fn guarded<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    caught(decode)?.map_err(|error| error.to_string())
}

fn object(row: &Row, bytes: &mut usize) -> Map<String, Value> {
    let mut fields = Map::new();
    for (name, field) in row.get_column_iter() {
        *bytes += name.len() + 32;
        match value(field, bytes) {
            Value::Null => {}
            value => drop(fields.insert(name.clone(), value)),
        }
    }
    fields
}

fn value(field: &Field, bytes: &mut usize) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::Bool(*truth),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float16(number) => float(f64::from(*number)),
        Field::Float(number) => float(f64::from(*number)),
        Field::Double(number) => float(*number),
        Field::Str(text) => {
            *bytes += text.len();
            Value::String(text.clone())
        }
        // Writers that do not mark text as text; what is no text (a picture) has no meaning here.
        Field::Bytes(data) => match std::str::from_utf8(data.data()) {
            Ok(text) => {
                *bytes += text.len();
                Value::String(text.to_owned())
            }
            Err(_) => Value::Null,
        },
        Field::Group(row) => Value::Object(object(row, bytes)),
        Field::ListInternal(list) => {
            *bytes += 32 * list.len();
            Value::Array(list.elements().iter().map(|element| value(element, bytes)).collect())
        }
        Field::MapInternal(map) => {
            let pairs = map.entries().iter();
            Value::Object(
                pairs
                    .map(|(key, content)| {
                        let key = match key {
                            Field::Str(text) => text.clone(),
                            other => other.to_string(),
                        };
                        (key, value(content, bytes))
                    })
                    .collect(),
            )
        }
        // A date that no calendar has, as its number: the crate would panic.
        Field::Date(days) if !is_date(i64::from(*days), 1) => (*days).into(),
        Field::TimestampMillis(time) if !is_date(*time, 86_400_000) => (*time).into(),
        Field::TimestampMicros(time) if !is_date(*time, 86_400_000_000) => (*time).into(),
        // Dates, times and decimals, as they are written.
        other => Value::String(other.to_string()),
    }
}

/// Whether a time since 1970, so many to a day, is in a year that can be written: one of about 260,000 either way.
fn is_date(time: i64, a_day: i64) -> bool {
    (time / a_day).abs() < 95_000_000
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_and_impossible_ones_are_numbers() {
        let read = |field| value(&field, &mut 0);
        assert_eq!(read(Field::Date(20_000)), "2024-10-04");
        assert_eq!(read(Field::TimestampMillis(0)), "1970-01-01 00:00:00.000 +00:00");
        assert_eq!(read(Field::Date(i32::MIN)), i32::MIN);
        assert_eq!(read(Field::TimestampMillis(i64::MAX)), i64::MAX);
        assert_eq!(read(Field::TimestampMicros(i64::MIN)), i64::MIN);
    }
}

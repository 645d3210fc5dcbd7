//! A Parquet file whose claims are held against its size before anything is allocated for them.
//!
//! The decoder of the `parquet` crate takes some numbers at their word: how large a page is unpacked (in its header), how
//! many entries a dictionary has, how many lengths a delta-encoded page begins with. A few bytes could ask for gigabytes.
//! Here headers are looked at before the crate reads them, and pages before it decodes them.

use super::parquet_thrift::{children_are_there, is_page_header};
use bytes::Bytes;
use parquet::basic::{Encoding, Type};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, FileReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type as SchemaType;
use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::Arc;

/// What any page may take unpacked; data sets have pages of a megabyte.
const PAGE_BYTES: u64 = 16 << 20;
/// How many times its packed size a larger page may take.
const PAGE_RATIO: u64 = 1024;
/// What the header of a page may take; with long texts as least and greatest values it is some kilobytes.
const HEADER_BYTES: usize = 1 << 16;
/// How many rows any file may have, and how many more for each of its bytes: rows that repeat take almost no room.
const ROWS: u64 = 1 << 14;
const ROWS_A_BYTE: u64 = 64;
/// How deep columns may be nested: the crate reads them by recursion.
const DEEPEST: usize = 32;

fn claim(what: impl Into<String>) -> ParquetError {
    ParquetError::General(what.into())
}

/// A file, opened.
pub(super) struct Guarded {
    file: Arc<Headers>,
    metadata: ParquetMetaData,
}

impl Guarded {
    pub(super) fn open(file: File) -> Result<Self> {
        let bytes = file.len();
        if let Some(footer) = footer(&file, bytes)? {
            match children_are_there(&footer) {
                Some(true) => {}
                Some(false) => return Err(claim("its schema claims more columns than it names")),
                None => return Err(claim("its footer is damaged")),
            }
        }
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file)?;
        let schema = metadata.file_metadata().schema_descr();
        if schema.num_columns() == 0 {
            return Err(claim("it has no columns"));
        }
        if depth(schema.root_schema()) > DEEPEST {
            return Err(claim(format!("its columns are nested more than {DEEPEST} deep")));
        }
        let mut rows = 0_u64;
        for group in metadata.row_groups() {
            let more = u64::try_from(group.num_rows()).map_err(|_| claim("a number of rows is negative"))?;
            rows = rows.saturating_add(more);
            if group.num_columns() != schema.num_columns() {
                return Err(claim("a group of rows has not the columns of the file"));
            }
            for column in group.columns() {
                // `byte_range` panics on negative ones.
                let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
                let end = start.checked_add(column.compressed_size());
                let within = start >= 0
                    && column.compressed_size() >= 0
                    && end.and_then(|end| u64::try_from(end).ok()).is_some_and(|end| end <= bytes);
                if !within {
                    return Err(claim(format!(
                        "the column {:?} lies outside the file",
                        column.column_path()
                    )));
                }
            }
        }
        let most = ROWS + ROWS_A_BYTE * bytes;
        if rows > most {
            return Err(claim(format!("it claims {rows} rows in {bytes} bytes")));
        }
        Ok(Self { file: Arc::new(Headers { file, bytes }), metadata })
    }
}

/// The bytes of the footer; `None` where the file's end is not that of a Parquet file, which the crate says better.
fn footer(file: &File, bytes: u64) -> Result<Option<Bytes>> {
    /// The length of the footer, and `PAR1`.
    const END: u64 = 8;
    let Some(end) = bytes.checked_sub(END) else { return Ok(None) };
    let last = file.get_bytes(end, END as usize)?;
    let length = u32::from_le_bytes([last[0], last[1], last[2], last[3]]);
    match end.checked_sub(u64::from(length)) {
        Some(start) if last.ends_with(b"PAR1") => file.get_bytes(start, length as usize).map(Some),
        _ => Ok(None),
    }
}

fn depth(schema: &SchemaType) -> usize {
    // By hand: a recursion as deep as a file demands would end the stack.
    let (mut deepest, mut open) = (0, vec![(schema, 1)]);
    while let Some((kind, depth)) = open.pop() {
        deepest = deepest.max(depth);
        if kind.is_group() && depth <= DEEPEST {
            open.extend(kind.get_fields().iter().map(|field| (&**field, depth + 1)));
        }
    }
    deepest
}

impl FileReader for Guarded {
    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }

    fn num_row_groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(Group { file: Arc::clone(&self.file), metadata: self.metadata.row_group(i) }))
    }

    fn get_row_iter(&self, projection: Option<SchemaType>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct Group<'a> {
    file: Arc<Headers>,
    metadata: &'a RowGroupMetaData,
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.metadata
    }

    fn num_columns(&self) -> usize {
        self.metadata.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata.column(i);
        let rows = usize::try_from(self.metadata.num_rows()).map_err(|_| claim("negative rows"))?;
        let description = column.column_descr();
        Ok(Box::new(Pages {
            pages: SerializedPageReader::new(Arc::clone(&self.file), column, rows, None)?,
            levels: [description.max_rep_level(), description.max_def_level()],
            kind: description.physical_type(),
        }))
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, projection: Option<SchemaType>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The file as the page reader of the crate sees it.
struct Headers {
    file: File,
    bytes: u64,
}

impl Length for Headers {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Headers {
    type T = Header;

    /// What the crate reads from here is the header of a page.
    fn get_read(&self, start: u64) -> Result<Header> {
        let file = self.file.get_read(start)?.into_inner();
        Ok(Header { rest: BufReader::with_capacity(HEADER_BYTES, file), looked_at: false })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            return Err(claim(format!("{length} bytes from {start} on lie outside the file")));
        }
        self.file.get_bytes(start, length)
    }
}

/// The header of a page, read when its sizes were seen to be possible.
struct Header {
    rest: BufReader<File>,
    looked_at: bool,
}

impl Read for Header {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.looked_at {
            self.looked_at = true;
            let bytes = std::io::BufRead::fill_buf(&mut self.rest)?;
            let (packed, unpacked) = sizes(bytes)
                .filter(|_| is_page_header(bytes))
                .ok_or_else(|| std::io::Error::other("the header of a page is damaged"))?;
            if unpacked > PAGE_BYTES.max(packed.saturating_mul(PAGE_RATIO)) {
                return Err(std::io::Error::other(format!(
                    "a page of {packed} bytes claims to hold {unpacked}"
                )));
            }
        }
        match self.rest.read(buffer)? {
            // The crate skips fields that it does not know, and takes no notice of the end: a list of so many billion.
            0 if !buffer.is_empty() => Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}

/// Packed and unpacked size of the page that begins with a header: its second and third field, in Thrift's compact
/// protocol, each a byte that says so and a zigzag number.
fn sizes(header: &[u8]) -> Option<(u64, u64)> {
    /// The next field, a 32-bit number.
    const NEXT_I32: u8 = 0x15;
    let mut rest = header;
    let mut field = || -> Option<i64> {
        rest = rest.strip_prefix(&[NEXT_I32])?;
        let value = number(&mut rest)?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    };
    let (_kind, unpacked, packed) = (field()?, field()?, field()?);
    Some((u64::try_from(packed).ok()?, u64::try_from(unpacked).ok()?))
}

/// The pages of a column, each looked at before it is decoded.
struct Pages {
    pages: SerializedPageReader<Headers>,
    /// Of repetition and of definition.
    levels: [i16; 2],
    kind: Type,
}

/// That what a page claims fits into it. `levels`: the most of repetition and of definition.
fn check_page(page: &Page, levels: [i16; 2], kind: Type) -> Result<()> {
    match page {
        Page::DictionaryPage { buf, num_values, .. } => {
            let least = match kind {
                Type::BOOLEAN | Type::FIXED_LEN_BYTE_ARRAY => 1,
                Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
                Type::INT64 | Type::DOUBLE => 8,
                Type::INT96 => 12,
            };
            if *num_values as usize > buf.len() / least {
                return Err(claim(format!(
                    "a dictionary of {} bytes claims {num_values} entries",
                    buf.len()
                )));
            }
        }
        Page::DataPage { buf, num_values, encoding, .. } => {
            // Levels with their lengths in front; other encodings of them are as long as there are values.
            let mut rest: &[u8] = buf;
            for _ in levels.iter().filter(|&&most| most > 0) {
                let (length, after) = rest.split_at_checked(4).ok_or_else(|| claim("a page is cut off"))?;
                let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
                rest = after.get(length as usize..).ok_or_else(|| claim("a page is cut off"))?;
            }
            check_delta(rest, *encoding, *num_values)?;
        }
        Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
            let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
            let values = buf.get(levels..).ok_or_else(|| claim("a page is cut off"))?;
            check_delta(values, *encoding, *num_values)?;
        }
    }
    Ok(())
}

/// That delta-encoded values are not more than the page has.
fn check_delta(values: &[u8], encoding: Encoding, count: u32) -> Result<()> {
    match encoding {
        Encoding::DELTA_BINARY_PACKED | Encoding::DELTA_LENGTH_BYTE_ARRAY => {
            behind_numbers(values, count).map(drop)
        }
        // How much each text has in common with the one before, then how long the rest of each is.
        Encoding::DELTA_BYTE_ARRAY => behind_numbers(behind_numbers(values, count)?, count).map(drop),
        _ => Ok(()),
    }
}

/// What comes after a list of at most so many delta-encoded numbers.
fn behind_numbers(values: &[u8], most: u32) -> Result<&[u8]> {
    let cut_off = || claim("a page is cut off");
    let mut rest = values;
    let mut next = || number(&mut rest).ok_or_else(cut_off);
    let (block, parts, count, _first) = (next()?, next()?, next()?, next()?);
    if count > u64::from(most) {
        return Err(claim(format!("a page of {most} values claims {count} of them")));
    }
    let per_part = block.checked_div(parts).filter(|&values| values > 0).ok_or_else(cut_off)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        number(&mut rest).ok_or_else(cut_off)?;
        let parts = usize::try_from(parts).map_err(|_| cut_off())?;
        let (widths, after) = rest.split_at_checked(parts).ok_or_else(cut_off)?;
        rest = after;
        for &width in widths {
            if left == 0 {
                break;
            }
            let bytes = (u64::from(width).checked_mul(per_part)).map(|bits| bits / 8);
            let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(cut_off)?;
            // The last part may end with its last value.
            rest = rest.get(bytes..).unwrap_or_default();
            left = left.saturating_sub(per_part);
        }
    }
    Ok(rest)
}

/// A number of seven bits a byte, the lowest first.
pub(super) fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.as_ref().map(|page| check_page(page, self.levels, self.kind)).transpose()?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::Int64Type;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::io::Write;

    /// A number of seven bits a byte.
    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn header(unpacked: u64, packed: u64) -> Vec<u8> {
        let field = |value: u64| [vec![0x15], varint(value << 1)].concat();
        [field(0), field(unpacked), field(packed), vec![0]].concat()
    }

    fn read_header(bytes: &[u8]) -> std::io::Result<usize> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let headers = Headers { file, bytes: bytes.len() as u64 };
        headers.get_read(0).unwrap().read(&mut [0; 64])
    }

    #[test]
    fn a_page_that_claims_gigabytes_is_refused_before_it_is_unpacked() {
        assert!(read_header(&header(1 << 20, 100)).is_ok());
        assert!(read_header(&header(PAGE_RATIO * (1 << 17), 1 << 17)).is_ok());
        let error = read_header(&header((1 << 31) - 1, 100)).unwrap_err().to_string();
        assert!(error.contains("100 bytes claims to hold 2147483647"), "{error}");
        for damaged in [&b"\x15\x00\x15"[..], b"\x16\x00\x15\x02\x15\x02", b"\x15\x00\x15\x01\x15\x02", b""] {
            assert!(read_header(damaged).unwrap_err().to_string().contains("damaged"), "{damaged:?}");
        }
    }

    #[test]
    fn a_header_does_not_go_on_beyond_the_end() {
        // A list of two billion texts, which is not there, in a field that nobody knows.
        let list = [&b"\x99\xf8"[..], &varint((1 << 31) - 1)].concat();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[header(10, 10), list].concat()).unwrap();
        let mut header = Headers { file, bytes: 20 }.get_read(0).unwrap();
        let mut bytes = Vec::new();
        let error = header.read_to_end(&mut bytes).unwrap_err();
        assert_eq!((error.kind(), bytes.len()), (std::io::ErrorKind::UnexpectedEof, 14));
    }

    #[test]
    fn bytes_beyond_the_end_are_not_allocated() {
        let headers = Headers { file: tempfile::tempfile().unwrap(), bytes: 100 };
        for (start, length) in [(0, 101), (90, 11), (u64::MAX, 1), (0, usize::MAX)] {
            assert!(headers.get_bytes(start, length).unwrap_err().to_string().contains("outside the file"));
        }
    }

    #[test]
    fn a_dictionary_has_no_more_entries_than_bytes() {
        let dictionary = |num_values| Page::DictionaryPage {
            buf: Bytes::from(vec![0; 64]),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        for (kind, most) in [(Type::BYTE_ARRAY, 16), (Type::INT64, 8), (Type::FIXED_LEN_BYTE_ARRAY, 64)] {
            assert!(check_page(&dictionary(most), [0, 0], kind).is_ok());
            for claimed in [most + 1, u32::MAX] {
                let error = check_page(&dictionary(claimed), [0, 0], kind).unwrap_err().to_string();
                assert!(error.contains(&format!("claims {claimed} entries")), "{error}");
            }
        }
    }

    /// A delta-encoded list of a first number and others that are each one more: no bits but the header's.
    fn list(count: u64) -> Vec<u8> {
        let blocks = count.saturating_sub(1).div_ceil(128);
        let block = [varint(2), vec![0; 4]].concat();
        [varint(128), varint(4), varint(count), varint(0), block.repeat(blocks as usize)].concat()
    }

    #[test]
    fn a_delta_encoded_page_has_no_more_values_than_it_says() {
        let page = |values: Vec<u8>, encoding, levels: &[u8]| Page::DataPage {
            buf: Bytes::from([levels, &values].concat()),
            num_values: 300,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let levels = b"\x02\0\0\0ab";
        let texts = |first: u64, second: u64| [list(first), list(second), b"text".to_vec()].concat();
        for (values, encoding, sound) in [
            (list(300), Encoding::DELTA_BINARY_PACKED, true),
            (list(0), Encoding::DELTA_BINARY_PACKED, true),
            (list(301), Encoding::DELTA_BINARY_PACKED, false),
            (
                [varint(128), varint(4), varint(u64::MAX >> 1), varint(0)].concat(),
                Encoding::DELTA_LENGTH_BYTE_ARRAY,
                false,
            ),
            (texts(300, 300), Encoding::DELTA_BYTE_ARRAY, true),
            (texts(300, 100_000), Encoding::DELTA_BYTE_ARRAY, false),
            (vec![0x80; 30], Encoding::DELTA_BYTE_ARRAY, false),
            (varint(1 << 40), Encoding::PLAIN, true),
        ] {
            for (levels, most) in [(&levels[..], [0, 1]), (&levels.repeat(2), [1, 1]), (b"", [0, 0])] {
                let checked = check_page(&page(values.clone(), encoding, levels), most, Type::BYTE_ARRAY);
                assert_eq!(checked.is_ok(), sound, "{encoding} {checked:?}");
            }
        }
        let cut = page(Vec::new(), Encoding::PLAIN, b"\xff\xff\xff\xff");
        assert!(check_page(&cut, [0, 1], Type::INT32).is_err());
    }

    #[test]
    fn rows_without_bytes_are_refused() {
        let schema = Arc::new(parse_message_type("message m { optional int64 n; }").unwrap());
        let open = |rows: usize| {
            let mut file = tempfile::tempfile().unwrap();
            let properties = Arc::new(WriterProperties::builder().build());
            let mut writer =
                SerializedFileWriter::new(file.try_clone().unwrap(), Arc::clone(&schema), properties)
                    .unwrap();
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[], Some(&vec![0; rows]), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
            writer.close().unwrap();
            file.flush().unwrap();
            Guarded::open(file).map(drop)
        };
        open(1000).unwrap();
        let error = open(10_000_000).unwrap_err().to_string();
        assert!(error.contains("claims 10000000 rows"), "{error}");
    }
}

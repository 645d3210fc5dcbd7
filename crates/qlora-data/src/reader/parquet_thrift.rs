//! The footer and the headers of pages in a Parquet file, looked at before the `parquet` crate reads them: it makes room
//! for as many children as a group claims to have, and passes over lists of any length whose elements take no bytes.
//!
//! Both are structs in [Thrift's compact protocol](https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
//! The second field of the footer is a list of schema elements, whose fifth field is their number of children.

use super::parquet_guard::number;

/// Fields of the footer and of a schema element.
const SCHEMA: i64 = 2;
const CHILDREN: i64 = 5;
/// How deep structs and lists may be nested.
const DEEPEST: usize = 32;

/// Types of the compact protocol.
mod kind {
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I32: u8 = 5;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const STRUCT: u8 = 12;
}

/// Whether no element of the schema claims more children than the schema has elements; `None` of a footer that can't be
/// read to its end.
pub(super) fn children_are_there(footer: &[u8]) -> Option<bool> {
    let mut rest = footer;
    walk(&mut rest)
}

/// Whether the bytes begin with the whole header of a page, which has no lists.
pub(super) fn is_page_header(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    fields(&mut rest, &PAGE).is_some()
}

#[derive(Clone, Copy, PartialEq)]
enum Lists {
    Allowed,
    Refused,
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// The types of the fields of the footer and of a schema element, from the first on. The crate reads the fields that it
/// knows as what they should be, whatever they say to be: what differs is refused, or it would read something else than
/// what is looked at here.
const FOOTER: [u8; 9] = [
    kind::I32,
    kind::LIST,
    kind::I64,
    kind::LIST,
    kind::LIST,
    kind::BINARY,
    kind::LIST,
    kind::STRUCT,
    kind::BINARY,
];
const ELEMENT: [u8; 10] = [
    kind::I32,
    kind::I32,
    kind::I32,
    kind::BINARY,
    kind::I32,
    kind::I32,
    kind::I32,
    kind::I32,
    kind::I32,
    kind::STRUCT,
];

/// What a struct in the header of a page has: fields of numbers and such, and structs.
#[derive(Clone, Copy)]
enum Field {
    Of(u8),
    Struct(&'static [Field]),
}

use Field::{Of, Struct};

/// The header of a page: of data, of an index, of a dictionary, of data of the second kind.
const PAGE: [Field; 8] = [
    Of(kind::I32),
    Of(kind::I32),
    Of(kind::I32),
    Of(kind::I32),
    Struct(&[Of(kind::I32), Of(kind::I32), Of(kind::I32), Of(kind::I32), STATISTICS]),
    Struct(&[]),
    Struct(&[Of(kind::I32), Of(kind::I32), Of(kind::TRUE)]),
    Struct(&[
        Of(kind::I32),
        Of(kind::I32),
        Of(kind::I32),
        Of(kind::I32),
        Of(kind::I32),
        Of(kind::I32),
        Of(kind::TRUE),
        STATISTICS,
    ]),
];
const STATISTICS: Field = Struct(&[
    Of(kind::BINARY),
    Of(kind::BINARY),
    Of(kind::I64),
    Of(kind::I64),
    Of(kind::BINARY),
    Of(kind::BINARY),
    Of(kind::TRUE),
    Of(kind::TRUE),
]);

/// The rest of a struct with these fields, in their order, and later ones that are no lists.
fn fields(rest: &mut &[u8], known: &[Field]) -> Option<()> {
    let mut last = 0;
    loop {
        let before = last;
        let Some((id, kind)) = field(rest, &mut last)? else { return Some(()) };
        if id <= before {
            return None;
        }
        match usize::try_from(id - 1).ok().and_then(|index| known.get(index)) {
            Some(Struct(known)) if kind == kind::STRUCT => fields(rest, known)?,
            // Either truth is a type of its own.
            Some(Of(kind::TRUE)) if kind == kind::FALSE => {}
            Some(Of(expected)) if kind == *expected => skip(rest, kind, DEEPEST, Lists::Refused)?,
            Some(_) => return None,
            None => skip(rest, kind, DEEPEST, Lists::Refused)?,
        }
    }
}

/// [`field`] of a struct whose fields come in their order, as all writers put them, and have these types.
fn typed_field(rest: &mut &[u8], last: &mut i64, types: &[u8]) -> Option<Option<(i64, u8)>> {
    let before = *last;
    let Some((id, kind)) = field(rest, last)? else { return Some(None) };
    let expected = usize::try_from(id - 1).ok().and_then(|index| types.get(index));
    let sound = id > before && expected.is_none_or(|expected| *expected == kind);
    sound.then_some(Some((id, kind)))
}

fn walk(rest: &mut &[u8]) -> Option<bool> {
    let mut last = 0;
    while let Some((id, kind)) = typed_field(rest, &mut last, &FOOTER)? {
        if id != SCHEMA {
            skip(rest, kind, DEEPEST, Lists::Allowed)?;
            continue;
        }
        let (count, kind) = list(rest)?;
        if kind != kind::STRUCT {
            return None;
        }
        for _ in 0..count {
            let mut last = 0;
            while let Some((id, kind)) = typed_field(rest, &mut last, &ELEMENT)? {
                if id != CHILDREN {
                    skip(rest, kind, DEEPEST, Lists::Allowed)?;
                } else if u64::try_from(zigzag(number(rest)?)).map_or(true, |children| children > count) {
                    // Negative ones too: the crate takes the low half of a long number.
                    return Some(false);
                }
            }
        }
    }
    Some(true)
}

/// The number and type of the next field; `Some(None)` at the end of a struct.
fn field(rest: &mut &[u8], last: &mut i64) -> Option<Option<(i64, u8)>> {
    let head = byte(rest)?;
    if head == 0 {
        return Some(None);
    }
    *last = match head >> 4 {
        0 => zigzag(number(rest)?),
        more => last.checked_add(i64::from(more))?,
    };
    Some(Some((*last, head & 15)))
}

/// Length and type of a list. An element takes a byte at least.
fn list(rest: &mut &[u8]) -> Option<(u64, u8)> {
    let head = byte(rest)?;
    let count = match head >> 4 {
        15 => number(rest)?,
        count => u64::from(count),
    };
    Some((count, head & 15))
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (&byte, after) = rest.split_first()?;
    *rest = after;
    Some(byte)
}

fn skip(rest: &mut &[u8], kind: u8, depth: usize, lists: Lists) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match kind {
        // As a field, a truth is in the type.
        kind::TRUE | kind::FALSE => {}
        kind::BYTE => drop(byte(rest)?),
        kind::I16 | kind::I32 | kind::I64 => drop(number(rest)?),
        kind::DOUBLE => *rest = rest.get(8..)?,
        kind::BINARY => {
            let length = usize::try_from(number(rest)?).ok()?;
            *rest = rest.get(length..)?;
        }
        kind::LIST | kind::SET if lists == Lists::Allowed => {
            let (count, kind) = list(rest)?;
            // Truths take a byte as elements, which the crate does not know; there are none in a footer.
            if kind == kind::TRUE || kind == kind::FALSE {
                return None;
            }
            for _ in 0..count {
                skip(rest, kind, depth, lists)?;
            }
        }
        kind::STRUCT => {
            let mut last = 0;
            while let Some((_, kind)) = field(rest, &mut last)? {
                skip(rest, kind, depth, lists)?;
            }
        }
        // There are no maps in a Parquet file.
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer of a version and a schema of a root with so many children and a leaf.
    fn footer(children: u8) -> Vec<u8> {
        let root = [0x48, 4, b'r', b'o', b'o', b't', 0x15, children << 1, 0];
        let leaf = [0x15, 2, 0x25, 0, 0x18, 1, b'n', 0];
        [&[0x15, 2, 0x19, 0x2c][..], &root, &leaf, &[0x16, 0, 0]].concat()
    }

    #[test]
    fn a_group_has_no_more_children_than_the_schema_has_elements() {
        assert_eq!(children_are_there(&footer(1)), Some(true));
        assert_eq!(children_are_there(&footer(3)), Some(false));
        let huge = [&footer(0)[..11], &[0xfe, 0xff, 0xff, 0xff, 0x0f, 0]].concat();
        assert_eq!(children_are_there(&huge), Some(false), "two billion, in the last field of a cut footer");
        let negative = [&footer(0)[..11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]].concat();
        assert_eq!(children_are_there(&negative), Some(false));
        // The crate would take the low bits of a number of any length.
        let long = [&footer(0)[..11], &[0xff; 10], &[0x0f, 0]].concat();
        assert_eq!(children_are_there(&long), None);
        for end in 0..footer(1).len() {
            assert_eq!(children_are_there(&footer(1)[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_page_header_has_no_lists() {
        let header = |more: &[u8]| {
            [&[0x15, 0, 0x15, 20, 0x15, 20, 0x2c, 0x15, 2, 0x15, 0, 0][..], more, &[0]].concat()
        };
        assert!(is_page_header(&header(&[])));
        assert!(is_page_header(&[header(&[]), b"the page".to_vec()].concat()));
        assert!(!is_page_header(&header(&[])[..12]), "cut off");
        // Two billion truths.
        assert!(!is_page_header(&header(&[0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07])));
        assert!(!is_page_header(&header(&[0x1b, 1, 0x55, 0, 0])), "a map");
        // Where the crate expects a struct, it would take the number's bytes for fields: of a list, too.
        assert!(is_page_header(&header(&[0x1c, 0])), "an index page");
        assert!(!is_page_header(&header(&[0x15, 0])), "a number in place of one");
        assert!(is_page_header(&header(&[0x4c, 0x75, 2, 0])), "a field of later versions");
        assert!(!is_page_header(&header(&[0x15, 0, 0x05, 2, 2])), "a field that comes again");
        let truths = [&[0x15, 2, 0x39, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07][..], &[0; 20]].concat();
        assert_eq!(children_are_there(&truths), None, "a list of truths in the footer");
    }
}

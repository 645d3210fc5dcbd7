//! The schema in a Parquet file's footer, looked at before the `parquet` crate reads it: the crate makes room for as
//! many children as a group claims to have.
//!
//! The footer is a struct in [Thrift's compact protocol](https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md):
//! its second field is a list of schema elements, whose fifth field is their number of children.

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

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn walk(rest: &mut &[u8]) -> Option<bool> {
    let mut last = 0;
    while let Some((id, kind)) = field(rest, &mut last)? {
        if (id, kind) != (SCHEMA, kind::LIST) {
            skip(rest, kind, DEEPEST)?;
            continue;
        }
        let (count, kind) = list(rest)?;
        for _ in 0..count {
            if kind != kind::STRUCT {
                skip(rest, kind, DEEPEST)?;
                continue;
            }
            let mut last = 0;
            while let Some((id, kind)) = field(rest, &mut last)? {
                if (id, kind) != (CHILDREN, kind::I32) {
                    skip(rest, kind, DEEPEST)?;
                } else if u64::try_from(zigzag(number(rest)?)).is_ok_and(|children| children > count) {
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

fn skip(rest: &mut &[u8], kind: u8, depth: usize) -> Option<()> {
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
        kind::LIST | kind::SET => {
            let (count, kind) = list(rest)?;
            for _ in 0..count {
                // As an element, it is a byte.
                match kind {
                    kind::TRUE | kind::FALSE => drop(byte(rest)?),
                    kind => skip(rest, kind, depth)?,
                }
            }
        }
        kind::STRUCT => {
            let mut last = 0;
            while let Some((_, kind)) = field(rest, &mut last)? {
                skip(rest, kind, depth)?;
            }
        }
        // Maps are not in a footer.
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
        // The crate would take the low bits of a number of any length.
        let long = [&footer(0)[..11], &[0xff; 10], &[0x0f, 0]].concat();
        assert_eq!(children_are_there(&long), None);
        for end in 0..footer(1).len() {
            assert_eq!(children_are_there(&footer(1)[..end]), None, "cut at {end}");
        }
    }
}

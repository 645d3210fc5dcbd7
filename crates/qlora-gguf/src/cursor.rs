use std::fmt;
use std::path::Path;

use crate::GgufError;

/// What is being read, for errors.
#[derive(Clone, Copy)]
pub(crate) enum Item<'a> {
    Magic,
    Version,
    TensorCount,
    EntryCount,
    Key { entry: u64 },
    ValueType { key: &'a str },
    ElementType { key: &'a str },
    ElementCount { key: &'a str },
    Value { key: &'a str },
    TensorName { tensor: u64 },
    Dimensions { tensor: &'a str },
    TensorType { tensor: &'a str },
    TensorOffset { tensor: &'a str },
    MatrixCount,
    MatrixName { entry: u32 },
    MatrixCalls { name: &'a str },
    MatrixValues { name: &'a str },
    ChunkCount,
    DatasetName,
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("the magic number"),
            Self::Version => f.write_str("the version"),
            Self::TensorCount => f.write_str("the number of tensors"),
            Self::EntryCount => f.write_str("the number of metadata entries"),
            Self::Key { entry } => write!(f, "the key of metadata entry {entry}"),
            Self::ValueType { key } => write!(f, "the value type of key {key:?}"),
            Self::ElementType { key } => write!(f, "the element type of key {key:?}"),
            Self::ElementCount { key } => write!(f, "the array length of key {key:?}"),
            Self::Value { key } => write!(f, "the value of key {key:?}"),
            Self::TensorName { tensor } => write!(f, "the name of tensor {tensor}"),
            Self::Dimensions { tensor } => write!(f, "the dimensions of tensor {tensor:?}"),
            Self::TensorType { tensor } => write!(f, "the type of tensor {tensor:?}"),
            Self::TensorOffset { tensor } => write!(f, "the data offset of tensor {tensor:?}"),
            Self::MatrixCount => f.write_str("the number of matrices"),
            Self::MatrixName { entry } => write!(f, "the name of matrix {entry}"),
            Self::MatrixCalls { name } => write!(f, "the number of calls of {name:?}"),
            Self::MatrixValues { name } => write!(f, "the importances of {name:?}"),
            Self::ChunkCount => f.write_str("the number of chunks"),
            Self::DatasetName => f.write_str("the name of the dataset"),
        }
    }
}

/// A position in the bytes of a file. Every read is checked against what is left.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn position(&self) -> u64 {
        self.position as u64
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `length` bytes.
    pub(crate) fn take(&mut self, length: u64, item: Item<'_>) -> Result<&'a [u8], GgufError> {
        let taken = usize::try_from(length).ok().and_then(|length| {
            let end = self.position.checked_add(length)?;
            self.bytes.get(self.position..end)
        });
        let Some(taken) = taken else {
            return Err(GgufError::Truncated {
                path: self.path.to_owned(),
                what: item.to_string(),
                offset: self.position(),
                needed: length,
                available: self.remaining() as u64,
            });
        };
        self.position += taken.len();
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, item: Item<'_>) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, item)?;
        Ok(bytes.try_into().expect("`take` returns as many bytes as asked for"))
    }

    pub(crate) fn u32(&mut self, item: Item<'_>) -> Result<u32, GgufError> {
        self.array(item).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, item: Item<'_>) -> Result<u64, GgufError> {
        self.array(item).map(u64::from_le_bytes)
    }

    /// A count of things that each take at least `min_bytes` bytes of the rest of the file: what a caller may
    /// reserve memory for.
    pub(crate) fn count(&mut self, min_bytes: usize, item: Item<'_>) -> Result<usize, GgufError> {
        let offset = self.position();
        let count = self.u64(item)?;
        self.fits(count, min_bytes, offset, item)
    }

    /// `count` as a `usize`, when that many things of at least `min_bytes` bytes fit the rest of the file.
    pub(crate) fn fits(
        &self,
        count: u64,
        min_bytes: usize,
        offset: u64,
        item: Item<'_>,
    ) -> Result<usize, GgufError> {
        let most = self.remaining() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(GgufError::ImpossibleCount {
                path: self.path.to_owned(),
                what: item.to_string(),
                offset,
                count,
                most: most as u64,
            }),
        }
    }

    /// A length and that many bytes of UTF-8.
    pub(crate) fn string(&mut self, item: Item<'_>) -> Result<&'a str, GgufError> {
        let length = self.u64(item)?;
        self.text(length, item)
    }

    /// `length` bytes of UTF-8.
    pub(crate) fn text(&mut self, length: u64, item: Item<'_>) -> Result<&'a str, GgufError> {
        let offset = self.position();
        let bytes = self.take(length, item)?;
        std::str::from_utf8(bytes).map_err(|source| GgufError::InvalidUtf8 {
            path: self.path.to_owned(),
            what: item.to_string(),
            offset,
            source,
        })
    }

    /// One byte that is 0 or 1.
    pub(crate) fn bool(&mut self, item: Item<'_>) -> Result<bool, GgufError> {
        let offset = self.position();
        match self.array(item)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::InvalidBool {
                path: self.path.to_owned(),
                what: item.to_string(),
                offset,
                found,
            }),
        }
    }
}

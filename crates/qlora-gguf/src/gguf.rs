use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::header::Header;
use crate::{GgufError, Metadata, Tensor, TensorInfo};

/// An open GGUF file: its metadata, its tensor table, and its bytes, memory-mapped.
///
/// Everything before the data is read and checked by [`open`](Self::open), including that every tensor's data lie
/// inside the file and apart from each other; after that only a missing key, a missing tensor or an unknown
/// format can fail. Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Gguf {
    /// Opens and checks the file at `path`. The data are mapped, not read.
    ///
    /// The file must not be truncated or overwritten by another program while it is open: the system would end
    /// this process at the next access. Replacing it by renaming another over it is harmless.
    ///
    /// # Errors
    /// [`Open`](GgufError::Open) when the file cannot be opened; otherwise the variant that says what is wrong
    /// with its content.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let failed = |source| GgufError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        // SAFETY: the map is only ever read, as plain bytes. Another process that changes the file meanwhile can
        // change those bytes, or, by truncating it, make access fault, as documented above; everything that
        // bounds an access is copied out and checked against the length of the map, which cannot change.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Self::checked(path, Bytes::Mapped(map))
    }

    /// Checks a file that is already in memory. Errors name `<memory>` as the file.
    ///
    /// # Errors
    /// The variant that says what is wrong with the bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::checked(Path::new("<memory>"), Bytes::Owned(bytes))
    }

    fn checked(path: &Path, bytes: Bytes) -> Result<Self, GgufError> {
        let Header { version, alignment, metadata, tensors, tensor_index } = Header::parse(path, &bytes)?;
        Ok(Self { path: path.to_owned(), bytes, version, alignment, metadata, tensors, tensor_index })
    }

    /// The file, or `<memory>`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the container: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of the tensors' data, in bytes: `general.alignment`, or 32.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensor table, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor named `name`.
    ///
    /// # Errors
    /// [`MissingTensor`](GgufError::MissingTensor).
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, GgufError> {
        self.opt_tensor(name)
            .ok_or_else(|| GgufError::MissingTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// The tensor named `name`, or `None` when there is none.
    #[must_use]
    pub fn opt_tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let info = &self.tensors[*self.tensor_index.get(name)?];
        let bytes = if info.byte_len == 0 {
            &[] // Its offset may be the end of the file, or past it.
        } else {
            // It fits: the header check compared it with the length of these bytes.
            &self.bytes[info.offset as usize..][..info.byte_len]
        };
        Some(Tensor { path: &self.path, info, bytes })
    }

    /// The length of the file in bytes.
    #[must_use]
    pub fn file_length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The number of elements of all tensors together.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        // Cannot overflow: tensors lie apart in the file, and an element takes more than one bit of it.
        self.tensors.iter().map(|tensor| tensor.elements as u64).sum()
    }
}

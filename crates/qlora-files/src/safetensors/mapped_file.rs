//! One memory-mapped file.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::Metadata;
use memmap2::Mmap;

use super::{Dtype, Tensor};
use crate::Error;

/// Bytes of the length in front of the header.
const LENGTH_BYTES: usize = 8;
/// The format's own limit on headers.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// An open safetensors file whose header was checked against the file: every tensor lies inside it, tensors
/// neither overlap nor leave holes, sizes agree with shapes. Tensors are read from the map, no copy is held.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    names: Vec<String>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// The file must not be shortened by another process while it is open.
    ///
    /// # Errors
    /// The file can't be opened, or its header is damaged or contradicts its size.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("inspect", path))?.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(Error::io("open", path)(source));
        }
        // SAFETY: the map is read-only and private to this value. Its one hazard, another process that shortens
        // the file, is in the documentation of this function.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let invalid = |reason| Error::InvalidSafetensors { path: path.to_path_buf(), reason };
        let (data_start, header) = parse_header(&map).map_err(invalid)?;

        let names = header.offset_keys();
        let entries = header
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (start, end) = info.data_offsets;
                // In bounds: `parse_header` has compared the end of the last tensor with the end of the file.
                let bytes = data_start + start..data_start + end;
                (name, Entry { dtype: info.dtype, shape: info.shape.clone(), bytes })
            })
            .collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path: path.to_path_buf(), map, names, entries, metadata })
    }

    /// The file's path as it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free text pairs of the header (`__metadata__`), sorted by key.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors' names in the order in which their bytes lie in the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The tensors in the order in which their bytes lie in the file.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.names.iter().filter_map(|name| self.find(name))
    }

    /// One tensor by name.
    ///
    /// # Errors
    /// The file has no tensor of this name; names that end alike are suggested.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.find(name).ok_or_else(|| not_found(&self.path, name, self.names()))
    }

    /// Reads one F32, F16 or BF16 tensor whole.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor) and [`Tensor::to_f32`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.tensor(name)?.to_f32()
    }

    /// Tells the system that a tensor's bytes will not be needed soon: they no longer count as memory of this process,
    /// and are read from the disk, or its cache, when they are looked at again. Does nothing for a tensor that is not
    /// there, and on systems without such advice.
    pub fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some(Entry { bytes, .. }) = self.entries.get(name) {
            // SAFETY: the map is shared, read-only and of a file: dropped pages come back with the same content.
            // Advice that is refused changes nothing.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len())
            };
        }
        #[cfg(not(unix))]
        let _ = name;
    }

    fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.entries.get_key_value(name)?;
        Some(Tensor::new(&self.path, name, entry.dtype, &entry.shape, &self.map[entry.bytes.clone()]))
    }
}

/// Where the data starts, and the header; the format's rules are checked in arithmetic that can't overflow.
fn parse_header(file: &[u8]) -> Result<(usize, Metadata), String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!(
            "it has {} bytes, fewer than the {LENGTH_BYTES} of the header length",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    let header_bytes =
        usize::try_from(length).ok().filter(|&length| length <= MAX_HEADER_BYTES).ok_or_else(|| {
            format!("its header claims {length} bytes, more than the limit of {MAX_HEADER_BYTES}")
        })?;
    let (header, data) = rest.split_at_checked(header_bytes).ok_or_else(|| {
        format!("its header claims {length} bytes, but only {} follow in the file", rest.len())
    })?;
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| format!("header: {error}"))?;
    if metadata.data_len() != data.len() {
        return Err(format!(
            "its header describes {} bytes of tensors, but {} follow in the file",
            metadata.data_len(),
            data.len()
        ));
    }
    Ok((LENGTH_BYTES + header_bytes, metadata))
}

/// The error for a missing tensor, with up to three existing names that share its last two parts.
pub(crate) fn not_found<'a>(path: &Path, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let tail = name.rmatch_indices('.').nth(1).map_or(name, |(dot, _)| &name[dot + 1..]);
    let similar = names.filter(|candidate| candidate.ends_with(tail)).take(3).map(String::from).collect();
    Error::TensorNotFound { path: path.to_path_buf(), name: name.to_string(), similar }
}

//! Writing a file in a stream.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Dtype;
use crate::{Error, atomic};

const METADATA_KEY: &str = "__metadata__";

/// What the header says of a tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor's name, type and shape.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Its size in bytes, or `None` when that overflows or is no whole number of bytes.
    #[must_use]
    pub fn byte_len(&self) -> Option<usize> {
        let elements = self.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        let bits = elements.checked_mul(self.dtype.bitsize())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// A tensor ready to be written: what it is, and its bytes, row-major and little-endian.
#[derive(Clone, Debug)]
pub struct TensorBytes<'a> {
    /// Name, type and shape.
    pub spec: TensorSpec,
    /// As many bytes as type and shape need.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorBytes<'a> {
    /// A tensor of any type from its bytes.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self { spec: TensorSpec::new(name, dtype, shape), bytes: bytes.into() }
    }

    /// An F32 tensor from its values.
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [f32]) -> Self {
        let bytes = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
        };
        Self { spec: TensorSpec::new(name, Dtype::F32, shape), bytes }
    }
}

/// Writes tensors that are in memory. Order of the arguments does not matter: wide types come first in the file
/// and names are sorted, so that every tensor is aligned and equal content gives equal bytes. `metadata` are the
/// free text pairs of the header; Python readers of models expect `("format", "pt")`.
///
/// # Errors
/// A name occurs twice or is reserved, a size contradicts its shape, or the file can't be written.
///
/// # Examples
/// ```
/// use qlora_files::safetensors::{SafetensorsFile, TensorBytes, write_safetensors};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("adapter.safetensors");
/// let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// write_safetensors(&path, [TensorBytes::f32("a", [2, 3], &values)], &[("format", "pt")])?;
/// assert_eq!(SafetensorsFile::open(&path)?.to_f32("a")?, values);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_safetensors<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = TensorBytes<'a>>,
    metadata: &[(&str, &str)],
) -> Result<(), Error> {
    let (specs, bytes): (Vec<TensorSpec>, Vec<Cow<'a, [u8]>>) =
        tensors.into_iter().map(|tensor| (tensor.spec, tensor.bytes)).unzip();
    write_safetensors_with(path, &specs, metadata, |index, file| file.write_all(&bytes[index]))
}

/// Writes tensors one at a time, so that only one has to be in memory: `write(i, file)` is called once for each
/// of `specs`, in the order in which the bytes lie in the file, and writes the bytes of `specs[i]`.
///
/// The file is written under a temporary name and renamed when it is complete ([`atomic::write_file`]).
///
/// # Errors
/// A name occurs twice or is reserved, `write` fails or gives another number of bytes than type and shape need,
/// or the file can't be written.
pub fn write_safetensors_with(
    path: impl AsRef<Path>,
    specs: &[TensorSpec],
    metadata: &[(&str, &str)],
    mut write: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let path = path.as_ref();
    let invalid = |name: &str, reason: &str| Error::InvalidTensor {
        path: path.to_path_buf(),
        name: name.to_string(),
        reason: reason.to_string(),
    };
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(specs[index].dtype.bitsize()), &specs[index].name));

    let mut names = HashSet::new();
    let mut sizes = vec![0; specs.len()];
    let mut total = 0_usize;
    for (size, spec) in sizes.iter_mut().zip(specs) {
        if spec.name == METADATA_KEY || !names.insert(&spec.name) {
            return Err(invalid(&spec.name, "has a reserved name or occurs twice"));
        }
        *size = spec.byte_len().ok_or_else(|| invalid(&spec.name, "has an impossible shape"))?;
        total = total.checked_add(*size).ok_or_else(|| invalid(&spec.name, "makes the file too large"))?;
    }
    let header = header(specs, &sizes, &order, metadata)
        .map_err(|source| Error::ToJson { path: path.to_path_buf(), source })?;

    let mut wrong_size = None;
    let result = atomic::write_file(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for &index in &order {
            let mut counted = Counted { inner: file, written: 0 };
            write(index, &mut counted)?;
            if counted.written != sizes[index] {
                wrong_size = Some((index, counted.written));
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
        }
        Ok(())
    });
    match wrong_size {
        Some((index, written)) => Err(invalid(
            &specs[index].name,
            &format!("has {written} bytes, its type and shape need {}", sizes[index]),
        )),
        None => result,
    }
}

#[derive(Serialize)]
struct HeaderEntry<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

fn header(
    specs: &[TensorSpec],
    sizes: &[usize],
    order: &[usize],
    metadata: &[(&str, &str)],
) -> serde_json::Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let pairs = metadata.iter().map(|&(key, text)| (key.to_string(), Value::from(text)));
        header.insert(METADATA_KEY.to_string(), Value::Object(pairs.collect()));
    }
    let mut offset = 0;
    for &index in order {
        let spec = &specs[index];
        let end = offset + sizes[index];
        let entry = HeaderEntry { dtype: spec.dtype, shape: &spec.shape, data_offsets: [offset, end] };
        header.insert(spec.name.clone(), serde_json::to_value(entry)?);
        offset = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

struct Counted<'a, W> {
    inner: &'a mut W,
    written: usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

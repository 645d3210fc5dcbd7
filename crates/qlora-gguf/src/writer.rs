//! Writing a file in a stream.

use std::collections::HashSet;
use std::io::{self, Write};

use crate::{Array, GgmlType, Metadata, Value};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: u64 = 32;
/// ggml's limit, its final zero included.
const MAX_NAME: usize = 64;

/// What the tensor table says of a tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique in the file and of fewer than 64 bytes, which is ggml's limit.
    pub name: String,
    /// Its shape, outermost dimension first: one to four.
    pub shape: Vec<usize>,
    /// The format of its elements.
    pub ggml_type: GgmlType,
}

impl TensorSpec {
    /// A tensor's name, shape and format.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, ggml_type: GgmlType) -> Self {
        Self { name: name.into(), shape: shape.into(), ggml_type }
    }

    /// Its size in bytes, or `None` when that overflows or the innermost dimension is no whole number of blocks.
    #[must_use]
    pub fn byte_len(&self) -> Option<usize> {
        let columns = *self.shape.last()?;
        let rows = self.shape[..self.shape.len() - 1]
            .iter()
            .try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        self.ggml_type.byte_len(columns)?.checked_mul(rows)
    }
}

/// A file that is about to be written: its metadata and its tensor table, checked.
///
/// ```
/// use qlora_gguf::{GgmlType, Gguf, GgufWriter, Metadata, TensorSpec};
///
/// let metadata = Metadata::from_iter([("general.architecture", "llama")]);
/// let tensors = vec![TensorSpec::new("output_norm.weight", [2], GgmlType::F32)];
/// let mut file = Vec::new();
/// GgufWriter::new(metadata, tensors)?.write(&mut file, |_, out| {
///     [1.5_f32, -2.0].iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
/// })?;
/// assert_eq!(Gguf::from_bytes(file).unwrap().tensor("output_norm.weight").unwrap().dequantize().unwrap(), [1.5, -2.0]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GgufWriter {
    /// All before the data, padded to the alignment.
    header: Vec<u8>,
    tensors: Vec<TensorSpec>,
    /// Bytes of each tensor.
    sizes: Vec<usize>,
    length: u64,
}

impl GgufWriter {
    /// Lays the file out: version 3, little-endian, data aligned to 32 bytes, tensors in the order given.
    ///
    /// `general.alignment` of the metadata is left away.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) when a tensor's name is empty, too long or occurs twice, its
    /// shape has not one to four dimensions or no whole number of blocks, or the file would be too large.
    pub fn new(metadata: Metadata, tensors: Vec<TensorSpec>) -> io::Result<Self> {
        let invalid = |tensor: &TensorSpec, problem: &str| {
            let message = format!("tensor {:?} {problem}", tensor.name);
            io::Error::new(io::ErrorKind::InvalidInput, message)
        };
        let entries: Vec<(&str, &Value)> =
            metadata.iter().filter(|(key, _)| *key != "general.alignment").collect();
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((entries.len() as u64).to_le_bytes());
        for (key, value) in entries {
            put_text(&mut header, key);
            header.extend(value.value_type().id().to_le_bytes());
            put_value(&mut header, value);
        }
        let (mut names, mut sizes, mut offset) = (HashSet::new(), Vec::with_capacity(tensors.len()), 0_u64);
        for tensor in &tensors {
            if tensor.name.is_empty() || tensor.name.len() >= MAX_NAME {
                return Err(invalid(tensor, "has a name that is empty or has 64 bytes or more"));
            }
            if !names.insert(tensor.name.as_str()) {
                return Err(invalid(tensor, "occurs twice"));
            }
            if tensor.shape.is_empty() || tensor.shape.len() > 4 {
                return Err(invalid(
                    tensor,
                    &format!("is {:?}: expected one to four dimensions", tensor.shape),
                ));
            }
            let size = tensor.byte_len().ok_or_else(|| {
                let kind = tensor.ggml_type;
                let problem = format!(
                    "is {:?}, which {kind} cannot hold: its rows are blocks of {}",
                    tensor.shape,
                    kind.block_len()
                );
                invalid(tensor, &problem)
            })?;
            put_text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            header.extend(tensor.shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
            header.extend(tensor.ggml_type.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            sizes.push(size);
            offset = offset
                .checked_add(size as u64)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
                .ok_or_else(|| invalid(tensor, "makes the file too large"))?;
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let length = offset + header.len() as u64;
        Ok(Self { header, tensors, sizes, length })
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_length(&self) -> u64 {
        self.length
    }

    /// The tensors, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Writes the file; `data(i, out)` is called once for each tensor, in order, and writes the blocks of tensor
    /// `i`. One tensor at a time has to be in memory.
    ///
    /// # Errors
    /// What `data` or `out` fail with, and [`InvalidData`](io::ErrorKind::InvalidData) when `data` writes another
    /// number of bytes than the tensor has.
    pub fn write<W: Write>(
        &self,
        out: &mut W,
        mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&self.header)?;
        for (index, &size) in self.sizes.iter().enumerate() {
            let mut counted = Counted { inner: out, written: 0 };
            data(index, &mut counted)?;
            let written = counted.written;
            if written != size {
                let name = &self.tensors[index].name;
                let message =
                    format!("tensor {name:?} got {written} bytes, its shape and format need {size}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            let padding = size.next_multiple_of(ALIGNMENT as usize) - size;
            out.write_all(&[0; ALIGNMENT as usize][..padding])?;
        }
        Ok(())
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => out.push(*value),
        Value::I8(value) => out.extend(value.to_le_bytes()),
        Value::U16(value) => out.extend(value.to_le_bytes()),
        Value::I16(value) => out.extend(value.to_le_bytes()),
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::I32(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::String(value) => put_text(out, value),
        Value::U64(value) => out.extend(value.to_le_bytes()),
        Value::I64(value) => out.extend(value.to_le_bytes()),
        Value::F64(value) => out.extend(value.to_le_bytes()),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(elements) => out.extend(elements),
        Array::I8(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::U16(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::I16(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::U32(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::I32(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::F32(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::Bool(elements) => out.extend(elements.iter().map(|&element| u8::from(element))),
        Array::String(elements) => elements.iter().for_each(|element| put_text(out, element)),
        Array::U64(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::I64(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::F64(elements) => out.extend(elements.iter().flat_map(|element| element.to_le_bytes())),
        Array::Array(elements) => elements.iter().for_each(|element| put_array(out, element)),
    }
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

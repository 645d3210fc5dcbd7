use std::collections::HashMap;
use std::path::Path;

use crate::cursor::{Cursor, Item};
use crate::{Array, GgmlType, GgufError, Metadata, TensorInfo, Value, ValueType};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// How deep arrays may nest. Known writers nest none.
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_DIMENSIONS: u32 = 4;
/// A key length, a value type and a one-byte value.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;
/// A name length, a number of dimensions, a type and an offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;

/// Everything a file says before its data, checked against its length.
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) alignment: u64,
    pub(crate) metadata: Metadata,
    /// In file order.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Positions in `tensors`.
    pub(crate) tensor_index: HashMap<String, usize>,
}

impl Header {
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, GgufError> {
        let cursor = &mut Cursor::new(path, bytes);
        let version = parse_version(cursor)?;
        let tensor_count = cursor.count(MIN_TENSOR_BYTES, Item::TensorCount)?;
        let entry_count = cursor.count(MIN_ENTRY_BYTES, Item::EntryCount)?;

        let metadata = parse_metadata(cursor, entry_count)?;
        let alignment = alignment(path, &metadata)?;

        let mut tensors = Vec::with_capacity(tensor_count);
        let mut tensor_index = HashMap::with_capacity(tensor_count);
        for position in 0..tensor_count {
            let offset = cursor.position();
            let tensor = parse_tensor(cursor, position as u64, alignment)?;
            if tensor_index.insert(tensor.name.clone(), position).is_some() {
                return Err(GgufError::DuplicateTensor {
                    path: path.to_owned(),
                    tensor: tensor.name,
                    offset,
                });
            }
            tensors.push(tensor);
        }
        place_tensors(path, &mut tensors, cursor.position(), alignment, bytes.len() as u64)?;
        Ok(Self { version, alignment, metadata, tensors, tensor_index })
    }
}

fn parse_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let path = cursor.path();
    let magic: [u8; 4] = cursor.array(Item::Magic)?;
    if magic != MAGIC {
        return Err(GgufError::NotGguf { path: path.to_owned(), found: magic });
    }
    let version = cursor.u32(Item::Version)?;
    match version {
        2 | 3 => Ok(version),
        // A big-endian file has the same magic, so its version is what gives it away.
        swapped if swapped != 0 && swapped & 0xffff == 0 => {
            Err(GgufError::BigEndian { path: path.to_owned(), version: swapped.swap_bytes() })
        }
        _ => Err(GgufError::UnsupportedVersion { path: path.to_owned(), version }),
    }
}

fn parse_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::of_file(cursor.path());
    for entry in 0..count {
        let offset = cursor.position();
        let key = cursor.string(Item::Key { entry: entry as u64 })?;
        let value = parse_value(cursor, key)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufError::DuplicateKey {
                path: cursor.path().to_owned(),
                key: key.to_owned(),
                offset,
            });
        }
    }
    Ok(metadata)
}

fn parse_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, GgufError> {
    let value_type = parse_value_type(cursor, Item::ValueType { key })?;
    let item = Item::Value { key };
    Ok(match value_type {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(item)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(item)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(item)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(item)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(item)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(item)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(item)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(item)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(item)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(item)?)),
        ValueType::Bool => Value::Bool(cursor.bool(item)?),
        ValueType::String => Value::String(cursor.string(item)?.to_owned()),
        ValueType::Array => Value::Array(parse_array(cursor, key, 1)?),
    })
}

fn parse_value_type(cursor: &mut Cursor<'_>, item: Item<'_>) -> Result<ValueType, GgufError> {
    let offset = cursor.position();
    let id = cursor.u32(item)?;
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType {
        path: cursor.path().to_owned(),
        what: item.to_string(),
        offset,
        id,
    })
}

fn parse_array(cursor: &mut Cursor<'_>, key: &str, depth: u32) -> Result<Array, GgufError> {
    let item = Item::Value { key };
    if depth > MAX_ARRAY_DEPTH {
        return Err(GgufError::NestedTooDeep {
            path: cursor.path().to_owned(),
            what: item.to_string(),
            offset: cursor.position(),
            limit: MAX_ARRAY_DEPTH,
        });
    }
    let element_type = parse_value_type(cursor, Item::ElementType { key })?;
    let count = cursor.count(element_type.min_bytes(), Item::ElementCount { key })?;
    Ok(match element_type {
        ValueType::U8 => Array::U8(numbers(cursor, count, u8::from_le_bytes, item)?),
        ValueType::I8 => Array::I8(numbers(cursor, count, i8::from_le_bytes, item)?),
        ValueType::U16 => Array::U16(numbers(cursor, count, u16::from_le_bytes, item)?),
        ValueType::I16 => Array::I16(numbers(cursor, count, i16::from_le_bytes, item)?),
        ValueType::U32 => Array::U32(numbers(cursor, count, u32::from_le_bytes, item)?),
        ValueType::I32 => Array::I32(numbers(cursor, count, i32::from_le_bytes, item)?),
        ValueType::U64 => Array::U64(numbers(cursor, count, u64::from_le_bytes, item)?),
        ValueType::I64 => Array::I64(numbers(cursor, count, i64::from_le_bytes, item)?),
        ValueType::F32 => Array::F32(numbers(cursor, count, f32::from_le_bytes, item)?),
        ValueType::F64 => Array::F64(numbers(cursor, count, f64::from_le_bytes, item)?),
        ValueType::Bool => Array::Bool(elements(count, || cursor.bool(item))?),
        ValueType::String => Array::String(elements(count, || cursor.string(item).map(str::to_owned))?),
        ValueType::Array => Array::Array(elements(count, || parse_array(cursor, key, depth + 1))?),
    })
}

fn numbers<const N: usize, T>(
    cursor: &mut Cursor<'_>,
    count: usize,
    from_le_bytes: fn([u8; N]) -> T,
    item: Item<'_>,
) -> Result<Vec<T>, GgufError> {
    elements(count, || cursor.array(item).map(from_le_bytes))
}

/// `count` elements; `count` has been checked against the rest of the file.
fn elements<T>(count: usize, mut element: impl FnMut() -> Result<T, GgufError>) -> Result<Vec<T>, GgufError> {
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(element()?);
    }
    Ok(elements)
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64, GgufError> {
    let alignment = metadata.opt_u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment < 1 << 31 {
        Ok(alignment)
    } else {
        Err(GgufError::InvalidAlignment { path: path.to_owned(), alignment })
    }
}

/// One entry of the tensor table; its offset is still relative to the data section.
fn parse_tensor(cursor: &mut Cursor<'_>, position: u64, alignment: u64) -> Result<TensorInfo, GgufError> {
    let path = cursor.path();
    let name = cursor.string(Item::TensorName { tensor: position })?;
    let item = Item::Dimensions { tensor: name };
    let offset = cursor.position();
    let dimensions = cursor.u32(item)?;
    if dimensions > MAX_DIMENSIONS {
        return Err(GgufError::TooManyDimensions {
            path: path.to_owned(),
            tensor: name.to_owned(),
            found: dimensions,
            offset,
        });
    }
    let mut shape = elements(dimensions as usize, || cursor.u64(item))?;
    shape.reverse();

    let id = cursor.u32(Item::TensorType { tensor: name })?;
    let ggml_type = GgmlType::from_id(id).ok_or_else(|| GgufError::UnknownGgmlType {
        path: path.to_owned(),
        tensor: name.to_owned(),
        id,
        name: GgmlType::unsupported_name(id),
    })?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(ggml_type.block_len() as u64) {
        return Err(GgufError::RaggedRow { path: path.to_owned(), tensor: name.to_owned(), ggml_type, row });
    }
    let Some((shape, elements, byte_len)) = sizes(&shape, ggml_type) else {
        return Err(GgufError::ShapeOverflow { path: path.to_owned(), tensor: name.to_owned(), shape });
    };

    let offset = cursor.u64(Item::TensorOffset { tensor: name })?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::MisalignedTensor {
            path: path.to_owned(),
            tensor: name.to_owned(),
            offset,
            alignment,
        });
    }
    Ok(TensorInfo { name: name.to_owned(), shape, ggml_type, offset, elements, byte_len })
}

/// The shape as the machine counts, its elements, and the bytes they take; `None` on overflow.
fn sizes(shape: &[u64], ggml_type: GgmlType) -> Option<(Vec<usize>, usize, usize)> {
    let shape: Vec<usize> = shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>()?;
    let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n))?;
    // The values as f32 must be addressable too.
    elements.checked_mul(size_of::<f32>()).filter(|&bytes| isize::try_from(bytes).is_ok())?;
    let byte_len = ggml_type.byte_len(elements)?;
    Some((shape, elements, byte_len))
}

/// Turns the tensors' offsets into offsets in the file, and checks that each lies inside it and shares no byte
/// with another.
fn place_tensors(
    path: &Path,
    tensors: &mut [TensorInfo],
    header_end: u64,
    alignment: u64,
    file_length: u64,
) -> Result<(), GgufError> {
    // Both are below 2^63: the header ends inside the file, and the alignment is below 2^31.
    let data_start = header_end.next_multiple_of(alignment);
    for tensor in tensors.iter_mut() {
        let start = data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.byte_len as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_length || tensor.byte_len == 0 => tensor.offset = start,
            _ => {
                return Err(GgufError::TensorOutOfBounds {
                    path: path.to_owned(),
                    tensor: tensor.name.clone(),
                    offset: start.unwrap_or(u64::MAX),
                    length: tensor.byte_len as u64,
                    file_length,
                });
            }
        }
    }

    let mut by_offset: Vec<&TensorInfo> = tensors.iter().filter(|tensor| tensor.byte_len > 0).collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if second.offset < first.offset + first.byte_len as u64 {
            return Err(GgufError::OverlappingTensors {
                path: path.to_owned(),
                first: first.name.clone(),
                second: second.name.clone(),
                offset: second.offset,
            });
        }
    }
    Ok(())
}

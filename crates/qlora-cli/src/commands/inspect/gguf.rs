//! A GGUF file.

use std::path::Path;

use qlora_core::gguf::{Array, Gguf, Value as GgufValue};
use serde_json::{Map, Value, json};

use super::report::{Report, TensorRow};
use crate::failure::Failure;

/// The longest array of which the elements are shown: vocabularies are counted.
const MAX_ELEMENTS: usize = 16;

pub(crate) fn describe(path: &Path) -> Result<Report, Failure> {
    let gguf = Gguf::open(path)?;
    let mut metadata = Map::new();
    metadata.insert("gguf.version".to_owned(), json!(gguf.version()));
    for (key, value) in gguf.metadata().iter() {
        metadata.insert(key.to_owned(), to_json(value));
    }
    let tensors = gguf
        .tensors()
        .iter()
        .map(|tensor| TensorRow {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            element_type: tensor.ggml_type.name().to_owned(),
            bytes: tensor.byte_len as u64,
        })
        .collect();
    Ok(Report::new(path, "GGUF file", gguf.file_length(), metadata, tensors))
}

fn to_json(value: &GgufValue) -> Value {
    match value {
        GgufValue::U8(v) => json!(v),
        GgufValue::I8(v) => json!(v),
        GgufValue::U16(v) => json!(v),
        GgufValue::I16(v) => json!(v),
        GgufValue::U32(v) => json!(v),
        GgufValue::I32(v) => json!(v),
        GgufValue::F32(v) => json!(v),
        GgufValue::Bool(v) => json!(v),
        GgufValue::String(v) => json!(v),
        GgufValue::U64(v) => json!(v),
        GgufValue::I64(v) => json!(v),
        GgufValue::F64(v) => json!(v),
        GgufValue::Array(array) if array.len() > MAX_ELEMENTS => {
            json!(format!("{} {} values", array.len(), array.element_type()))
        }
        GgufValue::Array(array) => array_to_json(array),
    }
}

fn array_to_json(array: &Array) -> Value {
    match array {
        Array::U8(v) => json!(v),
        Array::I8(v) => json!(v),
        Array::U16(v) => json!(v),
        Array::I16(v) => json!(v),
        Array::U32(v) => json!(v),
        Array::I32(v) => json!(v),
        Array::F32(v) => json!(v),
        Array::Bool(v) => json!(v),
        Array::String(v) => json!(v),
        Array::U64(v) => json!(v),
        Array::I64(v) => json!(v),
        Array::F64(v) => json!(v),
        Array::Array(v) => json!(format!("an array of {} arrays", v.len())),
    }
}

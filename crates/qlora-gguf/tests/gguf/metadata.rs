use qlora_gguf::{Array, Gguf, GgufError, Metadata, Value, ValueType};

use crate::writer::File;

#[test]
fn every_value_type_reads() {
    let gguf = Gguf::from_bytes(File::sample().bytes()).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.string("general.architecture").unwrap(), "llama");
    for (key, value) in [("u8", 200), ("u16", 60_000), ("u64", 1 << 40)] {
        assert_eq!(metadata.u64(key).unwrap(), value, "{key}");
    }
    for (key, value) in [
        ("i8", Value::I8(-5)),
        ("i16", Value::I16(-5)),
        ("i32", Value::I32(-5)),
        ("i64", Value::I64(-5)),
        ("nested", Value::Array(Array::Array(vec![Array::U32(vec![7]), Array::U32(vec![7])]))),
    ] {
        assert_eq!(metadata.get(key), Some(&value));
        let error = metadata.u64(key).unwrap_err();
        match value {
            Value::Array(_) => assert!(matches!(error, GgufError::WrongValueType { .. }), "{error}"),
            _ => assert!(matches!(error, GgufError::ValueOutOfRange { found: -5, .. }), "{error}"),
        }
    }
    assert_eq!(metadata.f32("f32").unwrap(), 1.5);
    assert_eq!(metadata.f32("f64").unwrap(), 2.5);
    assert!(metadata.bool("bool").unwrap());
    assert_eq!(metadata.strings("tokens").unwrap(), ["a", "é"]);
    assert_eq!(metadata.f32s("scores").unwrap(), [1.0, -1.0]);
    assert_eq!(metadata.i32s("token_type").unwrap(), [1, 3]);
    assert_eq!(metadata.bools("flags").unwrap(), [true, false, true]);
    assert_eq!(metadata.iter().next().unwrap().0, "general.architecture");
    assert_eq!(metadata.iter().len(), 17);
}

#[test]
fn missing_and_mistyped_keys_are_told_apart() {
    let gguf = Gguf::from_bytes(File::sample().bytes()).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.opt_u32("absent").unwrap(), None);
    assert_eq!(
        metadata.u32("absent").unwrap_err().to_string(),
        "<memory>: metadata key \"absent\" is missing, expected an unsigned integer of at most 32 bits"
    );
    assert_eq!(
        metadata.opt_u32("u64").unwrap_err().to_string(),
        "<memory>: metadata key \"u64\" is 1099511627776, expected an unsigned integer of at most 32 bits"
    );
    assert_eq!(
        metadata.opt_string("f32").unwrap_err().to_string(),
        "<memory>: metadata key \"f32\" is an f32, expected a string"
    );
    assert_eq!(
        metadata.strings("scores").unwrap_err().to_string(),
        "<memory>: metadata key \"scores\" is an array of 2 f32, expected an array of string"
    );
}

#[test]
fn built_in_code() {
    let mut metadata: Metadata = [("b", 1_u32), ("a", 2)].into_iter().collect();
    assert_eq!(metadata.insert("b", vec!["x".to_owned()]), Some(Value::U32(1)));
    let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["b", "a"]);
    assert_eq!(metadata.strings("b").unwrap(), ["x"]);
    assert_eq!(metadata.len(), 2);
}

#[test]
fn value_types_keep_their_numbers() {
    for id in 0..13 {
        assert_eq!(ValueType::from_id(id).unwrap().id(), id);
    }
    assert_eq!(ValueType::from_id(13), None);
    assert_eq!(ValueType::from_id(10), Some(ValueType::U64));
}

use std::io::{self, Write};

use qlora_gguf::{GgmlType, Gguf, GgufWriter, Metadata, TensorSpec};

use crate::writer::File;

#[test]
fn every_value_and_tensor_is_read_as_it_was_written() {
    let source = Gguf::from_bytes(File::sample().bytes()).unwrap();
    let tensors = source.tensors().iter().map(|t| TensorSpec::new(&t.name, t.shape.clone(), t.ggml_type));
    let writer = GgufWriter::new(source.metadata().clone(), tensors.collect()).unwrap();
    let mut bytes = Vec::new();
    let mut asked = Vec::new();
    writer
        .write(&mut bytes, |index, out| {
            asked.push(index);
            out.write_all(source.tensor(&source.tensors()[index].name).unwrap().bytes())
        })
        .unwrap();
    assert_eq!(asked, [0, 1, 2]);
    assert_eq!(writer.file_length(), bytes.len() as u64);

    let copy = Gguf::from_bytes(bytes).unwrap();
    assert_eq!((copy.version(), copy.alignment()), (3, 32));
    let without_alignment = |gguf: &Gguf| {
        let entries = gguf.metadata().iter().filter(|(key, _)| *key != "general.alignment");
        entries.map(|(key, value)| (key.to_owned(), value.clone())).collect::<Metadata>()
    };
    assert_eq!(copy.metadata(), &without_alignment(&source));
    for tensor in source.tensors() {
        let (old, new) = (source.tensor(&tensor.name).unwrap(), copy.tensor(&tensor.name).unwrap());
        assert_eq!((new.shape(), new.ggml_type(), new.bytes()), (old.shape(), old.ggml_type(), old.bytes()));
        assert!(new.info().offset.is_multiple_of(32));
    }
}

#[test]
fn what_no_file_can_hold_is_refused_by_name() {
    let refused = |specs: Vec<TensorSpec>| {
        let error = GgufWriter::new(Metadata::new(), specs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        error.to_string()
    };
    let spec = |name: &str, shape: &[usize], kind| TensorSpec::new(name, shape, kind);
    for (specs, expected) in [
        (vec![spec("a", &[2, 33], GgmlType::Q8_0)], "\"a\" is [2, 33], which Q8_0 cannot hold"),
        (vec![spec("a", &[256, 128], GgmlType::Q4K)], "its rows are blocks of 256"),
        (vec![spec("a", &[], GgmlType::F32)], "one to four dimensions"),
        (vec![spec("a", &[1; 5], GgmlType::F32)], "one to four dimensions"),
        (vec![spec("", &[1], GgmlType::F32)], "a name that is empty"),
        (vec![spec(&"x".repeat(64), &[1], GgmlType::F32)], "64 bytes or more"),
        (vec![spec("a", &[1], GgmlType::F32), spec("a", &[2], GgmlType::F16)], "\"a\" occurs twice"),
        (vec![spec("a", &[usize::MAX, 2], GgmlType::F32)], "cannot hold"),
    ] {
        let message = refused(specs);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_tensor_of_the_wrong_size_is_an_error() {
    let specs = vec![TensorSpec::new("a", [3], GgmlType::F32)];
    let writer = GgufWriter::new(Metadata::new(), specs).unwrap();
    let error = writer.write(&mut Vec::new(), |_, out: &mut dyn Write| out.write_all(&[0; 8])).unwrap_err();
    assert_eq!(error.to_string(), "tensor \"a\" got 8 bytes, its shape and format need 12");
}

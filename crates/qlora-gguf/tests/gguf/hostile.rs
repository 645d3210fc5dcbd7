use std::time::{Duration, Instant};

use proptest::prelude::*;
use qlora_gguf::{Gguf, GgufError};

use crate::writer::{File, text};

/// Opens the bytes and, when they pass, reads everything in them.
fn read_all(bytes: Vec<u8>) -> Result<(), GgufError> {
    let gguf = Gguf::from_bytes(bytes)?;
    for (key, value) in gguf.metadata().iter() {
        let _ = (gguf.metadata().opt_u64(key), gguf.metadata().opt_strings(key), value.describe());
    }
    for info in gguf.tensors() {
        let _ = gguf.tensor(&info.name).expect("listed").dequantize();
    }
    let _ = gguf.parameter_count();
    Ok(())
}

/// Builds a file, expects it to be refused, and returns the message.
fn refused(build: impl FnOnce(&mut File)) -> (GgufError, String) {
    let mut file = File::new();
    build(&mut file);
    let error = Gguf::from_bytes(file.bytes()).expect_err("a damaged file was taken");
    let message = error.to_string();
    assert!(message.starts_with("<memory>: "), "{message}");
    (error, message)
}

macro_rules! assert_refused {
    ($pattern:pat, $part:expr, $build:expr) => {{
        let (error, message) = refused($build);
        assert!(matches!(error, $pattern), "{error:?}");
        assert!(message.contains($part), "{message:?} does not contain {:?}", $part);
    }};
}

#[test]
fn the_sample_is_right() {
    read_all(File::sample().bytes()).unwrap();
    let gguf = Gguf::from_bytes(File::sample().bytes()).unwrap();
    assert_eq!(gguf.tensor("dense").unwrap().shape(), [2, 3]);
    assert_eq!(gguf.tensor("dense").unwrap().dequantize().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(gguf.tensor("blocks").unwrap().dequantize().unwrap()[31], 15.5);
    assert_eq!(gguf.parameter_count(), 39);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = File::sample().bytes();
    for length in 0..bytes.len() {
        let error = read_all(bytes[..length].to_vec()).expect_err("a truncated file was taken");
        assert!(
            matches!(
                error,
                GgufError::Truncated { .. }
                    | GgufError::ImpossibleCount { .. }
                    | GgufError::TensorOutOfBounds { .. }
            ),
            "cut at {length}: {error:?}"
        );
    }
}

#[test]
fn every_single_bit_flip_is_survived() {
    let bytes = File::sample().bytes();
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = read_all(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_damage_is_survived(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        length in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = File::sample().bytes();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        let _ = read_all(bytes);
    }

    #[test]
    fn random_bytes_after_the_magic_are_survived(tail in prop::collection::vec(any::<u8>(), 0..200), counts in 0_u64..4) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(counts.to_le_bytes());
        bytes.extend((3 - counts).to_le_bytes());
        bytes.extend(tail);
        let _ = read_all(bytes);
    }
}

#[test]
fn a_count_that_the_file_cannot_hold_is_refused_before_anything_is_reserved() {
    let start = Instant::now();
    assert_refused!(GgufError::ImpossibleCount { .. }, "number of metadata entries at offset 16", |file| {
        file.entry_count = Some(1 << 40);
        file.entries = vec![0; 76];
    });
    assert_refused!(
        GgufError::ImpossibleCount { .. },
        "number of tensors at offset 8 is 1099511627776",
        |file| {
            file.tensor_count = Some(1 << 40);
            file.entries = vec![0; 76];
        }
    );
    assert_refused!(GgufError::ImpossibleCount { .. }, "the array length of key \"a\"", |file| {
        file.array(b"a", 0, 1 << 40, &[0; 8]);
    });
    assert_refused!(GgufError::ImpossibleCount { .. }, "the array length of key \"a\"", |file| {
        file.array(b"a", 8, u64::MAX, &[0; 8]);
    });
    assert_refused!(GgufError::Truncated { .. }, "the value of key \"a\"", |file| {
        file.entry(b"a", 8, &(1_u64 << 40).to_le_bytes());
    });
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn headers() {
    assert_refused!(GgufError::NotGguf { .. }, "starts with \"vers\"", |file| file.magic = *b"vers");
    assert_refused!(GgufError::UnsupportedVersion { version: 1, .. }, "version 1", |file| file.version = 1);
    assert_refused!(GgufError::UnsupportedVersion { version: 4, .. }, "version 4", |file| file.version = 4);
    assert_refused!(GgufError::UnsupportedVersion { version: 0, .. }, "version 0", |file| file.version = 0);
    assert_refused!(GgufError::BigEndian { version: 3, .. }, "big-endian", |file| {
        file.version = 3_u32.swap_bytes();
    });
    let mut old = File::sample();
    old.version = 2;
    assert_eq!(Gguf::from_bytes(old.bytes()).unwrap().version(), 2);
    let empty = Gguf::from_bytes(File::new().bytes()).unwrap();
    assert!(empty.metadata().is_empty() && empty.tensors().is_empty());
}

#[test]
fn values() {
    assert_refused!(GgufError::InvalidUtf8 { .. }, "the key of metadata entry 0 at offset 32", |file| {
        file.entry(b"\xff", 0, &[0]);
    });
    assert_refused!(GgufError::InvalidUtf8 { .. }, "the value of key \"a\"", |file| {
        file.entry(b"a", 8, &text(b"ab\xc3"));
    });
    assert_refused!(GgufError::InvalidBool { found: 2, .. }, "expected 0 or 1", |file| file.entry(
        b"a",
        7,
        &[2]
    ));
    assert_refused!(GgufError::InvalidBool { .. }, "key \"a\"", |file| file.array(b"a", 7, 2, &[0, 9]));
    assert_refused!(GgufError::UnknownValueType { id: 13, .. }, "value type of key \"a\"", |file| {
        file.entry(b"a", 13, &[0; 8]);
    });
    assert_refused!(GgufError::UnknownValueType { id: 99, .. }, "element type of key \"a\"", |file| {
        file.array(b"a", 99, 0, &[0; 8]);
    });
    assert_refused!(GgufError::DuplicateKey { .. }, "key \"a\\n\" at offset 39 appears twice", |file| {
        file.entry(b"a\n", 0, &[0]);
        file.entry(b"a\n", 0, &[0]);
    });
    assert_refused!(GgufError::NestedTooDeep { .. }, "nests arrays deeper than 4", |file| {
        let level = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
        file.array(b"a", 9, 1, &level.repeat(1000));
    });
}

#[test]
fn alignments() {
    for alignment in [0_u32, 3, 48, 1 << 31, u32::MAX] {
        assert_refused!(GgufError::InvalidAlignment { .. }, "expected a power of two", |file| {
            file.entry(b"general.alignment", 4, &alignment.to_le_bytes());
        });
    }
    assert_refused!(GgufError::WrongValueType { .. }, "general.alignment", |file| {
        file.entry(b"general.alignment", 8, &text(b"32"));
    });
    assert_refused!(GgufError::MisalignedTensor { .. }, "not a multiple of the alignment 32", |file| {
        file.tensor(b"a", &[1], 0, 16);
        file.data = vec![0; 64];
    });
}

#[test]
fn tensors() {
    assert_refused!(GgufError::DuplicateTensor { .. }, "tensor \"a\"", |file| {
        file.tensor(b"a", &[1], 0, 0);
        file.tensor(b"a", &[1], 0, 32);
        file.data = vec![0; 64];
    });
    assert_refused!(GgufError::TooManyDimensions { found: 5, .. }, "tensor \"a\" has 5 dimensions", |file| {
        file.tensor(b"a", &[1; 5], 0, 0);
    });
    assert_refused!(GgufError::TooManyDimensions { found: u32::MAX, .. }, "at most 4", |file| {
        file.tensors = [&text(b"a")[..], &u32::MAX.to_le_bytes(), &[0; 16]].concat();
        file.tensor_count = Some(1);
    });
    assert_refused!(GgufError::ShapeOverflow { .. }, "shape [4294967296, 4294967296]", |file| {
        file.tensor(b"a", &[1 << 32, 1 << 32], 0, 0);
    });
    assert_refused!(GgufError::ShapeOverflow { .. }, "tensor \"a\"", |file| {
        file.tensor(b"a", &[1 << 61], 24, 0);
    });
    assert_refused!(GgufError::RaggedRow { row: 48, .. }, "Q8_0, whose blocks hold 32 values", |file| {
        file.tensor(b"a", &[48, 2], 8, 0);
        file.data = vec![0; 128];
    });
    assert_refused!(GgufError::RaggedRow { row: 1, .. }, "but its rows hold 1", |file| {
        file.tensor(b"a", &[], 8, 0);
    });
    assert_refused!(
        GgufError::UnknownGgmlType { id: 4, .. },
        "ggml type 4 (Q4_2, removed from ggml)",
        |file| {
            file.tensor(b"a", &[32], 4, 0);
        }
    );
    assert_refused!(GgufError::UnknownGgmlType { id: 1000, .. }, "ggml type 1000 (unknown)", |file| {
        file.tensor(b"a", &[32], 1000, 0);
    });
    assert_refused!(
        GgufError::TensorOutOfBounds { .. },
        "need 64 bytes at offset 64, but the file has 96",
        |file| {
            file.tensor(b"a", &[16], 0, 0);
            file.data = vec![0; 32];
        }
    );
    assert_refused!(GgufError::TensorOutOfBounds { .. }, "tensor \"a\"", |file| {
        file.tensor(b"a", &[8], 0, u64::MAX - 31);
        file.data = vec![0; 32];
    });
    assert_refused!(GgufError::OverlappingTensors { .. }, "\"b\" and \"a\" overlap at offset", |file| {
        file.tensor(b"a", &[8], 0, 32);
        file.tensor(b"b", &[16], 0, 0);
        file.data = vec![0; 64];
    });
}

#[test]
fn odd_but_right() {
    let mut file = File::new();
    file.tensor(b"scalar", &[], 0, 0);
    file.tensor(b"empty", &[0, 7], 0, 1 << 40);
    file.tensor(b"same place as nothing", &[0], 0, 0);
    file.data = 4.0_f32.to_le_bytes().to_vec();
    let gguf = Gguf::from_bytes(file.bytes()).unwrap();
    assert_eq!(gguf.tensor("scalar").unwrap().dequantize().unwrap(), [4.0]);
    assert_eq!(gguf.tensor("empty").unwrap().shape(), [7, 0]);
    assert!(gguf.tensor("empty").unwrap().dequantize().unwrap().is_empty());
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &std::path::Path| Gguf::open(path).unwrap_err().to_string();
    assert!(message(folder.path()).contains("it is not a regular file"));
    let absent = folder.path().join("absent.gguf");
    assert!(message(&absent).contains("absent.gguf: cannot open the GGUF file"));
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(message(&empty).contains("empty.gguf: the file ends inside the magic number"));
}

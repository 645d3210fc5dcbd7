//! Round trips, checkpoints of one and many files, and files that lie.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::prelude::*;
use qlora_files::Error;
use qlora_files::safetensors::{
    Checkpoint, Dtype, SafetensorsFile, TensorBytes, TensorSpec, write_safetensors, write_safetensors_with,
    write_sharded,
};

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 - 7.0) / 3.0).collect()
}

fn two_tensors(path: &Path) {
    let floats = values(15);
    let tensors =
        [TensorBytes::new("odd", Dtype::U8, [3], vec![1, 2, 3]), TensorBytes::f32("w", [5, 3], &floats)];
    write_safetensors(path, tensors, &[("format", "pt")]).unwrap();
}

#[test]
fn tensors_are_aligned_sorted_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    two_tensors(&path);
    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header % 8, 0);
    let text = std::str::from_utf8(&bytes[8..8 + header as usize]).unwrap();
    assert_eq!(
        text.trim_end(),
        r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[5,3],"data_offsets":[0,60]},"#
            .to_owned()
            + r#""odd":{"dtype":"U8","shape":[3],"data_offsets":[60,63]}}"#
    );

    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["w", "odd"]);
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.to_f32("w").unwrap(), values(15));
    let mut rows = [0.0; 6];
    file.tensor("w").unwrap().read_rows_f32_into(2..4, &mut rows).unwrap();
    assert_eq!(rows, values(15)[6..12]);
    assert_eq!(file.tensor("odd").unwrap().bytes(), [1, 2, 3]);
    let error = file.to_f32("odd").unwrap_err();
    assert!(error.to_string().contains("`odd` is stored as U8"), "{error}");
}

#[test]
fn half_precision_is_exact_over_chunk_borders_and_odd_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.safetensors");
    for count in [1, 1023, 1024, 2500] {
        let half: Vec<u8> = values(count).iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let brain: Vec<u8> = values(count).iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let tensors = [
            TensorBytes::new("f16", Dtype::F16, [count], half),
            TensorBytes::new("bf16", Dtype::BF16, [count], brain),
        ];
        write_safetensors(&path, tensors, &[]).unwrap();
        // A header of odd length, as other writers make, puts the data at odd addresses.
        let mut bytes = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        bytes[..8].copy_from_slice(&(header + 1).to_le_bytes());
        bytes.insert(8 + header as usize, b' ');
        fs::write(&path, bytes).unwrap();

        let file = SafetensorsFile::open(&path).unwrap();
        let expected = |round: fn(f32) -> f32| values(count).into_iter().map(round).collect::<Vec<_>>();
        assert_eq!(file.to_f32("f16").unwrap(), expected(|v| f16::from_f32(v).to_f32()));
        assert_eq!(file.to_f32("bf16").unwrap(), expected(|v| bf16::from_f32(v).to_f32()));
    }
}

#[test]
fn scalars_and_empty_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.safetensors");
    write_safetensors(&path, [TensorBytes::f32("s", [], &[4.5]), TensorBytes::f32("e", [0, 3], &[])], &[])
        .unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.to_f32("s").unwrap(), [4.5]);
    assert_eq!(file.to_f32("e").unwrap(), [0.0; 0]);
    write_safetensors(&path, [], &[]).unwrap();
    assert_eq!(SafetensorsFile::open(&path).unwrap().names().len(), 0);
}

#[test]
fn a_writer_refuses_what_it_cannot_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let refused = |tensors: Vec<TensorBytes<'_>>, word: &str| {
        let error = write_safetensors(&path, tensors, &[]).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!path.exists());
    };
    refused(vec![TensorBytes::f32("a", [1], &[1.0]), TensorBytes::f32("a", [1], &[1.0])], "twice");
    refused(vec![TensorBytes::f32("__metadata__", [1], &[1.0])], "reserved");
    refused(vec![TensorBytes::f32("a", [2], &[1.0])], "has 4 bytes, its type and shape need 8");
    refused(vec![TensorBytes::f32("a", [usize::MAX, 2], &[])], "impossible shape");
    let huge: Vec<_> = (0..9).map(|i| TensorBytes::f32(format!("t{i}"), [usize::MAX / 32], &[])).collect();
    refused(huge, "too large");
}

#[test]
fn a_streaming_writer_is_asked_in_file_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let specs = [
        TensorSpec::new("b", Dtype::U8, [2]),
        TensorSpec::new("a", Dtype::U8, [1]),
        TensorSpec::new("c", Dtype::F32, []),
    ];
    let mut asked = Vec::new();
    write_safetensors_with(&path, &specs, &[], |index, file| {
        asked.push(index);
        file.write_all(&vec![index as u8; specs[index].byte_len().unwrap()])
    })
    .unwrap();
    assert_eq!(asked, [2, 1, 0]);
    assert_eq!(SafetensorsFile::open(&path).unwrap().tensor("b").unwrap().bytes(), [0, 0]);
}

fn sharded(folder: &Path) -> PathBuf {
    write_safetensors(folder.join("m-1.safetensors"), [TensorBytes::f32("x.a", [1], &[1.0])], &[]).unwrap();
    write_safetensors(folder.join("m-2.safetensors"), [TensorBytes::f32("x.b", [1], &[2.0])], &[]).unwrap();
    let index = folder.join("model.safetensors.index.json");
    fs::write(
        &index,
        r#"{"metadata":{"total_size":8},"weight_map":{"x.a":"m-1.safetensors","x.b":"m-2.safetensors"}}"#,
    )
    .unwrap();
    index
}

#[test]
fn a_sharded_checkpoint_is_one_set_of_names() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x.a", "x.b"]);
    assert_eq!(checkpoint.to_f32("x.b").unwrap(), [2.0]);
    let error = checkpoint.tensor("model.x.b").unwrap_err();
    assert!(error.to_string().contains("no tensor `model.x.b`; it has `x.b`"), "{error}");
    let single = Checkpoint::open(folder.path().join("m-1.safetensors")).unwrap();
    assert_eq!(single.names().collect::<Vec<_>>(), ["x.a"]);
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Checkpoint::open(folder.path()).unwrap_err(), Error::NoCheckpoint { .. }));
    let index = sharded(folder.path());
    let refused = |map: &str, word: &str| {
        fs::write(&index, format!(r#"{{"weight_map":{{{map}}}}}"#)).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::InvalidIndex { .. }) && error.to_string().contains(word), "{error}");
    };
    refused(r#""x.a":"m-3.safetensors""#, "`m-3.safetensors` is missing");
    refused(r#""x.a":"m-2.safetensors""#, "`x.a` is not in shard `m-2.safetensors`");
    refused(r#""x.c":"m-2.safetensors""#, "`x.c` is not in shard");
    for outside in ["../m-1.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b"] {
        refused(&format!(r#""x.a":"{outside}""#), "not a plain file name");
    }
    fs::copy(folder.path().join("m-1.safetensors"), folder.path().join("m-2.safetensors")).unwrap();
    refused(r#""x.a":"m-1.safetensors","x.b":"m-2.safetensors""#, "`x.a` is in two shards");
    fs::write(&index, "{\"weight_map\": 3}").unwrap();
    assert!(matches!(Checkpoint::open(folder.path()).unwrap_err(), Error::FromJson { .. }));
}

fn open_bytes(bytes: &[u8]) -> Result<SafetensorsFile, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    SafetensorsFile::open(&path)
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn hostile_headers_are_refused() {
    let refused = |bytes: &[u8], word: &str| {
        let error = open_bytes(bytes).unwrap_err();
        assert!(matches!(error, Error::InvalidSafetensors { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(b"", "it has 0 bytes");
    refused(&[1, 2, 3], "it has 3 bytes");
    refused(&u64::MAX.to_le_bytes(), "more than the limit");
    refused(&99_999_999_u64.to_le_bytes(), "only 0 follow");
    refused(&with_header("{\"a\":", 0), "header: EOF");
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    refused(&with_header(&entry("[2]", 0, 8), 7), "describes 8 bytes of tensors, but 7 follow");
    refused(&with_header(&entry("[2]", 0, 8), 9), "describes 8 bytes of tensors, but 9 follow");
    refused(&with_header(&entry("[3]", 0, 8), 8), "header");
    refused(&with_header(&entry("[2]", 8, 0), 8), "header");
    refused(&with_header(&entry("[2]", 4, 12), 12), "header");
    refused(&with_header(&entry("[9223372036854775807,9223372036854775807]", 0, 8), 8), "header");
    refused(&with_header(&entry("[-1]", 0, 8), 8), "header");
    refused(&with_header(&entry("[2]", 0, 8).replace("F32", "Q4"), 8), "header");
    refused(&with_header(&"[".repeat(100_000), 0), "header");

    // Offsets that are consistent with each other but whose end wraps past the size of the address space.
    let block = 1_u64 << 60;
    let tensors: Vec<String> = (0..16)
        .map(|i| {
            let end = block.wrapping_mul(i + 1).wrapping_sub(u64::from(i == 15));
            let size = end.wrapping_sub(block * i);
            format!(r#""t{i:02}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{},{end}]}}"#, block * i)
        })
        .collect();
    refused(&with_header(&format!("{{{}}}", tensors.join(",")), 8), "follow in the file");
}

#[test]
fn every_truncation_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    two_tensors(&path);
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        assert!(open_bytes(&bytes[..length]).is_err(), "{length} of {} bytes were accepted", bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0_usize..400, any::<u8>()), 1..6)) {
        let mut bytes = with_header(r#"{"w":{"dtype":"BF16","shape":[5,3],"data_offsets":[0,30]}}"#, 30);
        let length = bytes.len();
        for (position, mask) in flips {
            bytes[position % length] ^= mask;
        }
        if let Ok(file) = open_bytes(&bytes) {
            for tensor in file.tensors() {
                let _ = tensor.to_f32();
                prop_assert!(tensor.bytes().len() <= length);
            }
        }
    }
}

#[test]
fn shards_are_filled_up_to_their_limit_and_read_as_one_checkpoint() {
    let floats: Vec<Vec<f32>> = [3, 2, 1, 9, 1].map(values).to_vec();
    let specs: Vec<TensorSpec> = floats
        .iter()
        .zip(["c", "a", "e", "d", "b"])
        .map(|(values, name)| TensorSpec::new(name, Dtype::F32, [values.len()]))
        .collect();
    // (limit, tensors of each file): 9 floats are more than any limit below 36.
    for (limit, expected) in [
        (20, vec![vec!["c", "a"], vec!["e"], vec!["d"], vec!["b"]]),
        (24, vec![vec!["a", "c", "e"], vec!["d"], vec!["b"]]),
        (64, vec![vec!["a", "b", "c", "d", "e"]]),
        (63, vec![vec!["a", "c", "d", "e"], vec!["b"]]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let written = write_sharded(&folder, &specs, limit, &[("format", "pt")], |index, file| {
            floats[index].iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
        })
        .unwrap();
        assert_eq!(written, expected.len());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for (spec, values) in specs.iter().zip(&floats) {
            assert_eq!(&checkpoint.to_f32(&spec.name).unwrap(), values);
        }
        let mut files: Vec<Vec<&str>> = checkpoint.files().iter().map(|f| f.names().collect()).collect();
        let mut expected = expected;
        files.iter_mut().chain(&mut expected).for_each(|names| names.sort_unstable());
        files.sort();
        expected.sort();
        assert_eq!(files, expected);
        let index = folder.path().join("model.safetensors.index.json");
        assert_eq!(index.exists(), written > 1);
        if index.exists() {
            let index: serde_json::Value = serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
            assert_eq!(index["metadata"]["total_size"], 64);
            assert_eq!(index["weight_map"]["b"], format!("model-{written:05}-of-{written:05}.safetensors"));
        }
    }
}

//! Reading an adapter that PEFT wrote, writing it again, and refusing damaged ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use qlora_export::{
    AdapterTensor, ExportError, Factor, InvalidAdapter, PeftAdapter, PeftConfig, PeftError, TargetModules,
    export_peft,
};
use qlora_files::safetensors::{Dtype, TensorBytes, write_safetensors};
use serde_json::{Value, json};

const UP: &str = "model.layers.0.mlp.up_proj";
const Q: &str = "model.layers.1.self_attn.q_proj";

fn tensor(shape: [usize; 2], seed: f32) -> AdapterTensor {
    let values = (0..shape[0] * shape[1]).map(|i| (i as f32 + seed).sin()).collect();
    AdapterTensor { shape: shape.to_vec(), values }
}

/// Two layers, one with a rank of its own.
fn small() -> PeftAdapter {
    let config = PeftConfig {
        rank_pattern: vec![("self_attn.q_proj".into(), 3)],
        base_model: Some("org/base".into()),
        ..PeftConfig::new(2, 8.0, TargetModules::Names(vec!["q_proj".into(), "up_proj".into()]))
    };
    let tensors = BTreeMap::from([
        (Factor::A.tensor_name(UP), tensor([2, 5], 0.1)),
        (Factor::B.tensor_name(UP), tensor([7, 2], 0.2)),
        (Factor::A.tensor_name(Q), tensor([3, 5], 0.3)),
        (Factor::B.tensor_name(Q), tensor([6, 3], 0.4)),
    ]);
    PeftAdapter::new(config, tensors).unwrap()
}

fn written() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    small().write(directory.path()).unwrap();
    directory
}

fn change_config(directory: &Path, change: impl FnOnce(&mut Value)) {
    let path = directory.join("adapter_config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// Replaces the tensors of a directory by the small ones as `change` leaves them.
fn change_tensors(directory: &Path, change: impl FnOnce(&mut BTreeMap<String, AdapterTensor>)) {
    let mut tensors = small().tensors().clone();
    change(&mut tensors);
    let tensors = tensors.iter().map(|(name, t)| TensorBytes::f32(name, t.shape.as_slice(), &t.values));
    write_safetensors(directory.join("adapter_model.safetensors"), tensors, &[]).unwrap();
}

fn invalid(directory: &Path, file: &str) -> InvalidAdapter {
    match PeftAdapter::read(directory).unwrap_err() {
        PeftError::Invalid { path, source } => {
            assert_eq!(path, directory.join(file));
            source
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_adapter_of_peft_reads_and_writes_back_equal() {
    let Some(golden) = qlora_testing::golden("sft/peft_adapter") else { return };
    let adapter = PeftAdapter::read(&golden).unwrap();
    assert_eq!(adapter.tensors().len(), 2 * 7 * 30);
    let layers = adapter.layers();
    let down = &layers["model.layers.29.mlp.down_proj"];
    assert_eq!((down.rank, down.inputs, down.outputs, down.scale), (4, 1536, 576, 2.0));
    assert_eq!(adapter.config().base_model.as_deref(), Some("HuggingFaceTB/SmolLM2-135M-Instruct"));

    let directory = tempfile::tempdir().unwrap();
    adapter.write(directory.path()).unwrap();
    assert_eq!(PeftAdapter::read(directory.path()).unwrap(), adapter);
    // PEFT's own file, but for the padding of the header.
    let bytes = |path: &Path| fs::read(path.join("adapter_model.safetensors")).unwrap();
    let (ours, theirs) = (bytes(directory.path()), bytes(&golden));
    let data = adapter.tensors().values().map(|tensor| tensor.values.len() * 4).sum::<usize>();
    assert!(ours[ours.len() - data..] == theirs[theirs.len() - data..]);
}

#[test]
fn what_is_written_is_minimal_and_sorted() {
    let directory = written();
    let config = fs::read_to_string(directory.path().join("adapter_config.json")).unwrap();
    let expected = r#"{
  "base_model_name_or_path": "org/base",
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "lora_alpha": 8,
  "lora_dropout": 0.0,
  "modules_to_save": null,
  "peft_type": "LORA",
  "r": 2,
  "rank_pattern": {
    "self_attn.q_proj": 3
  },
  "target_modules": [
    "q_proj",
    "up_proj"
  ],
  "task_type": "CAUSAL_LM",
  "use_dora": false,
  "use_rslora": false
}"#;
    assert_eq!(config, expected);
    let mut names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
}

#[test]
fn writing_again_replaces_the_adapter_only() {
    let directory = written();
    fs::write(directory.path().join("README.md"), "mine").unwrap();
    fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    let config = PeftConfig { use_rslora: true, ..small().config().clone() };
    let other = PeftAdapter::new(config, small().tensors().clone()).unwrap();
    other.write(directory.path()).unwrap();
    assert_eq!(PeftAdapter::read(directory.path()).unwrap(), other);
    assert_eq!(fs::read(directory.path().join("README.md")).unwrap(), b"mine");
    assert!(directory.path().join("tokenizer.json").exists());
}

#[test]
fn a_write_that_fails_leaves_the_adapter_that_was_there() {
    let directory = written();
    // Nothing can be written under the name that the new tensors have at first.
    let staged = directory.path().join(".adapter_model.safetensors.new");
    fs::create_dir_all(staged.join("taken")).unwrap();
    let config = PeftConfig { use_rslora: true, ..small().config().clone() };
    let other = PeftAdapter::new(config, small().tensors().clone()).unwrap();
    other.write(directory.path()).unwrap_err();
    assert_eq!(PeftAdapter::read(directory.path()).unwrap(), small());
    fs::remove_dir_all(staged).unwrap();
    other.write(directory.path()).unwrap();
    assert_eq!(PeftAdapter::read(directory.path()).unwrap(), other);
}

#[test]
fn an_export_is_whole_and_only_to_a_new_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/adapter");
    export_peft(&small(), None, &out).unwrap();
    assert_eq!(PeftAdapter::read(&out).unwrap(), small());
    let error = export_peft(&small(), None, &out).unwrap_err();
    assert!(matches!(&error, ExportError::NotEmpty { path } if *path == out), "{error}");
    let beside: Vec<_> = fs::read_dir(out.parent().unwrap()).unwrap().collect();
    assert_eq!(beside.len(), 1);
}

#[test]
fn half_precision_is_read() {
    let directory = written();
    let mut expected = small().tensors().clone();
    let mut stored = Vec::new();
    for (i, (name, tensor)) in expected.iter_mut().enumerate() {
        let (dtype, bytes): (_, Vec<u8>) = if i % 2 == 0 {
            (
                Dtype::BF16,
                tensor.values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            )
        } else {
            (Dtype::F16, tensor.values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
        };
        for value in &mut tensor.values {
            *value =
                if i % 2 == 0 { bf16::from_f32(*value).to_f32() } else { f16::from_f32(*value).to_f32() };
        }
        stored.push(TensorBytes::new(name, dtype, tensor.shape.as_slice(), bytes));
    }
    write_safetensors(directory.path().join("adapter_model.safetensors"), stored, &[]).unwrap();
    assert_eq!(PeftAdapter::read(directory.path()).unwrap().tensors(), &expected);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let check = |change: &dyn Fn(&mut BTreeMap<String, AdapterTensor>), expected: InvalidAdapter| {
        let directory = written();
        change_tensors(directory.path(), change);
        assert_eq!(invalid(directory.path(), "adapter_model.safetensors"), expected);
    };
    let (a, b) = (Factor::A.tensor_name(UP), Factor::B.tensor_name(UP));
    check(&|tensors| tensors.clear(), InvalidAdapter::Empty);
    check(
        &|tensors| drop(tensors.remove(&a)),
        InvalidAdapter::MissingFactor { tensor: b.clone(), missing: a.clone() },
    );
    check(
        &|tensors| drop(tensors.remove(&b)),
        InvalidAdapter::MissingFactor { tensor: a.clone(), missing: b.clone() },
    );
    check(
        &|tensors| drop(tensors.insert(a.clone(), tensor([3, 5], 0.0))),
        InvalidAdapter::Rank { tensor: a.clone(), found: 3, expected: 2 },
    );
    check(
        &|tensors| drop(tensors.insert(b.clone(), tensor([7, 4], 0.0))),
        InvalidAdapter::Rank { tensor: b.clone(), found: 4, expected: 2 },
    );
    check(
        &|tensors| tensors.get_mut(&a).unwrap().values[9] = f32::NAN,
        InvalidAdapter::NonFinite { tensor: a.clone(), index: 9, value: "NaN".into() },
    );
    let k = "model.layers.1.self_attn.k_proj";
    check(
        &|tensors| {
            tensors.insert(Factor::A.tensor_name(k), tensor([2, 5], 0.0));
            tensors.insert(Factor::B.tensor_name(k), tensor([5, 2], 0.0));
        },
        InvalidAdapter::NotTargeted { tensor: Factor::A.tensor_name(k) },
    );
    for name in [
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.bias",
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight",
        "model.layers.0.mlp.up_proj.lora_A.weight",
        "base_model.model..lora_A.weight",
    ] {
        let directory = written();
        change_tensors(directory.path(), |tensors| drop(tensors.insert(name.into(), tensor([2, 5], 0.0))));
        let error = invalid(directory.path(), "adapter_model.safetensors");
        assert!(
            matches!(&error, InvalidAdapter::UnexpectedTensor { tensor, .. } if tensor == name),
            "{error}"
        );
    }
    let directory = written();
    change_tensors(directory.path(), |tensors| tensors.get_mut(&a).unwrap().shape = vec![10]);
    let error = invalid(directory.path(), "adapter_model.safetensors");
    assert!(matches!(error, InvalidAdapter::Shape { .. }), "{error}");
}

#[test]
fn a_configuration_that_does_not_fit_is_named() {
    let directory = written();
    change_config(directory.path(), |config| config["lora_bias"] = json!(true));
    let error = invalid(directory.path(), "adapter_config.json");
    assert!(matches!(&error, InvalidAdapter::Unsupported { key, .. } if key == "lora_bias"), "{error}");

    // DoRA without magnitudes.
    change_config(directory.path(), |config| {
        config["lora_bias"] = json!(false);
        config["use_dora"] = json!(true);
    });
    let error = invalid(directory.path(), "adapter_model.safetensors");
    let InvalidAdapter::MissingFactor { missing, .. } = &error else { panic!("{error}") };
    assert!(missing.ends_with(".lora_magnitude_vector"), "{error}");

    change_config(directory.path(), |config| {
        config["use_dora"] = json!(false);
        config["r"] = json!(4);
    });
    let error = invalid(directory.path(), "adapter_model.safetensors");
    assert!(matches!(error, InvalidAdapter::Rank { found: 2, expected: 4, .. }), "{error}");
}

#[test]
fn damaged_files_are_errors_that_name_them() {
    let tensors = "adapter_model.safetensors";
    for (file, length) in [(tensors, 0), (tensors, 7), (tensors, 300), ("adapter_config.json", 40)] {
        let directory = written();
        let path = directory.path().join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..length]).unwrap();
        let error = PeftAdapter::read(directory.path()).unwrap_err();
        assert!(matches!(error, PeftError::File(_)) && error.to_string().contains(file), "{error}");
    }
    for file in ["adapter_config.json", tensors] {
        let directory = written();
        fs::remove_file(directory.path().join(file)).unwrap();
        let error = PeftAdapter::read(directory.path()).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
    }
    let directory = written();
    fs::rename(directory.path().join(tensors), directory.path().join("adapter_model.bin")).unwrap();
    assert!(matches!(PeftAdapter::read(directory.path()), Err(PeftError::Pickle { .. })));
    fs::write(directory.path().join("adapter_config.json"), "[1]").unwrap();
    assert!(matches!(PeftAdapter::read(directory.path()), Err(PeftError::File(_))));
}

//! GGUF files and adapters written, read again, and compared.
#![cfg(feature = "flex")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use qlora_export::{
    ExportError, ExportSource, ExportedGguf, FloatType, GgufOptions, GgufType, ModelfileTemplate,
    PeftAdapter, Probe, SafetensorsOptions, SaveMerged as _, Tolerance, VerifyError, check_gguf_target,
    check_ollama_target, export_gguf, export_gguf_lora, export_ollama, export_safetensors, importance_matrix,
    verify,
};
use qlora_gguf::{GgmlType, Gguf};
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::AdapterFactors;
use qlora_models::{AdapterSet, Checkpoint, Decoder, LoadOptions, Pass, TokenBatch, load};

fn export(source: ExportSource<'_>, kind: GgufType, path: &Path) -> Result<ExportedGguf, ExportError> {
    export_gguf(source, kind, path, &mut |_, _| {})
}

fn load_f32(checkpoint: &Checkpoint) -> Decoder<Flex> {
    load(checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap()
}

fn logits(model: &Decoder<Flex>, ids: &[u32]) -> Vec<f32> {
    let values = |tensor: Tensor<Flex, 2>| tensor.into_data().to_vec().unwrap();
    values(model.logits(model.hidden_states(TokenBatch { ids, lengths: &[ids.len()] }, Pass::default())))
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Numbers that look random, in ±0.5.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Adapters on all layers, of ranks 2 to 5, with these alphas by turns, scaled by `alpha / divisor(rank)`.
fn adapters(checkpoint: &Checkpoint, alphas: &[f64], divisor: fn(f64) -> f64) -> AdapterSet {
    let layers = checkpoint.config().linears().enumerate().map(|(index, (path, [outputs, inputs]))| {
        let rank = 2 + index % 4;
        let (a, b) = (noise(rank * inputs, index as u64), noise(outputs * rank, 1000 + index as u64));
        let scale = alphas[index % alphas.len()] / divisor(rank as f64);
        (path, (AdapterFactors { a, b, rank, inputs, outputs, magnitude: None }, scale))
    });
    AdapterSet { layers: layers.collect() }
}

#[test]
fn small_models_compute_the_same_from_f32() {
    for name in ["llama", "llama_tied_rope3"] {
        let Some(source) = qlora_testing::golden(&format!("tiny/{name}")) else { return };
        let checkpoint = Checkpoint::open(source).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/model.gguf");
        let exported = export(ExportSource::new(&checkpoint), GgufType::F32, &path).unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(exported.tensors, file.tensors().len());
        assert_eq!(exported.bytes, fs::metadata(&path).unwrap().len());
        assert_eq!(file.opt_tensor("rope_freqs.weight").is_some(), name == "llama_tied_rope3");
        assert_eq!(file.opt_tensor("output.weight").is_some(), name == "llama");
        assert_eq!(file.metadata().u32("general.file_type").unwrap(), 0);

        let written = Checkpoint::open(&path).unwrap();
        assert!(!written.has_tokenizer());
        for (name, shape) in checkpoint.config().tensors() {
            let [a, b] = [&checkpoint, &written].map(|c| c.tensor(&name, &shape).unwrap());
            assert!(a == b, "{name}");
        }
        let ids: Vec<u32> = (1..30).collect();
        let difference = largest(&logits(&load_f32(&checkpoint), &ids), &logits(&load_f32(&written), &ids));
        assert!(difference < 1e-5, "{name}: {difference}");

        let error = export(ExportSource::new(&checkpoint), GgufType::F32, &path).unwrap_err();
        assert!(matches!(&error, ExportError::Exists { path: p } if *p == path), "{error}");
    }
}

#[test]
fn merged_weights_compute_what_the_live_adapter_does() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let ids: Vec<u32> = (3..40).collect();
    let base = logits(&load_f32(&checkpoint), &ids);
    for (name, alphas, divisor, has_magnitudes) in [
        ("LoRA", &[1.0][..], (|rank| rank) as fn(f64) -> f64, false),
        ("rsLoRA", &[0.5], f64::sqrt, false),
        ("patterns", &[0.5, 1.5, 2.0], |rank| rank, false),
        ("DoRA", &[1.0, 2.0], |rank| rank, true),
    ] {
        let mut set = adapters(&checkpoint, alphas, divisor);
        if has_magnitudes {
            for (layer, (factors, _)) in set.layers.values_mut().enumerate() {
                let noise = noise(factors.outputs, 2000 + layer as u64);
                factors.magnitude = Some(noise.iter().map(|x| 1.0 + x).collect());
            }
        }
        let mut live = load_f32(&checkpoint);
        live.attach_set(&set, 0.0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let exported = live.save_gguf(&checkpoint, &path, GgufType::F32).unwrap();
        assert_eq!(exported.merged, set.layers.len());
        let directory = folder.path().join("merged");
        let source = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
        let options = SafetensorsOptions { dtype: FloatType::F32, ..SafetensorsOptions::default() };
        export_safetensors(source, options, &directory, &mut |_, _| {}).unwrap();
        let live = logits(&live, &ids);
        assert!(largest(&live, &base) > 0.1, "{name}: the adapter does something");
        for path in [&path, &directory] {
            let merged = logits(&load_f32(&Checkpoint::open(path).unwrap()), &ids);
            assert!(largest(&live, &merged) < 1e-4, "{name}: {}", largest(&live, &merged));
        }
    }
}

#[test]
fn the_adapter_file_gives_the_merged_file() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let linears = checkpoint.config().linears().count();
    for (alphas, divisor, alpha, folded) in [
        (&[6.0][..], (|rank| rank) as fn(f64) -> f64, 6.0, 0),
        // alpha / √rank is alpha · √rank / rank: each rank has an alpha of its own.
        (&[6.0], f64::sqrt, 6.0 * 2_f64.sqrt(), linears - linears.div_ceil(4)),
        (&[1.0, 1.0, 5.0], |rank| rank, 1.0, linears / 3),
    ] {
        let set = adapters(&checkpoint, alphas, divisor);
        let folder = tempfile::tempdir().unwrap();
        let [base, lora, merged] = ["base", "lora", "merged"].map(|name| folder.path().join(name));
        let source = ExportSource::new(&checkpoint);
        export(source, GgufType::F32, &base).unwrap();
        export(source.with_adapter(&set).unwrap(), GgufType::F32, &merged).unwrap();
        let exported = export_gguf_lora(&set, checkpoint.config(), Some("base"), &lora).unwrap();
        assert!((exported.alpha - alpha).abs() < 1e-9, "{exported:?}");
        assert_eq!((exported.layers, exported.folded), (linears, folded));

        let [base, lora, merged] = [base, lora, merged].map(|path| Gguf::open(path).unwrap());
        assert_eq!(lora.metadata().string("adapter.type").unwrap(), "lora");
        assert_eq!(lora.metadata().string("general.type").unwrap(), "adapter");
        assert_eq!(lora.tensors().len(), 2 * linears);
        let alpha = f64::from(lora.metadata().f32("adapter.lora.alpha").unwrap());
        for info in
            merged.tensors().iter().filter(|info| info.name.starts_with("blk.") && info.shape.len() == 2)
        {
            let values = |file: &Gguf, name: &str| file.tensor(name).unwrap().dequantize().unwrap();
            let name = &info.name;
            let (a, b) = (values(&lora, &format!("{name}.lora_a")), values(&lora, &format!("{name}.lora_b")));
            let [outputs, inputs] = info.shape[..] else { panic!("{info:?}") };
            let rank = a.len() / inputs;
            assert_eq!(b.len(), outputs * rank);
            let (old, new) = (values(&base, name), values(&merged, name));
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                let (row, column) = (index / inputs, index % inputs);
                let products =
                    (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * inputs + column]));
                let expected = f64::from(*old) + alpha / rank as f64 * products.sum::<f64>();
                assert!((expected - f64::from(new)).abs() < 1e-5, "{name} {row} {column}");
            }
        }
    }
}

#[test]
fn vectors_stay_f32_and_the_rest_is_rounded_once() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (kind, ggml, dtype) in
        [(GgufType::F16, GgmlType::F16, FloatType::F16), (GgufType::Bf16, GgmlType::Bf16, FloatType::Bf16)]
    {
        let path = folder.path().join(kind.name());
        let source = ExportSource::new(&checkpoint);
        export(source, kind, &path).unwrap();
        let file = Gguf::open(&path).unwrap();
        for info in file.tensors() {
            assert_eq!(
                info.ggml_type,
                if info.shape.len() == 1 { GgmlType::F32 } else { ggml },
                "{}",
                info.name
            );
        }
        let probe = Probe::of_checkpoint(&checkpoint).unwrap();
        let verified =
            verify::<Flex>(source, &path, Tolerance::of_gguf(kind), &probe, u64::MAX, &FlexDevice).unwrap();
        assert_eq!((verified.tokens, verified.tensors), (0, checkpoint.config().tensors().len()));
        assert!(verified.tensor_error > 0.0 && verified.tensor_error < dtype.tolerance().tensor);
        assert!(verified.logits.unwrap().relative < dtype.tolerance().logits);
        let limited =
            verify::<Flex>(source, &path, Tolerance::of_gguf(kind), &probe, 0, &FlexDevice).unwrap();
        let too_large = limited.logits.unwrap_err();
        assert!(
            too_large.allowed == 0 && too_large.needed > 4 * checkpoint.config().parameter_count() as u64
        );
    }
}

#[test]
fn verification_finds_what_is_wrong() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let source = ExportSource::new(&checkpoint);
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let check = |tolerance| verify::<Flex>(source, &path, tolerance, &probe, u64::MAX, &FlexDevice);
    let wrong = |tolerance| match check(tolerance) {
        Err(ExportError::Verify(error)) => *error,
        other => panic!("{other:?}"),
    };
    export(source, GgufType::F16, &path).unwrap();
    // Rounding to f16 is beyond what f32 may be off by.
    let strict = Tolerance::of_gguf(GgufType::F32);
    assert!(matches!(wrong(strict), VerifyError::Tensor { .. }));
    let strict = Tolerance { logits: 1e-9, ..Tolerance::of_gguf(GgufType::F16) };
    assert!(matches!(wrong(strict), VerifyError::Logits { .. }));

    // The sign of one value of an output projection.
    let file = Gguf::open(&path).unwrap();
    let at = file.tensor("blk.1.attn_output.weight").unwrap().info().offset as usize + 11;
    drop(file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 0x80;
    fs::write(&path, &bytes).unwrap();
    let error = wrong(Tolerance::of_gguf(GgufType::F16));
    let VerifyError::Tensor { name, .. } = &error else { panic!("{error}") };
    assert_eq!(name, "model.layers.1.self_attn.o_proj.weight");

    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(wrong(Tolerance::of_gguf(GgufType::F16)), VerifyError::Unreadable { .. }));
}

#[test]
fn a_failed_export_leaves_nothing() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let mut set = adapters(&checkpoint, &[1.0], |rank| rank);
    let last = set.layers.last_entry().unwrap().into_mut();
    last.0.a[0] = 1e30;
    let folder = tempfile::tempdir().unwrap();
    let merged = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
    let error = export(merged, GgufType::F16, &folder.path().join("model.gguf")).unwrap_err();
    assert!(matches!(error, ExportError::Unfit { dtype: FloatType::F16, .. }), "{error}");
    let error =
        export_ollama(merged, GgufType::F16, folder.path().join("ollama"), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, ExportError::Unfit { .. }), "{error}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn the_real_model_keeps_its_tokenizer_and_its_answers() {
    let (Some(model), Some(adapter)) = (qlora_testing::model(), qlora_testing::golden("sft/peft_adapter"))
    else {
        return;
    };
    let checkpoint = Checkpoint::open(model).unwrap();
    let set = PeftAdapter::read(adapter).unwrap().adapter_set();
    let source = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ollama");
    let (exported, modelfile) = export_ollama(source, GgufType::F16, &directory, &mut |_, _| {}).unwrap();
    assert_eq!((exported.tensors, exported.merged, exported.tokenizer), (272, 210, true));
    assert_eq!(modelfile.template, ModelfileTemplate::Derived { dated: false });
    assert_eq!(fs::read_to_string(directory.join("Modelfile")).unwrap(), modelfile.text);
    assert!(modelfile.text.contains("\nPARAMETER stop \"<|im_end|>\"\n"), "{}", modelfile.text);

    let path = directory.join("model.gguf");
    let (old, new) = (checkpoint.gguf().unwrap(), Gguf::open(&path).unwrap());
    for (key, value) in old.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        assert_eq!(new.metadata().get(key), Some(value), "{key}");
    }
    assert_eq!(new.metadata().u32("general.file_type").unwrap(), 1);
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let tolerance = Tolerance::of_gguf(GgufType::F16);
    let verified = verify::<Flex>(source, &path, tolerance, &probe, u64::MAX, &FlexDevice).unwrap();
    let logits = verified.logits.unwrap();
    assert!(verified.tokens > 300 && logits.kl < 1e-4 && logits.same_top > 0.98, "{verified:?}");
}

#[test]
fn blocks_are_within_their_tolerance_with_and_without_importances() {
    let Some(model) = qlora_testing::model() else { return };
    let checkpoint = Checkpoint::open(model).unwrap();
    let source = ExportSource::new(&checkpoint);
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let mut decoder = load_f32(&checkpoint);
    let matrix = importance_matrix(&mut decoder, &probe, "probe");
    let names: Vec<String> =
        checkpoint.config().linears().map(|(path, _)| format!("{path}.weight")).collect();
    assert_eq!(matrix.entries.len(), names.len());
    let tokens = probe.rows().iter().map(Vec::len).sum::<usize>() as f64;
    for name in names {
        let entry = &matrix.entries[&checkpoint.config().family.gguf_name(&name).unwrap().tensor];
        assert_eq!((entry.matrices(), entry.counts()), (1, &[tokens][..]), "{name}");
    }
    // The same input; a norm's output times its weights has a mean square near that of the weights.
    let sums = |name: &str| matrix.entries[name].sums();
    assert_eq!(sums("blk.7.attn_q.weight"), sums("blk.7.attn_v.weight"));
    assert_ne!(sums("blk.7.attn_q.weight"), sums("blk.8.attn_q.weight"));
    let norm = checkpoint.tensor("model.layers.7.input_layernorm.weight", &[576]).unwrap();
    let expected = norm.iter().map(|w| f64::from(w * w)).sum::<f64>() / 576.0;
    let found = sums("blk.7.attn_q.weight").iter().sum::<f64>() / 576.0 / tokens;
    assert!((0.2..5.0).contains(&(found / expected)), "{found} and {expected}");

    let folder = tempfile::tempdir().unwrap();
    for (kind, importance) in
        [(GgufType::Q8_0, None), (GgufType::Q4KM, None), (GgufType::Q4KM, Some(&matrix))]
    {
        let path = folder.path().join(format!("{kind}-{}", importance.is_some()));
        let options = GgufOptions { file_type: kind, importance };
        export_gguf(source, options, &path, &mut |_, _| {}).unwrap();
        let tolerance = Tolerance::of_gguf(kind);
        let verified = verify::<Flex>(source, &path, tolerance, &probe, u64::MAX, &FlexDevice).unwrap();
        let logits = verified.logits.unwrap();
        assert!(logits.relative < tolerance.logits / 1.5, "{kind}: {verified:?}");
        assert!(verified.tensor_error < tolerance.tensor / 1.5, "{kind}: {verified:?}");
    }
    let [plain, weighed] =
        [false, true].map(|has| Gguf::open(folder.path().join(format!("Q4_K_M-{has}"))).unwrap());
    let bytes = |file: &Gguf| file.tensor("blk.3.ffn_up.weight").unwrap().bytes().to_vec();
    assert!(bytes(&plain) != bytes(&weighed));
}

#[test]
fn a_directory_becomes_a_file_with_its_tokenizer() {
    let Some(model) = qlora_testing::model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("directory");
    let options = SafetensorsOptions::default();
    let original = Checkpoint::open(model).unwrap();
    export_safetensors(ExportSource::new(&original), options, &directory, &mut |_, _| {}).unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let source = ExportSource::new(&checkpoint);
    let path = folder.path().join("model.gguf");
    assert!(export(source, GgufType::Bf16, &path).unwrap().tokenizer);
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let tolerance = Tolerance::of_gguf(GgufType::Bf16);
    let verified = verify::<Flex>(source, &path, tolerance, &probe, u64::MAX, &FlexDevice).unwrap();
    assert_eq!(verified.tensor_error, 0.0);
    assert!(verified.tokens > 300, "{verified:?}");
    let (old, new) = (original.gguf().unwrap().metadata(), Gguf::open(&path).unwrap());
    for key in
        ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template", "tokenizer.ggml.pre"]
    {
        assert_eq!(new.metadata().get(key), old.get(key), "{key}");
    }
}

/// The small models of the crate of models: a family each, with what sets it apart.
fn small_models() -> impl Iterator<Item = (String, Checkpoint)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qlora-models/tests/golden");
    let mut folders: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("config.json").exists());
    folders.extend(
        ["qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mistral_window"]
            .iter()
            .filter_map(|name| qlora_testing::golden(&format!("tiny/{name}"))),
    );
    folders.sort();
    folders.into_iter().map(|folder| {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        (name, Checkpoint::open(folder).unwrap())
    })
}

/// What llama.cpp does not compute.
const REFUSED: [(&str, &str); 6] = [
    ("cohere_qk_norm", "norms of query and key heads in a model of 3 layers"),
    ("gemma2", "the factor of attention scores"),
    ("gemma3", "the factor of attention scores"),
    ("llama_dynamic", "depends on the length"),
    ("qwen3_bias", "a bias"),
    ("qwen3_moe_mixed", "the experts"),
];

#[test]
fn every_family_becomes_a_file_that_computes_the_same() {
    let mut written_names = Vec::new();
    for (name, checkpoint) in small_models() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let exported = export(ExportSource::new(&checkpoint), GgufType::F32, &path);
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = exported.unwrap_err();
            assert!(
                matches!(&error, ExportError::Inexpressible { what, .. } if what.contains(why)),
                "{error}"
            );
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
            continue;
        }
        exported.unwrap_or_else(|error| panic!("{name}: {error}"));
        let written = Checkpoint::open(&path).unwrap();
        written.check_tensors().unwrap();
        // Mistral and Qwen have no windows there: the context ends with them.
        let context = written.config().context_length().min(28);
        let ids: Vec<u32> = (0..context as u32).map(|i| 3 + i * i % 90).collect();
        let difference = largest(&logits(&load_f32(&checkpoint), &ids), &logits(&load_f32(&written), &ids));
        assert!(difference < 2e-4, "{name}: {difference}");
        written_names.push(name);
    }
    assert!(written_names.len() >= 12, "{written_names:?}");
}

/// A model larger than any disk, in a file that is all hole.
fn enormous(folder: &Path) -> Checkpoint {
    let (rows, columns) = (1_u64 << 27, 1_u64 << 14);
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": rows, "hidden_size": columns, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "tie_word_embeddings": true, "rms_norm_eps": 1e-5,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let end = rows * columns * 2;
    let header = serde_json::json!({
        "model.embed_tokens.weight": { "dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, end] },
    });
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let path = folder.join("model.safetensors");
    fs::write(&path, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes.len() as u64 + end).unwrap();
    Checkpoint::open(folder).unwrap()
}

#[test]
fn too_little_disk_is_found_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let checkpoint = enormous(&model);
    let source = ExportSource::new(&checkpoint);
    if qlora_files::require_space(folder.path(), 1 << 42).is_ok() {
        eprintln!("skipped: this disk holds it");
        return;
    }
    let out = folder.path().join("new/out");
    let no_progress = &mut |_: usize, _: usize| panic!("nothing is begun");
    let bnb = qlora_export::Bnb4BitOptions::default();
    for error in [
        export_safetensors(source, SafetensorsOptions::default(), &out, no_progress).unwrap_err(),
        export_gguf(source, GgufType::Bf16, &out, no_progress).unwrap_err(),
        qlora_export::export_bnb_4bit(source, bnb, &out, no_progress).unwrap_err(),
    ] {
        let no_space = matches!(&error, ExportError::File(qlora_files::Error::NoSpace { needed, .. }) if *needed >= 1 << 42);
        assert!(no_space, "{error}");
    }
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["model"]);
}

#[test]
fn a_taken_name_is_found_without_writing() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    qlora_testing::write_small_model(&model);
    let checkpoint = Checkpoint::open(&model).unwrap();
    let source = ExportSource::new(&checkpoint);
    let new = folder.path().join("new/model.gguf");
    check_gguf_target(source, GgufType::Q4KM, &new).unwrap();
    check_ollama_target(source, GgufType::Q4KM, &new).unwrap();
    assert!(!folder.path().join("new").exists());
    let error = check_gguf_target(source, GgufType::F16, &model).unwrap_err();
    assert!(matches!(&error, ExportError::Exists { path } if *path == model), "{error}");
    let error = check_ollama_target(source, GgufType::F16, &model).unwrap_err();
    assert!(matches!(&error, ExportError::NotEmpty { path } if *path == model), "{error}");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let factors =
        AdapterFactors { a: vec![0.0; 9], b: vec![0.0; 9], rank: 1, inputs: 9, outputs: 9, magnitude: None };
    let layers = BTreeMap::from([("model.layers.0.mlp.up_proj".to_owned(), (factors, 1.0))]);
    let set = AdapterSet { layers };
    let error = ExportSource::new(&checkpoint).with_adapter(&set).unwrap_err();
    assert!(matches!(error, ExportError::Lora(_)), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = export_gguf_lora(&set, checkpoint.config(), None, folder.path().join("lora")).unwrap_err();
    assert!(matches!(error, ExportError::Lora(_)), "{error}");
}

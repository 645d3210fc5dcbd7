//! `qlora export`.

use std::fs;
use std::path::Path;

use qlora_core::export::PeftAdapter;
use qlora_core::lora::{AdapterFactors, LoraConfig};
use qlora_core::models::{AdapterSet, Checkpoint};
use serde_json::Value;

use crate::program::{command, files, qlora};
use crate::tiny_model;

/// `model` with a tokenizer, `adapter` on all its layers, `text.txt` of some 1000 tokens.
fn write_inputs(home: &Path) {
    qlora_testing::write_small_model(&home.join("model"));
    let checkpoint = Checkpoint::open(home.join("model")).unwrap();
    let noise = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) as f32 * 0.61).sin() / 8.0).collect()
    };
    let layers = checkpoint.config().linears().enumerate().map(|(index, (path, [outputs, inputs]))| {
        let (a, b) = (noise(2 * inputs, index), noise(outputs * 2, index + 500));
        (path, (AdapterFactors { a, b, rank: 2, inputs, outputs, magnitude: None }, 0.5))
    });
    let set = AdapterSet { layers: layers.collect() };
    let lora = LoraConfig { rank: 2, alpha: 1.0, ..LoraConfig::default() };
    PeftAdapter::from_adapter_set(set, &lora, Some("org/base")).unwrap().write(home.join("adapter")).unwrap();
    fs::write(home.join("text.txt"), "The ships answered the keeper of the light. ".repeat(30)).unwrap();
}

/// `qlora export --model model --json` with these arguments, and its report.
fn export(home: &Path, arguments: &[&str]) -> Value {
    let ran = qlora(home, ["export", "--model", "model", "--json"].iter().chain(arguments)).succeeded();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn export_fails(home: &Path, arguments: &[&str], parts: &[&str]) {
    qlora(home, ["export", "--model", "model"].iter().chain(arguments)).failed(1, parts);
}

#[test]
fn an_exported_model_gives_the_same_logits() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    let export = ["export", "--model", "model", "--to", "safetensors", "--out", "out", "--dtype", "f32"];
    let ran = qlora(home, export.iter().chain(&["--json"])).succeeded();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["tensors"], &report["merged"]), (&20.into(), &0.into()));
    assert_eq!(report["bytes"], fs::metadata(home.join("out/model.safetensors")).unwrap().len());

    fs::write(home.join("ids.json"), r#"{"input_ids": [[1, 2, 3]]}"#).unwrap();
    let logits = ["model", "out"].map(|model| {
        let file = format!("{model}.safetensors");
        let arguments =
            ["logits", "--dtype", "f32", "--model", model, "--ids", "ids.json", "--out", file.as_str()];
        qlora(home, arguments).succeeded();
        fs::read(home.join(file)).unwrap()
    });
    assert!(logits[0] == logits[1]);

    qlora(home, export).failed(1, &["out exists and is not empty"]);
    for (form, parts) in [
        ("pickle", ["pickle", "safetensors"]),
        ("gguf", ["which type?", "gguf:F16"]),
        ("gguf:Q9", ["\"Q9\" is no type of GGUF files", "Q4_K_M"]),
        ("peft", ["an adapter alone", "--adapter DIR"]),
        ("gguf-lora", ["an adapter alone", "--adapter DIR"]),
    ] {
        qlora(home, ["export", "--model", "model", "--to", form, "--out", "other"]).failed(2, &parts);
    }
    let base =
        ["export", "--model", "model", "--to", "safetensors", "--merge-base", "original", "--out", "other"];
    qlora(home, base).failed(2, &["--adapter"]);
    assert!(!home.join("other").exists());
}

#[test]
fn a_gguf_file_gives_the_same_logits_and_is_not_replaced() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    let export = ["export", "--model", "model", "--to", "gguf:f32", "--out", "new/model.gguf"];
    let ran = qlora(home, export.iter().chain(&["--json"])).succeeded();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&report["type"], &report["verified"], &report["merged"]),
        (&"F32".into(), &true.into(), &0.into())
    );
    assert!(report["logits"]["relative"].as_f64().unwrap() < 1e-5, "{report}");
    qlora(home, export).failed(1, &["new/model.gguf exists"]);

    let ollama = ["export", "--model", "model", "--to", "ollama:bf16", "--out", "folder"];
    let ran = qlora(home, ollama).succeeded();
    assert!(ran.stdout.contains("against the live model: KL"), "{}", ran.stdout);
    let modelfile = fs::read_to_string(home.join("folder/Modelfile")).unwrap();
    assert_eq!(modelfile, "FROM ./model.gguf\n\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n");

    let shards =
        ["export", "--model", "model", "--to", "safetensors", "--out", "shards", "--shard-size", "0.000002"];
    let ran = qlora(home, shards).succeeded();
    assert!(ran.stdout.contains(" files\n") && ran.stdout.contains("verified: 20 tensors"), "{}", ran.stdout);
    assert!(home.join("shards/model.safetensors.index.json").exists());
    let nf4 = ["export", "--model", "model", "--to", "bnb-4bit", "--out", "nf4", "--json"];
    let report: Value = serde_json::from_str(&qlora(home, nf4).succeeded().stdout).unwrap();
    assert_eq!((&report["tensors"], &report["verified"]), (&20.into(), &true.into()));
}

#[test]
fn an_adapter_goes_to_a_new_directory() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    crate::training::prepare(home);
    qlora(home, ["train", "run.toml"]).succeeded();
    let export = |out: &str| {
        qlora(home, ["export", "--model", "model", "--adapter", "out/adapter", "--to", "peft", "--out", out])
    };
    let everything =
        || files(home).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect::<Vec<_>>();
    let before = everything();
    for taken in ["model", "out/adapter", "./out/adapter/"] {
        export(taken).failed(1, &["exists and is not empty"]);
    }
    assert!(everything() == before);
    // What a killed export left.
    fs::create_dir_all(home.join("new/.peft.tmp-1-0")).unwrap();
    let ran = export("new/peft").succeeded();
    assert!(ran.stdout.contains("verified: the adapter reads back equal"), "{}", ran.stdout);
    let names: Vec<_> =
        fs::read_dir(home.join("new")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["peft"]);
}

#[test]
fn every_form_of_an_adapter_is_verified() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write_inputs(home);
    let report = export(home, &["--adapter", "adapter", "--to", "peft", "--out", "peft"]);
    assert_eq!((&report["verified"], &report["tokenizer"]), (&true.into(), &true.into()));
    assert!(report["token_ids"].as_u64().unwrap() > 300, "{report}");

    let report = export(home, &["--adapter", "adapter", "--to", "gguf-lora", "--out", "lora.gguf"]);
    assert_eq!(
        (&report["verified"], &report["layers"], &report["alpha"]),
        (&true.into(), &14.into(), &1.0.into())
    );

    let report = export(home, &["--adapter", "adapter", "--to", "bnb-4bit", "--out", "nf4"]);
    assert_eq!((&report["verified"], &report["merged"]), (&true.into(), &14.into()));
    assert!(report["token_ids"].as_u64().unwrap() > 300, "{report}");
    let relative = report["logits"]["relative"].as_f64().unwrap();
    assert!(relative > 1e-3 && relative < 0.5, "{report}");

    let said =
        ["export", "--model", "model", "--adapter", "adapter", "--to", "gguf-lora", "--out", "again.gguf"];
    let ran = qlora(home, said).succeeded();
    assert!(ran.stdout.contains("verified: 28 factors read back equal"), "{}", ran.stdout);
    assert!(export(home, &["--to", "bnb-4bit", "--out", "unverified", "--no-verify"])["verified"].is_null());
}

#[test]
fn a_merge_base_is_reported_on_unless_nothing_is_compared() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write_inputs(home);
    let merge = ["--adapter", "adapter", "--to", "safetensors", "--merge-base"];
    let run = |base: &str, more: &[&str]| export(home, &[&merge[..], &[base], more].concat());
    for base in ["original", "dequantized"] {
        let report = run(base, &["--out", base, "--text", "text.txt"]);
        // Against the live model of the same base.
        let logits = |key: &str, of: &str| report[key]["logits"][of].as_f64().unwrap();
        assert!(report["logits"]["relative"].as_f64().unwrap() < 0.05, "{report}");
        assert!(logits("merge_original", "kl") > 3.0 * logits("merge_dequantized", "kl"), "{report}");
        assert!(logits("merge_dequantized", "kl") > 0.0, "{report}");
        for key in ["merge_original", "merge_dequantized"] {
            assert_eq!(report[key]["layers"].as_object().unwrap().len(), 14);
            assert_eq!(report[key]["logits"]["compared"], report[key]["logits"]["tokens"]);
            assert!(logits(key, "tokens") > 512.0, "{report}");
        }
    }
    let [original, dequantized] =
        ["original", "dequantized"].map(|base| fs::read(home.join(base).join("model.safetensors")).unwrap());
    assert!(original != dequantized);

    assert!(run("original", &["--out", "a", "--no-verify"])["merge_original"].is_null());
    let asked = run("original", &["--out", "b", "--no-verify", "--text", "text.txt"]);
    assert!(asked["merge_original"].is_object() && asked["verified"].is_null(), "{asked}");
    let lines = ["export", "--model", "model", "--out", "c"].iter().chain(&merge).chain(&["original"]);
    let said = qlora(home, lines).succeeded().stdout;
    for part in ["merges in bfloat16:", "  original: KL", "  dequantized: KL", "down_proj: off by"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn an_importance_matrix_is_computed_kept_and_read() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write_inputs(home);
    let quantize = |out: &str, more: &[&str]| {
        let report = export(home, &[&["--to", "gguf:Q4_0", "--out", out][..], more].concat());
        assert_eq!((&report["verified"], &report["type"]), (&true.into(), &"Q4_0".into()));
        fs::read(home.join(out)).unwrap()
    };
    let computed = quantize("a.gguf", &["--imatrix-from", "text.txt", "--imatrix-out", "matrix.gguf"]);
    assert!(computed == quantize("b.gguf", &["--imatrix", "matrix.gguf"]));
    assert!(computed != quantize("c.gguf", &[]));
    // Every token of the text went through the layers.
    let matrix = qlora_core::gguf::ImportanceMatrix::open(home.join("matrix.gguf")).unwrap();
    let text = fs::read_to_string(home.join("text.txt")).unwrap();
    let tokens = Checkpoint::open(home.join("model")).unwrap().tokenizer().unwrap().encode(&text).unwrap();
    assert_eq!(matrix.entries["blk.1.attn_q.weight"].counts(), [tokens.len() as f64]);
}

#[test]
fn what_ends_an_export_is_found_before_the_work() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    write_inputs(home);
    fs::write(home.join("taken.gguf"), "").unwrap();
    let matrix = ["--imatrix-from", "text.txt", "--imatrix-out", "matrix.gguf"];
    let gguf =
        |out: &'static str| ["--to", "gguf:Q4_0", "--out", out].into_iter().chain(matrix).collect::<Vec<_>>();
    export_fails(home, &gguf("taken.gguf"), &["taken.gguf exists"]);
    let folder: Vec<&str> = ["--to", "ollama:Q4_0", "--out", "model"].into_iter().chain(matrix).collect();
    export_fails(home, &folder, &["model exists and is not empty"]);
    assert!(!home.join("matrix.gguf").exists(), "it was computed all the same");

    for arguments in [
        ["--to", "safetensors", "--text", "txet.txt"],
        ["--to", "bnb-4bit", "--text", "txet.txt"],
        ["--to", "gguf:Q4_0", "--imatrix-from", "txet.txt"],
        ["--to", "gguf:Q4_0", "--imatrix", "txet.txt"],
    ] {
        export_fails(home, &[&arguments[..], &["--out", "new/out"]].concat(), &["txet.txt"]);
    }
    fs::write(home.join("short.txt"), "a").unwrap();
    let short = ["--to", "safetensors", "--text", "short.txt", "--out", "new/out"];
    export_fails(home, &short, &["less than two tokens"]);
    assert!(!home.join("new").exists());
}

#[test]
fn a_killed_export_leaves_nothing_under_its_name() {
    let Some(model) = qlora_testing::model() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    for (form, out) in [("gguf:F32", "out.gguf"), ("safetensors", "out")] {
        let temporary = format!(".{out}.tmp-");
        let leftovers = || {
            let entries = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name());
            entries.filter(|name| name.to_string_lossy().starts_with(&temporary)).count()
        };
        let arguments = ["export", "--no-verify", "--dtype", "f32", "--to", form, "--out", out, "--model"];
        let mut export = command(home).args(arguments).arg(&model).spawn().unwrap();
        while leftovers() == 0 {
            assert!(export.try_wait().unwrap().is_none(), "it ended before it was killed");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        export.kill().unwrap();
        export.wait().unwrap();
        assert!(!home.join(out).exists());
        assert_eq!(leftovers(), 1);
        qlora(home, ["export", "--model", "model", "--to", form, "--out", out]).succeeded();
        assert_eq!(leftovers(), 0);
    }
}

/// A base model gets the markers of turns, and is a model like any other then.
#[test]
fn a_model_gets_special_tokens() {
    let Some(model) = qlora_testing::model() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let model = model.to_str().unwrap();
    let export = ["export", "--model", model, "--add-special-token", "<|user|>", "--add-special-token"];
    let rest = ["<|end|>", "--to", "safetensors", "--out", "grown", "--json"];
    let ran = qlora(home, export.iter().chain(&rest)).succeeded();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["special_tokens"], serde_json::json!({"<|user|>": 49152, "<|end|>": 49153}));
    assert_eq!(report["verified"], true, "{report}");
    let config: Value = serde_json::from_slice(&fs::read(home.join("grown/config.json")).unwrap()).unwrap();
    assert_eq!(config["vocab_size"], 49154);

    fs::write(home.join("ids.json"), r#"{"input_ids": [[49152, 1, 49153]]}"#).unwrap();
    let ids = ["--ids", "ids.json", "--out", "logits.safetensors"];
    qlora(home, ["logits", "--model", "grown"].iter().chain(&ids)).succeeded();
    qlora(home, ["logits", "--model", model].iter().chain(&ids)).failed(1, &["49152", "49152"]);

    // From GGUF to GGUF, where the file's own metadata is taken over.
    let gguf = ["--to", "gguf:Q8_0", "--out", "grown.gguf", "--json"];
    let added = ["export", "--model", model, "--add-special-token", "<|user|>"];
    let ran = qlora(home, added.iter().chain(&gguf)).succeeded();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["verified"], true, "{report}");
    qlora(home, ["logits", "--model", "grown.gguf"].iter().chain(&ids)).failed(1, &["49153", "49153"]);

    let adapter = ["export", "--model", model, "--adapter", "a", "--to", "peft", "--out", "b"];
    qlora(home, adapter.iter().chain(&["--add-special-token", "<x>"])).failed(2, &["of an adapter alone"]);
}

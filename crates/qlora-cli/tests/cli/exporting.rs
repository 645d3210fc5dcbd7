//! `qlora export`.

use std::fs;

use serde_json::Value;

use crate::program::{command, files, qlora};
use crate::tiny_model;

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
fn a_killed_export_leaves_nothing_under_its_name() {
    let Some(model) = qlora_testing::model() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    let leftovers = || {
        let entries = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().starts_with(".out.gguf.")).count()
    };
    let mut export = command(home)
        .args(["export", "--to", "gguf:F32", "--out", "out.gguf", "--model"])
        .arg(model)
        .spawn()
        .unwrap();
    while leftovers() == 0 {
        assert!(export.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    export.kill().unwrap();
    export.wait().unwrap();
    assert!(!home.join("out.gguf").exists());
    assert_eq!(leftovers(), 1);
    qlora(home, ["export", "--model", "model", "--to", "gguf:F32", "--out", "out.gguf"]).succeeded();
    assert_eq!(leftovers(), 0);
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

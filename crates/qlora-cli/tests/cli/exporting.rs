//! `qlora export`.

use std::fs;

use serde_json::Value;

use crate::program::qlora;
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
    let other = ["export", "--model", "model", "--to", "pickle", "--out", "other"];
    qlora(home, other).failed(2, &["pickle", "safetensors"]);
    assert!(!home.join("other").exists());
}

//! `[data]` with several sources, weights and a split: trained on, recorded, and checked from the same file.

use std::fs;
use std::path::Path;

use crate::program::qlora;
use crate::tiny_model;

/// A tiny model, rows in two files of different make, and a run over both.
fn prepare(home: &Path) {
    tiny_model::write(home);
    let ids = |row: usize| (0..8).map(|i| (row * 7 + i * 3) % tiny_model::VOCABULARY).collect::<Vec<_>>();
    let lines: String =
        (0..20).map(|row| format!("{{\"input_ids\": {:?}, \"topic\": {}}}\n", ids(row), row / 2)).collect();
    fs::write(home.join("a.jsonl"), lines).unwrap();
    let items: Vec<String> =
        (20..30).map(|row| format!("{{\"tokens\": {:?}, \"topic\": {}}}", ids(row), row / 2)).collect();
    fs::create_dir(home.join("more")).unwrap();
    fs::write(home.join("more/b.json"), format!("[{}]", items.join(","))).unwrap();
    fs::write(
        home.join("run.toml"),
        r#"
        [model]
        path = "model"
        [lora]
        rank = 2
        [[data.train]]
        path = "a.jsonl"
        weight = 1
        [[data.train]]
        path = "more/*.json"
        shape = "tokens"
        columns = { input_ids = "tokens" }
        weight = 3
        [data.eval_split]
        fraction = 0.3
        group = "topic"
        [train]
        steps = 4
        batch_size = 2
        learning_rate = 0.01
        [output]
        dir = "out"
        "#,
    )
    .unwrap();
}

fn adapter(home: &Path, run: &str) -> Vec<u8> {
    fs::read(home.join(run).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn weighted_sources_and_a_split_are_trained_on_and_recorded() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let ran = qlora(home, ["train", "run.toml"]).succeeded();
    for part in ["training data a.jsonl, more/*.json: 20 rows", "evaluation data split off: 10 rows"] {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("keys that are not used"), "{}", ran.stderr);
    let metrics = fs::read_to_string(home.join("out/metrics.jsonl")).unwrap();
    assert!(metrics.contains("eval_loss"), "{metrics}");

    // The recorded configuration is the same run.
    let recorded = fs::read_to_string(home.join("out/config.toml")).unwrap();
    for part in ["weight = 3.0", "input_ids = \"tokens\"", "mixing = \"oversample\"", "group = \"topic\""] {
        assert!(recorded.contains(part), "no {part:?} in {recorded}");
    }
    fs::copy(home.join("out/config.toml"), home.join("again.toml")).unwrap();
    qlora(home, ["train", "again.toml", "--set", "output.dir=again"]).succeeded();
    assert_eq!(adapter(home, "again"), adapter(home, "out"));
    // Other weights are other rows.
    let other = ["--set", "data.mixing=undersample", "--set", "output.dir=other"];
    qlora(home, ["train", "run.toml"].iter().chain(&other)).succeeded();
    assert_ne!(adapter(home, "other"), adapter(home, "out"));
    let ran = qlora(home, ["train", "again.toml", "--resume", "--set", "data.eval_split.fraction=0.4"]);
    ran.failed(1, &["data.eval_split"]);
}

#[test]
fn a_configuration_is_checked_as_training_reads_it() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let ran = qlora(home, ["data", "check", "run.toml", "--json"]).succeeded();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let rows = |set: &str| report[set]["rows"].as_u64().unwrap();
    assert_eq!(rows("train") + rows("eval"), 30);
    assert!((2..=20).contains(&rows("eval")), "{report}");
    assert!(ran.stderr.contains("repetition of sources is left out"), "{}", ran.stderr);

    // Options come first.
    let whole = ["data", "check", "run.toml", "--eval", "a.jsonl", "--json"];
    let report: serde_json::Value = serde_json::from_str(&qlora(home, whole).succeeded().stdout).unwrap();
    assert_eq!((report["train"]["rows"].as_u64(), report["eval"]["rows"].as_u64()), (Some(30), Some(20)));
    qlora(home, ["data", "check", "run.toml", "--max-length", "4"]).succeeded();

    qlora(home, ["data", "check", "absent.toml"]).failed(1, &["absent.toml"]);
    fs::write(home.join("bad.toml"), "[data]\ntrain = { pth = \"a\" }").unwrap();
    qlora(home, ["data", "check", "bad.toml"]).failed(2, &["bad.toml:2: data.train: unknown field `pth`"]);
}

#[test]
fn mistakes_in_data_are_told_and_nothing_is_written() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let refused = |overrides: &[&str], code: i32, said: &[&str]| {
        let overrides = overrides.iter().flat_map(|assignment| ["--set", assignment]);
        qlora(home, ["train", "run.toml"].into_iter().chain(overrides)).failed(code, said);
        assert!(!home.join("out").exists(), "something was written");
    };
    refused(&["data.eval=a.jsonl"], 2, &["data.eval_split: given beside data.eval"]);
    refused(
        &["data.eval_split.fraction=2"],
        2,
        &["data.eval_split: fraction is 2: expected a number above 0"],
    );
    refused(&["data.train={path=\"a.jsonl\", wieght=2}"], 2, &["data.train: unknown field `wieght`"]);
    refused(&["data.train=nowhere/*.jsonl"], 1, &["nowhere/*.jsonl: no file matches the pattern"]);
    refused(
        &["data.train=more"],
        1,
        &["more/b.json, row 1", "expected `messages`", "map others by `columns`"],
    );
    refused(&["data.eval_split.group=subject"], 1, &["a.jsonl, line 1", "the column \"subject\" is missing"]);
    refused(
        &["data.train={path=\"more\", columns={input_ids=\"ids\"}}"],
        1,
        &[
            "more/b.json, row 1",
            "the column \"ids\" is missing or empty; the row has [\"tokens\", \"topic\"]",
        ],
    );
    refused(&["data.train=ftp://somewhere/a.jsonl"], 1, &["only paths and hf://datasets/.. are read"]);
}

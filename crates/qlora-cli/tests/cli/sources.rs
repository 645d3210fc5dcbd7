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
    // Four steps are four, and as many epochs as in training, where the second source repeats.
    assert_eq!(report["train"]["steps"], 4);
    qlora(home, ["train", "run.toml"]).succeeded();
    let metrics = fs::read_to_string(home.join("out/metrics.jsonl")).unwrap();
    let trained = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let trained = trained.filter_map(|line| line.get("lr").and(line["epoch"].as_f64())).next_back().unwrap();
    let checked = report["train"]["epochs"].as_f64().unwrap();
    assert!((checked / trained - 1.0).abs() < 0.2, "{checked} {trained}");
    assert!(report["eval"].get("steps").is_none(), "{report}");

    // Options come first.
    let whole = ["data", "check", "run.toml", "--eval", "a.jsonl", "--json"];
    let report: serde_json::Value = serde_json::from_str(&qlora(home, whole).succeeded().stdout).unwrap();
    assert_eq!((report["train"]["rows"].as_u64(), report["eval"]["rows"].as_u64()), (Some(30), Some(20)));
    // What training would refuse is refused, the model's context of 32 included.
    let short = ["data", "check", "run.toml", "--max-length", "4"];
    qlora(home, short).failed(1, &["30 rows longer than max_length"]);
    qlora(home, short.into_iter().chain(["--on-long", "skip"])).failed(1, &["rows longer than max_length"]);
    qlora(home, short.into_iter().chain(["--on-long", "truncate"])).succeeded();
    qlora(home, ["data", "check", "run.toml", "--shape", "tokens"]).failed(2, &["--shape beside run.toml"]);
    let shown = qlora(home, ["data", "show", "run.toml", "--rows", "0,25"]).succeeded().stdout;
    assert!(shown.contains("row 25 (more/b.json, row 6): 8 tokens, 7 of them trained"), "{shown}");

    qlora(home, ["data", "check", "absent.toml"]).failed(1, &["absent.toml"]);
    fs::write(home.join("bad.toml"), "[data]\ntrain = { pth = \"a\" }").unwrap();
    qlora(home, ["data", "check", "bad.toml"]).failed(2, &["bad.toml:2: data.train: unknown field `pth`"]);
}

#[test]
fn a_check_refuses_what_training_refuses() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let long: Vec<usize> = (0..33).collect();
    fs::write(home.join("long.jsonl"), format!("{{\"input_ids\": [1, 2]}}\n{{\"input_ids\": {long:?}}}\n"))
        .unwrap();
    let run = |data: &str, train: &str| {
        let config = format!(
            "[model]\npath = \"model\"\n[data]\ntrain = \"long.jsonl\"\n{data}\n[train]\nsteps = 2\n{train}\n\
             [output]\ndir = \"out\"\n"
        );
        fs::write(home.join("long.toml"), config).unwrap();
        let checked = qlora(home, ["data", "check", "long.toml"]);
        let trained = qlora(home, ["train", "long.toml"]);
        let _ = fs::remove_dir_all(home.join("out"));
        assert_eq!(checked.code, trained.code, "{}\n{}", checked.stderr, trained.stderr);
        checked
    };
    // 33 tokens are less than max_length, and more than the model's context.
    run("", "").failed(1, &["1 rows longer than max_length"]);
    run("on_long = \"skip\"", "").succeeded();
    run("on_long = \"truncate\"", "").succeeded();
    run("on_long = \"truncate\"", "tokens_per_batch = 16").failed(1, &["1 rows longer than a batch"]);
    let told = run("on_long = \"truncate\"", "tokens_per_batch = 64").succeeded().stdout;
    assert!(
        told.contains("2 steps, 2 epochs, 68 tokens") && told.contains("1 packs of at most 64 tokens"),
        "{told}"
    );
    run("on_bad_row = \"skip\"\non_long = \"skip\"", "").succeeded();

    // Bad rows are passed over when they are to be, but not all of them.
    let lines = "{\"input_ids\": [1, 2]}\n{\n{\"text\": \"t\"}\n";
    fs::write(home.join("long.jsonl"), lines).unwrap();
    run("", "").failed(1, &["1 lines that are no JSON object"]);
    run("on_bad_row = \"skip\"", "").succeeded();
    fs::write(home.join("long.jsonl"), "{\n").unwrap();
    run("on_bad_row = \"skip\"", "").failed(1, &["1 lines that are no JSON object"]);

    // A split that leaves nothing to evaluate on.
    fs::write(home.join("long.jsonl"), "{\"input_ids\": [1, 2]}\n").unwrap();
    run("eval_split = { fraction = 0.01 }", "").failed(1, &["the split leaves no row to evaluate on"]);
}

#[test]
fn time_is_estimated_from_a_measured_speed_only() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let check =
        |more: &[&str]| qlora(home, ["data", "check", "run.toml"].iter().chain(more)).succeeded().stdout;
    assert!(check(&[]).contains("measure these in a short run, and give --tokens-per-second"));
    fs::create_dir(home.join("out")).unwrap();
    let steps = "{\"step\": 1, \"tokens_per_s\": 1.0}\n{\"step\": 1, \"eval_loss\": 2.0}\n\
                 {\"step\": 2, \"tokens_per_s\": 4.0}\n{\"step\": 3, \"tokens_per_s\": 9.0}\n";
    fs::write(home.join("out/metrics.jsonl"), steps).unwrap();
    assert!(check(&[]).contains(" at 4 tokens a second, evaluation and saving not counted"));
    assert!(check(&["--tokens-per-second", "2"]).contains(" at 2 tokens a second"));
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

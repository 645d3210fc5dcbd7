//! Rows that can't be trained on: file, line and remedy are told, and nothing is written.

use std::fs;

use crate::program::qlora;
use crate::{tiny_model, training};

const GOOD: &str = r#"{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}"#;

#[test]
fn unusable_rows_are_told_with_their_line() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    training::write_config(home, "");
    let long: Vec<u32> = (0..33).map(|id| id % 40).collect();
    let long = format!(r#"{{"input_ids": {long:?}, "labels": {long:?}}}"#);
    for (row, said) in [
        (long.as_str(), &["33", "32", "on_long"][..]),
        (r#"{"input_ids": [1, 2], "labels": [-100, -100]}"#, &["no"]),
        (r#"{"input_ids": [1, 2], "labels": [1]}"#, &["labels"]),
        (r#"{"input_ids": [1, 40], "labels": [1, 40]}"#, &["40"]),
        (r#"{"input_ids": [1, -2], "labels": [1, 2]}"#, &["input_ids"]),
        (r#"{"input_ids": [1, 2"#, &["JSON"]),
        (r#"["no object"]"#, &[]),
        ("\u{0}\u{1}", &[]),
    ] {
        fs::write(home.join("train.jsonl"), format!("{GOOD}\n{row}\n")).unwrap();
        let ran = qlora(home, ["train", "run.toml"]).failed(1, &["train.jsonl, line 2"]);
        for part in said {
            assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
        }
        assert!(!home.join("out").exists(), "{row}: something was written");
    }
}

#[test]
fn an_absent_an_empty_and_a_blank_file_are_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    training::write_config(home, "");
    qlora(home, ["train", "run.toml"]).failed(1, &["train.jsonl"]);
    for content in ["", "\n\n \n"] {
        fs::write(home.join("train.jsonl"), content).unwrap();
        qlora(home, ["train", "run.toml"]).failed(1, &["train.jsonl"]);
    }
    assert!(!home.join("out").exists());
}

#[test]
fn rows_may_be_skipped_and_are_counted() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    training::write_config(home, "");
    fs::write(home.join("train.jsonl"), format!("{GOOD}\n{{\n{GOOD}\n")).unwrap();
    let ran = qlora(home, ["train", "run.toml", "--set", "data.on_bad_row=skip"]).succeeded();
    assert!(ran.stderr.contains("1 rows skipped: not usable"), "{}", ran.stderr);
    fs::write(home.join("train.jsonl"), "{\n{\n").unwrap();
    let ran =
        qlora(home, ["train", "run.toml", "--set", "data.on_bad_row=skip", "--set", "output.dir=other"]);
    ran.failed(1, &["train.jsonl"]);
    assert!(!home.join("other").exists());
}

#[test]
fn text_without_a_tokenizer_and_mixed_shapes_are_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    tiny_model::write(home);
    training::write_config(home, "");
    let text = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#;
    fs::write(home.join("train.jsonl"), format!("{text}\n")).unwrap();
    qlora(home, ["train", "run.toml"]).failed(1, &["train.jsonl, line 1", "tokenizer"]);
    fs::write(home.join("train.jsonl"), format!("{GOOD}\n{text}\n")).unwrap();
    qlora(home, ["train", "run.toml"]).failed(1, &["train.jsonl", "line 2", "`messages`"]);
    assert!(!home.join("out").exists());
}

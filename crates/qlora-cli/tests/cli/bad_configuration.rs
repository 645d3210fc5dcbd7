//! Configurations with mistakes: all are told, with line and remedy, and nothing is written.

use std::fs;
use std::path::Path;

use crate::program::qlora;
use crate::{tiny_model, training};

fn refuse(home: &Path, code: i32, config: &str, said: &[&str]) {
    fs::write(home.join("run.toml"), config).unwrap();
    qlora(home, ["train", "run.toml"]).failed(code, said);
    assert!(!home.join("out").exists(), "something was written");
}

#[test]
fn every_mistake_is_told_at_once() {
    let home = tempfile::tempdir().unwrap();
    let config = "[model]\npath = 'm'\ndtyp = 'f32'\n[data]\ntrain = 'x.jsonl'\n[train]\nsteps = 0\n\
                  learning_rate = -1.0\n[output]\ndir = 'out'\n";
    refuse(home.path(), 2, config, &["run.toml:3", "dtyp", "dtype", "run.toml:7", "steps", "learning_rate"]);
}

#[test]
fn damaged_toml_and_a_missing_file_are_told() {
    let home = tempfile::tempdir().unwrap();
    refuse(home.path(), 2, "[model\npath = 1", &["run.toml", "TOML"]);
    qlora(home.path(), ["train", "absent.toml"]).failed(1, &["absent.toml"]);
}

#[test]
fn a_wrong_override_names_the_option() {
    let home = tempfile::tempdir().unwrap();
    training::write_config(home.path(), "");
    let ran = qlora(home.path(), ["train", "run.toml", "--set", "train.stepps=3"]);
    ran.failed(2, &["--set train.stepps", "steps"]);
    qlora(home.path(), ["train", "run.toml", "--set", "steps"]).failed(2, &["--set steps"]);
}

#[test]
fn a_missing_model_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    training::write_config(home.path(), "");
    let ran = qlora(home.path(), ["train", "run.toml", "--set", "model.path=smollm2-135m"]);
    ran.failed(1, &["qlora fetch smollm2-135m"]);
    let ran = qlora(home.path(), ["train", "run.toml", "--set", "model.path=nowhere/at/all"]);
    ran.failed(1, &["nowhere/at/all"]);
    assert!(!home.path().join("out").exists());
}

#[test]
fn an_unsupported_architecture_is_named() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model::write(home.path());
    fs::write(model.join("config.json"), tiny_model::config("mamba")).unwrap();
    training::write_config(home.path(), "");
    training::write_rows(home.path(), 4);
    let ran = qlora(home.path(), ["train", "run.toml"]);
    ran.failed(1, &["config.json", "`mamba` is not supported", "llama"]);
    assert!(!home.path().join("out").exists());
}

#[test]
fn a_target_that_no_layer_has_is_told_with_those_that_exist() {
    let home = tempfile::tempdir().unwrap();
    tiny_model::write(home.path());
    training::write_config(home.path(), "[lora]\ntargets = ['query']\n");
    training::write_rows(home.path(), 4);
    qlora(home.path(), ["train", "run.toml"]).failed(1, &["query", "q_proj"]);
    assert!(!home.path().join("out").exists());
}

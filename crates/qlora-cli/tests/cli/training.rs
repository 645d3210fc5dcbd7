//! `qlora train` on a tiny model: results, resuming, SIGTERM, SIGKILL.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::program::{command, qlora};
use crate::tiny_model;

/// A run of 6 steps into `out`; `more` are further sections.
pub(crate) fn write_config(home: &Path, more: &str) {
    let config = format!(
        "[model]\npath = 'model'\n[data]\ntrain = 'train.jsonl'\n[train]\nsteps = 6\nbatch_size = 2\n\
         learning_rate = 0.01\ncheckpoint_every = 2\n[output]\ndir = 'out'\n{more}"
    );
    fs::write(home.join("run.toml"), config).unwrap();
}

/// Rows of token ids.
pub(crate) fn write_rows(home: &Path, count: usize) {
    let rows: String = (0..count)
        .map(|row| {
            let ids: Vec<usize> = (0..8).map(|i| (row * 7 + i * 3) % tiny_model::VOCABULARY).collect();
            format!("{{\"input_ids\": {ids:?}, \"labels\": {ids:?}}}\n")
        })
        .collect();
    fs::write(home.join("train.jsonl"), rows).unwrap();
}

/// A tiny model, rows of token ids, and a run with dropout, in `run.toml`.
pub(crate) fn prepare(home: &Path) {
    tiny_model::write(home);
    write_config(home, "[lora]\nrank = 2\ndropout = 0.1\n");
    write_rows(home, 10);
}

fn adapter(home: &Path, run: &str) -> Vec<u8> {
    fs::read(home.join(run).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_leaves_adapter_metrics_and_checkpoints() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let ran = qlora(home, ["train", "run.toml"]).succeeded();
    assert!(ran.stdout.contains("out/adapter"), "{}", ran.stdout);
    let metrics = fs::read_to_string(home.join("out/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 6);
    let losses: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    assert!(losses[5] < losses[0], "{losses:?}");
    assert!(home.join("out/config.toml").is_file());

    let inspected = qlora(home, ["inspect", "out/adapter"]).succeeded().stdout;
    assert!(inspected.contains("PEFT adapter: 28 tensors"), "{inspected}");
    let inspected = qlora(home, ["inspect", "out/checkpoints/step-6"]).succeeded().stdout;
    for part in ["training checkpoint: 28 tensors", "settings.lora.rank", "tokens"] {
        assert!(inspected.contains(part), "no {part:?} in {inspected}");
    }

    // The same again, over it: refused, and nothing is lost.
    let before = adapter(home, "out");
    qlora(home, ["train", "run.toml"]).failed(1, &["out", "--resume"]);
    assert_eq!(adapter(home, "out"), before);
    // Resuming a finished run with another setting: refused by name.
    qlora(home, ["train", "run.toml", "--resume", "--seed", "9"]).failed(1, &["train.seed"]);

    // The adapter changes the logits.
    fs::write(home.join("ids.json"), r#"{"input_ids": [[1, 2, 3]]}"#).unwrap();
    let logits = |out: &str, more: &[&str]| {
        let arguments = ["logits", "--model", "model", "--ids", "ids.json", "--out", out];
        qlora(home, arguments.iter().chain(more)).succeeded();
        let bytes = fs::read(home.join(out)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("logits").unwrap();
        assert_eq!(view.shape(), [1, 3, tiny_model::VOCABULARY]);
        view.data().to_vec()
    };
    let base = logits("base.safetensors", &[]);
    assert_eq!(base, logits("again.safetensors", &["--threads", "1"]));
    assert_ne!(base, logits("tuned.safetensors", &["--adapter", "out/adapter"]));
    let nf4 = logits("nf4.safetensors", &["--quant", "nf4"]);
    assert_ne!(base, nf4);
    assert_ne!(nf4, logits("plain.safetensors", &["--quant", "nf4", "--no-double-quant"]));
}

#[test]
fn the_seed_decides_and_threads_do_not() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let train = |out: &str, more: &[&str]| {
        let dir = format!("output.dir={out}");
        qlora(home, ["train", "run.toml", "--set", &dir].iter().chain(more)).succeeded();
        adapter(home, out)
    };
    let first = train("a", &[]);
    assert_eq!(first, train("b", &["--threads", "1"]));
    assert_ne!(first, train("c", &["--seed", "7"]));
}

#[test]
fn machines_get_json_lines() {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    let ran = qlora(home.path(), ["train", "run.toml", "--json"]).succeeded();
    let lines: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON alone on stdout")).collect();
    assert_eq!(lines.iter().filter(|line| line.get("loss").is_some()).count(), 6);
    assert_eq!(lines[lines.len() - 1]["adapter"], "out/adapter");
}

#[test]
#[cfg(unix)]
fn a_run_that_is_asked_to_end_saves_and_is_resumed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let train = |out: &str| {
        let mut command = command(home);
        let dir = format!("output.dir={out}");
        command.args(["train", "run.toml", "--set", "train.steps=400", "--set", "train.checkpoint_every=0"]);
        command.args(["--set", &dir]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    let mut child = train("ended").spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let metrics = home.join("ended/metrics.jsonl");
    while fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 20 {
        assert!(Instant::now() < deadline, "no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
    let kill = ["-TERM".to_string(), child.id().to_string()];
    assert!(std::process::Command::new("kill").args(kill).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    let steps = fs::read_to_string(&metrics).unwrap().lines().count();
    assert!(steps < 400, "it was over before it could be asked");
    assert!(home.join(format!("ended/checkpoints/step-{steps}")).is_dir());
    assert!(train("ended").arg("--resume").status().unwrap().success());
    assert!(train("whole").status().unwrap().success());
    assert_eq!(adapter(home, "ended"), adapter(home, "whole"));
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    prepare(home);
    let long = ["train", "run.toml", "--set", "train.steps=400", "--set", "train.checkpoint_every=3"];
    let train = |out: &str, resume: bool| {
        let mut command = command(home);
        command.args(long).args(["--set", &format!("output.dir={out}")]);
        if resume {
            command.arg("--resume");
        }
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    assert!(train("whole", false).status().unwrap().success());
    // Killed without warning, each time some steps further on.
    let mut kills = 0;
    for steps in [20, 90, 170, 290] {
        let mut child = train("killed", steps > 20).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let lines = || {
            let text = fs::read_to_string(home.join("killed/metrics.jsonl")).unwrap_or_default();
            text.lines().count()
        };
        while lines() < steps && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no progress");
            std::thread::sleep(Duration::from_micros(300));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "every run was over before it could be killed");
    assert!(train("killed", true).status().unwrap().success());
    assert_eq!(adapter(home, "killed"), adapter(home, "whole"));
    let steps = |run: &str| -> Vec<u64> {
        let text = fs::read_to_string(home.join(run).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(steps("killed"), (1..=400).collect::<Vec<u64>>());
}

//! A run that was stopped and resumed is bit by bit the run that was not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use qlora_train::checkpoint::{Checkpoint, MomentValues, NamedMoment};
use qlora_train::metrics::{Record, StepMetrics, read_metrics};
use qlora_train::{Interrupt, Observer, RunDirectory, TrainError};

use crate::engine::Recorder;
use crate::tiny_run::{config, engine_on_disk, model, objective, parameters, rows};

/// Dropout, shuffling, warm-up, evaluations, and 8 steps over epochs of 3: all that could depend on a stop.
const RUN: &[&str] = &[
    "train.steps=8",
    "train.checkpoint_every=1",
    "train.eval_every=3",
    "train.warmup=2",
    "train.schedule=cosine",
    "lora.dropout=0.3",
    "train.batch_size=2",
    "train.accumulate=2",
    "train.weight_decay=0.01",
];

/// Stops after a step.
struct StopAfter(u64, Interrupt);

impl Observer for StopAfter {
    fn stepped(&mut self, metrics: &StepMetrics) {
        if metrics.step == self.0 {
            self.1.request();
        }
    }
}

/// As [`RUN`], with parameters that are large enough for 8-bit moments, and some that are not.
const RUN_8BIT: &[&str] = &[
    "train.steps=8",
    "train.checkpoint_every=1",
    "train.eval_every=3",
    "train.batch_size=2",
    "train.accumulate=2",
    "train.optimizer=adamw8bit",
    "train.weight_decay=0.01",
    "lora.rank=64",
];

/// Runs or resumes in a directory, until the end or a step.
fn run(directory: &Path, resume: bool, stop_after: u64) -> Option<Vec<f32>> {
    run_with(RUN, directory, resume, stop_after)
}

fn run_with(overrides: &[&str], directory: &Path, resume: bool, stop_after: u64) -> Option<Vec<f32>> {
    let config = config(directory, overrides)?;
    let mut model = model(&config);
    let mut objective = objective(&config, rows(11)).with_evaluation(rows(3));
    let interrupt = Interrupt::new();
    engine_on_disk(&config, &objective, resume)
        .with_interrupt(interrupt.clone())
        .with_observer(StopAfter(stop_after, interrupt))
        .run(&mut model, &mut objective)
        .unwrap();
    Some(parameters(&model))
}

/// The last checkpoint without the time it took.
fn last_checkpoint(directory: &Path) -> Checkpoint {
    let directory = RunDirectory::without_config(directory);
    let mut checkpoint = directory.checkpoints().latest().unwrap().checkpoint.unwrap().1;
    checkpoint.state.seconds = 0.0;
    checkpoint
}

/// The metrics without times and memory.
fn metrics(directory: &Path) -> Vec<Record> {
    let mut records = read_metrics(directory.join("metrics.jsonl")).unwrap();
    for record in &mut records {
        if let Record::Step(metrics) = record {
            metrics.tokens_per_s = 0.0;
            metrics.memory = None;
        }
    }
    records
}

#[test]
fn stopped_and_resumed_is_the_same_as_never_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(expected) = run(whole.path(), false, u64::MAX) else { return };
    run(parts.path(), false, 2).unwrap();
    run(parts.path(), true, 4).unwrap();
    let found = run(parts.path(), true, u64::MAX).unwrap();
    assert_eq!(found, expected);
    assert_eq!(last_checkpoint(parts.path()), last_checkpoint(whole.path()));
    assert_eq!(metrics(parts.path()), metrics(whole.path()));
    // Nothing is left to do.
    assert_eq!(run(parts.path(), true, u64::MAX).unwrap(), expected);
}

#[test]
fn packed_batches_resume_to_the_same_bits() {
    for packing in ["data.packing=best-fit", "data.packing=by-length"] {
        let run_packed = |directory: &Path, resume, stop_after| {
            let overrides: Vec<&str> = RUN
                .iter()
                .copied()
                .filter(|line| !line.starts_with("train.batch_size"))
                .chain(["train.tokens_per_batch=24", packing])
                .collect();
            // The base of the overrides names a number of rows.
            let config = config(directory, &[&overrides[..], &["train.batch_size=8"]].concat())?;
            let mut model = model(&config);
            let mut objective = objective(&config, rows(11)).with_evaluation(rows(3));
            let interrupt = Interrupt::new();
            engine_on_disk(&config, &objective, resume)
                .with_interrupt(interrupt.clone())
                .with_observer(StopAfter(stop_after, interrupt))
                .run(&mut model, &mut objective)
                .unwrap();
            Some(parameters(&model))
        };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let Some(expected) = run_packed(whole.path(), false, u64::MAX) else { return };
        run_packed(parts.path(), false, 2).unwrap();
        assert_eq!(run_packed(parts.path(), true, u64::MAX).unwrap(), expected);
        assert_eq!(metrics(parts.path()), metrics(whole.path()));
        let mut tokens = metrics(whole.path()).into_iter().filter_map(|record| match record {
            Record::Step(step) => Some(step.tokens),
            _ => None,
        });
        // Two micro-batches a step.
        assert!(tokens.all(|tokens| tokens > 0 && tokens <= 48));
    }
}

#[test]
fn eight_bit_moments_resume_to_the_same_bits() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(expected) = run_with(RUN_8BIT, whole.path(), false, u64::MAX) else { return };
    run_with(RUN_8BIT, parts.path(), false, 3).unwrap();
    let found = run_with(RUN_8BIT, parts.path(), true, u64::MAX).unwrap();
    assert_eq!(found, expected);
    let (found, expected) = (last_checkpoint(parts.path()), last_checkpoint(whole.path()));
    assert_eq!(found, expected);
    let is_coded = |moment: &NamedMoment| matches!(moment.values, MomentValues::EightBit { .. });
    let coded = found.first_moments.iter().filter(|moment| is_coded(moment)).count();
    assert!(coded > 0 && coded < found.first_moments.len(), "{coded} moments are in eight bits");

    // The other way of storing them: refused.
    let other: Vec<&str> = RUN_8BIT.iter().map(|line| line.trim_end_matches("8bit")).collect();
    let config = config(parts.path(), &other).unwrap();
    let mut objective = objective(&config, rows(11));
    let directory = RunDirectory::without_config(parts.path()).resuming();
    let mut engine = crate::tiny_run::engine(&config, &objective)
        .with_directory(directory.with_settings(found.state.settings));
    let error = engine.run(&mut model(&config), &mut objective).unwrap_err().to_string();
    assert!(error.contains("are not stored as f32"), "{error}");
}

const CHILD_DIRECTORY: &str = "QLORA_TEST_RUN_DIRECTORY";

/// Not a test: what the next one starts as a process of its own, to kill it.
#[test]
#[ignore = "started by the test of kills"]
fn child() {
    let directory = std::env::var_os(CHILD_DIRECTORY).expect("the parent names the directory");
    run(Path::new(&directory), true, u64::MAX);
}

#[test]
fn killed_at_any_moment_and_resumed_is_the_same_as_never_stopped() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if run(whole.path(), false, u64::MAX).is_none() {
        return;
    }
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["resume::child", "--exact", "--ignored"])
            .env(CHILD_DIRECTORY, killed.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // Each process lives a little longer; where in a step or a write the kill falls is up to the machine.
    let mut kills = 0;
    for attempt in 1..=40 {
        let mut process = start();
        let metrics = killed.path().join("metrics.jsonl");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let begun = read_metrics(&metrics).map_or(0, |records| records.len());
        // Wait for progress of this process, then for a few milliseconds that differ each time.
        while process.try_wait().unwrap().is_none()
            && read_metrics(&metrics).is_ok_and(|records| records.len() <= begun)
            && std::time::Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(attempt * 7 % 23));
        if process.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        process.kill().unwrap();
        process.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0, "no process lived long enough to be killed");
    assert!(start().wait().unwrap().success());
    assert_eq!(last_checkpoint(killed.path()), last_checkpoint(whole.path()));
    assert_eq!(metrics(killed.path()), metrics(whole.path()));
    let adapter =
        |directory: &Path| std::fs::read(directory.join("checkpoints/step-8/adapter.safetensors")).unwrap();
    assert_eq!(adapter(killed.path()), adapter(whole.path()));
}

#[test]
fn a_run_is_not_overwritten_nor_resumed_as_another() {
    let folder = tempfile::tempdir().unwrap();
    if run(folder.path(), false, 2).is_none() {
        return;
    }
    let start = |resume: bool, overrides: &[&str], count: u32| {
        let overrides: Vec<&str> = RUN.iter().chain(overrides).copied().collect();
        let config = config(folder.path(), &overrides).unwrap();
        let mut objective = objective(&config, rows(count));
        engine_on_disk(&config, &objective, resume).run(&mut model(&config), &mut objective).unwrap_err()
    };
    assert!(matches!(start(false, &[], 11), TrainError::OutputExists { .. }));
    let error = start(true, &["train.learning_rate=1e-3", "lora.rank=2"], 10).to_string();
    for expected in [
        "train.learning_rate was 0.01, is 0.001",
        "lora.rank was 4, is 2",
        "training data",
        "is of shape [4, 80], the model needs shape [2, 80]",
        "start anew in another directory",
    ] {
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_with_a_warning() {
    let (whole, damaged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(expected) = run(whole.path(), false, u64::MAX) else { return };
    run(damaged.path(), false, 5).unwrap();
    let state = damaged.path().join("checkpoints/step-5/state.json");
    std::fs::write(&state, "{").unwrap();

    let config = config(damaged.path(), RUN).unwrap();
    let mut model = model(&config);
    let mut objective = objective(&config, rows(11)).with_evaluation(rows(3));
    let recorder = Recorder::default();
    engine_on_disk(&config, &objective, true)
        .with_observer(recorder.clone())
        .run(&mut model, &mut objective)
        .unwrap();
    let events = recorder.events.borrow();
    assert!(events[0].starts_with("warning checkpoint") && events[0].contains("step-5"), "{}", events[0]);
    assert_eq!(events[1], "started 4/8");
    assert_eq!(parameters(&model), expected);
    assert_eq!(metrics(damaged.path()), metrics(whole.path()));
}

//! A run that was killed in generation, in a reward or in an update, and resumed, is bit by bit the run that was not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qlora_rl::{LossKind, Reward, RewardInput, reward_fn};
use qlora_train::checkpoint::Checkpoint;
use qlora_train::grpo::{Grpo, GrpoOptions, TextDecoder};
use qlora_train::metrics::{Record, StepMetrics, read_metrics};
use qlora_train::samples::read_samples;
use qlora_train::{Engine, EngineOptions, Observer, RunDirectory};

use crate::grpo::{decoder, options, prompts};
use crate::tiny_run::{config, model, parameters};

const DIRECTORY: &str = "QLORA_TEST_GRPO_DIRECTORY";
const CUT: &str = "QLORA_TEST_GRPO_CUT";

/// Every generation batch serves four steps, and its prompts are drawn until they have spread: the state is more than
/// the number of the step.
fn run_options() -> GrpoOptions {
    let mut options = GrpoOptions {
        num_iterations: 2,
        updates_per_generation: 2,
        dynamic_sampling: 2,
        accumulate: 2,
        batch_size: 4,
        ..options()
    };
    options.loss.kind = LossKind::Dapo;
    options.loss.beta = 0.05;
    options
}

/// Ends the process at the so-manieth call.
#[derive(Clone)]
struct Cut(Option<Arc<(AtomicUsize, usize)>>);

impl Cut {
    /// `place:calls`, of this place.
    fn of(cut: &str, place: &str) -> Self {
        let calls = cut.strip_prefix(place).and_then(|rest| rest.strip_prefix(':'));
        Self(calls.map(|calls| Arc::new((AtomicUsize::new(0), calls.parse().unwrap()))))
    }

    fn call(&self) {
        if let Some(cut) = &self.0
            && cut.0.fetch_add(1, Ordering::SeqCst) + 1 == cut.1
        {
            kill_this_process();
        }
    }
}

/// As `kill -9` does: no thread of the process runs on, nothing is flushed.
fn kill_this_process() -> ! {
    let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
    // Where there is no such program.
    std::process::abort();
}

impl Observer for Cut {
    fn stepped(&mut self, _: &StepMetrics) {
        self.call();
    }
}

/// Runs or resumes in a directory to the end, or until the cut.
fn run(directory: &Path, cut: &str) -> Option<Vec<f32>> {
    let mut model = model(&config(directory, &[])?);
    let (in_generation, in_reward) = (Cut::of(cut, "generation"), Cut::of(cut, "reward"));
    let decode = decoder();
    let decode: TextDecoder = Arc::new(move |ids| {
        in_generation.call();
        decode(ids)
    });
    let reward: Box<dyn Reward> = Box::new(reward_fn("sum", move |input: &RewardInput<'_>| {
        in_reward.call();
        Some(f64::from(input.completion_ids.iter().sum::<u32>() % 3))
    }));
    let mut objective = Grpo::new(prompts(), vec![(reward, 1.0)], decode, run_options()).unwrap();
    let options = EngineOptions { checkpoint_every: 1, ..EngineOptions::linear(9, 1e-2) };
    Engine::new(options)
        .with_directory(RunDirectory::without_config(directory).resuming())
        .with_observer(Cut::of(cut, "update"))
        .run(&mut model, &mut objective)
        .unwrap();
    Some(parameters(&model))
}

/// Not a test: what the next one starts as a process of its own, to be cut.
#[test]
#[ignore = "started by the test of cuts"]
fn child() {
    let directory = std::env::var_os(DIRECTORY).expect("the parent names the directory");
    run(Path::new(&directory), &std::env::var(CUT).unwrap_or_default());
}

fn last_checkpoint(directory: &Path) -> Checkpoint {
    let found = RunDirectory::without_config(directory).checkpoints().latest().unwrap();
    let mut checkpoint = found.checkpoint.unwrap().1;
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
            metrics.objective.retain(|name, _| !name.starts_with("seconds/"));
        }
    }
    records
}

#[test]
fn cut_anywhere_and_resumed_is_the_same_as_never_cut() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(expected) = run(whole.path(), "") else { return };
    let start = |place: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["grpo_resume::child", "--exact", "--ignored"])
            .env(DIRECTORY, cut.path())
            .env(CUT, place)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
    };
    // Within the first generation batch; after updates 1 and 3, whose checkpoints are not written; in the middle of
    // scoring the second generation batch and of making the third.
    for place in ["generation:3", "update:1", "update:3", "reward:5", "update:2", "generation:9", "reward:2"]
    {
        let status = start(place);
        assert!(!status.success(), "{place} was not reached");
        #[cfg(unix)]
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{place}: {status}");
    }
    assert!(start("").success());
    assert_eq!(last_checkpoint(cut.path()), last_checkpoint(whole.path()));
    assert_eq!(metrics(cut.path()), metrics(whole.path()));
    let samples = |directory: &Path| read_samples(directory.join("samples.jsonl")).unwrap();
    assert_eq!(samples(cut.path()), samples(whole.path()));
    assert!(!samples(whole.path()).is_empty());
    // Nothing is left to do.
    assert_eq!(run(cut.path(), "").unwrap(), expected);
    let report = std::fs::read_to_string(whole.path().join("report.html")).unwrap();
    assert!(report.contains("Reward") && report.contains("<th>sum</th>"));
}

#[test]
fn a_checkpoint_holds_a_generation_batch_only_while_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    if run(folder.path(), "").is_none() {
        return;
    }
    let state = |step: u64| {
        let path = folder.path().join(format!("checkpoints/step-{step}/objective.json"));
        std::fs::read_to_string(path).unwrap()
    };
    // Eight steps use two generation batches; the ninth begins a third.
    assert!(state(8).contains("\"rollout\":null"), "{}", state(8));
    assert!(state(9).contains("\"generation\":2"), "{}", state(9));

    // A checkpoint whose state is not of this run is refused.
    let mut objective = Grpo::new(prompts(), vec![(crate::grpo::even(), 1.0)], decoder(), options()).unwrap();
    for broken in ["", "{}", &state(9)] {
        let restored =
            qlora_train::Objective::<crate::tiny_run::Backend, crate::tiny_run::Model>::restore_state(
                &mut objective,
                broken,
            );
        assert!(restored.unwrap_err().to_string().contains("objective.json"));
    }
}

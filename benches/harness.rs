//! What the benchmarks share: configurations in processes of their own, beside the same work of the peers.
//!
//! A configuration is a name and a type, `step_qlora_1x512/bf16`. The parent process runs ours and then
//! the peer's script of the same name, so that both see the machine in the same state, and prints their
//! ratio. Peers need Python with torch, bitsandbytes and peft: `benches/peers/README.md` tells how to set
//! it up; `QLORA_PEER_PYTHON` names the interpreter (default `target/peers/bin/python`). Without it only
//! ours is timed.

pub mod arguments;
pub mod devices;
pub mod shapes;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::arguments::Arguments;

/// Times of one configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measurement {
    /// The fastest run, milliseconds.
    pub ms_min: f64,
    /// The middle run, milliseconds.
    pub ms_median: f64,
    /// Peak resident memory while the counted runs went on, MB (10⁶ bytes).
    pub peak_rss_mb: f64,
}

/// How often a configuration runs.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Runs that are not counted.
    pub warmup: usize,
    /// Runs that are.
    pub counted: usize,
}

/// Times `run`.
pub fn measure(runs: Runs, mut run: impl FnMut()) -> Measurement {
    for _ in 0..runs.warmup {
        run();
    }
    reset_peak();
    let mut times: Vec<f64> = (0..runs.counted)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    Measurement { ms_min: times[0], ms_median: times[times.len() / 2], peak_rss_mb: peak_mb() }
}

/// Makes Linux forget the peak of this process so far; elsewhere nothing.
fn reset_peak() {
    // Where this is not allowed the peak of the whole process is reported, which is not less.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_mb() -> f64 {
    qlora_core::train::peak_memory_mb().unwrap_or(f64::NAN)
}

/// The `main` of a benchmark. `configurations` are names as `script` knows them, `measure` runs one.
pub fn main(script: &str, configurations: &[&str], measure: impl Fn(&str) -> Measurement) {
    // `cargo bench` passes `--bench`; a filter may stand beside it.
    let arguments = Arguments::from_env();
    if let [flag, name] = arguments.words()
        && flag == "--only"
    {
        let measurement = measure(name);
        println!("{}", serde_json::to_string(&measurement).expect("numbers"));
        return;
    }
    let wanted = |name: &&&str| arguments.words().iter().all(|filter| name.contains(filter.as_str()));
    let peer = peer_python();
    if peer.is_none() {
        eprintln!("peers are not measured: benches/peers/README.md tells how to set them up\n");
    }
    println!(
        "{:32}{:>10}{:>10}{:>9}  {:>10}{:>10}{:>9}  {:>11}",
        "", "ours ms", "median", "MB", "torch ms", "median", "MB", "ours/torch"
    );
    for name in configurations.iter().filter(wanted) {
        let ours = run(Command::new(std::env::current_exe().expect("this program")).args(["--only", name]));
        let theirs = peer.as_ref().and_then(|python| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
            run(Command::new(python).arg("-B").arg(script).args(["--only", name]))
        });
        let cells = |m: &Option<Measurement>| match m {
            Some(m) => format!("{:10.1}{:10.1}{:9.0}", m.ms_min, m.ms_median, m.peak_rss_mb),
            None => format!("{:>10}{:>10}{:>9}", "-", "-", "-"),
        };
        let ratio = match (&ours, &theirs) {
            (Some(ours), Some(theirs)) => format!("{:11.2}", ours.ms_min / theirs.ms_min),
            _ => format!("{:>11}", "-"),
        };
        println!("{name:32}{}  {}  {ratio}", cells(&ours), cells(&theirs));
    }
}

fn peer_python() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/bin/python");
    let python = std::env::var_os("QLORA_PEER_PYTHON").map_or_else(default, PathBuf::from);
    python.exists().then_some(python)
}

/// Runs a configuration in a process of its own; its last line is a [`Measurement`].
fn run(command: &mut Command) -> Option<Measurement> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let measurement = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    if measurement.is_none() {
        eprintln!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    measurement
}

//! Progress for programs: the lines of `metrics.jsonl` on stdout as they are made.

use std::io::Write as _;

use qlora_core::train::metrics::{EvalMetrics, StepMetrics};
use qlora_core::train::{Observer, Summary};
use serde::Serialize;
use serde_json::json;

/// Prints a JSON object per step and evaluation, and a last one about the whole run.
pub(super) struct JsonLines;

impl Observer for JsonLines {
    fn stepped(&mut self, metrics: &StepMetrics) {
        print(metrics);
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) {
        print(metrics);
    }

    fn warned(&mut self, message: &str) {
        eprintln!("warning: {message}");
    }

    fn finished(&mut self, summary: &Summary) {
        print(&json!({
            "steps": summary.steps,
            "epochs": summary.epochs,
            "tokens": summary.tokens,
            "trained_tokens": summary.trained_tokens,
            "seconds": summary.seconds,
            "interrupted": summary.interrupted,
            "checkpoint": summary.checkpoint,
            "memory": summary.memory,
        }));
    }
}

fn print(value: &impl Serialize) {
    // A reader that has gone must not end the training: the same lines are in metrics.jsonl.
    if let Ok(line) = serde_json::to_string(value) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

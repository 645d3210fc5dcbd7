//! A progress bar for people.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::metrics::{EvalMetrics, StepMetrics};
use crate::observer::{Observer, RunStart, Summary};

/// Shows step, loss, learning rate, tokens a second and the time left on standard error; evaluations, warnings and
/// the summary as lines above the bar. Where standard error is no terminal, lines only: one a step.
#[derive(Debug, Default)]
pub struct ProgressDisplay {
    bar: Option<ProgressBar>,
}

impl ProgressDisplay {
    /// A display that appears when the run starts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(text),
            _ => eprintln!("{text}"),
        }
    }
}

impl Observer for ProgressDisplay {
    fn started(&mut self, start: &RunStart) {
        let style =
            ProgressStyle::with_template("{bar:24} step {pos}/{len}  {msg}  {elapsed} gone, {eta} left")
                .expect("the template is valid");
        let bar = ProgressBar::new(start.steps).with_style(style).with_position(start.done);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        self.bar = Some(bar);
        let resumed = if start.done > 0 { format!(", {} done before", start.done) } else { String::new() };
        self.line(&format!(
            "training {} parameters for {} steps{resumed} ({} steps an epoch)",
            grouped(start.parameters),
            start.steps,
            start.steps_per_epoch
        ));
    }

    fn stepped(&mut self, metrics: &StepMetrics) {
        let reward = metrics.objective.get("reward").map(|reward| format!("reward {reward:.3}  "));
        let message = format!(
            "{}loss {:.4}  lr {:.2e}  {:.0} tokens/s",
            reward.unwrap_or_default(),
            metrics.loss,
            metrics.lr,
            metrics.tokens_per_s
        );
        if let Some(bar) = &self.bar {
            bar.set_position(metrics.step);
            if bar.is_hidden() {
                self.line(&format!("step {}  {message}", metrics.step));
            } else {
                bar.set_message(message);
            }
        }
    }

    fn evaluating(&mut self, _step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message("evaluating");
        }
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) {
        self.line(&format!(
            "step {}: evaluation loss {:.4}, perplexity {:.3}, token accuracy {:.1} %",
            metrics.step,
            metrics.eval_loss,
            metrics.eval_perplexity,
            100.0 * metrics.eval_accuracy
        ));
    }

    fn saved(&mut self, checkpoint: &Path) {
        if let Some(bar) = self.bar.as_ref().filter(|bar| bar.is_hidden()) {
            let step = bar.position();
            self.line(&format!("step {step}: saved {}", checkpoint.display()));
        }
    }

    fn warned(&mut self, message: &str) {
        self.line(&format!("warning: {message}"));
    }

    fn finished(&mut self, summary: &Summary) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let minutes = (summary.seconds / 60.0).floor();
        let mut text = format!(
            "{} {} steps, {:.2} epochs, {} tokens in {minutes:.0} min {:.0} s",
            if summary.interrupted { "interrupted after" } else { "done:" },
            summary.steps,
            summary.epochs,
            grouped(summary.tokens),
            summary.seconds - 60.0 * minutes
        );
        if let Some(loss) = summary.loss {
            text.push_str(&format!("; last loss {loss:.4}"));
        }
        if let Some(best) = summary.best {
            text.push_str(&format!("; lowest evaluation loss {:.4} after step {}", best.loss, best.step));
        }
        if let Some(skipped) = summary.skipped_steps.filter(|skipped| *skipped > 0) {
            text.push_str(&format!("; {skipped} steps skipped because f16 gradients overflowed"));
        }
        if let Some(memory) = summary.memory {
            text.push_str(&format!("; at most {memory:.0} MB of memory"));
        }
        self.line(&text);
    }
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!([0, 999, 1000, 4_884_480].map(grouped), ["0", "999", "1 000", "4 884 480"]);
    }
}

//! Who is told how a run goes. The engine itself prints nothing.

use std::path::{Path, PathBuf};

use crate::checkpoint::BestEvaluation;
use crate::metrics::{EvalMetrics, StepMetrics};

/// Is told how a run goes. Every method does nothing unless implemented.
pub trait Observer {
    /// The run starts or goes on.
    fn started(&mut self, start: &RunStart) {
        let _ = start;
    }

    /// An optimizer step is done.
    fn stepped(&mut self, metrics: &StepMetrics) {
        let _ = metrics;
    }

    /// An evaluation begins.
    fn evaluating(&mut self, step: u64) {
        let _ = step;
    }

    /// An evaluation is done.
    fn evaluated(&mut self, metrics: &EvalMetrics) {
        let _ = metrics;
    }

    /// A checkpoint was written.
    fn saved(&mut self, checkpoint: &Path) {
        let _ = checkpoint;
    }

    /// Something is not as expected, and the run goes on.
    fn warned(&mut self, message: &str) {
        let _ = message;
    }

    /// The run is over, or was interrupted.
    fn finished(&mut self, summary: &Summary) {
        let _ = summary;
    }
}

impl<T: Observer + ?Sized> Observer for &mut T {
    fn started(&mut self, start: &RunStart) {
        (**self).started(start);
    }

    fn stepped(&mut self, metrics: &StepMetrics) {
        (**self).stepped(metrics);
    }

    fn evaluating(&mut self, step: u64) {
        (**self).evaluating(step);
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) {
        (**self).evaluated(metrics);
    }

    fn saved(&mut self, checkpoint: &Path) {
        (**self).saved(checkpoint);
    }

    fn warned(&mut self, message: &str) {
        (**self).warned(message);
    }

    fn finished(&mut self, summary: &Summary) {
        (**self).finished(summary);
    }
}

/// An observer that calls a function after each optimizer step.
pub fn on_step(call: impl FnMut(&StepMetrics)) -> impl Observer {
    struct OnStep<F>(F);
    impl<F: FnMut(&StepMetrics)> Observer for OnStep<F> {
        fn stepped(&mut self, metrics: &StepMetrics) {
            (self.0)(metrics);
        }
    }
    OnStep(call)
}

/// What is known when a run starts.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStart {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Steps that were done before: 0 unless it is resumed.
    pub done: u64,
    /// Optimizer steps in an epoch.
    pub steps_per_epoch: u64,
    /// Trained parameters (numbers, not tensors).
    pub parameters: u64,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimizer steps done, those before a resume included.
    pub steps: u64,
    /// Epochs done.
    pub epochs: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that the loss counted.
    pub trained_tokens: u64,
    /// Seconds spent in optimizer steps.
    pub seconds: f64,
    /// Loss of the last step; `None` if none was done now.
    pub loss: Option<f64>,
    /// The last evaluation of this process.
    pub evaluation: Option<EvalMetrics>,
    /// The evaluation with the lowest loss.
    pub best: Option<BestEvaluation>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Whether the run was ended by an interrupt, with steps left to do.
    pub interrupted: bool,
    /// Steps that changed nothing because gradients overflowed; `None` where the loss is not scaled.
    pub skipped_steps: Option<u64>,
    /// Most memory held, in MB: of the device where it has its own, else of the process; `None` where the system
    /// does not tell.
    pub memory: Option<f64>,
}

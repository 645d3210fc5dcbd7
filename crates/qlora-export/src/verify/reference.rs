//! The model that others are compared with.

use qlora_kernels::KernelBackend;
use qlora_models::Decoder;

use super::difference::{Sums, loss, row_logits};
use super::{Difference, Probe};

/// Tokens whose logits are kept where two models do not fit into memory: 300 MB for a vocabulary of 150,000.
pub(super) const KEPT: usize = 512;

/// The model itself, or what is kept of it when it makes room for the next.
pub(crate) enum Reference<B: KernelBackend> {
    Live(Box<Decoder<B>>),
    Kept {
        /// Of the first tokens of the probe.
        logits: Vec<f32>,
        /// Of all of them.
        loss: f64,
    },
}

impl<B: KernelBackend> Reference<B> {
    /// Keeps the model if another fits beside it and the probe has more tokens than could be kept.
    pub(crate) fn new(model: Decoder<B>, probe: &Probe, both_fit: bool) -> Self {
        if both_fit && probe.tokens() > KEPT {
            return Self::Live(Box::new(model));
        }
        let most = KEPT * model.config().vocab_size;
        let (mut kept, mut sum) = (Vec::new(), 0.0);
        for row in probe.rows() {
            let logits = row_logits(&model, row);
            sum += loss(row, &logits);
            kept.extend_from_slice(&logits[..logits.len().min(most - kept.len())]);
        }
        Self::Kept { logits: kept, loss: sum }
    }

    /// Compares another model with it, on the same probe.
    pub(crate) fn compare(&self, probe: &Probe, model: &Decoder<B>) -> Difference {
        let (kept, reference_loss) = match self {
            Self::Live(reference) => return Difference::between(probe, reference, model),
            Self::Kept { logits, loss } => (logits, *loss),
        };
        let (mut sums, mut sum, mut rest) = (Sums::default(), 0.0, kept.as_slice());
        for row in probe.rows() {
            let logits = row_logits(model, row);
            sum += loss(row, &logits);
            let (reference, after) = rest.split_at(rest.len().min(logits.len()));
            sums.add(reference, &logits[..reference.len()], model.config().vocab_size);
            rest = after;
        }
        sums.difference(probe, [reference_loss, sum])
    }
}

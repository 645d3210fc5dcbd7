//! The memory of training steps: exact buffers while batches are of one size, and the peak.

use std::collections::BTreeSet;

use burn::tensor::backend::Backend as _;
use qlora_kernels::{KernelBackend, TrainBackend};

use crate::Trainable;
use crate::memory::peak_memory_mb;

/// What is known of the steps so far.
#[derive(Debug, Default)]
pub(crate) struct StepMemory {
    /// Tokens of the micro-batches that buffers are reserved for.
    reserved: Option<usize>,
    /// Tokens of the micro-batches of the last step; `None` before the first and where they differed.
    last: Option<usize>,
    started: bool,
    /// The most bytes that were taken from the device.
    peak: Option<u64>,
}

impl StepMemory {
    /// Before the optimizer makes its moments.
    pub(crate) fn start<B: TrainBackend>(model: &impl Trainable<B>) -> Self {
        if let Some(device) = device(model) {
            reserve_parameters(model, &device);
        }
        Self::default()
    }

    /// Before a step whose micro-batches have so many tokens.
    ///
    /// Buffers of exact sizes waste nothing, but fit nothing else: they are kept while all micro-batches are of one
    /// size, given back when a step breaks the row, and kept again after two steps alike.
    pub(crate) fn prepare<B: TrainBackend>(
        &mut self,
        model: &impl Trainable<B>,
        mut tokens: impl Iterator<Item = usize>,
    ) {
        let first = tokens.next();
        let uniform = first.filter(|first| tokens.all(|other| other == *first));
        let (last, started) = (self.last, self.started);
        (self.last, self.started) = (uniform, true);
        if self.reserved == uniform {
            return;
        }
        let Some(device) = device(model) else { return };
        if self.reserved.take().is_some() {
            clean_up(model, &device);
        } else if let Some(tokens) = uniform.filter(|_| !started || last == uniform)
            && let Some(sizes) = model.activation_sizes(tokens)
        {
            clean_up(model, &device);
            B::InnerBackend::reserve_activations(&device, &sizes);
            self.reserved = uniform;
        }
    }

    /// Between training and something else that needs memory in other sizes: what is not in use goes back to the device.
    pub(crate) fn give_back<B: TrainBackend>(&mut self, model: &impl Trainable<B>) {
        // Buffers are reserved again by the next step, if its micro-batches are of one size.
        (self.reserved, self.started) = (None, false);
        self.peak_mb::<B>(model);
        if let Some(device) = device(model) {
            clean_up(model, &device);
        }
    }

    /// The most memory that was held so far, in MB of 10⁶ bytes: of the device where it has its own, else of this
    /// process.
    pub(crate) fn peak_mb<B: TrainBackend>(&mut self, model: &impl Trainable<B>) -> Option<f64> {
        let now = device(model).and_then(|device| B::InnerBackend::device_memory(&device));
        match now {
            Some(now) => {
                let peak = self.peak.unwrap_or(0).max(now.reserved);
                self.peak = Some(peak);
                Some(peak as f64 / 1e6)
            }
            None => peak_memory_mb(),
        }
    }
}

/// Gives back what is not in use, but for the sizes that every step needs.
fn clean_up<B: TrainBackend>(model: &impl Trainable<B>, device: &B::Device) {
    B::InnerBackend::memory_cleanup(device);
    reserve_parameters(model, device);
}

fn reserve_parameters<B: TrainBackend>(model: &impl Trainable<B>, device: &B::Device) {
    let mut elements = BTreeSet::new();
    model.visit_parameters(&mut |_, parameter| {
        elements.insert(parameter.shape().num_elements());
    });
    B::InnerBackend::reserve_parameters(device, &elements.into_iter().collect::<Vec<_>>());
}

/// Where the model is: where its first parameter is.
fn device<B: TrainBackend>(model: &impl Trainable<B>) -> Option<B::Device> {
    let mut device = None;
    model.visit_parameters(&mut |_, parameter| {
        device.get_or_insert_with(|| parameter.device());
    });
    device
}

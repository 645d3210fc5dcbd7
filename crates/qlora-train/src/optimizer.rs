//! AdamW (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>) with f32 states, as torch computes it.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor, TensorData};
use qlora_kernels::{AdamWStep, KernelBackend, TrainBackend, adamw};

use crate::Trainable;
use crate::checkpoint::NamedTensor;

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    /// β₁ 0.9, β₂ 0.999, ε 1e-8, no weight decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The moments of all parameters, in the model's order.
pub(crate) struct AdamW<B: TrainBackend> {
    options: AdamWOptions,
    moments: Vec<Moments<B::InnerBackend>>,
}

struct Moments<B: KernelBackend> {
    first: Tensor<B, 2>,
    second: Tensor<B, 2>,
}

impl<B: TrainBackend> AdamW<B> {
    /// Moments of zero.
    pub(crate) fn new(options: AdamWOptions, model: &impl Trainable<B>) -> Self {
        let mut moments = Vec::new();
        model.visit_parameters(&mut |_, parameter| {
            let device = parameter.clone().inner().device();
            let zeros = || Tensor::zeros(parameter.shape(), (&device, DType::F32));
            moments.push(Moments { first: zeros(), second: zeros() });
        });
        Self { options, moments }
    }

    /// Updates all parameters. `step` counts from 1; gradients are multiplied by `grad_scale` first.
    pub(crate) fn step(
        &mut self,
        model: &mut impl Trainable<B>,
        gradients: Vec<Tensor<B::InnerBackend, 2>>,
        learning_rate: f64,
        step: u64,
        grad_scale: f64,
    ) {
        let AdamWOptions { beta1, beta2, eps, weight_decay } = self.options;
        let step = AdamWStep {
            learning_rate,
            beta1,
            beta2,
            eps,
            weight_decay,
            step: usize::try_from(step).unwrap_or(usize::MAX),
            grad_scale,
        };
        let mut updated = Vec::with_capacity(self.moments.len());
        // Everything is given away, so that the kernel has each tensor to itself and can update in place.
        let mut pairs = gradients.into_iter().zip(self.moments.drain(..));
        model.update_parameters(&mut |_, parameter| {
            let (gradient, Moments { first, second }) =
                pairs.next().expect("one gradient and state a parameter");
            let (parameter, first, second) = adamw(parameter.inner(), gradient, first, second, step);
            updated.push(Moments { first, second });
            Tensor::from_inner(parameter)
        });
        drop(pairs);
        self.moments = updated;
    }

    /// The moments on the host, with the names of their parameters.
    pub(crate) fn read(&self, model: &impl Trainable<B>) -> (Vec<NamedTensor>, Vec<NamedTensor>) {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let mut moments = self.moments.iter();
        model.visit_parameters(&mut |name, _| {
            if let Some(moments) = moments.next() {
                first.push(to_host(name, moments.first.clone()));
                second.push(to_host(name, moments.second.clone()));
            }
        });
        (first, second)
    }

    /// Takes moments from the host. Names and shapes were checked against the model's.
    pub(crate) fn write(&mut self, model: &impl Trainable<B>, first: &[NamedTensor], second: &[NamedTensor]) {
        let (first, second) = (by_name(first), by_name(second));
        let mut moments = Vec::new();
        model.visit_parameters(&mut |name, parameter| {
            let device = parameter.clone().inner().device();
            let tensor = |tensors: &HashMap<&str, &NamedTensor>| from_host(tensors[name], &device);
            moments.push(Moments { first: tensor(&first), second: tensor(&second) });
        });
        self.moments = moments;
    }
}

/// The trained parameters on the host.
pub(crate) fn read_parameters<B: TrainBackend>(model: &impl Trainable<B>) -> Vec<NamedTensor> {
    let mut parameters = Vec::new();
    model.visit_parameters(&mut |name, parameter| parameters.push(to_host(name, parameter.clone().inner())));
    parameters
}

/// Replaces the trained parameters by those of the host. Names and shapes were checked against the model's.
pub(crate) fn write_parameters<B: TrainBackend>(model: &mut impl Trainable<B>, parameters: &[NamedTensor]) {
    let parameters = by_name(parameters);
    model.update_parameters(&mut |name, parameter| {
        Tensor::from_inner(from_host(parameters[name], &parameter.inner().device()))
    });
}

fn by_name(tensors: &[NamedTensor]) -> HashMap<&str, &NamedTensor> {
    tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
}

fn to_host<B: KernelBackend>(name: &str, tensor: Tensor<B, 2>) -> NamedTensor {
    let shape = tensor.dims().to_vec();
    let data = tensor.into_data().convert::<f32>();
    NamedTensor { name: name.to_string(), shape, values: data.into_vec().expect("converted to f32") }
}

fn from_host<B: KernelBackend>(tensor: &NamedTensor, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(tensor.values.clone(), tensor.shape.clone());
    Tensor::from_data(data, (device, DType::F32))
}

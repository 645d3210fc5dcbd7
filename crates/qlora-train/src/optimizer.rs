//! AdamW (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>): with f32 moments as torch computes it, with
//! 8-bit moments (Dettmers et al. 2021, <https://arxiv.org/abs/2110.02861>) as bitsandbytes does.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor, TensorData};
use qlora_kernels::{AdamWStep, KernelBackend, Quantized8, TrainBackend, adamw_all, adamw8bit};
use qlora_quant::{DynamicMap, dynamic_map};

use crate::Trainable;
use crate::checkpoint::{MomentValues, NamedMoment, NamedTensor};

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
    /// How moments are stored.
    pub moments: MomentStorage,
}

/// How the moments of an optimizer are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentStorage {
    /// As 32-bit floats.
    #[default]
    F32,
    /// In eight bits with a scale for 256 elements; those of parameters with fewer than 4096 elements as 32-bit
    /// floats, as they would save nothing.
    EightBit,
}

impl MomentStorage {
    /// Parameters with fewer elements keep f32 moments, as in bitsandbytes.
    const LEAST_ELEMENTS: usize = 4096;

    /// Whether the moments of a parameter with so many elements are in eight bits.
    fn is_eight_bit(self, elements: usize) -> bool {
        self == Self::EightBit && elements >= Self::LEAST_ELEMENTS
    }
}

impl Default for AdamWOptions {
    /// β₁ 0.9, β₂ 0.999, ε 1e-8, no weight decay, f32 moments.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, moments: MomentStorage::F32 }
    }
}

/// The moments of all parameters, in the model's order.
pub(crate) struct AdamW<B: TrainBackend> {
    options: AdamWOptions,
    moments: Vec<Moments<B::InnerBackend>>,
}

/// The first and the second moment of a parameter.
enum Moments<B: KernelBackend> {
    F32([Tensor<B, 2>; 2]),
    EightBit([Quantized8<B>; 2]),
}

/// The map of the first moment, which has signs, and of the second, which has none.
fn maps() -> [&'static DynamicMap; 2] {
    [dynamic_map::signed(), dynamic_map::unsigned()]
}

impl<B: TrainBackend> AdamW<B> {
    /// Moments of zero.
    pub(crate) fn new(options: AdamWOptions, model: &impl Trainable<B>) -> Self {
        let mut moments = Vec::new();
        model.visit_parameters(&mut |_, parameter| {
            let device = parameter.clone().inner().device();
            let elements = parameter.shape().num_elements();
            moments.push(if options.moments.is_eight_bit(elements) {
                Moments::EightBit(maps().map(|map| Quantized8::zeros(elements, map, &device)))
            } else {
                Moments::F32([(); 2].map(|()| Tensor::zeros(parameter.shape(), (&device, DType::F32))))
            });
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
        let AdamWOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        let step = AdamWStep {
            learning_rate,
            beta1,
            beta2,
            eps,
            weight_decay,
            step: usize::try_from(step).unwrap_or(usize::MAX),
            grad_scale,
        };
        // Everything is given away, so that the kernels have each tensor to themselves and can update in place. Those
        // with f32 moments are updated all at once; a parameter that waits is meanwhile this one.
        let mut waiting: Option<Tensor<B, 2>> = None;
        let (mut together, mut updated) = (Vec::new(), Vec::with_capacity(self.moments.len()));
        let mut pairs = gradients.into_iter().zip(self.moments.drain(..));
        model.update_parameters(&mut |_, parameter| {
            let (gradient, moments) = pairs.next().expect("one gradient and state a parameter");
            match moments {
                Moments::F32([first, second]) => {
                    let device = parameter.device();
                    together.push([parameter.inner(), gradient, first, second]);
                    updated.push(None);
                    waiting.get_or_insert_with(|| Tensor::zeros([1, 1], &device)).clone()
                }
                Moments::EightBit([first, second]) => {
                    let (parameter, first, second) =
                        adamw8bit(parameter.inner(), gradient, first, second, step);
                    updated.push(Some(Moments::EightBit([first, second])));
                    Tensor::from_inner(parameter)
                }
            }
        });
        drop(pairs);
        let mut done = adamw_all(together, step).into_iter();
        let mut updated = updated.into_iter();
        model.update_parameters(&mut |_, parameter| {
            let moments = updated.next().expect("a state a parameter");
            let (parameter, moments) = match moments {
                Some(moments) => (parameter, moments),
                None => {
                    let [parameter, first, second] = done.next().expect("all that waited are done");
                    (Tensor::from_inner(parameter), Moments::F32([first, second]))
                }
            };
            self.moments.push(moments);
            parameter
        });
    }

    /// The first and the second moments on the host, with the names of their parameters.
    pub(crate) fn read(&self, model: &impl Trainable<B>) -> [Vec<NamedMoment>; 2] {
        let mut read = [Vec::new(), Vec::new()];
        let mut moments = self.moments.iter();
        model.visit_parameters(&mut |name, parameter| {
            let Some(moments) = moments.next() else { return };
            let elements = parameter.shape().num_elements();
            let values = match moments {
                Moments::F32(both) => both.clone().map(|moment| MomentValues::F32(floats(moment))),
                Moments::EightBit(both) => both.each_ref().map(|moment| {
                    let (codes, absmax) = moment.to_host(elements);
                    MomentValues::EightBit { codes, absmax }
                }),
            };
            for (read, values) in read.iter_mut().zip(values) {
                read.push(NamedMoment { name: name.to_string(), shape: parameter.dims().to_vec(), values });
            }
        });
        read
    }

    /// Takes moments from the host. Names and shapes were checked against the model's.
    ///
    /// # Errors
    /// Moments that are stored in another way than this optimizer does, in words.
    pub(crate) fn write(
        &mut self,
        model: &impl Trainable<B>,
        first: &[NamedMoment],
        second: &[NamedMoment],
    ) -> Result<(), String> {
        let by_name = [first, second].map(|moments| {
            moments.iter().map(|moment| (moment.name.as_str(), moment)).collect::<HashMap<_, _>>()
        });
        let (mut moments, mut problem) = (Vec::new(), None);
        model.visit_parameters(&mut |name, parameter| {
            let device = parameter.clone().inner().device();
            let eight_bit = self.options.moments.is_eight_bit(parameter.shape().num_elements());
            let stored = by_name.each_ref().map(|moments| &moments[name].values);
            match stored {
                [MomentValues::F32(first), MomentValues::F32(second)] if !eight_bit => {
                    let tensor = |values: &Vec<f32>| {
                        let data = TensorData::new(values.clone(), parameter.dims());
                        Tensor::from_data(data, (&device, DType::F32))
                    };
                    moments.push(Moments::F32([first, second].map(tensor)));
                }
                [
                    MomentValues::EightBit { codes: first, absmax: first_absmax },
                    MomentValues::EightBit { codes: second, absmax: second_absmax },
                ] if eight_bit => {
                    moments.push(Moments::EightBit([
                        Quantized8::from_host(first, first_absmax.clone(), &device),
                        Quantized8::from_host(second, second_absmax.clone(), &device),
                    ]));
                }
                _ => {
                    let kept = if eight_bit { "in eight bits" } else { "as f32" };
                    problem = Some(format!(
                        "the moments of `{name}` are not stored {kept}, as this optimizer does"
                    ));
                }
            }
        });
        self.moments = moments;
        problem.map_or(Ok(()), Err)
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
    NamedTensor { name: name.to_string(), shape: tensor.dims().to_vec(), values: floats(tensor) }
}

fn floats<B: KernelBackend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("converted to f32")
}

fn from_host<B: KernelBackend>(tensor: &NamedTensor, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(tensor.values.clone(), tensor.shape.clone());
    Tensor::from_data(data, (device, DType::F32))
}

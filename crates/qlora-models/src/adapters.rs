//! The adapters of a whole model: attach, visit, update, read, write.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use qlora_kernels::{Compute, KernelBackend};
use qlora_lora::{AdaptedLinear, AdapterFactors, LoraConfig, LoraError};

use crate::{Decoder, DecoderConfig};

/// Adapters of a model on the host, by the path of their layer (`model.layers.0.self_attn.q_proj`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterSet {
    /// Factors of each layer, and what the update is multiplied with.
    pub layers: BTreeMap<String, (AdapterFactors, f64)>,
}

impl AdapterSet {
    /// Checks that every adapter has its layer in a model, and fits it.
    ///
    /// # Errors
    /// [`LoraError::UnknownLayer`] or [`LoraError::ShapeMismatch`], of the first that does not.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), LoraError> {
        let shapes: BTreeMap<String, [usize; 2]> = config.linears().collect();
        for (path, (factors, _)) in &self.layers {
            let Some(&[outputs, inputs]) = shapes.get(path) else {
                return Err(LoraError::UnknownLayer { layer: path.clone() });
            };
            let rank = factors.rank;
            for (factor, found, expected) in [
                ("lora_A", [rank, factors.inputs], [rank, inputs]),
                ("lora_B", [factors.outputs, rank], [outputs, rank]),
            ] {
                if found != expected {
                    return Err(LoraError::ShapeMismatch { layer: path.clone(), factor, found, expected });
                }
            }
        }
        Ok(())
    }
}

impl<B: Backend> Decoder<B> {
    /// Every linear layer of the decoder layers with its path, in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = (String, &AdaptedLinear<B>)> {
        self.layers.iter().enumerate().flat_map(|(index, layer)| {
            layer
                .linears()
                .into_iter()
                .map(move |(name, linear)| (format!("model.layers.{index}.{name}"), linear))
        })
    }

    /// As [`linears`](Self::linears), to change them.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut AdaptedLinear<B>)> {
        self.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
            let path = move |name| format!("model.layers.{index}.{name}");
            layer.linears_mut().into_iter().map(move |(name, linear)| (path(name), linear))
        })
    }

    /// Attaches fresh adapters to the layers that `config` targets; returns how many.
    ///
    /// # Errors
    /// When the configuration makes no sense or targets no layer.
    pub fn attach(&mut self, config: &LoraConfig, seed: u64) -> Result<usize, LoraError> {
        config.validate()?;
        let matches = config.targets.matcher()?;
        let device = self.device();
        let mut attached = 0;
        for (path, linear) in self.linears_mut() {
            if matches(&path) {
                linear.attach(&path, config, seed, &device);
                attached += 1;
            }
        }
        if attached > 0 {
            return Ok(attached);
        }
        let mut names: Vec<String> = Vec::new();
        for (name, _) in self.layers.first().iter().flat_map(|layer| layer.linears()) {
            let name = name.rsplit('.').next().unwrap_or(&name).to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Err(LoraError::NoTarget { targets: config.targets.to_string(), available: names.join(", ") })
    }

    /// Attaches these adapters, in place of all others. `dropout` is that of further training.
    ///
    /// # Errors
    /// When one does not fit its layer, or its layer does not exist; the model is then unchanged.
    pub fn attach_set(&mut self, set: &AdapterSet, dropout: f64) -> Result<(), LoraError> {
        set.check(&self.config)?;
        let device = self.device();
        for (path, linear) in self.linears_mut() {
            linear.detach_adapter();
            if let Some((factors, scale)) = set.layers.get(&path) {
                linear.attach_factors(&path, factors.clone(), *scale, dropout, &device)?;
            }
        }
        Ok(())
    }

    /// The attached adapters, read back to the host.
    #[must_use]
    pub fn adapter_set(&self) -> AdapterSet {
        let adapters = self.linears().filter_map(|(path, linear)| {
            let adapter = linear.adapter()?;
            Some((path, (adapter.factors(), adapter.scale())))
        });
        AdapterSet { layers: adapters.collect() }
    }

    /// Calls `visit` with every trained parameter and its PEFT name, in a fixed order.
    pub fn visit_parameters(&self, visit: &mut dyn FnMut(&str, &Tensor<B, 2>)) {
        for (path, linear) in self.linears() {
            if let Some(adapter) = linear.adapter() {
                visit(&peft_name(&path, "lora_A"), &adapter.a());
                visit(&peft_name(&path, "lora_B"), &adapter.b());
                if let Some(magnitude) = adapter.magnitude() {
                    visit(&magnitude_name(&path), &magnitude);
                }
            }
        }
    }

    /// Replaces every trained parameter by what `update` makes of it, in the same order.
    pub fn update_parameters(&mut self, update: &mut dyn FnMut(&str, Tensor<B, 2>) -> Tensor<B, 2>) {
        for (path, linear) in self.linears_mut() {
            if let Some(adapter) = linear.adapter_mut() {
                adapter.update_a(|a| update(&peft_name(&path, "lora_A"), a));
                adapter.update_b(|b| update(&peft_name(&path, "lora_B"), b));
                adapter.update_magnitude(|magnitude| update(&magnitude_name(&path), magnitude));
            }
        }
    }

    /// Trained parameters.
    #[must_use]
    pub fn trained_parameter_count(&self) -> usize {
        let mut count = 0;
        self.visit_parameters(&mut |_, parameter| count += parameter.shape().num_elements());
        count
    }
}

impl<B: KernelBackend> Decoder<B> {
    /// Makes every update part of its weight, which becomes dense in the given type.
    pub fn merge(&mut self, compute: Compute) {
        self.linears_mut().for_each(|(_, linear)| linear.merge(compute));
    }

    /// Undoes [`merge`](Self::merge).
    pub fn unmerge(&mut self) {
        self.linears_mut().for_each(|(_, linear)| linear.unmerge());
    }
}

/// The name that PEFT gives to DoRA's magnitudes of the layer at `path`.
fn magnitude_name(path: &str) -> String {
    format!("base_model.model.{path}.lora_magnitude_vector")
}

/// The name that PEFT gives to a factor of the layer at `path`.
fn peft_name(path: &str, factor: &str) -> String {
    format!("base_model.model.{path}.{factor}.weight")
}

//! An adapter in memory, under PEFT's names.

use std::collections::BTreeMap;

use super::{InvalidAdapter, PeftConfig};

const PREFIX: &str = "base_model.model.";

/// A tensor of an adapter file.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// `[rank, in]` for A, `[out, rank]` for B, `[out]` for magnitudes.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub values: Vec<f32>,
}

/// One of the two factors of an update B·A, or DoRA's magnitudes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// `[rank, in]`.
    A,
    /// `[out, rank]`.
    B,
    /// `[out]`.
    Magnitude,
}

impl Factor {
    /// The name of this factor of a layer, such as
    /// `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight` for `model.layers.0.mlp.up_proj`.
    #[must_use]
    pub fn tensor_name(self, layer: &str) -> String {
        format!("{PREFIX}{layer}{}", self.suffix())
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
            Self::Magnitude => ".lora_magnitude_vector",
        }
    }
}

/// A LoRA adapter: its configuration and its tensors, which fit each other.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftAdapter {
    config: PeftConfig,
    tensors: BTreeMap<String, AdapterTensor>,
}

/// The adapter of one linear layer: y = W x + scale · B A x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeftLayer<'a> {
    /// Rank of the update.
    pub rank: usize,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// `[rank, inputs]`, row-major.
    pub a: &'a [f32],
    /// `[outputs, rank]`, row-major.
    pub b: &'a [f32],
    /// alpha / rank, or alpha / √rank with rsLoRA.
    pub scale: f64,
    /// DoRA's norms of rows, `[outputs]`.
    pub magnitude: Option<&'a [f32]>,
}

impl PeftAdapter {
    /// Puts an adapter together. The keys of `tensors` are those of [`Factor::tensor_name`].
    ///
    /// # Errors
    /// When the configuration is out of range; when there are no tensors, one is no factor of a linear
    /// layer, lacks its partner, has a shape or rank that does not fit, or belongs to a layer that
    /// `target_modules` does not name.
    pub fn new(config: PeftConfig, tensors: BTreeMap<String, AdapterTensor>) -> Result<Self, InvalidAdapter> {
        let resolver = config.resolver()?;
        if tensors.is_empty() {
            return Err(InvalidAdapter::Empty);
        }
        for (name, tensor) in &tensors {
            let (layer, factor) = parse(name)?;
            if factor == Factor::Magnitude {
                check_magnitude(&config, &tensors, name, layer, tensor)?;
                continue;
            }
            let elements = tensor.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            let &[rows, columns] = tensor.shape.as_slice() else {
                return Err(shape_error(name, tensor, "two dimensions, those of a linear layer"));
            };
            if elements != Some(tensor.values.len()) || rows == 0 || columns == 0 {
                return Err(shape_error(name, tensor, "as many elements as the shape says, and one or more"));
            }
            let (rank, partner) = match factor {
                Factor::B => (columns, Factor::A),
                _ => (rows, Factor::B),
            };
            let expected = resolver.rank(layer);
            if rank != expected {
                return Err(InvalidAdapter::Rank { tensor: name.clone(), found: rank, expected });
            }
            let missing = partner.tensor_name(layer);
            if !tensors.contains_key(&missing) {
                return Err(InvalidAdapter::MissingFactor { tensor: name.clone(), missing });
            }
            let missing = Factor::Magnitude.tensor_name(layer);
            if config.use_dora && !tensors.contains_key(&missing) {
                return Err(InvalidAdapter::MissingFactor { tensor: name.clone(), missing });
            }
            if !resolver.targets(layer) {
                return Err(InvalidAdapter::NotTargeted { tensor: name.clone() });
            }
        }
        Ok(Self { config, tensors })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// The tensors by PEFT's names.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, AdapterTensor> {
        &self.tensors
    }

    /// The adapted layers by their path in the model (`model.layers.0.mlp.up_proj`).
    #[must_use]
    pub fn layers<'a>(&'a self) -> BTreeMap<&'a str, PeftLayer<'a>> {
        let resolver = self.config.resolver().expect("the configuration was checked");
        let layer = |(name, a): (&'a String, &'a AdapterTensor)| {
            let (layer, Factor::A) = parse(name).expect("the names were checked") else { return None };
            let b = &self.tensors[&Factor::B.tensor_name(layer)];
            let (inputs, outputs) = (a.shape[1], b.shape[0]);
            let (rank, scale) = (a.shape[0], resolver.scale(layer));
            let magnitude = self.tensors.get(&Factor::Magnitude.tensor_name(layer));
            let magnitude = magnitude.map(|tensor| tensor.values.as_slice());
            Some((layer, PeftLayer { rank, inputs, outputs, a: &a.values, b: &b.values, scale, magnitude }))
        };
        self.tensors.iter().filter_map(layer).collect()
    }
}

/// Checks magnitudes: only with DoRA, one for each row of the layer's B.
fn check_magnitude(
    config: &PeftConfig,
    tensors: &BTreeMap<String, AdapterTensor>,
    name: &str,
    layer: &str,
    tensor: &AdapterTensor,
) -> Result<(), InvalidAdapter> {
    if !config.use_dora {
        return Err(InvalidAdapter::UnexpectedTensor {
            tensor: name.to_owned(),
            what: "a magnitude of DoRA, without `use_dora` in adapter_config.json",
            expected: EXPECTED,
        });
    }
    let missing = Factor::B.tensor_name(layer);
    let Some(b) = tensors.get(&missing) else {
        return Err(InvalidAdapter::MissingFactor { tensor: name.to_owned(), missing });
    };
    if b.shape.first() != Some(&tensor.values.len()) || tensor.shape != [tensor.values.len()] {
        return Err(shape_error(name, tensor, "one dimension, with an element for each row of lora_B"));
    }
    Ok(())
}

const EXPECTED: &str = "`.lora_A.weight` or `.lora_B.weight` and start with `base_model.model.`";

/// The layer and the factor that a name stands for.
fn parse(name: &str) -> Result<(&str, Factor), InvalidAdapter> {
    let factor = [Factor::A, Factor::B, Factor::Magnitude].into_iter().find_map(|factor| {
        let layer = name.strip_prefix(PREFIX)?.strip_suffix(factor.suffix())?;
        (!layer.is_empty()).then_some((layer, factor))
    });
    factor.ok_or_else(|| InvalidAdapter::UnexpectedTensor {
        tensor: name.to_owned(),
        what: match name {
            _ if name.contains(".lora_embedding_") => "a factor of an embedding",
            _ if name.ends_with(".lora_B.bias") => "a bias of the adapter",
            _ if name.contains(".base_layer.") => "a weight of the base model",
            _ if name.contains(".lora_A.") || name.contains(".lora_B.") => "a factor of a named adapter",
            _ => "no factor of a linear layer",
        },
        expected: EXPECTED,
    })
}

fn shape_error(name: &str, tensor: &AdapterTensor, expected: &'static str) -> InvalidAdapter {
    let (tensor_name, shape) = (name.to_owned(), tensor.shape.clone());
    InvalidAdapter::Shape { tensor: tensor_name, shape, elements: tensor.values.len(), expected }
}

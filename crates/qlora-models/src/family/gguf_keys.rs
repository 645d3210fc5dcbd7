//! Metadata of GGUF files below the name of their architecture. What nobody read is refused.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use qlora_gguf::{GgufError, Metadata, Value};

use crate::config::{LayerAttention, LayerRope};
use crate::{DecoderConfig, Family, ModelError, RopeScaling};

/// Keys that say nothing of what a decoder computes, or repeat it.
const HARMLESS: &[&str] = &[
    "attention.causal",
    "attention.value_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
];

/// What is in a file beside its metadata, and matters to the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct GgufTensors {
    /// Whether there is a head beside the embedding.
    pub(crate) has_head: bool,
    /// Whether queries, keys and values have a bias.
    pub(crate) has_attention_bias: bool,
    /// Whether the output of attention has one.
    pub(crate) has_output_bias: bool,
    /// Whether the MLP has one.
    pub(crate) has_mlp_bias: bool,
    /// Whether queries and keys are normalised.
    pub(crate) has_qk_norm: bool,
    /// `rope_freqs.weight`.
    pub(crate) rope_divisors: Option<Vec<f32>>,
    /// `rope_factors_short.weight` and `rope_factors_long.weight`.
    pub(crate) rope_factors: Option<[Vec<f32>; 2]>,
}

/// The keys of one architecture.
#[derive(Debug)]
pub(super) struct GgufKeys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    architecture: &'a str,
    pub(super) tensors: &'a GgufTensors,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> GgufKeys<'a> {
    pub(super) fn new(
        path: &'a Path,
        metadata: &'a Metadata,
        architecture: &'a str,
        tensors: &'a GgufTensors,
    ) -> Self {
        Self { path, metadata, architecture, tensors, read: RefCell::default() }
    }

    fn key(&self, key: &str) -> String {
        self.read.borrow_mut().insert(key.to_owned());
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) -> ModelError {
        let key = format!("{}.{key}", self.architecture);
        ModelError::Config { path: self.path.to_owned(), key, problem: problem.into() }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.metadata.usize(&self.key(key))
    }

    pub(super) fn opt_size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.metadata.opt_usize(&self.key(key))
    }

    pub(super) fn float(&self, key: &str) -> Result<f64, GgufError> {
        Ok(f64::from(self.metadata.f32(&self.key(key))?))
    }

    pub(super) fn opt_float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        Ok(self.metadata.opt_f32(&self.key(key))?.map(f64::from))
    }

    /// What all families have. `eps_key` is that of the norms' ε.
    pub(super) fn decoder(&self, family: Family, eps_key: &str) -> Result<DecoderConfig, ModelError> {
        let hidden_size = self.size("embedding_length")?;
        let heads = self.size("attention.head_count")?;
        let head_dim = match self.opt_size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size
                .checked_div(heads)
                .ok_or_else(|| self.wrong("attention.head_count", "is 0: expected at least 1"))?,
        };
        if let Some(other) = self.opt_size("attention.value_length")?.filter(|other| *other != head_dim) {
            let problem =
                format!("is {other}: values of another size than keys, {head_dim}, are not supported");
            return Err(self.wrong("attention.value_length", problem));
        }
        let rotated = self.opt_size("rope.dimension_count")?.filter(|rotated| *rotated != head_dim);
        let max_position_embeddings = self.size("context_length")?;
        let vocab_size = match self.opt_size("vocab_size")? {
            Some(size) => size,
            None => self.metadata.strings("tokenizer.ggml.tokens")?.len(),
        };
        let tensors = self.tensors;
        Ok(DecoderConfig {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: self.size("feed_forward_length")?,
            layers: self.size("block_count")?,
            heads,
            kv_heads: self.opt_size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: self.float(eps_key)?,
            rope_theta: self.opt_float("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling(max_position_embeddings)?,
            rotary_dim: rotated,
            max_position_embeddings,
            tie_word_embeddings: !tensors.has_head,
            attention_bias: tensors.has_attention_bias,
            output_bias: tensors.has_output_bias,
            mlp_bias: tensors.has_mlp_bias,
            ..DecoderConfig::default()
        })
    }

    /// Refuses to rotate a part of a head.
    pub(super) fn whole_heads(&self, config: &DecoderConfig) -> Result<(), ModelError> {
        match config.rotary_dim {
            None => Ok(()),
            Some(rotated) => {
                let problem = format!(
                    "is {rotated}: rotating a part of a head of {} is not supported",
                    config.head_dim
                );
                Err(self.wrong("rope.dimension_count", problem))
            }
        }
    }

    fn rope_scaling(&self, context: usize) -> Result<RopeScaling, ModelError> {
        let original = self.opt_size("rope.scaling.original_context_length")?.unwrap_or(context);
        let factor = self.opt_float("rope.scaling.factor")?.unwrap_or(1.0);
        let attention = self.opt_float("rope.scaling.attn_factor")?;
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        if let Some([short, long]) = &self.tensors.rope_factors {
            let _ = self.key("rope.scaling.type");
            let factor = context as f64 / original as f64;
            let default = || RopeScaling::longrope_attention_factor(factor, original);
            return Ok(RopeScaling::LongRope {
                short_factor: wide(short),
                long_factor: wide(long),
                original_max_position_embeddings: original,
                attention_factor: attention.unwrap_or_else(default),
            });
        }
        if let Some(divisors) = &self.tensors.rope_divisors {
            let _ = self.key("rope.scaling.type");
            return Ok(RopeScaling::Divisors(divisors.clone()));
        }
        Ok(match self.metadata.opt_string(&self.key("rope.scaling.type"))? {
            None | Some("none") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor },
            Some("yarn") => RopeScaling::Yarn {
                factor,
                beta_fast: self.opt_float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.opt_float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings: original,
                attention_factor: RopeScaling::yarn_attention_factor(factor, 1.0) * attention.unwrap_or(1.0),
                truncate: true,
            },
            Some(other) => {
                let problem =
                    format!("is `{other}`: supported are none, linear, yarn, and longrope with its factors");
                return Err(self.wrong("rope.scaling.type", problem));
            }
        })
    }

    /// Layers of which every `pattern`-th sees everything and the others have the window of the file.
    pub(super) fn alternating(
        &self,
        layers: usize,
        pattern: usize,
        windowed: LayerRope,
    ) -> Result<Vec<LayerAttention>, ModelError> {
        let window = self.size("attention.sliding_window")?;
        let flags = match self.metadata.get(&self.key("attention.sliding_window_pattern")) {
            Some(Value::Array(_)) => {
                Some(self.metadata.bools(&self.key("attention.sliding_window_pattern"))?.to_vec())
            }
            _ => None,
        };
        let pattern = match flags {
            Some(_) => pattern,
            None => self.opt_size("attention.sliding_window_pattern")?.unwrap_or(pattern).max(1),
        };
        let is_windowed = |layer: usize| match &flags {
            Some(flags) => flags.get(layer).copied().unwrap_or(false),
            None => !(layer + 1).is_multiple_of(pattern),
        };
        Ok((0..layers.min(1 << 16))
            .map(|layer| match is_windowed(layer) {
                true => LayerAttention { window: Some(window), rope: windowed },
                false => LayerAttention::default(),
            })
            .collect())
    }

    /// Refuses keys that nobody has asked for: they may change what the model computes.
    pub(super) fn finish(&self) -> Result<(), ModelError> {
        let read = self.read.borrow();
        let prefix = format!("{}.", self.architecture);
        for (key, _) in self.metadata.iter() {
            let Some(key) = key.strip_prefix(&prefix) else { continue };
            if !read.contains(key) && !HARMLESS.contains(&key) {
                let problem = "is not known: it may change what the model computes";
                return Err(self.wrong(key, problem));
            }
        }
        Ok(())
    }
}

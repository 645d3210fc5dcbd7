//! Keys of `config.json`, read with errors that name file and key. What nobody read is refused.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use qlora_kernels::Activation;
use serde_json::Value;

use super::rope_json::{self, RopeKeys};
use crate::config::{LayerAttention, LayerRope};
use crate::{DecoderConfig, Family, ModelError};

/// Keys that say nothing of what a decoder computes: names, tokens, training, generation.
const HARMLESS: &[&str] = &[
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "quantization_config",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// What a family takes where a key is absent: the defaults of its class in transformers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) tied: bool,
    pub(super) rope_theta: f64,
    pub(super) eps: f64,
    /// `None`: the hidden size divided by the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) context: usize,
    pub(super) vocab_size: Option<usize>,
    pub(super) heads: Option<usize>,
    /// `None`: as many as there are query heads.
    pub(super) kv_heads: Option<usize>,
    /// `rms_norm_eps`, or what else the family calls it.
    pub(super) eps_key: &'static str,
    /// `hidden_act`, or what else the family calls it.
    pub(super) activation_key: &'static str,
    pub(super) activation: Activation,
    /// Whether a part of a head may be rotated.
    pub(super) partial_rotary: bool,
}

impl Default for Defaults {
    /// Those of Llama.
    fn default() -> Self {
        Self {
            tied: false,
            rope_theta: 10_000.0,
            eps: 1e-6,
            head_dim: None,
            context: 2048,
            vocab_size: None,
            heads: None,
            kv_heads: None,
            eps_key: "rms_norm_eps",
            activation_key: "hidden_act",
            activation: Activation::Silu,
            partial_rotary: false,
        }
    }
}

/// An object of a configuration.
#[derive(Debug)]
pub(super) struct JsonKeys<'a> {
    path: &'a Path,
    object: &'a Value,
    /// Put before keys in messages: `rope_scaling.`.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> JsonKeys<'a> {
    pub(super) fn new(path: &'a Path, object: &'a Value) -> Self {
        Self { path, object, prefix: String::new(), read: RefCell::default() }
    }

    /// The object at a key; `None` where there is none.
    pub(super) fn inner(&self, key: &str) -> Result<Option<JsonKeys<'a>>, ModelError> {
        let Some(object) = self.get(key) else { return Ok(None) };
        if !object.is_object() {
            return Err(self.wrong(key, "is not an object"));
        }
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(JsonKeys { path: self.path, object, prefix, read: RefCell::default() }))
    }

    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) -> ModelError {
        let key = format!("{}{key}", self.prefix);
        ModelError::Config { path: self.path.to_owned(), key, problem: problem.into() }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some()
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_size(key)?.ok_or_else(|| self.wrong(key, "is missing; expected a number"))
    }

    pub(super) fn opt_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let read = |value: &Value| {
            value
                .as_u64()
                .and_then(|v| usize::try_from(v).ok())
                .ok_or_else(|| self.wrong(key, format!("is {value}: expected a whole number")))
        };
        self.get(key).map(read).transpose()
    }

    pub(super) fn float(&self, key: &str) -> Result<f64, ModelError> {
        self.opt_float(key)?.ok_or_else(|| self.wrong(key, "is missing; expected a number"))
    }

    pub(super) fn opt_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let read = |value: &Value| {
            value.as_f64().ok_or_else(|| self.wrong(key, format!("is {value}: expected a number")))
        };
        self.get(key).map(read).transpose()
    }

    pub(super) fn floats(&self, key: &str) -> Result<Vec<f64>, ModelError> {
        let wrong = || self.wrong(key, "is not a list of numbers");
        let values = self.get(key).and_then(Value::as_array).ok_or_else(wrong)?;
        values.iter().map(|value| value.as_f64().ok_or_else(wrong)).collect()
    }

    pub(super) fn opt_sizes(&self, key: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let wrong = || self.wrong(key, "is not a list of whole numbers");
        let Some(values) = self.get(key) else { return Ok(None) };
        let values = values.as_array().ok_or_else(wrong)?;
        let size = |value: &Value| value.as_u64().and_then(|v| usize::try_from(v).ok()).ok_or_else(wrong);
        values.iter().map(size).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn opt_text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let read = |value: &'a Value| {
            value.as_str().ok_or_else(|| self.wrong(key, format!("is {value}: expected a string")))
        };
        self.get(key).map(read).transpose()
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let read = |value: &Value| {
            value.as_bool().ok_or_else(|| self.wrong(key, format!("is {value}: expected true or false")))
        };
        self.get(key).map_or(Ok(default), read)
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ModelError> {
        self.flag_or(key, false)
    }

    /// Refuses a switch that is on.
    pub(super) fn must_be_off(&self, key: &str) -> Result<(), ModelError> {
        match self.flag(key)? {
            false => Ok(()),
            true => Err(self.wrong(key, "is true: that is not supported")),
        }
    }

    /// What all families have.
    pub(super) fn decoder(&self, family: Family, defaults: Defaults) -> Result<DecoderConfig, ModelError> {
        let size = |key: &str, default: Option<usize>| match default {
            Some(default) => Ok(self.opt_size(key)?.unwrap_or(default)),
            None => self.size(key),
        };
        let heads = size("num_attention_heads", defaults.heads)?;
        let hidden_size = self.size("hidden_size")?;
        let head_dim = match self.opt_size("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => hidden_size
                .checked_div(heads)
                .ok_or_else(|| self.wrong("num_attention_heads", "is 0: expected at least 1"))?,
        };
        let max_position_embeddings = self.opt_size("max_position_embeddings")?.unwrap_or(defaults.context);
        self.must_be_off("rope_interleaved")?;
        let RopeKeys { theta, scaling, partial } =
            rope_json::read(self, defaults.rope_theta, max_position_embeddings)?;
        if partial != 1.0 && !defaults.partial_rotary {
            let problem =
                format!("is {partial}: rotating a part of a head is not supported in {}", family.name());
            return Err(self.wrong("partial_rotary_factor", problem));
        }
        let rotary_dim = (partial != 1.0).then_some((head_dim as f64 * partial) as usize);
        Ok(DecoderConfig {
            family,
            vocab_size: size("vocab_size", defaults.vocab_size)?,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            layers: self.size("num_hidden_layers")?,
            heads,
            kv_heads: self.opt_size("num_key_value_heads")?.or(defaults.kv_heads).unwrap_or(heads),
            head_dim,
            rms_norm_eps: self.opt_float(defaults.eps_key)?.unwrap_or(defaults.eps),
            rope_theta: theta,
            rope_scaling: scaling,
            rotary_dim,
            max_position_embeddings,
            tie_word_embeddings: self.flag_or("tie_word_embeddings", defaults.tied)?,
            activation: self.activation(defaults.activation_key)?.unwrap_or(defaults.activation),
            ..DecoderConfig::default()
        })
    }

    /// The function of a gate.
    pub(super) fn activation(&self, key: &str) -> Result<Option<Activation>, ModelError> {
        Ok(match self.opt_text(key)? {
            None => None,
            Some("silu" | "swish") => Some(Activation::Silu),
            Some("gelu") => Some(Activation::GeluErf),
            Some("gelu_new" | "gelu_pytorch_tanh") => Some(Activation::GeluTanh),
            Some(other) => {
                let problem = format!("is `{other}`: supported are silu, gelu, gelu_new, gelu_pytorch_tanh");
                return Err(self.wrong(key, problem));
            }
        })
    }

    /// `layer_types`, or what stands in for it: which layers have a window. `rope` is how those with and those without
    /// a window are rotated.
    pub(super) fn layers(
        &self,
        layers: usize,
        window: Option<usize>,
        absent: impl Fn(usize) -> bool,
        [windowed, full]: [LayerRope; 2],
    ) -> Result<Vec<LayerAttention>, ModelError> {
        let is_windowed = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => {
                let problem = format!("has {kind}: supported are sliding_attention and full_attention");
                Err(self.wrong("layer_types", problem))
            }
        };
        // Not more than a hostile number of layers allows.
        let layers = layers.min(1 << 16);
        let kinds: Vec<bool> = match self.get("layer_types") {
            None => (0..layers).map(absent).collect(),
            Some(kinds) => {
                let kinds = kinds.as_array().ok_or_else(|| self.wrong("layer_types", "is not a list"))?;
                kinds.iter().map(is_windowed).collect::<Result<_, _>>()?
            }
        };
        if kinds.contains(&true) && window.is_none() {
            return Err(self.wrong("sliding_window", "is missing: layers with a window need its size"));
        }
        let layer = |is_windowed: bool| match is_windowed {
            true => LayerAttention { window, rope: windowed },
            false => LayerAttention { window: None, rope: full },
        };
        let kinds: Vec<LayerAttention> = kinds.into_iter().map(layer).collect();
        // What every layer does by itself needs no list.
        let plain = kinds.iter().all(|kind| *kind == LayerAttention::default());
        Ok(if plain { Vec::new() } else { kinds })
    }

    /// Refuses keys that nobody has asked for: they may change what the model computes.
    pub(super) fn finish(&self, of: &str) -> Result<(), ModelError> {
        let read = self.read.borrow();
        let unknown = |key: &str, value: &Value| {
            !(read.contains(key)
                || value.is_null()
                || key.starts_with('_')
                || key.starts_with("unsloth")
                || HARMLESS.contains(&key))
        };
        let mut keys = self.object.as_object().into_iter().flatten();
        match keys.find(|(key, value)| unknown(key, value)) {
            None => Ok(()),
            Some((key, value)) => {
                let problem = format!(
                    "is {value}, a key that is not known of {of}: it may change what the model computes; \
                     remove it if it does not"
                );
                Err(self.wrong(key, problem))
            }
        }
    }
}

//! Writing the metadata of GGUF files: what llama.cpp computes is said in its keys, and what it does not is refused.

use std::path::Path;

use qlora_gguf::{Metadata, Value};

use super::{Family, GgufTensors, RMS_EPS};
use crate::{DecoderConfig, RopeScaling};

/// A configuration that llama.cpp does not compute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NotInGguf {
    /// What of it has no place in GGUF metadata.
    pub what: String,
}

impl NotInGguf {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

/// The keys below the name of an architecture.
pub(super) struct GgufEntries {
    metadata: Metadata,
    architecture: &'static str,
}

impl GgufEntries {
    pub(super) fn insert(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.insert(format!("{}.{key}", self.architecture), value);
    }

    /// The configuration was checked: sizes are below 2^28.
    pub(super) fn size(&mut self, key: &str, value: usize) {
        self.insert(key, value as u32);
    }

    pub(super) fn float(&mut self, key: &str, value: f64) {
        self.insert(key, value as f32);
    }

    /// The window of those layers that have one. llama.cpp has a constant for which those are, and for how many
    /// layers it repeats.
    pub(super) fn windows(&mut self, config: &DecoderConfig) {
        if let Some(window) = config.layer_attention.iter().find_map(|layer| layer.window) {
            self.size("attention.sliding_window", window);
        }
    }
}

/// For architectures whose entries are those that all have.
pub(super) fn nothing_more(_: &DecoderConfig, _: &mut GgufEntries) -> Result<(), NotInGguf> {
    Ok(())
}

/// What llama.cpp has for an architecture: it fails to load a file with more.
#[derive(Clone, Copy)]
pub(super) struct InLlamaCpp {
    /// The key of the norms' ε.
    pub(super) eps: &'static str,
    /// Windows.
    pub(super) windows: bool,
    /// Biases of any projection. Those of queries, keys and values in Qwen 2 are not asked about.
    pub(super) biases: bool,
    /// Divisors of rotary frequencies (`rope_freqs.weight`).
    pub(super) divisors: bool,
    /// A head that is the embedding.
    pub(super) tied: bool,
    /// A head of its own.
    pub(super) untied: bool,
}

impl InLlamaCpp {
    /// The least of a decoder.
    pub(super) const PLAIN: Self =
        Self { eps: RMS_EPS, windows: false, biases: false, divisors: false, tied: true, untied: true };

    fn check(self, config: &DecoderConfig) -> Result<(), NotInGguf> {
        let is_qwen2 = config.family == Family::Qwen2;
        let has_bias = config.output_bias || config.mlp_bias || (config.attention_bias && !is_qwen2);
        let tied = config.tie_word_embeddings;
        let absent = [
            ("a bias", !self.biases && has_bias),
            ("frequencies that are scaled one by one", !self.divisors && is_divided(config)),
            (
                "divisors of frequencies for short and for long texts",
                config.rope_scaling.factors().is_some() && config.family != Family::Phi3,
            ),
            ("a head that is the embedding", !self.tied && tied),
            ("a head beside the embedding", !self.untied && !tied),
        ];
        match absent.into_iter().find(|(_, absent)| *absent) {
            None => Ok(()),
            Some((what, _)) => Err(NotInGguf::new(format!("{what} in a {} model", config.family.name()))),
        }
    }
}

fn is_divided(config: &DecoderConfig) -> bool {
    matches!(config.rope_scaling, RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_))
}

/// What llama.cpp computes of a model of this configuration, within the context that the file names.
///
/// Where it knows no windows for the architecture, the context ends with the window: up to there both are the same.
fn in_llama_cpp(config: &DecoderConfig) -> DecoderConfig {
    let mut config = config.clone();
    if !config.family.spec().in_llama_cpp.windows {
        let windows = config.layer_attention.iter_mut().filter_map(|layer| layer.window.take());
        if let Some(window) = windows.min() {
            config.max_position_embeddings = config.max_position_embeddings.min(window);
        }
    }
    if let Some(divisors) = config.rope_scaling.divisors(config.rope_theta, config.head_dim) {
        // The file's context is the one that the divisors are made for.
        config.max_position_embeddings = config.context_length();
        config.rope_scaling = RopeScaling::Divisors(divisors);
    }
    config
}

/// The metadata of a configuration, without tokenizer and what is not of the model.
pub(crate) fn gguf_metadata(config: &DecoderConfig) -> Result<Metadata, NotInGguf> {
    let spec = config.family.spec();
    spec.in_llama_cpp.check(config)?;
    let config = in_llama_cpp(config);
    let mut entries = GgufEntries { metadata: Metadata::new(), architecture: spec.gguf };
    entries.metadata.insert("general.architecture", spec.gguf);
    for (key, value) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.rotated()),
    ] {
        entries.size(key, value);
    }
    entries.float(spec.in_llama_cpp.eps, config.rms_norm_eps);
    entries.float("rope.freq_base", config.rope_theta);
    rope_scaling(&mut entries, &config)?;
    (spec.to_gguf)(&config, &mut entries)?;

    // Whatever has no key above shows when the keys are read again.
    let tensors = GgufTensors {
        has_head: !config.tie_word_embeddings,
        has_attention_bias: config.attention_bias,
        has_output_bias: config.output_bias,
        has_mlp_bias: config.mlp_bias,
        has_qk_norm: config.qk_norm_shapes().is_some(),
        rope_divisors: config.rope_scaling.divisors(config.rope_theta, config.head_dim),
        rope_factors: config.rope_scaling.factors(),
    };
    let read = Family::config_from_gguf(Path::new("GGUF"), &entries.metadata, &tensors)
        .map_err(|error| NotInGguf::new(error.to_string()))?;
    match difference(&config, &read) {
        None => Ok(entries.metadata),
        Some(what) => Err(NotInGguf::new(format!("{what} of this {} model", config.family.name()))),
    }
}

fn rope_scaling(entries: &mut GgufEntries, config: &DecoderConfig) -> Result<(), NotInGguf> {
    match &config.rope_scaling {
        // The divisors of the latter are tensors.
        RopeScaling::None | RopeScaling::Divisors(_) => {}
        RopeScaling::Linear { factor } => {
            entries.insert("rope.scaling.type", "linear");
            entries.float("rope.scaling.factor", *factor);
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings: original,
            attention_factor,
            ..
        } => {
            entries.insert("rope.scaling.type", "yarn");
            entries.float("rope.scaling.factor", *factor);
            entries.size("rope.scaling.original_context_length", *original);
            let usual = RopeScaling::yarn_attention_factor(*factor, 1.0);
            for (key, value, usual) in [
                ("rope.scaling.attn_factor", attention_factor / usual, 1.0),
                ("rope.scaling.yarn_beta_fast", *beta_fast, 32.0),
                ("rope.scaling.yarn_beta_slow", *beta_slow, 1.0),
            ] {
                if !near(value, usual) {
                    entries.float(key, value);
                }
            }
        }
        RopeScaling::LongRope { original_max_position_embeddings: original, attention_factor, .. } => {
            entries.size("rope.scaling.original_context_length", *original);
            entries.float("rope.scaling.attn_factor", *attention_factor);
        }
        RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } => {
            return Err(NotInGguf::new("a rotation that depends on the length of the text"));
        }
    }
    Ok(())
}

/// Equal but for the rounding to f32 and what is computed from that.
fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

/// What of a configuration reads otherwise than it was.
fn difference(written: &DecoderConfig, read: &DecoderConfig) -> Option<&'static str> {
    // Every field is named, so that a new one is not forgotten.
    let DecoderConfig {
        // Families share architectures, and then differ in nothing else.
        family: _,
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps,
        norm,
        norm_placement,
        qk_norm,
        rope_theta,
        rope_scaling,
        rotary_dim: _,
        rope_pairs,
        local_rope_theta,
        layer_attention: _,
        attention_scale: _,
        attention_softcap,
        max_position_embeddings,
        tie_word_embeddings,
        attention_bias,
        output_bias,
        mlp_bias,
        fused_projections,
        activation,
        embedding_scale,
        residual_scale,
        logit_scale,
        logit_softcap,
        experts,
    } = written;
    let sizes = |config: &DecoderConfig| {
        [config.vocab_size, config.hidden_size, config.intermediate_size, config.layers, config.heads]
    };
    let caps_are_near = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => near(a, b),
        (a, b) => a == b,
    };
    let scale = |config: &DecoderConfig| {
        config.attention_scale.unwrap_or_else(|| (config.head_dim as f64).powf(-0.5))
    };
    let is_local = |layer: usize| written.attention_of(layer).rope == crate::LayerRope::Local;
    let equal = [
        (
            "a size",
            sizes(read) == [*vocab_size, *hidden_size, *intermediate_size, *layers, *heads]
                && (*kv_heads, *head_dim, *max_position_embeddings)
                    == (read.kv_heads, read.head_dim, read.max_position_embeddings),
        ),
        (
            "a norm",
            near(*rms_norm_eps, read.rms_norm_eps)
                && (*norm, *norm_placement, *qk_norm) == (read.norm, read.norm_placement, read.qk_norm),
        ),
        ("rope_theta", near(*rope_theta, read.rope_theta)),
        ("the rotary scaling", same_scaling(rope_scaling, &read.rope_scaling)),
        (
            "the rotation of a part of a head",
            written.rotated() == read.rotated() && *rope_pairs == read.rope_pairs,
        ),
        (
            "rope_local_base_freq",
            !(0..*layers).any(is_local) || near(*local_rope_theta, read.local_rope_theta),
        ),
        (
            "which layers have a window or a rotation,",
            (0..*layers).all(|layer| written.attention_of(layer) == read.attention_of(layer)),
        ),
        ("the factor of attention scores", near(scale(written), scale(read))),
        (
            "a soft cap",
            caps_are_near(*attention_softcap, read.attention_softcap)
                && caps_are_near(*logit_softcap, read.logit_softcap),
        ),
        ("the head", *tie_word_embeddings == read.tie_word_embeddings),
        (
            "a bias",
            (*attention_bias, *output_bias, *mlp_bias)
                == (read.attention_bias, read.output_bias, read.mlp_bias),
        ),
        ("fused projections", *fused_projections == read.fused_projections),
        ("the activation", *activation == read.activation),
        (
            "a factor of embedding, residuals or logits",
            near(*embedding_scale, read.embedding_scale)
                && near(*residual_scale, read.residual_scale)
                && near(*logit_scale, read.logit_scale),
        ),
        ("the experts", *experts == read.experts),
    ];
    equal.into_iter().find(|(_, equal)| !equal).map(|(what, _)| what)
}

fn same_scaling(written: &RopeScaling, read: &RopeScaling) -> bool {
    match (written, read) {
        (RopeScaling::Linear { factor: a }, RopeScaling::Linear { factor: b }) => near(*a, *b),
        (
            RopeScaling::Yarn {
                factor: factor_a,
                beta_fast: fast_a,
                beta_slow: slow_a,
                original_max_position_embeddings: original_a,
                attention_factor: attention_a,
                truncate: truncate_a,
            },
            RopeScaling::Yarn {
                factor: factor_b,
                beta_fast: fast_b,
                beta_slow: slow_b,
                original_max_position_embeddings: original_b,
                attention_factor: attention_b,
                truncate: truncate_b,
            },
        ) => {
            let pairs =
                [(factor_a, factor_b), (fast_a, fast_b), (slow_a, slow_b), (attention_a, attention_b)];
            (original_a, truncate_a) == (original_b, truncate_b) && pairs.iter().all(|(a, b)| near(**a, **b))
        }
        (
            RopeScaling::LongRope { original_max_position_embeddings: a, attention_factor: factor_a, .. },
            RopeScaling::LongRope { original_max_position_embeddings: b, attention_factor: factor_b, .. },
        ) => a == b && near(*factor_a, *factor_b) && written.factors() == read.factors(),
        (a, b) => a == b,
    }
}

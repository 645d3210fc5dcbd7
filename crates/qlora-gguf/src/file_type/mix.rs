//! Which tensor gets which format: llama.cpp's rules (`src/llama-quant.cpp`, checked against its quantizer).

use super::{FileType, ModelFacts};
use crate::GgmlType;

/// Parts of names of matrices that are not quantized: small, or too delicate.
const KEPT: [&str; 16] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    "position_embd",
    "token_types",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
];

/// RWKV's small matrices, after `time_mix_`.
const KEPT_OF_TIME_MIX: [&str; 15] = [
    "first",
    "w0",
    "w1",
    "w2",
    "v0",
    "v1",
    "v2",
    "a0",
    "a1",
    "a2",
    "g1",
    "g2",
    "decay_w1",
    "decay_w2",
    "lerp_fused",
];

/// What a tensor does, as far as the rules care.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Output,
    TokenEmbedding,
    AttentionQkv,
    AttentionKvB,
    AttentionV,
    AttentionK,
    AttentionOutput,
    FfnDown,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::TokenEmbedding,
            _ if name.contains("attn_qkv.weight") => Self::AttentionQkv,
            _ if name.contains("attn_kv_b.weight") => Self::AttentionKvB,
            _ if name.contains("attn_v.weight") => Self::AttentionV,
            _ if name.contains("attn_k.weight") => Self::AttentionK,
            _ if name.contains("attn_output.weight") => Self::AttentionOutput,
            _ if name.contains("ffn_down") => Self::FfnDown,
            _ => Self::Other,
        }
    }

    /// Whether the tensor makes values: those are more sensitive than queries and keys.
    fn makes_values(self) -> bool {
        matches!(self, Self::AttentionV | Self::AttentionQkv | Self::AttentionKvB)
    }
}

pub(super) fn tensor_types(
    file_type: FileType,
    model: &ModelFacts<'_>,
    has_importance: bool,
    tensors: &[(&str, &[usize])],
) -> Vec<Option<GgmlType>> {
    let roles: Vec<Role> = tensors.iter().map(|(name, _)| Role::of(name)).collect();
    let mut mix = Mix {
        file_type,
        model,
        has_importance,
        tied: !roles.contains(&Role::Output),
        value_count: roles.iter().filter(|role| role.makes_values()).count(),
        values_seen: 0,
        downs_seen: 0,
    };
    // The rules count tensors in this order, whatever that of the file.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (layer_of(tensors[i].0), tensors[i].0));
    let mut types = vec![None; tensors.len()];
    for i in order {
        let (name, shape) = tensors[i];
        if is_quantized(name, shape) {
            types[i] = Some(mix.type_of(name, roles[i], shape[shape.len() - 1]));
        }
    }
    types
}

/// The layer in a name `blk.N.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

fn is_quantized(name: &str, shape: &[usize]) -> bool {
    // ggml does not count outermost dimensions of 1.
    let dimensions = shape.len() - shape.iter().take_while(|&&size| size == 1).count();
    let of_time_mix = name.split_once("time_mix_").and_then(|(_, rest)| rest.strip_suffix(".weight"));
    dimensions >= 2
        && name.ends_with("weight")
        && !KEPT.iter().any(|part| name.contains(part))
        && !of_time_mix.is_some_and(|part| KEPT_OF_TIME_MIX.contains(&part))
}

/// The rules, and how far they have counted.
struct Mix<'a> {
    file_type: FileType,
    model: &'a ModelFacts<'a>,
    has_importance: bool,
    /// Whether the token embedding is the output matrix too.
    tied: bool,
    value_count: usize,
    values_seen: usize,
    downs_seen: usize,
}

impl Mix<'_> {
    fn type_of(&mut self, name: &str, role: Role, columns: usize) -> GgmlType {
        let default = self.file_type.default_type();
        if default.block_len() == 1 {
            return default;
        }
        let chosen = match role {
            Role::Output => self.output(columns),
            Role::TokenEmbedding if self.tied => self.output(columns),
            _ if role.makes_values() => self.values(),
            Role::AttentionK if self.model.experts == 8 => GgmlType::Q8_0,
            Role::FfnDown => self.down(name),
            Role::AttentionOutput => self.attention_output(),
            _ => default,
        };
        that_fits(chosen, columns)
    }

    fn output(&self, columns: usize) -> GgmlType {
        let default = self.file_type.default_type();
        if self.is_falcon() || !columns.is_multiple_of(default.block_len()) || default == GgmlType::Q8_0 {
            GgmlType::Q8_0
        } else {
            GgmlType::Q6K
        }
    }

    fn values(&mut self) -> GgmlType {
        use FileType as F;
        use GgmlType as T;
        let (seen, count) = (self.values_seen, self.value_count);
        self.values_seen += 1;
        let grouped = self.grouped_heads();
        let mut chosen = match self.file_type {
            F::Q2K if grouped => T::Q4K,
            F::Q2K => T::Q3K,
            F::Q3KM if seen < 2 => T::Q5K,
            F::Q3KM => T::Q4K,
            F::Q3KL => T::Q5K,
            F::Iq4Nl | F::Iq4Xs if grouped => T::Q5K,
            F::Q4KM | F::Q5KM if gets_more_bits(seen, count) => T::Q6K,
            F::Q4KS if seen < 4 => T::Q5K,
            other => other.default_type(),
        };
        // Eight heads share the values there: more bits for them cost little.
        if self.is_70b() && matches!(chosen, T::Q3K | T::Q4K) {
            chosen = T::Q5K;
        }
        if self.model.experts == 8 { T::Q8_0 } else { chosen }
    }

    fn down(&mut self, name: &str) -> GgmlType {
        use FileType as F;
        use GgmlType as T;
        let seen = self.downs_seen;
        self.downs_seen += 1;
        // A layer of experts has several.
        let layer = if self.model.experts > 1 { layer_of(name).unwrap_or(seen) } else { seen };
        let layers = self.model.layers;
        let falcon = self.is_falcon();
        match self.file_type {
            F::Q2K => T::Q3K,
            F::Q3KM if layer < layers / 16 => T::Q5K,
            F::Q3KM if !falcon || gets_more_bits(layer, layers) => T::Q4K,
            F::Q3KL if falcon => T::Q4K,
            F::Q3KL => T::Q5K,
            F::Q4KM if falcon && layer < layers / 16 => T::Q6K,
            F::Q4KM if falcon && gets_more_bits(layer, layers) => T::Q5K,
            F::Q4KM if !falcon && gets_more_bits(layer, layers) => T::Q6K,
            F::Iq4Nl | F::Iq4Xs if layer < layers / 8 && !self.has_importance => T::Q5K,
            F::Q5KM if gets_more_bits(layer, layers) => T::Q6K,
            F::Q4KS if !falcon && layer < layers / 8 => T::Q5K,
            F::Q4_0 if self.has_importance && layer < layers / 8 => T::Q4_1,
            F::Q5_0 if self.has_importance && layer < layers / 8 => T::Q5_1,
            other => other.default_type(),
        }
    }

    fn attention_output(&self) -> GgmlType {
        use FileType as F;
        use GgmlType as T;
        match self.file_type {
            F::Q3KL if self.is_falcon() => T::Q4K,
            other if self.is_falcon() => other.default_type(),
            F::Q2K | F::Q3KS | F::Q3KM | F::Iq4Nl | F::Q4KS | F::Q4KM | F::Iq4Xs
                if self.model.experts == 8 =>
            {
                T::Q5K
            }
            other if self.model.experts == 8 => other.default_type(),
            F::Q2K => T::Q3K,
            F::Q3KM => T::Q4K,
            F::Q3KL => T::Q5K,
            other => other.default_type(),
        }
    }

    /// Whether at least four query heads share a key and value head.
    fn grouped_heads(&self) -> bool {
        self.model.kv_heads > 0 && self.model.heads / self.model.kv_heads >= 4
    }

    fn is_falcon(&self) -> bool {
        self.model.architecture == "falcon"
    }

    /// What llama.cpp calls a 70B model.
    fn is_70b(&self) -> bool {
        self.model.layers == 80
            && match self.model.architecture {
                "llama" => self.model.heads != self.model.kv_heads,
                "qwen2" | "qwen2vl" | "deci" => true,
                _ => false,
            }
    }
}

/// The first and the last eighth, and every third between.
fn gets_more_bits(i: usize, count: usize) -> bool {
    i < count / 8 || i >= 7 * count / 8 || (i - count / 8) % 3 == 2
}

/// `chosen`, or what stands in for it when rows are not whole blocks.
fn that_fits(chosen: GgmlType, columns: usize) -> GgmlType {
    if columns.is_multiple_of(chosen.block_len()) {
        return chosen;
    }
    let smaller = match chosen {
        GgmlType::Iq4Xs => GgmlType::Iq4Nl,
        GgmlType::Q2K | GgmlType::Q3K => GgmlType::Q4_0,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        other => other,
    };
    if columns.is_multiple_of(smaller.block_len()) { smaller } else { GgmlType::F16 }
}

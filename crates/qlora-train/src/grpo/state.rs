//! A generation batch, and what a checkpoint holds of a run.

use serde::{Deserialize, Serialize};

/// What a checkpoint holds beside the number of the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Prompts drawn so far.
    pub(super) drawn: u64,
    /// Tokens of prompts and completions made so far.
    pub(super) num_tokens: u64,
    /// The generation batch in use; `None` before the first, and in a checkpoint from which on it is not used.
    pub(super) rollout: Option<Rollout>,
}

/// A generation batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollout {
    /// Its number, from 0.
    pub(super) generation: u64,
    /// The completions, in the order of training.
    pub(super) rows: Vec<Row>,
}

/// A completion, with everything that training on it needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// The prompt's number in the set.
    pub(super) prompt: usize,
    /// Its tokens.
    pub(super) ids: Vec<u32>,
    /// Their log-probabilities as the sampler gave them.
    #[serde(with = "exact")]
    pub(super) sampled: Vec<f32>,
    /// Their log-probabilities under the policy that made them, where training leaves it.
    #[serde(with = "exact")]
    pub(super) old: Vec<f32>,
    /// Their log-probabilities under the reference, where it is needed.
    #[serde(with = "exact")]
    pub(super) reference: Vec<f32>,
    /// The advantage over the group.
    #[serde(with = "exact_one")]
    pub(super) advantage: f32,
    /// Whether the loss leaves it out.
    pub(super) masked: bool,
}

/// f32 in JSON through their bits: every bit comes back, that of NaN and infinities too.
mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        Ok(Vec::<u32>::deserialize(deserializer)?.into_iter().map(f32::from_bits).collect())
    }
}

/// As [`exact`], of one number.
mod exact_one {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        Ok(f32::from_bits(u32::deserialize(deserializer)?))
    }
}

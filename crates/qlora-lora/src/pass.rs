//! What varies from one forward pass to the next.

/// How adapters take part in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Whether adapters are added. Off, the model is its base: the reference policy of reinforcement learning.
    pub adapters: bool,
    /// In training: where the dropout of this pass comes from.
    pub dropout: Option<DropoutKey>,
}

impl Default for Pass {
    /// Adapters on, no dropout: inference.
    fn default() -> Self {
        Self { adapters: true, dropout: None }
    }
}

impl Pass {
    /// The base model, whatever adapters there are.
    #[must_use]
    pub fn base() -> Self {
        Self { adapters: false, dropout: None }
    }

    /// Training: adapters on, with their dropout.
    #[must_use]
    pub fn training(key: DropoutKey) -> Self {
        Self { adapters: true, dropout: Some(key) }
    }
}

/// Names the random stream of one training pass: the same key gives the same masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the micro-batch, counted over the whole run.
    pub micro_batch: u64,
}

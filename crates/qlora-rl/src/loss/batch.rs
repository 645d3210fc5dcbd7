//! What a loss is computed of.

/// Completions, one after the other, without padding. All slices of tokens have one element a token.
#[derive(Clone, Copy, Debug)]
pub struct LossBatch<'a> {
    /// Tokens of each completion.
    pub lengths: &'a [usize],
    /// Whether the loss counts a token.
    pub mask: &'a [bool],
    /// Log-probabilities under the policy that is trained.
    pub log_probs: &'a [f32],
    /// Log-probabilities under the policy that the completions are taken to come from; `None` on the policy,
    /// where the ratio is exactly 1.
    pub old_log_probs: Option<&'a [f32]>,
    /// Log-probabilities under the reference; read where `beta` is not 0.
    pub ref_log_probs: Option<&'a [f32]>,
    /// Log-probabilities that the sampler gave.
    pub sampling_log_probs: Option<&'a [f32]>,
    /// Entropies of the policy's distributions, nats.
    pub entropies: Option<&'a [f32]>,
    /// The advantage of each completion.
    pub advantages: &'a [f32],
}

/// What sums over a micro-batch are divided by beside its own sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Micro-batches of the optimizer step.
    pub accumulate: f64,
    /// Tokens that the loss counts in the whole optimizer step.
    pub items: f64,
}

impl LossBatch<'_> {
    /// The range of tokens of each completion.
    pub(crate) fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut end = 0;
        let ranges: Vec<_> = self
            .lengths
            .iter()
            .map(|length| {
                end += length;
                end - length..end
            })
            .collect();
        let optional = [self.old_log_probs, self.ref_log_probs, self.sampling_log_probs, self.entropies];
        let sizes = [self.mask.len(), self.log_probs.len()];
        assert!(
            sizes.into_iter().chain(optional.into_iter().flatten().map(<[f32]>::len)).all(|len| len == end),
            "lengths add up to the tokens of every slice"
        );
        assert_eq!(self.advantages.len(), self.lengths.len(), "one advantage a completion");
        ranges
    }
}

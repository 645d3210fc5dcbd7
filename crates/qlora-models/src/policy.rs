//! The model as a policy: log-probabilities at a sampling temperature, and a weighted sum of them to differentiate.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use qlora_kernels::{
    CrossEntropyOptions, KernelBackend, TokenLosses, TrainBackend, linear_cross_entropy, token_losses,
};
use qlora_lora::Pass;

use crate::{Decoder, TokenBatch};

/// How logits become log-probabilities when they are divided by a temperature, after the soft cap.
fn at_temperature(options: CrossEntropyOptions, temperature: f32) -> CrossEntropyOptions {
    // cap·tanh(x / cap) / T = (cap / T)·tanh((x / T) / (cap / T))
    CrossEntropyOptions {
        logit_scale: options.logit_scale / temperature,
        softcap: options.softcap.map(|cap| cap / temperature),
        label_smoothing: 0.0,
    }
}

impl<B: KernelBackend> Decoder<B> {
    /// Log-probabilities and entropies at a temperature, of the tokens of non-zero weight; nothing to differentiate.
    ///
    /// # Panics
    /// As [`loss`](Self::loss).
    #[must_use]
    pub fn policy_tokens(
        &self,
        batch: TokenBatch<'_>,
        targets: &[u32],
        weights: &[f32],
        temperature: f32,
        pass: Pass,
    ) -> TokenLosses {
        let options = at_temperature(self.loss_options(), temperature);
        token_losses(self.hidden_states(batch, pass), self.head(), targets, weights, options)
    }
}

impl<B: TrainBackend> Decoder<B> {
    /// As [`policy_tokens`](Self::policy_tokens), of hidden states in a graph, which the result has no part in.
    ///
    /// # Panics
    /// When targets and weights have not one element a row.
    #[must_use]
    pub fn policy_tokens_of(
        &self,
        hidden: &Tensor<B, 2>,
        targets: &[u32],
        weights: &[f32],
        temperature: f32,
    ) -> TokenLosses {
        let options = at_temperature(self.loss_options(), temperature);
        token_losses(hidden.clone().inner(), &self.head().valid(), targets, weights, options)
    }

    /// `−Σ weightᵢ · ln π(targetᵢ)` at a temperature, of final hidden states: one element, differentiable.
    ///
    /// A loss whose derivative with respect to each log-probability is known is trained by this sum with the
    /// derivatives, negated, as weights.
    ///
    /// # Panics
    /// When targets and weights have not one element a row.
    #[must_use]
    pub fn policy_loss_of(
        &self,
        hidden: Tensor<B, 2>,
        targets: &[u32],
        weights: &[f32],
        temperature: f32,
    ) -> Tensor<B, 1> {
        let options = at_temperature(self.loss_options(), temperature);
        linear_cross_entropy(hidden, self.head(), targets, weights, options)
    }
}

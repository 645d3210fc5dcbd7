//! Which loss, and its constants.

use crate::OptionProblem;

/// The loss of a token and how tokens are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossKind {
    /// Clipped surrogate, mean over the tokens of a sequence, then over sequences (DeepSeekMath,
    /// <https://arxiv.org/abs/2402.03300>).
    Grpo,
    /// Clipped surrogate, mean over the tokens of the micro-batch.
    Bnpo,
    /// Clipped surrogate, divided by sequences times the longest completion allowed (Dr. GRPO,
    /// <https://arxiv.org/abs/2503.20783>).
    DrGrpo,
    /// Clipped surrogate, mean over the tokens of the optimizer step (DAPO, <https://arxiv.org/abs/2503.14476>).
    #[default]
    Dapo,
    /// Clipped surrogate of the sequence, times its length (LUSPO).
    Luspo,
    /// The log-probability, weighted by the capped ratio (MiniMax-M1, <https://arxiv.org/abs/2506.13585>).
    Cispo,
    /// A sigmoid gate of the ratio in place of the clip (SAPO, <https://arxiv.org/abs/2511.20347>).
    Sapo,
    /// The log-probability, weighted by a gamma-shaped function of the sequence's ratio (VESPO).
    Vespo,
}

impl LossKind {
    /// All kinds with the names that configurations and TRL use.
    pub const NAMED: [(&'static str, Self); 8] = [
        ("grpo", Self::Grpo),
        ("bnpo", Self::Bnpo),
        ("dr_grpo", Self::DrGrpo),
        ("dapo", Self::Dapo),
        ("luspo", Self::Luspo),
        ("cispo", Self::Cispo),
        ("sapo", Self::Sapo),
        ("vespo", Self::Vespo),
    ];

    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Whether the ratio is clipped from both sides.
    #[must_use]
    pub fn is_clipped(self) -> bool {
        matches!(self, Self::Grpo | Self::Bnpo | Self::DrGrpo | Self::Dapo | Self::Luspo)
    }
}

/// Of what the ratio of new to old probability is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImportanceLevel {
    /// Of each token.
    #[default]
    Token,
    /// Of the whole sequence: the geometric mean over its tokens (GSPO, <https://arxiv.org/abs/2507.18071>).
    Sequence,
}

/// How a sampler whose probabilities differ from those of training is corrected for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerCorrection {
    /// Of what the ratio of the trainer's old probability to the sampler's is taken, and what happens outside of
    /// the limits.
    pub mode: CorrectionMode,
    /// The lowest ratio.
    pub min: Option<f64>,
    /// The highest ratio.
    pub max: f64,
}

/// See [`SamplerCorrection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorrectionMode {
    /// Ratios of tokens, moved to the limits.
    TokenTruncate,
    /// Ratios of tokens, 0 outside of the limits.
    TokenMask,
    /// Ratios of sequences, moved to the limits.
    SequenceTruncate,
    /// Ratios of sequences, 0 outside of the limits.
    SequenceMask,
}

impl CorrectionMode {
    /// All modes with their names.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("token_truncate", Self::TokenTruncate),
        ("token_mask", Self::TokenMask),
        ("sequence_truncate", Self::SequenceTruncate),
        ("sequence_mask", Self::SequenceMask),
    ];

    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    pub(crate) fn is_sequence(self) -> bool {
        matches!(self, Self::SequenceTruncate | Self::SequenceMask)
    }

    pub(crate) fn is_mask(self) -> bool {
        matches!(self, Self::TokenMask | Self::SequenceMask)
    }
}

/// The constants of VESPO's weight `φ(W) = exp(λ + k·ln W − λ·W)`, for advantages of either sign.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VespoOptions {
    /// k where the advantage is 0 or more.
    pub k_pos: f64,
    /// λ where the advantage is 0 or more.
    pub lambda_pos: f64,
    /// k where the advantage is negative.
    pub k_neg: f64,
    /// λ where the advantage is negative.
    pub lambda_neg: f64,
}

impl Default for VespoOptions {
    fn default() -> Self {
        Self { k_pos: 2.0, lambda_pos: 3.0, k_neg: 3.0, lambda_neg: 2.0 }
    }
}

/// A loss with its constants. The defaults are TRL's, without a correction of the sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossOptions {
    /// Which loss.
    pub kind: LossKind,
    /// Of what the ratio is taken.
    pub importance: ImportanceLevel,
    /// The ratio is clipped below `1 − epsilon`.
    pub epsilon: f64,
    /// The ratio is clipped above `1 + epsilon_high`. [`LossKind::Cispo`] caps the ratio itself at it.
    pub epsilon_high: f64,
    /// An upper limit of the ratio where the advantage is negative (two-sided clipping,
    /// <https://arxiv.org/abs/2505.07291>).
    pub delta: Option<f64>,
    /// Factor of the divergence from the reference; 0 needs no reference.
    pub beta: f64,
    /// Multiplies the divergence by the ratio, which makes its gradient unbiased off-policy.
    pub bias_correction_kl: bool,
    /// Factor of the mean entropy, which is subtracted from the loss.
    pub entropy_coef: f64,
    /// The share of tokens, those of highest entropy, that the policy loss counts.
    pub top_entropy_quantile: f64,
    /// Sequences with a negative advantage are dropped where the policy has moved by more than this, nats a token.
    pub off_policy_mask_threshold: Option<f64>,
    /// SAPO's temperature where the advantage is positive.
    pub sapo_temperature_pos: f64,
    /// SAPO's temperature elsewhere.
    pub sapo_temperature_neg: f64,
    /// VESPO's constants.
    pub vespo: VespoOptions,
    /// Corrects for the sampler.
    pub sampler_correction: Option<SamplerCorrection>,
    /// The longest completion allowed, in tokens: what [`LossKind::DrGrpo`] divides by.
    pub max_completion_length: usize,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self {
            kind: LossKind::Dapo,
            importance: ImportanceLevel::Token,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            beta: 0.0,
            bias_correction_kl: false,
            entropy_coef: 0.0,
            top_entropy_quantile: 1.0,
            off_policy_mask_threshold: None,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            vespo: VespoOptions::default(),
            sampler_correction: None,
            max_completion_length: 512,
        }
    }
}

impl LossOptions {
    /// What is out of range or contradicts something else. Options that the loss would not read are problems.
    #[must_use]
    pub fn problems(&self) -> Vec<OptionProblem> {
        let kind = self.kind.name();
        let mut found = Vec::new();
        let mut check = |good: bool, option: &'static str, message: String| {
            if !good {
                found.push(OptionProblem { option, message });
            }
        };
        check(
            self.epsilon > 0.0 && self.epsilon < 1.0,
            "epsilon",
            format!("{} given, expected a number above 0 and below 1", self.epsilon),
        );
        check(
            self.epsilon_high > 0.0 && self.epsilon_high.is_finite(),
            "epsilon_high",
            format!("{} given, expected a number above 0", self.epsilon_high),
        );
        if let Some(delta) = self.delta {
            check(
                self.kind.is_clipped(),
                "delta",
                format!("loss \"{kind}\" does not read it; remove it, or take a clipped loss"),
            );
            check(
                delta > 1.0 + self.epsilon_high,
                "delta",
                format!("{delta} given, expected more than 1 + epsilon_high = {}", 1.0 + self.epsilon_high),
            );
        }
        check(
            self.beta >= 0.0 && self.beta.is_finite(),
            "beta",
            format!("{} given, expected at least 0", self.beta),
        );
        check(
            !self.bias_correction_kl || self.beta != 0.0,
            "use_bias_correction_kl",
            "corrects a divergence that is not computed: beta is 0".into(),
        );
        check(
            self.entropy_coef.is_finite(),
            "entropy_coef",
            format!("{} given, expected a finite number", self.entropy_coef),
        );
        check(
            self.top_entropy_quantile > 0.0 && self.top_entropy_quantile <= 1.0,
            "top_entropy_quantile",
            format!("{} given, expected a share above 0 and at most 1", self.top_entropy_quantile),
        );
        check(
            self.off_policy_mask_threshold.is_none_or(|limit| limit > 0.0),
            "off_policy_mask_threshold",
            "expected a number above 0".into(),
        );
        check(
            self.sapo_temperature_pos > 0.0 && self.sapo_temperature_neg > 0.0,
            "sapo_temperature_pos",
            "the temperatures must be above 0".into(),
        );
        check(self.max_completion_length > 0, "max_completion_length", "expected at least 1".into());
        check(
            !(self.kind == LossKind::Vespo && self.importance == ImportanceLevel::Sequence),
            "importance_sampling_level",
            "loss \"vespo\" has its own weight of the sequence; leave it at \"token\"".into(),
        );
        check(
            !(self.kind == LossKind::Luspo && self.importance == ImportanceLevel::Token),
            "importance_sampling_level",
            "loss \"luspo\" is a loss of sequences; set it to \"sequence\"".into(),
        );
        if let Some(correction) = self.sampler_correction {
            check(
                !(self.kind == LossKind::Vespo && correction.mode.is_sequence()),
                "sampler_correction",
                "loss \"vespo\" takes ratios of tokens: \"token_truncate\" or \"token_mask\"".into(),
            );
            check(
                correction.max > 0.0 && correction.min.is_none_or(|min| min >= 0.0 && min < correction.max),
                "sampler_correction_max",
                "expected limits with 0 <= min < max".into(),
            );
        }
        found
    }

    /// What is allowed and may not be meant.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        use LossKind::{Bnpo, Cispo, Dapo, DrGrpo};
        let mut found = Vec::new();
        if self.importance == ImportanceLevel::Sequence && matches!(self.kind, Bnpo | DrGrpo | Dapo | Cispo) {
            found.push(format!(
                "with ratios of sequences, loss \"{}\" gives long completions more weight; GSPO is loss \"grpo\"",
                self.kind.name()
            ));
        }
        if self.kind == Cispo && self.epsilon_high < 1.0 {
            found.push(format!(
                "loss \"cispo\" caps the ratio itself at epsilon_high = {}, below its value 1 on the policy",
                self.epsilon_high
            ));
        }
        found
    }
}

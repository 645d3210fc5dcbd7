//! How completions are made and trained on.

use qlora_models::{Checkpointing, Sampling};
use qlora_rl::{Aggregation, LossOptions, OptionProblem, RewardScale};

/// How completions are made and trained on. Defaults are TRL's where TRL has them.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpoOptions {
    /// The loss; its `max_completion_length` is that of generation too.
    pub loss: LossOptions,
    /// Completions of each prompt.
    pub num_generations: usize,
    /// How they are sampled. The temperature is that of the loss too.
    pub sampling: Sampling,
    /// Completions that are made at the same time; the keys of more would need more memory.
    pub max_sequences: usize,
    /// Times that a generation batch is trained on.
    pub num_iterations: u64,
    /// Optimizer steps that share a generation batch. TRL's `steps_per_generation` is this times `accumulate`.
    pub updates_per_generation: u64,
    /// What advantages are divided by.
    pub scale_rewards: RewardScale,
    /// How several rewards become one.
    pub aggregation: Aggregation,
    /// Whether completions that were cut off are left out of the loss.
    pub mask_truncated_completions: bool,
    /// How many more times prompts are drawn in place of those whose completions all have the same reward
    /// (DAPO's dynamic sampling); 0 keeps them.
    pub dynamic_sampling: u32,
    /// Completions of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub accumulate: usize,
    /// Seed of sampling, and of the order in which a generation batch is trained on.
    pub seed: u64,
    /// Seed of the orders of prompts, of which each epoch has one of its own; `None` keeps the order of the file.
    pub shuffle: Option<u64>,
    /// What a forward pass keeps.
    pub checkpointing: Checkpointing,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<u32>,
    /// Completions that are scored at the same time, each on a thread. The scores do not depend on it.
    pub reward_threads: usize,
    /// Completions of a generation batch that are recorded as samples.
    pub logged_samples: usize,
}

impl Default for GrpoOptions {
    fn default() -> Self {
        Self {
            loss: LossOptions::default(),
            num_generations: 8,
            sampling: Sampling { temperature: 1.0, ..Sampling::default() },
            max_sequences: 256,
            num_iterations: 1,
            updates_per_generation: 1,
            scale_rewards: RewardScale::Group,
            aggregation: Aggregation::SumThenNormalize,
            mask_truncated_completions: false,
            dynamic_sampling: 0,
            batch_size: 8,
            accumulate: 1,
            seed: 42,
            shuffle: Some(42),
            checkpointing: Checkpointing::None,
            stop_tokens: Vec::new(),
            reward_threads: 4,
            logged_samples: 4,
        }
    }
}

impl GrpoOptions {
    /// Completions of a generation batch.
    #[must_use]
    pub fn completions(&self) -> usize {
        self.batch_size * self.accumulate * self.updates_per_generation as usize
    }

    /// Prompts of a generation batch.
    #[must_use]
    pub fn prompts(&self) -> usize {
        self.completions() / self.num_generations.max(1)
    }

    /// Optimizer steps of a generation batch.
    pub(crate) fn steps_of_generation(&self) -> u64 {
        self.num_iterations * self.updates_per_generation
    }

    /// Whether the policy may have moved since a generation batch was made.
    pub(crate) fn leaves_policy(&self) -> bool {
        self.steps_of_generation() > 1
    }

    /// What is out of range or contradicts something else.
    #[must_use]
    pub fn problems(&self) -> Vec<OptionProblem> {
        let mut found = self.loss.problems();
        let mut check = |good: bool, option: &'static str, message: String| {
            if !good {
                found.push(OptionProblem { option, message });
            }
        };
        check(
            self.num_generations >= 2,
            "num_generations",
            format!("{} given; a group needs at least 2 to differ", self.num_generations),
        );
        check(self.num_iterations >= 1, "num_iterations", "expected at least 1".into());
        check(self.updates_per_generation >= 1, "updates_per_generation", "expected at least 1".into());
        check(self.batch_size >= 1 && self.accumulate >= 1, "batch_size", "expected at least 1".into());
        check(
            self.completions().is_multiple_of(self.num_generations.max(1)),
            "num_generations",
            format!(
                "{} does not divide the {} completions of a generation batch (train.batch_size {} x train.accumulate \
                 {} x updates_per_generation {})",
                self.num_generations,
                self.completions(),
                self.batch_size,
                self.accumulate,
                self.updates_per_generation
            ),
        );
        check(
            self.sampling.temperature > 0.0,
            "temperature",
            "0 is greedy: all completions of a group would be the same; give a number above 0".into(),
        );
        if let Err(error) = self.sampling.validate() {
            check(false, "temperature", error.to_string());
        }
        check(
            self.loss.entropy_coef == 0.0,
            "entropy_coef",
            "the gradient of the entropy is not available; leave it at 0 (top_entropy_quantile and temperature also \
             keep a policy from narrowing)"
                .into(),
        );
        check(
            self.loss.off_policy_mask_threshold.is_none() || self.leaves_policy(),
            "off_policy_mask_threshold",
            "every step is on the policy with num_iterations and updates_per_generation at 1: it would mask nothing"
                .into(),
        );
        check(self.reward_threads >= 1, "reward_threads", "expected at least 1".into());
        check(
            self.dynamic_sampling < 256,
            "dynamic_sampling",
            format!("{} given, expected at most 255", self.dynamic_sampling),
        );
        found
    }
}

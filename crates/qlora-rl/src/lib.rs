//! Group-relative policy optimization (GRPO, <https://arxiv.org/abs/2402.03300>) without a tensor library.
//!
//! | what | where |
//! |---|---|
//! | losses over ragged arrays of tokens, with their gradients in closed form | [`loss()`], [`LossOptions`], [`LossBatch`] |
//! | from rewards to advantages | [`advantages()`], [`RewardScale`], [`Aggregation`] |
//! | what a completion is worth | [`Reward`], [`reward_fn`], [`RewardConfig`] and the rewards that it makes |
//! | a reward in any language | [`CommandReward`] |
//! | rewards in parallel with generation | [`score_during`] |
//! | problems with verifiers, from a seed | [`Task`], [`TaskAnswer`] |
//!
//! The numbers are those of TRL 1.15. The trainer is in `qlora-train`.

mod advantages;
mod command;
mod loss;
mod problem;
mod process;
mod reward;
mod scoring;
mod task;

pub use advantages::{Advantages, Aggregation, RewardScale, RewardTable, advantages};
pub use command::CommandReward;
pub use loss::{
    CorrectionMode, ImportanceLevel, LossBatch, LossKind, LossOptions, LossOutput, MetricKind, Normalization,
    SamplerCorrection, VespoOptions, loss, metric_kind, sampler_ratios, sampling_metrics,
};
pub use problem::OptionProblem;
pub use process::Limits;
pub use reward::{
    CosineLength, ExactAnswer, Extract, NumericAnswer, PatternFormat, RepetitionPenalty, Reward,
    RewardConfig, RewardError, RewardInput, RewardKind, SoftOverlong, TagFormat, TargetLength, UnitTests,
    ValidJson, reward_fn,
};
pub use scoring::{Candidate, Scores, score_during};
pub use task::{Problem, Task, TaskAnswer};

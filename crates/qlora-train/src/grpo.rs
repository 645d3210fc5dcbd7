//! Group-relative policy optimization: completions of the model are scored, and those better than their group made
//! likelier.
//!
//! An optimizer step, or several, use one *generation batch*: `num_generations` completions of each of some prompts,
//! their rewards, advantages and, where the updates leave the policy, log-probabilities under the policy before and the
//! reference, which is the same model with its adapters off. Each micro-batch goes forward once. From its log-probabilities the loss and its derivatives follow in closed form (`qlora_rl::loss`); the backward
//! pass is that of the sum of log-probabilities weighted by these derivatives.
//!
//! Random streams, all of ChaCha8 keyed by the seed: generation `g`, round `r` of dynamic sampling draws the seed of its
//! sampler from stream `g · 256 + r`; where a generation batch is used by several optimizer steps its order comes from
//! stream `2⁶³ + g`.

mod batch;
mod objective;
mod options;
mod prompts;
mod rollout;
mod state;
mod step_log;

pub use batch::GrpoBatch;
pub use objective::Grpo;
pub use options::GrpoOptions;
pub use prompts::{Prompt, PromptError, PromptOptions, PromptSet, TaskPrompts};
pub use rollout::{TextDecoder, text_decoder};

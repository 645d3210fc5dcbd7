//! Rewards: what a completion is worth.
//!
//! A [`Reward`] looks at one completion and gives a number, nothing (it has no opinion), or an error (it could not
//! tell). A completion that any reward failed on is left out of the step as a whole: with some of its rewards missing
//! its sum would not be comparable to those of its group.

mod answer;
mod code;
mod config;
mod extract;
mod format;
mod json;
mod length;
mod repetition;

pub use answer::{ExactAnswer, NumericAnswer};
pub use code::UnitTests;
pub use config::{RewardConfig, RewardKind};
pub use extract::Extract;
pub(crate) use extract::parse_number;
pub use format::{PatternFormat, TagFormat};
pub use json::ValidJson;
pub use length::{CosineLength, SoftOverlong, TargetLength};
pub use repetition::RepetitionPenalty;

use serde_json::{Map, Value};

/// What a reward sees.
#[derive(Clone, Copy, Debug)]
pub struct RewardInput<'a> {
    /// The prompt's text, as the model got it.
    pub prompt: &'a str,
    /// The text that the model wrote, without special tokens.
    pub completion: &'a str,
    /// Its tokens, the one that ended it included.
    pub completion_ids: &'a [u32],
    /// Whether it ended by itself, and not because it was cut off.
    pub finished: bool,
    /// The columns of the prompt's row.
    pub columns: &'a Map<String, Value>,
}

impl RewardInput<'_> {
    /// The text of a column that may hold text or a number.
    ///
    /// # Errors
    /// The column is absent, or holds something else.
    pub fn text(&self, column: &str) -> Result<String, RewardError> {
        match self.columns.get(column) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            found => Err(RewardError::Column {
                column: column.to_string(),
                expected: "text or a number",
                found: found.map_or("nothing".to_string(), ToString::to_string),
            }),
        }
    }
}

/// A completion could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewardError {
    /// A column that the reward reads is missing or of another kind.
    #[error("the reward reads column `{column}`: expected {expected}, found {found}")]
    Column {
        /// The column.
        column: String,
        /// What should stand there.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A program can't be started.
    #[error("can't start `{program}`: {source}")]
    Start {
        /// The program.
        program: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A program did not do what it should.
    #[error("`{program}`: {problem}{}", if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") })]
    Program {
        /// The program.
        program: String,
        /// What happened.
        problem: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// The reward panicked.
    #[error("the reward panicked: {message}")]
    Panic {
        /// What it said.
        message: String,
    },
    /// Any other reason.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// What a completion is worth.
///
/// Called from several threads at once, while other completions are still being generated.
pub trait Reward: Send + Sync {
    /// Its name in metrics: `rewards/NAME/mean`.
    fn name(&self) -> &str;

    /// The reward of a completion; `None` if this reward does not apply to it.
    ///
    /// Must depend on nothing but the input, or a resumed run differs from one that was not stopped.
    ///
    /// # Errors
    /// It can't be told. The completion is then masked and counted, and the run goes on.
    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError>;

    /// How often a program of it had to be started again so far: `rewards/NAME/restarts`.
    fn restarts(&self) -> u64 {
        0
    }
}

/// A reward of a function that can't fail.
///
/// # Examples
/// ```
/// use qlora_rl::{Reward, RewardInput, reward_fn};
///
/// let polite = reward_fn("polite", |input: &RewardInput<'_>| {
///     Some(f64::from(u8::from(input.completion.contains("please"))))
/// });
/// assert_eq!(polite.name(), "polite");
/// ```
pub fn reward_fn(
    name: impl Into<String>,
    call: impl Fn(&RewardInput<'_>) -> Option<f64> + Send + Sync + 'static,
) -> impl Reward {
    struct Function<F> {
        name: String,
        call: F,
    }
    impl<F: Fn(&RewardInput<'_>) -> Option<f64> + Send + Sync> Reward for Function<F> {
        fn name(&self) -> &str {
            &self.name
        }
        fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
            Ok((self.call)(input))
        }
    }
    Function { name: name.into(), call }
}

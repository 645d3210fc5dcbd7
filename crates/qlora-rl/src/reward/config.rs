//! Rewards as a configuration names them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    CosineLength, ExactAnswer, Extract, NumericAnswer, PatternFormat, RepetitionPenalty, Reward,
    SoftOverlong, TagFormat, TargetLength, UnitTests, ValidJson,
};
use crate::command::CommandReward;
use crate::process::Limits;
use crate::task::TaskAnswer;

/// A reward with its weight: `{ kind = "numeric", column = "answer", extract = "tag", weight = 1.0 }`.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardConfig {
    /// Its name in metrics; the kind unless given.
    pub name: String,
    /// Its weight in the sum; 1 unless given.
    pub weight: f64,
    /// Which reward, with its options.
    pub kind: RewardKind,
}

/// Which reward, with its options. `kind` is the variant's name in lower case with underscores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the rewards that they make")]
pub enum RewardKind {
    /// [`ExactAnswer`].
    Exact {
        column: String,
        #[serde(default)]
        extract: Extract,
        #[serde(default)]
        ignore_case: bool,
    },
    /// [`NumericAnswer`].
    Numeric {
        column: String,
        #[serde(default = "last_number")]
        extract: Extract,
        #[serde(default = "tolerance")]
        tolerance: f64,
    },
    /// The verifier of a built-in task, [`TaskAnswer`].
    Task {
        #[serde(default = "last_number")]
        extract: Extract,
    },
    /// [`PatternFormat`].
    Pattern { pattern: String },
    /// [`TagFormat`].
    Tags {
        #[serde(default = "think_answer")]
        tags: Vec<String>,
        #[serde(default)]
        partial: bool,
    },
    /// [`TargetLength`].
    Length { tokens: usize },
    /// [`CosineLength`].
    CosineLength {
        column: String,
        #[serde(default = "last_number")]
        extract: Extract,
        max_tokens: usize,
    },
    /// [`SoftOverlong`].
    SoftOverlong { max_tokens: usize, cache: usize },
    /// [`RepetitionPenalty`].
    Repetition { ngram: usize, max_penalty: f64 },
    /// [`ValidJson`].
    Json {
        #[serde(default)]
        schema: Option<Value>,
        #[serde(default)]
        partial: f64,
    },
    /// [`UnitTests`].
    UnitTests {
        command: Vec<String>,
        column: String,
        #[serde(default)]
        done: Option<String>,
        #[serde(default = "seconds")]
        timeout: f64,
        #[serde(default)]
        memory_mb: Option<u64>,
    },
    /// [`CommandReward`].
    Command {
        command: Vec<String>,
        #[serde(default = "seconds")]
        timeout: f64,
        #[serde(default)]
        memory_mb: Option<u64>,
    },
}

fn last_number() -> Extract {
    Extract::LastNumber
}

fn tolerance() -> f64 {
    1e-6
}

fn think_answer() -> Vec<String> {
    ["think", "answer"].map(String::from).to_vec()
}

fn seconds() -> f64 {
    10.0
}

fn limits(timeout: f64, memory_mb: Option<u64>) -> Result<Limits, String> {
    let timeout = Duration::try_from_secs_f64(timeout)
        .ok()
        .filter(|timeout| !timeout.is_zero() && timeout.as_secs() <= 86_400)
        .ok_or_else(|| format!("timeout: {timeout} given, expected seconds above 0 and up to a day"))?;
    Ok(Limits { timeout, memory: memory_mb.map(|mb| mb.saturating_mul(1_000_000)) })
}

fn program(command: Vec<String>) -> Result<Vec<String>, String> {
    match command.is_empty() {
        true => Err("command: expected a program and its arguments as a list".to_string()),
        false => Ok(command),
    }
}

/// `done` is the language's own unless given; where it is empty success alone counts.
fn unit_tests(
    name: String,
    command: Vec<String>,
    column: String,
    done: Option<String>,
    limits: Limits,
) -> Result<UnitTests, String> {
    let command = program(command)?;
    let done = match done {
        Some(done) if done.is_empty() => None,
        Some(done) if done.contains(UnitTests::DONE) => Some(done),
        Some(done) => return Err(format!("done: {done:?} does not hold {}", UnitTests::DONE)),
        None => Some(UnitTests::done_of(&command).map(String::from).ok_or_else(|| {
            format!(
                "done: the language that `{}` runs is not known; set it to a statement that prints {done} on a line of \
                 its own, as print(\"{done}\"), or to \"\" to trust success alone",
                command.join(" "),
                done = UnitTests::DONE
            )
        })?),
    };
    Ok(UnitTests { done, limits, ..UnitTests::new(name, command, column) })
}

impl RewardConfig {
    /// Reads a table as of TOML or JSON.
    ///
    /// # Errors
    /// A key is unknown, missing or of another kind: says which.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let Value::Object(table) = value else {
            return Err(format!(
                "expected a table as {{ kind = \"exact\", column = \"answer\" }}, found {value}"
            ));
        };
        let mut table = table.clone();
        let weight = match table.remove("weight") {
            None => 1.0,
            Some(weight) => weight.as_f64().ok_or_else(|| format!("weight: {weight} is no number"))?,
        };
        let name = match table.remove("name") {
            None => table.get("kind").and_then(Value::as_str).unwrap_or_default().to_string(),
            Some(Value::String(name)) if !name.is_empty() => name,
            Some(other) => return Err(format!("name: expected text, found {other}")),
        };
        let kind = serde_json::from_value(Value::Object(table)).map_err(|error| error.to_string())?;
        Ok(Self { name, weight, kind })
    }

    /// A table that reads back to this.
    ///
    /// # Panics
    /// Never: every option can be written.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let kind = serde_json::to_value(&self.kind).expect("text, numbers and lists");
        let mut table = Map::new();
        table.insert("name".into(), self.name.clone().into());
        table.insert("weight".into(), self.weight.into());
        // TOML has no null.
        let options = kind.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        table.extend(options.map(|(key, value)| (key.clone(), value.clone())));
        Value::Object(table)
    }

    /// Whether the options are in their ranges. Starts no program.
    ///
    /// # Errors
    /// Says which is not.
    pub fn check(&self) -> Result<(), String> {
        match self.kind.clone() {
            RewardKind::UnitTests { command, column, done, timeout, memory_mb } => {
                unit_tests(String::new(), command, column, done, limits(timeout, memory_mb)?).map(drop)
            }
            RewardKind::Command { command, timeout, memory_mb } => {
                limits(timeout, memory_mb)?;
                program(command).map(drop)
            }
            _ => self.build().map(drop),
        }
    }

    /// The reward, its program started or tried out.
    ///
    /// # Errors
    /// An option is out of range, or a program can't be started or does not do what it is for.
    pub fn build(&self) -> Result<Box<dyn Reward>, String> {
        let name = self.name.clone();
        let positive = |key: &str, value: usize| match value {
            0 => Err(format!("{key}: expected at least 1")),
            value => Ok(value),
        };
        Ok(match self.kind.clone() {
            RewardKind::Exact { column, extract, ignore_case } => {
                Box::new(ExactAnswer { name, column, extract, ignore_case })
            }
            RewardKind::Numeric { column, extract, tolerance } => {
                Box::new(NumericAnswer { name, column, extract, tolerance })
            }
            RewardKind::Task { extract } => Box::new(TaskAnswer { name, extract }),
            RewardKind::Pattern { pattern } => {
                Box::new(PatternFormat::new(name, &pattern).map_err(|error| format!("pattern: {error}"))?)
            }
            RewardKind::Tags { tags, partial } => Box::new(TagFormat { name, tags, partial }),
            RewardKind::Length { tokens } => {
                Box::new(TargetLength { name, tokens: positive("tokens", tokens)? })
            }
            RewardKind::CosineLength { column, extract, max_tokens } => {
                Box::new(CosineLength::new(name, column, extract, positive("max_tokens", max_tokens)?))
            }
            RewardKind::SoftOverlong { max_tokens, cache } => {
                if cache == 0 || cache > max_tokens {
                    return Err(format!("cache: {cache} given, expected 1 to max_tokens = {max_tokens}"));
                }
                Box::new(SoftOverlong { name, max_tokens, cache })
            }
            RewardKind::Repetition { ngram, max_penalty } => {
                if !(max_penalty < 0.0 && max_penalty.is_finite()) {
                    return Err(format!("max_penalty: {max_penalty} given, expected a number below 0"));
                }
                Box::new(RepetitionPenalty { name, ngram: positive("ngram", ngram)?, max_penalty })
            }
            RewardKind::Json { schema, partial } => Box::new(ValidJson::new(name, schema, partial)?),
            RewardKind::UnitTests { command, column, done, timeout, memory_mb } => {
                let tests = unit_tests(name, command, column, done, limits(timeout, memory_mb)?)?;
                tests.try_out().map_err(|error| error.to_string())?;
                Box::new(tests)
            }
            RewardKind::Command { command, timeout, memory_mb } => {
                let limits = limits(timeout, memory_mb)?;
                let reward = CommandReward::start(name, program(command)?, limits);
                Box::new(reward.map_err(|error| error.to_string())?)
            }
        })
    }
}

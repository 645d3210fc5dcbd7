//! Tasks with answers that can be checked, made from a seed.

mod countdown;
mod generate;

use serde_json::{Map, Value, json};

use crate::reward::Extract;
use crate::{Reward, RewardError, RewardInput};

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// `a + b`, `a - b` or `a * b`.
    Arithmetic,
    /// Reach a number from others with `+ - * /`, each used once.
    Countdown,
    /// Add and subtract several numbers.
    ChainSum,
    /// How often a letter stands in a word.
    LetterCount,
    /// A short story with one or two operations.
    WordProblem,
}

/// A problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// The answer that is compared with; of [`Task::Countdown`] one of many.
    pub answer: String,
    /// What the verifier reads: `task`, `answer`, and of [`Task::Countdown`] `numbers` and `target`.
    pub columns: Map<String, Value>,
}

impl Task {
    /// All tasks with their names.
    pub const NAMED: [(&'static str, Self); 5] = [
        ("arithmetic", Self::Arithmetic),
        ("countdown", Self::Countdown),
        ("chain_sum", Self::ChainSum),
        ("letter_count", Self::LetterCount),
        ("word_problem", Self::WordProblem),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, task)| *task == self).map_or("", |(name, _)| name)
    }

    /// The task of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, task)| *task)
    }

    /// So many problems. The same seed gives the same ones, and the first of many are those of few.
    #[must_use]
    pub fn problems(self, count: usize, seed: u64) -> Vec<Problem> {
        generate::problems(self, count, seed)
    }
}

impl Problem {
    pub(crate) fn new(task: Task, question: String, answer: impl ToString) -> Self {
        let answer = answer.to_string();
        let mut columns = Map::new();
        columns.insert("task".into(), json!(task.name()));
        columns.insert("answer".into(), json!(answer));
        Self { question, answer, columns }
    }
}

/// 1 where a completion solves the task of its row, else 0.
#[derive(Clone, Debug)]
pub struct TaskAnswer {
    /// Name in metrics.
    pub name: String,
    /// Where the answer stands. Of [`Task::Countdown`] the answer is an expression, which a number is not: there the
    /// last line counts unless it is [`Extract::Tag`] or [`Extract::Boxed`].
    pub extract: Extract,
}

impl Reward for TaskAnswer {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let name = input.text("task")?;
        let column = |column: &str, expected| RewardError::Column {
            column: column.to_string(),
            expected,
            found: input.columns.get(column).map_or("nothing".into(), ToString::to_string),
        };
        let task = Task::from_name(&name).ok_or_else(|| column("task", "the name of a built-in task"))?;
        let is_right = if task == Task::Countdown {
            let number = |value: &Value| value.as_i64();
            let numbers: Option<Vec<i64>> = input
                .columns
                .get("numbers")
                .and_then(Value::as_array)
                .map(|n| n.iter().filter_map(number).collect());
            let numbers = numbers.ok_or_else(|| column("numbers", "a list of whole numbers"))?;
            let target = input.columns.get("target").and_then(number);
            let target = target.ok_or_else(|| column("target", "a whole number"))?;
            let found = match self.extract {
                Extract::Tag | Extract::Boxed => self.extract.answer(input.completion),
                _ => input.completion.trim().lines().last(),
            };
            found.is_some_and(|expression| countdown::solves(expression, &numbers, target))
        } else {
            let expected = crate::reward::parse_number(&input.text("answer")?);
            let found = self.extract.answer(input.completion).and_then(crate::reward::parse_number);
            found.is_some() && found == expected
        };
        Ok(Some(f64::from(u8::from(is_right))))
    }
}

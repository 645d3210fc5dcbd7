//! Answers that are compared with a column of the row.

use super::extract::parse_number;
use super::{Extract, Reward, RewardError, RewardInput};

/// 1 where the answer is the column's text, else 0. Space around both is left out.
#[derive(Clone, Debug)]
pub struct ExactAnswer {
    /// Name in metrics.
    pub name: String,
    /// The column with the right answer.
    pub column: String,
    /// Where the answer stands.
    pub extract: Extract,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
}

impl Reward for ExactAnswer {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let expected = input.text(&self.column)?;
        let found = self.extract.answer(input.completion);
        let is_same = found.is_some_and(|found| match self.ignore_case {
            true => found.to_lowercase() == expected.trim().to_lowercase(),
            false => found == expected.trim(),
        });
        Ok(Some(f64::from(u8::from(is_same))))
    }
}

/// 1 where the answer is the column's number, else 0.
#[derive(Clone, Debug)]
pub struct NumericAnswer {
    /// Name in metrics.
    pub name: String,
    /// The column with the right number, or text that is one.
    pub column: String,
    /// Where the answer stands.
    pub extract: Extract,
    /// The largest difference, relative to the right number (absolute below 1).
    pub tolerance: f64,
}

impl Reward for NumericAnswer {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let text = input.text(&self.column)?;
        let expected = parse_number(&text).ok_or(RewardError::Column {
            column: self.column.clone(),
            expected: "a number",
            found: text,
        })?;
        let found = self.extract.answer(input.completion).and_then(parse_number);
        let limit = self.tolerance * expected.abs().max(1.0);
        let is_same = found.is_some_and(|found| (found - expected).abs() <= limit);
        Ok(Some(f64::from(u8::from(is_same))))
    }
}

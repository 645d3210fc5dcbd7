//! Code that is run against tests.

use std::time::Duration;

use super::{Reward, RewardError, RewardInput};
use crate::process::{Limits, run};

/// 1 where a program that gets the completion's code, followed by the column's tests, on standard input ends with
/// success, else 0: wrong, crashing and endless code are alike. A program that can't be started is an error.
///
/// Code is the last fenced block of the completion, or all of it where there is none. It runs with the rights of this
/// process: within the limits of time and memory it can do what the user can. Give a `command` that confines it
/// (a container, `bwrap`) where that matters.
#[derive(Clone, Debug)]
pub struct UnitTests {
    /// Name in metrics.
    pub name: String,
    /// The program and its arguments, as `["python3", "-I", "-"]`; not empty.
    pub command: Vec<String>,
    /// The column with the tests.
    pub column: String,
    /// Limits of each run.
    pub limits: Limits,
}

impl UnitTests {
    /// Ten seconds and 1 GiB for each run.
    #[must_use]
    pub fn new(name: impl Into<String>, command: Vec<String>, column: impl Into<String>) -> Self {
        let limits = Limits { timeout: Duration::from_secs(10), memory: Some(1 << 30) };
        Self { name: name.into(), command, column: column.into(), limits }
    }
}

/// The last fenced block of a text, or all of it.
fn code(text: &str) -> &str {
    let Some(end) = text.rfind("```") else { return text };
    let Some(start) = text[..end].rfind("```") else { return text };
    let block = &text[start + 3..end];
    block.split_once('\n').map_or(block, |(_language, code)| code)
}

impl Reward for UnitTests {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let text = format!("{}\n{}\n", code(input.completion), input.text(&self.column)?);
        let succeeded = run(&self.command, text.into_bytes(), &self.limits)?;
        Ok(Some(f64::from(u8::from(succeeded))))
    }
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn the_last_block_is_the_code() {
        assert_eq!(code("first\n```python\nx = 1\n```\nand\n```python\ny = 2\n```\ndone"), "y = 2\n");
        assert_eq!(code("x = 1"), "x = 1");
        assert_eq!(code("```\nopen"), "```\nopen");
    }
}

//! Code that is run against tests.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use super::{Reward, RewardError, RewardInput};
use crate::process::{Limits, run};

/// 1 where a program that gets the completion's code, followed by the column's tests, on standard input comes to the end
/// of the tests and ends with success, else 0: wrong, crashing and endless code are alike. A program that can't be
/// started is an error.
///
/// That the tests came to their end is told by [`done`](Self::done), a statement behind them that prints a word which no
/// other run has: code that ends the program before, with success, is worth nothing.
///
/// Code is the last fenced block of the completion, or all of it where there is none. It runs with the rights of this
/// process: within the limits of time and memory it can do what the user can. Give a `command` that confines it
/// (a container, `bwrap`) where that matters. Code and tests share a process, so that code which redefines what the
/// tests call can still cheat.
#[derive(Clone, Debug)]
pub struct UnitTests {
    /// Name in metrics.
    pub name: String,
    /// The program and its arguments, as `["python3", "-I", "-"]`; not empty.
    pub command: Vec<String>,
    /// The column with the tests.
    pub column: String,
    /// A statement of the language that prints [`DONE`](Self::DONE) on a line of its own, which stands for a random
    /// word; `None` trusts success alone.
    pub done: Option<String>,
    /// Limits of each run.
    pub limits: Limits,
}

/// How languages print a line, by the names of their interpreters. Python may have replaced its standard output; the
/// shell's last status is what it ends with, so that it is kept.
const DONE_STATEMENTS: [(&[&str], &str); 4] = [
    (&["python", "pypy"], "__import__(\"os\").write(1, b\"\\n{done}\\n\")"),
    (
        &["sh", "bash", "dash", "zsh", "ksh", "ash"],
        "case $? in 0) printf '\\n%s\\n' '{done}' ;; *) exit 1 ;; esac",
    ),
    (&["node", "nodejs", "deno", "bun"], "console.log(\"\\n{done}\");"),
    (&["ruby"], "STDOUT.puts \"\\n{done}\""),
];

impl UnitTests {
    /// What stands for the word in [`done`](Self::done).
    pub const DONE: &str = "{done}";

    /// Ten seconds and 1 GiB for each run; `done` where the command [is known](Self::done_of).
    #[must_use]
    pub fn new(name: impl Into<String>, command: Vec<String>, column: impl Into<String>) -> Self {
        let limits = Limits { timeout: Duration::from_secs(10), memory: Some(1 << 30) };
        let done = Self::done_of(&command).map(ToString::to_string);
        Self { name: name.into(), command, column: column.into(), done, limits }
    }

    /// The statement for a command that ends with a shell, Python, Node, Deno, Bun or Ruby reading a program from
    /// standard input: with that name and only options behind it.
    #[must_use]
    pub fn done_of(command: &[String]) -> Option<&'static str> {
        let interpreter = command.iter().rfind(|word| !word.starts_with('-'))?;
        let name = interpreter.rsplit(['/', '\\']).next()?.trim_end_matches(".exe");
        let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        DONE_STATEMENTS.iter().find(|(names, _)| names.contains(&name)).map(|(_, statement)| *statement)
    }

    /// Runs an empty program with empty tests: a command that can't be started or does not run its input as a program,
    /// and a `done` that is not of its language, are found before completions are judged by them.
    ///
    /// # Errors
    /// The program can't be started, or does not print what `done` says.
    pub fn try_out(&self) -> Result<(), RewardError> {
        let succeeded = self.run("", "")?;
        match &self.done {
            Some(done) if !succeeded => Err(RewardError::Program {
                program: self.command.join(" "),
                problem: format!(
                    "given nothing but `{done}` it did not print that word and end with success within {} s: it does \
                     not run what it reads, `done` is not of its language, or its memory does not suffice",
                    self.limits.timeout.as_secs_f64()
                ),
                stderr: String::new(),
            }),
            _ => Ok(()),
        }
    }

    fn run(&self, code: &str, tests: &str) -> Result<bool, RewardError> {
        let mut text = format!("{code}\n{tests}\n");
        let word = self.done.as_ref().map(|_| unpredictable_word());
        if let (Some(done), Some(word)) = (&self.done, &word) {
            text += &done.replace(Self::DONE, word);
            text.push('\n');
        }
        run(&self.command, text.into_bytes(), &self.limits, word.as_deref())
    }
}

/// 32 hexadecimal digits that code can't guess: the standard library keys its hashes at random.
fn unpredictable_word() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
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
        let succeeded = self.run(code(input.completion), &input.text(&self.column)?)?;
        Ok(Some(f64::from(u8::from(succeeded))))
    }
}

#[cfg(test)]
mod tests {
    use super::{UnitTests, code};

    #[test]
    fn the_last_block_is_the_code() {
        assert_eq!(code("first\n```python\nx = 1\n```\nand\n```python\ny = 2\n```\ndone"), "y = 2\n");
        assert_eq!(code("x = 1"), "x = 1");
        assert_eq!(code("```\nopen"), "```\nopen");
    }

    #[test]
    fn languages_are_known_by_the_interpreter_that_reads_the_program() {
        let known = |command: &str| {
            let words: Vec<String> = command.split(' ').map(String::from).collect();
            UnitTests::done_of(&words).map(|statement| statement.split(['.', ' ', '(']).next().unwrap())
        };
        assert_eq!(known("python3.12 -I -"), Some("__import__"));
        assert_eq!(known("bwrap --ro-bind / / /usr/bin/python3 -"), Some("__import__"));
        assert_eq!(known("docker run -i node:22 node -"), Some("console"));
        assert_eq!(known("sh -s"), Some("case"));
        // These read something else than a program of their own language.
        assert_eq!(known("sh compile_and_run.sh"), None);
        assert_eq!(known("python3 judge.py"), None);
        assert_eq!(known("cargo-script -"), None);
    }
}

//! Runs the program and looks at what it did.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What a finished run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with a folder of its own for models, so that no test sees the user's.
pub(crate) fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qlora"));
    command.current_dir(home).env("QLORA_HOME", home).env("QLORA_OFFLINE", "1").stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn qlora<S: AsRef<OsStr>>(home: &Path, arguments: impl IntoIterator<Item = S>) -> Ran {
    command(home).args(arguments).output().expect("the program starts").into()
}

/// As [`qlora`], with a text on stdin.
pub(crate) fn qlora_told<S: AsRef<OsStr>>(
    home: &Path,
    arguments: impl IntoIterator<Item = S>,
    text: &str,
) -> Ran {
    let mut command = command(home);
    let piped = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may have ended before it has read everything.
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the program ends").into()
}

impl From<Output> for Ran {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        Self {
            code: status.code(),
            stdout: String::from_utf8(stdout).expect("UTF-8"),
            stderr: String::from_utf8(stderr).expect("UTF-8"),
        }
    }
}

impl Ran {
    /// It succeeded.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// It failed with this code, with one message that holds all these parts.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.is_clean();
        let message =
            self.stderr.find("error: ").map(|start| &self.stderr[start..]).expect("an error is told");
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
        self
    }

    /// It did not panic, whatever else happened.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        for word in ["panicked", "a bug in qlora", "backtrace"] {
            assert!(!self.stderr.contains(word), "{}", self.stderr);
        }
        assert!(matches!(self.code, Some(0..=2)), "{self:?}");
    }
}

/// Everything below a folder, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

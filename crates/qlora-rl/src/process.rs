//! Programs with limits: time, memory, and no more output than is read.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::RewardError;

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take for one answer. Then it is killed, with the processes that it started.
    pub timeout: Duration,
    /// How much memory it may ask for, in bytes of address space (`RLIMIT_AS`), each process for itself. Only on Unix.
    pub memory: Option<u64>,
}

/// The end of what a program writes to standard error.
#[derive(Debug)]
pub(crate) struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Disconnected when all was read.
    read: Receiver<()>,
}

/// Bytes of standard error that are kept.
const TAIL: usize = 2000;
/// How long the last words of a program that has ended are waited for: a process that it left behind may keep the stream open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Starts a program in a process group of its own, with pipes for all three streams.
pub(crate) fn start(command: &[String], limits: &Limits) -> Result<Child, RewardError> {
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(p, rest)| (p.as_str(), rest));
    let failed = |source| RewardError::Start { program: program.to_string(), source };
    let mut builder = Command::new(program);
    builder.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    confine(&mut builder, limits).map_err(failed)?;
    builder.spawn().map_err(failed)
}

#[cfg(unix)]
fn confine(builder: &mut Command, limits: &Limits) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    // Ctrl-C at the terminal is the trainer's, and a kill reaches what the program has started.
    builder.process_group(0);
    if let Some(bytes) = limits.memory {
        let bytes = libc::rlim_t::try_from(bytes).unwrap_or(libc::RLIM_INFINITY);
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: the closure runs between fork and exec, and calls nothing but `setrlimit`, which is
        // async-signal-safe, with a pointer to a value that it owns.
        unsafe {
            builder.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn confine(_builder: &mut Command, limits: &Limits) -> std::io::Result<()> {
    match limits.memory {
        None => Ok(()),
        Some(_) => Err(std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "memory can't be limited on this system; remove the limit",
        )),
    }
}

/// Kills a program and what it started, and waits for it.
pub(crate) fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: `kill` takes numbers only. The group is the child's own: it has not been waited for, so that its
        // number can't belong to another.
        unsafe {
            libc::kill(-group, libc::SIGKILL);
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads a stream to its end on a thread, so that its writer never waits, and keeps the last of it.
pub(crate) fn drain(mut stream: impl Read + Send + 'static) -> Tail {
    let (reading, read) = channel();
    let tail = Tail { kept: Arc::default(), read };
    let kept = Arc::clone(&tail.kept);
    std::thread::spawn(move || {
        let _until_the_end = reading;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&buffer[..count]);
            let surplus = kept.len().saturating_sub(TAIL);
            kept.drain(..surplus);
        }
    });
    tail
}

/// What was kept, as text, of a program that has ended.
pub(crate) fn tail_text(tail: &Tail) -> String {
    let _ = tail.read.recv_timeout(LAST_WORDS);
    let bytes: Vec<u8> = tail.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    String::from_utf8_lossy(&bytes).trim().to_string()
}

/// Runs a program with this input, and says whether it ended with success within its limits.
pub(crate) fn run(command: &[String], input: Vec<u8>, limits: &Limits) -> Result<bool, RewardError> {
    let mut child = start(command, limits)?;
    let deadline = Instant::now() + limits.timeout;
    if let Some(mut stdin) = child.stdin.take() {
        // A program need not read its input.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    child.stdout.take().map(drain);
    child.stderr.take().map(drain);
    let mut pause = Duration::from_millis(1);
    let status: Option<ExitStatus> = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Ok(None) | Err(_) => break None,
        }
    };
    if status.is_none() {
        kill(&mut child);
    }
    Ok(status.is_some_and(|status| status.success()))
}

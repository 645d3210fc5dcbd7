//! Programs with limits: time, memory, and no more output than is read.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
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

/// How long the last words of a program that has ended are waited for: a process that left its group may keep the stream open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A program in a process group of its own, with pipes for all three streams. When it is dropped nothing of the group is
/// left; on Linux the program itself does not outlive this process either, however that ends.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    /// Known once it was waited for: from then on its number may be another's.
    status: Option<Option<ExitStatus>>,
}

impl Program {
    /// Starts a program.
    pub(crate) fn start(command: &[String], limits: &Limits) -> Result<Self, RewardError> {
        let (program, arguments) =
            command.split_first().map_or(("", &[][..]), |(p, rest)| (p.as_str(), rest));
        let failed = |source| RewardError::Start { program: program.to_string(), source };
        let mut builder = Command::new(program);
        builder.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        confine(&mut builder, limits).map_err(failed)?;
        Ok(Self { child: spawn(builder).map_err(failed)?, status: None })
    }

    /// Its streams, which can be taken once.
    pub(crate) fn streams(&mut self) -> (ChildStdin, ChildStdout, ChildStderr) {
        let Child { stdin, stdout, stderr, .. } = &mut self.child;
        match (stdin.take(), stdout.take(), stderr.take()) {
            (Some(stdin), Some(stdout), Some(stderr)) => (stdin, stdout, stderr),
            _ => unreachable!("all three streams are pipes, and nobody took them"),
        }
    }

    /// Whether it ended by itself before the deadline.
    fn ends_before(&mut self, deadline: Instant) -> bool {
        let mut pause = Duration::from_millis(1);
        loop {
            if has_ended(&mut self.child) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills the program if it still runs, and what it started and left behind. Gives how it ended.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        *self.status.get_or_insert_with(|| {
            kill_group(&self.child);
            let _ = self.child.kill();
            self.child.wait().ok()
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// Linux tells a program of its parent's end when the *thread* that started it ends: one that lives as long as this
/// process starts them all.
#[cfg(target_os = "linux")]
fn spawn(builder: Command) -> std::io::Result<Child> {
    use std::sync::LazyLock;
    use std::sync::mpsc::Sender;

    type Order = (Command, Sender<std::io::Result<Child>>);
    static ORDERS: LazyLock<Sender<Order>> = LazyLock::new(|| {
        let (orders, to_start) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut builder, reply) in to_start {
                let _ = reply.send(builder.spawn());
            }
        });
        orders
    });
    let gone = || std::io::Error::other("the thread that starts programs is gone");
    let (reply, started) = channel();
    ORDERS.send((builder, reply)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

#[cfg(not(target_os = "linux"))]
fn spawn(mut builder: Command) -> std::io::Result<Child> {
    builder.spawn()
}

#[cfg(unix)]
fn confine(builder: &mut Command, limits: &Limits) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    // Ctrl-C at the terminal is the trainer's, and a kill reaches what the program has started.
    builder.process_group(0);
    #[cfg(target_os = "linux")]
    die_with_parent(builder);
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

/// A trainer that is killed can't kill its programs: the system does.
#[cfg(target_os = "linux")]
fn die_with_parent(builder: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec, and calls nothing but `prctl` and `getppid`, which are system
    // calls that take and give numbers.
    unsafe {
        builder.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // It may have ended before it was asked for.
            match libc::getppid().cast_unsigned() == parent {
                true => Ok(()),
                false => Err(std::io::ErrorKind::NotFound.into()),
            }
        });
    }
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

/// Whether a program has ended. It is not waited for: its number, which is its group's, stays its own.
#[cfg(unix)]
fn has_ended(child: &mut Child) -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `siginfo_t` is numbers and pointers, for which zeros are values; `waitid` writes to it and keeps nothing.
    let (failed, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::waitid(libc::P_PID, child.id(), &raw mut info, flags) != 0, info)
    };
    failed || info.si_signo != 0
}

#[cfg(not(unix))]
fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// Kills all processes of a program's group. It must not have been waited for.
#[cfg(unix)]
fn kill_group(child: &Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: `kill` takes numbers only. The group is the child's own: it has not been waited for, so that its
        // number can't belong to another.
        unsafe {
            libc::kill(-group, libc::SIGKILL);
        }
    }
}

#[cfg(not(unix))]
fn kill_group(_child: &Child) {}

/// The end of what a program writes to standard error.
#[derive(Debug)]
pub(crate) struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Disconnected when all was read.
    read: Receiver<()>,
}

/// Bytes of standard error that are kept.
const TAIL: usize = 2000;

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

/// Whether a line stands in what a program writes.
struct LineWatch {
    found: Arc<AtomicBool>,
    /// Disconnected when all was read.
    read: Receiver<()>,
}

impl LineWatch {
    /// Reads a stream to its end on a thread. Longer lines are read in parts.
    fn start(stream: impl Read + Send + 'static, line: String) -> Self {
        const LONGEST: u64 = 4096;
        let (reading, read) = channel();
        let watch = Self { found: Arc::default(), read };
        let found = Arc::clone(&watch.found);
        std::thread::spawn(move || {
            let _until_the_end = reading;
            let mut stream = BufReader::new(stream);
            let mut part = Vec::new();
            while let Ok(1..) = stream.by_ref().take(LONGEST).read_until(b'\n', &mut part) {
                found.fetch_or(part.trim_ascii() == line.as_bytes(), Ordering::Relaxed);
                part.clear();
            }
        });
        watch
    }

    /// Of a program that has ended.
    fn has_found(&self) -> bool {
        let _ = self.read.recv_timeout(LAST_WORDS);
        self.found.load(Ordering::Relaxed)
    }
}

/// Runs a program with this input, and says whether it ended with success within its limits and, where a line is
/// given, wrote this line.
pub(crate) fn run(
    command: &[String],
    input: Vec<u8>,
    limits: &Limits,
    line: Option<&str>,
) -> Result<bool, RewardError> {
    let mut program = Program::start(command, limits)?;
    let deadline = Instant::now() + limits.timeout;
    let (mut stdin, stdout, stderr) = program.streams();
    // A program need not read its input.
    std::thread::spawn(move || stdin.write_all(&input));
    let watch = LineWatch::start(stdout, line.unwrap_or_default().to_string());
    drain(stderr);
    let ended = program.ends_before(deadline);
    let succeeded = program.end().is_some_and(|status| status.success());
    Ok(ended && succeeded && (line.is_none() || watch.has_found()))
}

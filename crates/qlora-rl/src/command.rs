//! A reward by a program in any language, JSON lines over its standard streams.
//!
//! For each completion the program gets a line
//! `{"id": 7, "prompt": "…", "completion": "…", "finished": true, "columns": {…}}` and answers with a line
//! `{"id": 7, "reward": 0.5}`; `null` where the reward does not apply, `{"id": 7, "error": "…"}` where it can't tell.
//! It runs until its input ends. As many of it run as completions are scored at a time.
//!
//! A program that does not answer in time, ends, or answers anything else is killed and started again. What it had
//! before it may be to blame: where it was not fresh, the completion is given to a fresh one. Standard error is read and
//! its end shown in messages.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::process::{Limits, Program, Tail, drain, tail_text};
use crate::{Reward, RewardError, RewardInput};

/// The longest answer, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// A reward by a program.
#[derive(Debug)]
pub struct CommandReward {
    name: String,
    command: Vec<String>,
    limits: Limits,
    idle: Mutex<Vec<Worker>>,
    restarts: AtomicU64,
}

impl CommandReward {
    /// Starts the program, so that one that does not exist is noticed at once.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(name: impl Into<String>, command: Vec<String>, limits: Limits) -> Result<Self, RewardError> {
        let first = Worker::start(&command, &limits)?;
        let idle = Mutex::new(vec![first]);
        Ok(Self { name: name.into(), command, limits, idle, restarts: AtomicU64::new(0) })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn program(&self, problem: impl Into<String>, stderr: String) -> RewardError {
        RewardError::Program { program: self.command.join(" "), problem: problem.into(), stderr }
    }
}

impl Reward for CommandReward {
    fn name(&self) -> &str {
        &self.name
    }

    fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        loop {
            let idle = self.idle().pop();
            let mut worker = match idle {
                Some(worker) => worker,
                None => Worker::start(&self.command, &self.limits)?,
            };
            let is_fresh = worker.asked == 0;
            match worker.ask(input, &self.limits) {
                Ok(answer) => {
                    self.idle().push(worker);
                    return answer.map_err(|error| self.program(error, String::new()));
                }
                Err(problem) => {
                    self.restarts.fetch_add(1, Ordering::Relaxed);
                    let stderr = worker.end();
                    if is_fresh {
                        return Err(self.program(problem, stderr));
                    }
                }
            }
        }
    }
}

/// A running program.
#[derive(Debug)]
struct Worker {
    program: Program,
    requests: Sender<Vec<u8>>,
    replies: Receiver<Reply>,
    stderr: Tail,
    asked: u64,
}

/// What the program wrote.
#[derive(Debug)]
enum Reply {
    Line(Vec<u8>),
    TooLong,
    End,
}

/// What the program says of a completion: its reward, or why it has none.
type Answer = Result<Option<f64>, String>;

impl Worker {
    fn start(command: &[String], limits: &Limits) -> Result<Self, RewardError> {
        let mut program = Program::start(command, limits)?;
        let (requests, to_write) = channel::<Vec<u8>>();
        let (to_read, replies) = sync_channel(4);
        let (mut stdin, stdout, stderr) = program.streams();
        // A program that does not read must not keep us from noticing that it does not answer.
        std::thread::spawn(move || {
            while let Ok(line) = to_write.recv() {
                if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        std::thread::spawn(move || read_lines(stdout, &to_read));
        Ok(Self { program, requests, replies, stderr: drain(stderr), asked: 0 })
    }

    /// An error is one of the protocol: the program is of no more use.
    fn ask(&mut self, input: &RewardInput<'_>, limits: &Limits) -> Result<Answer, String> {
        // A line that answers nothing.
        if let Ok(reply) = self.replies.try_recv() {
            return Err(match reply {
                Reply::End => "it ended before the run did".to_string(),
                _ => "it wrote a line without being asked".to_string(),
            });
        }
        self.asked += 1;
        let id = self.asked;
        let request = json!({
            "id": id,
            "prompt": input.prompt,
            "completion": input.completion,
            "finished": input.finished,
            "columns": input.columns,
        });
        let _ = self.requests.send(format!("{request}\n").into_bytes());
        let line = match self.replies.recv_timeout(limits.timeout) {
            Ok(Reply::Line(line)) => line,
            Ok(Reply::TooLong) => return Err(format!("it wrote a line of more than {LONGEST_LINE} bytes")),
            Ok(Reply::End) | Err(RecvTimeoutError::Disconnected) => {
                return Err("it ended without an answer".to_string());
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("no answer within {} s", limits.timeout.as_secs_f64()));
            }
        };
        answer(&line, id).ok_or_else(|| {
            let text: String = String::from_utf8_lossy(&line).chars().take(80).collect();
            format!("expected {{\"id\": {id}, \"reward\": a number or null}}, found {text:?}")
        })
    }

    /// Kills the program; gives the end of its standard error.
    fn end(mut self) -> String {
        self.program.end();
        tail_text(&self.stderr)
    }
}

fn answer(line: &[u8], id: u64) -> Option<Answer> {
    let value: Value = serde_json::from_slice(line).ok()?;
    if value.get("id")?.as_u64()? != id {
        return None;
    }
    match (value.get("reward"), value.get("error")) {
        (Some(Value::Null), None) => Some(Ok(None)),
        (Some(Value::Number(number)), None) => Some(Ok(Some(number.as_f64()?))),
        (None, Some(Value::String(error))) => Some(Err(error.clone())),
        _ => None,
    }
}

fn read_lines(stream: impl Read, to: &SyncSender<Reply>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let reply = match stream.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => Reply::End,
            Ok(_) if line.ends_with(b"\n") => Reply::Line(line),
            Ok(read) if read as u64 == LONGEST_LINE => Reply::TooLong,
            Ok(_) => Reply::Line(line),
        };
        let is_last = !matches!(reply, Reply::Line(_));
        if to.send(reply).is_err() || is_last {
            return;
        }
    }
}

//! Rewards of many completions, on threads of their own, while others are still being generated.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::{Reward, RewardError, RewardInput};

/// A completion that waits for its rewards.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which of the batch it is.
    pub index: usize,
    /// The prompt's text.
    pub prompt: Arc<str>,
    /// The columns of the prompt's row.
    pub columns: Arc<Map<String, Value>>,
    /// What the model wrote.
    pub completion: String,
    /// Its tokens.
    pub completion_ids: Vec<u32>,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// What the rewards said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// `rewards[k][i]`: what reward `k` gave completion `i`. A completion that any reward failed on has none.
    pub rewards: Vec<Vec<Option<f64>>>,
    /// Whether a reward failed on a completion: it is to be masked.
    pub failed: Vec<bool>,
    /// How many completions each reward failed on.
    pub errors: Vec<usize>,
    /// Of each reward that failed, what it said, of the first completion that it failed on.
    pub messages: BTreeMap<usize, String>,
}

/// Scores what `produce` hands over, up to `count` completions, on `threads` threads, while `produce` goes on.
/// The scores do not depend on the number of threads.
///
/// # Panics
/// `produce` panics, or hands over a completion whose index is `count` or more.
pub fn score_during<T>(
    rewards: &[Box<dyn Reward>],
    count: usize,
    threads: usize,
    produce: impl FnOnce(&mut dyn FnMut(Candidate)) -> T,
) -> (T, Scores) {
    let (sender, receiver) = channel::<Candidate>();
    let receiver = Mutex::new(receiver);
    type Scored = (usize, Vec<Result<Option<f64>, RewardError>>);
    let scored: Mutex<Vec<Scored>> = Mutex::default();
    let produced = std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(candidate) = next else { return };
                    let results = rewards.iter().map(|reward| score(reward.as_ref(), &candidate)).collect();
                    let entry = (candidate.index, results);
                    scored.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                }
            });
        }
        let mut hand_over = |candidate: Candidate| {
            assert!(candidate.index < count, "completion {} of {count}", candidate.index);
            sender.send(candidate).expect("the threads wait for more");
        };
        let produced = produce(&mut hand_over);
        drop(sender);
        produced
    });

    let mut scored = scored.into_inner().unwrap_or_else(PoisonError::into_inner);
    scored.sort_by_key(|(index, _)| *index);
    let mut scores = Scores {
        rewards: vec![vec![None; count]; rewards.len()],
        failed: vec![false; count],
        errors: vec![0; rewards.len()],
        messages: BTreeMap::new(),
    };
    for (index, results) in scored {
        scores.failed[index] = results.iter().any(Result::is_err);
        for (k, result) in results.into_iter().enumerate() {
            match result {
                Ok(reward) if !scores.failed[index] => scores.rewards[k][index] = reward,
                Ok(_) => {}
                Err(error) => {
                    scores.errors[k] += 1;
                    scores.messages.entry(k).or_insert_with(|| error.to_string());
                }
            }
        }
    }
    (produced, scores)
}

fn score(reward: &dyn Reward, candidate: &Candidate) -> Result<Option<f64>, RewardError> {
    let input = RewardInput {
        prompt: &candidate.prompt,
        completion: &candidate.completion,
        completion_ids: &candidate.completion_ids,
        finished: candidate.finished,
        columns: &candidate.columns,
    };
    let result = catch_unwind(AssertUnwindSafe(|| reward.score(&input))).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(RewardError::Panic { message: message.unwrap_or_default() })
    });
    match result {
        Ok(Some(reward)) if !reward.is_finite() => {
            Err(RewardError::Other(format!("the reward is {reward}").into()))
        }
        other => other,
    }
}

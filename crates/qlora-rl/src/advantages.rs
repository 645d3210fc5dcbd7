//! From rewards to advantages, within groups of completions of one prompt.
//!
//! `R_i = Σ_k w_k r_ik` over the reward functions `k` that scored completion `i`:
//!
//! | scale | advantage |
//! |---|---|
//! | group | `(R − mean_group) / (std_group + 1e-4)` |
//! | batch | `(R − mean_group) / (std_batch + 1e-4)` |
//! | none | `R − mean_group` |
//!
//! [`Aggregation::NormalizeThenSum`] (GDPO) standardizes each function within the group first, then sums and
//! standardizes over the batch. Standard deviations have `n − 1` in the denominator. A completion that no function
//! scored takes no part in means and has advantage 0. As TRL 1.15, in f64.

use std::collections::BTreeMap;

const EPSILON: f64 = 1e-4;

/// What the centred rewards are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RewardScale {
    /// The standard deviation of the group.
    #[default]
    Group,
    /// The standard deviation of the batch.
    Batch,
    /// Nothing.
    None,
}

/// How the rewards of several functions become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// The weighted sum is standardized.
    #[default]
    SumThenNormalize,
    /// Each function is standardized, then they are summed and standardized over the batch.
    NormalizeThenSum,
}

/// Advantages and what is told of rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// One a completion.
    pub values: Vec<f64>,
    /// Whether no function scored a completion.
    pub unscored: Vec<bool>,
    /// Of each group, whether its rewards have no spread: all are equal, or fewer than two were given.
    pub without_spread: Vec<bool>,
    /// TRL's metrics by TRL's names. What is not a number there is absent here.
    pub metrics: BTreeMap<String, f64>,
}

/// Rewards of a batch.
#[derive(Clone, Copy, Debug)]
pub struct RewardTable<'a> {
    /// Names of the reward functions.
    pub names: &'a [String],
    /// Their weights.
    pub weights: &'a [f64],
    /// `rewards[k][i]`: what function `k` gave completion `i`.
    pub rewards: &'a [Vec<Option<f64>>],
    /// Completions of each prompt, next to each other.
    pub group: usize,
}

/// The advantages of a batch.
///
/// # Panics
/// When there are not as many names, weights and rows, or completions are no whole number of groups.
#[must_use]
pub fn advantages(table: RewardTable<'_>, scale: RewardScale, aggregation: Aggregation) -> Advantages {
    let RewardTable { names, weights, rewards, group } = table;
    assert!(names.len() == rewards.len() && weights.len() == rewards.len(), "a weight and name a function");
    let count = rewards.first().map_or(0, Vec::len);
    assert!(group > 0 && count.is_multiple_of(group), "completions are whole groups");
    // What is not finite is no score.
    let score = |k: usize, i: usize| rewards[k][i].filter(|r| r.is_finite());
    let unscored: Vec<bool> = (0..count).map(|i| (0..rewards.len()).all(|k| score(k, i).is_none())).collect();
    let sums: Vec<Option<f64>> = (0..count)
        .map(|i| {
            let scored = (0..rewards.len()).filter_map(|k| Some(weights[k] * score(k, i)?));
            (!unscored[i]).then(|| scored.sum())
        })
        .collect();
    let groups = || sums.chunks(group);
    let without_spread: Vec<bool> =
        groups().map(|rewards| std(rewards).is_none_or(|s| s.abs() <= 1e-8)).collect();

    let mut summed = Vec::new();
    let values: Vec<f64> = match aggregation {
        Aggregation::SumThenNormalize => {
            let of_batch = std(&sums);
            let scaled = groups().flat_map(|rewards| {
                let mean = mean(rewards).unwrap_or(0.0);
                let divisor = match scale {
                    RewardScale::Group => std(rewards).unwrap_or(0.0) + EPSILON,
                    RewardScale::Batch => of_batch.unwrap_or(0.0) + EPSILON,
                    RewardScale::None => 1.0,
                };
                rewards.iter().map(move |r| r.map_or(0.0, |r| (r - mean) / divisor))
            });
            scaled.collect()
        }
        Aggregation::NormalizeThenSum => {
            let mut combined: Vec<Option<f64>> = unscored.iter().map(|u| (!u).then_some(0.0)).collect();
            for (k, weight) in weights.iter().enumerate() {
                for start in (0..count).step_by(group) {
                    let scores: Vec<Option<f64>> = (start..start + group).map(|i| score(k, i)).collect();
                    let mean = mean(&scores).unwrap_or(0.0);
                    let divisor = std(&scores).unwrap_or(0.0) + EPSILON;
                    for (i, score) in scores.iter().enumerate() {
                        if let (Some(sum), Some(score)) = (&mut combined[start + i], score) {
                            *sum += weight * (score - mean) / divisor;
                        }
                    }
                }
            }
            let mean = mean(&combined).unwrap_or(0.0);
            let divisor = std(&combined).unwrap_or(0.0) + EPSILON;
            let values = combined.iter().map(|r| r.map_or(0.0, |r| (r - mean) / divisor)).collect();
            summed = combined;
            values
        }
    };

    let mut metrics = BTreeMap::new();
    let mut insert = |name: String, value: Option<f64>| {
        if let Some(value) = value {
            metrics.insert(name, value);
        }
    };
    for (name, rewards) in names.iter().zip(rewards) {
        let scores: Vec<Option<f64>> = rewards.iter().map(|r| r.filter(|r| r.is_finite())).collect();
        insert(format!("rewards/{name}/mean"), mean(&scores));
        insert(format!("rewards/{name}/std"), std(&scores));
    }
    insert("reward".into(), mean(&sums));
    insert("reward_std".into(), std(&sums));
    // Of what the advantages were divided by. A group with fewer than two scores has no standard deviation, and is
    // none whose deviation is zero.
    let is_flat = |rewards: &[Option<f64>]| std(rewards).is_some_and(|s| s.abs() <= 1e-8);
    let share = match (aggregation, scale) {
        (Aggregation::NormalizeThenSum, _) => f64::from(u8::from(is_flat(&summed))),
        (_, RewardScale::Batch) => f64::from(u8::from(is_flat(&sums))),
        _ => {
            let flat = groups().filter(|rewards| is_flat(rewards)).count();
            flat as f64 / without_spread.len().max(1) as f64
        }
    };
    insert("frac_reward_zero_std".into(), Some(share));
    Advantages { values, unscored, without_spread, metrics }
}

/// The mean of the numbers there are.
fn mean(values: &[Option<f64>]) -> Option<f64> {
    let count = values.iter().flatten().count();
    (count > 0).then(|| values.iter().flatten().sum::<f64>() / count as f64)
}

/// The standard deviation of the numbers there are, with `n − 1`; of fewer than two there is none.
fn std(values: &[Option<f64>]) -> Option<f64> {
    let count = values.iter().flatten().count();
    let mean = mean(values)?;
    let squares: f64 = values.iter().flatten().map(|value| (value - mean).powi(2)).sum();
    (count > 1).then(|| (squares / (count - 1) as f64).sqrt())
}

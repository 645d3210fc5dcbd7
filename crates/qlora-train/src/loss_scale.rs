//! Dynamic scaling of the loss (Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>): gradients in half
//! precision are lifted out of the range where they would be rounded to zero.

use serde::{Deserialize, Serialize};

/// How the factor of the loss changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaling {
    /// The first factor.
    pub initial: f64,
    /// What it is multiplied with after `interval` good steps in a row.
    pub growth: f64,
    /// Good steps in a row after which it grows.
    pub interval: u64,
    /// What it is divided by when gradients overflow; it never falls below 1.
    pub backoff: f64,
    /// Overflowing steps in a row after which the run stops: no factor will help.
    pub most_skipped: u64,
}

impl Default for LossScaling {
    /// 65536, doubled after 2000 good steps, halved on overflow; the run stops after 20 overflows in a row.
    fn default() -> Self {
        Self { initial: 65536.0, growth: 2.0, interval: 2000, backoff: 2.0, most_skipped: 20 }
    }
}

/// The factor of a run, and what led to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// What the loss is multiplied with.
    pub scale: f64,
    /// Good steps since it changed.
    pub good_steps: u64,
    /// Steps without an update in the whole run.
    pub skipped: u64,
    /// Those of them that came last, one after the other.
    pub skipped_in_a_row: u64,
}

impl LossScale {
    pub(crate) fn new(options: &LossScaling) -> Self {
        Self { scale: options.initial, good_steps: 0, skipped: 0, skipped_in_a_row: 0 }
    }

    /// The gradients of a step were finite.
    pub(crate) fn succeeded(&mut self, options: &LossScaling) {
        self.skipped_in_a_row = 0;
        self.good_steps += 1;
        if self.good_steps >= options.interval {
            let grown = self.scale * options.growth;
            // The loss is an f32: the factor stays where it can't make it infinite.
            self.scale = if grown <= f64::from(2.0f32.powi(40)) { grown } else { self.scale };
            self.good_steps = 0;
        }
    }

    /// They were not, and the step is skipped.
    pub(crate) fn overflowed(&mut self, options: &LossScaling) {
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        self.good_steps = 0;
        self.scale = (self.scale / options.backoff).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_falls_on_overflow_and_rises_after_good_steps() {
        let options = LossScaling { initial: 8.0, interval: 3, ..LossScaling::default() };
        let mut scale = LossScale::new(&options);
        scale.overflowed(&options);
        assert_eq!((scale.scale, scale.skipped, scale.skipped_in_a_row), (4.0, 1, 1));
        for expected in [4.0, 4.0, 8.0, 8.0, 8.0, 16.0] {
            scale.succeeded(&options);
            assert_eq!(scale.scale, expected);
        }
        // An overflow breaks the row of good steps.
        scale.succeeded(&options);
        scale.overflowed(&options);
        for expected in [8.0, 8.0, 16.0] {
            scale.succeeded(&options);
            assert_eq!(scale.scale, expected);
        }
        assert_eq!((scale.skipped, scale.skipped_in_a_row), (2, 0));
    }

    #[test]
    fn the_factor_stays_between_one_and_what_a_loss_can_bear() {
        let options = LossScaling { initial: 2.0, interval: 1, ..LossScaling::default() };
        let mut scale = LossScale::new(&options);
        for _ in 0..5 {
            scale.overflowed(&options);
        }
        assert_eq!(scale.scale, 1.0);
        for _ in 0..100 {
            scale.succeeded(&options);
        }
        assert_eq!(scale.scale, 2f64.powi(40));
    }
}

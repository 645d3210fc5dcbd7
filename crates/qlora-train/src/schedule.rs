//! Learning rates step by step, equal to those of transformers' schedulers.
//!
//! With warm-up over `w` of `T` steps the rate rises as `t / w` from step `t = 0`, whose rate is 0. After it,
//! [`ScheduleKind`] gives the shape in terms of `p = (t − w) / (T − w)`.

use std::f64::consts::PI;

/// The shape of a schedule after warm-up, as a factor of the highest rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScheduleKind {
    /// 1.
    Constant,
    /// `1 − p`.
    Linear,
    /// `½ (1 + cos πp)`.
    Cosine,
    /// `½ (1 + cos π(cp mod 1))` with `c` cycles, 0 past the end.
    CosineWithRestarts {
        /// Number of cycles.
        cycles: f64,
    },
    /// `½ (1 + cos πp) (1 − m) + m`.
    CosineWithMinimum {
        /// The last factor `m`.
        minimum: f64,
    },
    /// `(1 − e) (1 − p)^power + e`, `e` past the end.
    Polynomial {
        /// Exponent.
        power: f64,
        /// The last factor `e`.
        end: f64,
    },
    /// `√(s / (t − w + s))`, where the time scale `s` is `w`, or 10 000 without warm-up.
    InverseSqrt,
    /// Warm-up, stable, decay: 1 until the last `decay` share of all steps, then `½ (1 + cos πq)` over its share `q`.
    Wsd {
        /// Share of all steps over which the rate falls to 0.
        decay: f64,
    },
}

impl ScheduleKind {
    /// Every kind, those with parameters with their defaults.
    pub const ALL: [Self; 8] = [
        Self::Constant,
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts { cycles: 2.0 },
        Self::CosineWithMinimum { minimum: 0.1 },
        Self::Polynomial { power: 2.0, end: 0.0 },
        Self::InverseSqrt,
        Self::Wsd { decay: 0.2 },
    ];

    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineWithRestarts { .. } => "cosine_with_restarts",
            Self::CosineWithMinimum { .. } => "cosine_with_minimum",
            Self::Polynomial { .. } => "polynomial",
            Self::InverseSqrt => "inverse_sqrt",
            Self::Wsd { .. } => "wsd",
        }
    }
}

/// A schedule of a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    peak: f64,
    warmup: u64,
    steps: u64,
}

impl Schedule {
    /// A schedule over `steps` optimizer steps with the highest rate `peak`.
    ///
    /// `warmup` below 1 is a share of `steps`, rounded up; else a number of steps, rounded down.
    #[must_use]
    pub fn new(kind: ScheduleKind, peak: f64, warmup: f64, steps: u64) -> Self {
        let warmup = if warmup < 1.0 { (warmup * steps as f64).ceil() } else { warmup };
        Self { kind, peak, warmup: warmup as u64, steps }
    }

    /// The number of warm-up steps.
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        self.warmup
    }

    /// The learning rate of an optimizer step, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let after = (step - self.warmup) as f64;
        let progress = after / self.steps.saturating_sub(self.warmup).max(1) as f64;
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
            ScheduleKind::Cosine => half_cosine(progress),
            ScheduleKind::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            ScheduleKind::CosineWithRestarts { cycles } => half_cosine((cycles * progress).fract()),
            ScheduleKind::CosineWithMinimum { minimum } => half_cosine(progress) * (1.0 - minimum) + minimum,
            ScheduleKind::Polynomial { power, end } => {
                (1.0 - end) * (1.0 - progress).max(0.0).powf(power) + end
            }
            ScheduleKind::InverseSqrt => {
                let scale = if self.warmup == 0 { 10_000.0 } else { self.warmup as f64 };
                (scale / (after + scale)).sqrt()
            }
            ScheduleKind::Wsd { decay } => {
                let falling = (decay * self.steps as f64).ceil();
                let start = (self.steps as f64 - falling).max(self.warmup as f64);
                let length = (self.steps as f64 - start).max(1.0);
                if step >= self.steps { 0.0 } else { half_cosine((step as f64 - start).max(0.0) / length) }
            }
        }
    }
}

/// `½ (1 + cos πp)`, never below 0.
fn half_cosine(progress: f64) -> f64 {
    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
}

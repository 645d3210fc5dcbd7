//! Rotary frequencies and their variants, as `modeling_rope_utils` of transformers computes them.
//!
//! The variants that depend on the length of a sequence (`dynamic`, `longrope`) take that of each sequence by itself,
//! so that a sequence does not depend on its neighbours in a batch. When a cached sequence outgrows the original context
//! of a `longrope` model its keys are computed again, as transformers does it for Phi 3. With `dynamic` the frequencies
//! change with every token from there on: keys keep the rotation that they were given, as those of transformers do, and
//! are shared only by sequences that were rotated alike.

/// How the rotary frequencies `fᵢ = θ^(−2i/d)` are changed for contexts longer than the trained one.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// `θ` grows with the length of the sequence, once that is beyond the trained one.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// Context of the training.
        original_max_position_embeddings: usize,
    },
    /// Low frequencies divided, high ones kept, those between interpolated: Llama 3.1.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context of the original training.
        original_max_position_embeddings: usize,
    },
    /// The same with a ramp between dimensions (Peng et al. 2023, <https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Frequencies that turn more often than this over the original context are high.
        beta_fast: f64,
        /// Frequencies that turn less often than this are low.
        beta_slow: f64,
        /// Context of the original training.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are whole numbers.
        truncate: bool,
    },
    /// Each divided by its own number, of which there are two sets (Ding et al. 2024, <https://arxiv.org/abs/2402.13753>).
    LongRope {
        /// Divisors for sequences of at most the original context.
        short_factor: Vec<f64>,
        /// Divisors for longer sequences.
        long_factor: Vec<f64>,
        /// Context of the original training.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// Each divided by its own number, as GGUF files store them (`rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl RopeScaling {
    /// What each frequency of `rotated` features is divided by, where each has its own number: what GGUF files store in
    /// `rope_freqs.weight`. `None` where all have the same, or the length decides.
    #[must_use]
    pub fn divisors(&self, theta: f64, rotated: usize) -> Option<Vec<f32>> {
        match self {
            Self::Divisors(divisors) => Some(divisors.clone()),
            Self::Llama3 { .. } => {
                let plain = frequencies(theta, rotated, &Self::None, 1);
                let scaled = frequencies(theta, rotated, self, 1);
                Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
            }
            _ => None,
        }
    }

    /// The divisors for short and for long sequences, where the length decides: what GGUF files store in
    /// `rope_factors_short.weight` and `rope_factors_long.weight`.
    #[must_use]
    pub fn factors(&self) -> Option<[Vec<f32>; 2]> {
        let narrow = |divisors: &[f64]| divisors.iter().map(|divisor| *divisor as f32).collect();
        match self {
            Self::LongRope { short_factor, long_factor, .. } => {
                Some([narrow(short_factor), narrow(long_factor)])
            }
            _ => None,
        }
    }

    /// `0.1 · ln(factor) + 1`, the attention factor of yarn where none is given.
    pub(crate) fn yarn_attention_factor(factor: f64, scale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
    }

    /// `√(1 + ln(factor) / ln(original))`, the attention factor of longrope where none is given.
    pub(crate) fn longrope_attention_factor(factor: f64, original: usize) -> f64 {
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
    }

    /// Tokens that a model of this context reaches with the scaling.
    pub(crate) fn context_length(&self, trained: usize) -> usize {
        let scaled = |original: usize, factor: f64| (original as f64 * factor) as usize;
        match self {
            Self::None | Self::LongRope { .. } | Self::Divisors(_) => trained,
            Self::Linear { factor } => scaled(trained, *factor),
            Self::Dynamic { factor, original_max_position_embeddings: original }
            | Self::Llama3 { factor, original_max_position_embeddings: original, .. }
            | Self::Yarn { factor, original_max_position_embeddings: original, .. } => {
                scaled(*original, *factor)
            }
        }
    }

    /// Refuses numbers that give no frequencies.
    pub(crate) fn validate(&self, rotated: usize) -> Result<(), (&'static str, String)> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let number = |key, value: f64| match positive(value) {
            true => Ok(()),
            false => Err((key, format!("is {value}: expected a positive number"))),
        };
        let original = |value: usize| match value {
            0 | 1 => {
                Err(("original_max_position_embeddings", format!("is {value}: expected more than one token")))
            }
            _ => Ok(()),
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => number("factor", *factor),
            Self::Dynamic { factor, original_max_position_embeddings } => {
                if !(*factor >= 1.0 && factor.is_finite()) {
                    return Err(("factor", format!("is {factor}: expected at least 1")));
                }
                if rotated < 4 {
                    let problem = format!("is {rotated}: dynamic rotary scaling needs at least 4 features");
                    return Err(("head_dim", problem));
                }
                original(*original_max_position_embeddings)
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                number("factor", *factor)?;
                number("low_freq_factor", *low_freq_factor)?;
                number("high_freq_factor", *high_freq_factor)?;
                original(*original_max_position_embeddings)
            }
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                attention_factor,
                ..
            } => {
                number("factor", *factor)?;
                number("beta_fast", *beta_fast)?;
                number("beta_slow", *beta_slow)?;
                number("attention_factor", *attention_factor)?;
                original(*original_max_position_embeddings)
            }
            Self::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
            } => {
                number("attention_factor", *attention_factor)?;
                original(*original_max_position_embeddings)?;
                for (key, divisors) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                    if divisors.len() != rotated / 2 || !divisors.iter().all(|divisor| positive(*divisor)) {
                        let problem =
                            format!("has {} numbers: expected {} positive ones", divisors.len(), rotated / 2);
                        return Err((key, problem));
                    }
                }
                Ok(())
            }
            Self::Divisors(divisors) => {
                match divisors.len() == rotated / 2 && divisors.iter().all(|d| positive(f64::from(*d))) {
                    true => Ok(()),
                    false => {
                        let problem = format!(
                            "has {} elements: expected {} positive ones",
                            divisors.len(),
                            rotated / 2
                        );
                        Err(("rope_freqs.weight", problem))
                    }
                }
            }
        }
    }

    /// What cosines and sines are multiplied with.
    pub(crate) fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => {
                *attention_factor
            }
            _ => 1.0,
        }
    }

    /// A number that is the same for two lengths only if their frequencies are.
    pub(crate) fn regime(&self, length: usize) -> usize {
        match self {
            Self::Dynamic { original_max_position_embeddings: original, .. } => length.max(*original),
            Self::LongRope { original_max_position_embeddings: original, .. } => {
                usize::from(length > *original)
            }
            _ => 0,
        }
    }

    /// Whether all keys of a sequence that grows to `length` tokens are computed again.
    pub(crate) fn begins_anew_at(&self, length: usize) -> bool {
        match self {
            Self::LongRope { original_max_position_embeddings: original, .. } => length == original + 1,
            _ => false,
        }
    }
}

/// The frequencies of `dim` rotated features in a sequence of `length` tokens: `[dim / 2]`.
pub(crate) fn frequencies(theta: f64, dim: usize, scaling: &RopeScaling, length: usize) -> Vec<f32> {
    // Rounded where the peers round: an angle is a position times this number, so that at a thousand
    // tokens the last bit of a frequency is ten bits above that of the angle.
    let powers = |theta: f64| {
        (0..dim / 2).map(move |i| {
            let exponent = (2 * i) as f32 / dim as f32;
            (theta as f32).powf(exponent)
        })
    };
    let plain = powers(theta).map(|power| f64::from(1.0 / power));
    match scaling {
        RopeScaling::None => plain.map(|f| f as f32).collect(),
        RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
        RopeScaling::Dynamic { factor, original_max_position_embeddings: original } => {
            let growth = factor * length.max(*original) as f64 / *original as f64 - (factor - 1.0);
            let theta = theta * growth.powf(dim as f64 / (dim as f64 - 2.0));
            powers(theta).map(|power| 1.0 / power).collect()
        }
        RopeScaling::Divisors(divisors) => {
            plain.zip(divisors).map(|(f, divisor)| (f / f64::from(*divisor)) as f32).collect()
        }
        RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
            let long = length > *original_max_position_embeddings;
            let divisors = if long { long_factor } else { short_factor };
            powers(theta).zip(divisors).map(|(power, divisor)| 1.0 / (*divisor as f32 * power)).collect()
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings: original,
            truncate,
            ..
        } => {
            // The dimension whose frequency turns so often over the original context.
            let dimension = |turns: f64| {
                let ratio = *original as f64 / (turns * std::f64::consts::TAU);
                dim as f64 * ratio.ln() / (2.0 * theta.ln())
            };
            let (low, high) = match (dimension(*beta_fast), dimension(*beta_slow)) {
                (low, high) if *truncate => (low.floor(), high.ceil()),
                ends => ends,
            };
            let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
            let high = if low == high { high + 0.001 } else { high };
            powers(theta)
                .enumerate()
                .map(|(i, power)| {
                    let interpolated = (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
                    1.0 / (*factor as f32 * power) * interpolated + 1.0 / power * (1.0 - interpolated)
                })
                .collect()
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            plain
                .map(|f| {
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength > original / low_freq_factor {
                        f / factor
                    } else if wavelength < original / high_freq_factor {
                        f
                    } else {
                        let smooth =
                            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                })
                .map(|f| f as f32)
                .collect()
        }
    }
}

/// Cosines and sines of the angles of tokens: two `[tokens, dim / 2]`, row-major. `lengths` are tokens and lengths of
/// the sequences, one after the other, whose positions these are.
pub(crate) fn angles(
    theta: f64,
    dim: usize,
    scaling: &RopeScaling,
    positions: &[u32],
    lengths: impl Iterator<Item = (usize, usize)>,
) -> (Vec<f32>, Vec<f32>) {
    let mut cos = Vec::with_capacity(positions.len() * dim / 2);
    let mut sin = Vec::with_capacity(positions.len() * dim / 2);
    let factor = scaling.attention_factor();
    let mut known: Option<(usize, Vec<f32>)> = None;
    let mut start = 0;
    for (tokens, length) in lengths {
        let regime = scaling.regime(length);
        if known.as_ref().is_none_or(|(known, _)| *known != regime) {
            known = Some((regime, frequencies(theta, dim, scaling, length)));
        }
        let frequencies = known.as_ref().map_or(&[][..], |(_, frequencies)| frequencies);
        for &position in &positions[start..start + tokens] {
            for &frequency in frequencies {
                // The angle is rounded to f32, as the peers compute it; its cosine is not.
                let angle = f64::from(position as f32 * frequency);
                cos.push((angle.cos() * factor) as f32);
                sin.push((angle.sin() * factor) as f32);
            }
        }
        start += tokens;
    }
    (cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = frequencies(500_000.0, 128, &RopeScaling::None, 1);
        let scaled = frequencies(500_000.0, 128, &scaling, 1);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-5);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| s <= p && *s >= p / 8.0001));
        let divisors = RopeScaling::Divisors(scaling.divisors(500_000.0, 128).unwrap());
        let again = frequencies(500_000.0, 128, &divisors, 1);
        assert!(again.iter().zip(&scaled).all(|(a, s)| (a / s - 1.0).abs() < 2e-7));
    }

    #[test]
    fn dynamic_frequencies_are_those_of_the_training_until_it_is_outgrown() {
        let scaling = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 16 };
        let plain = frequencies(10_000.0, 8, &RopeScaling::None, 1);
        assert_eq!(frequencies(10_000.0, 8, &scaling, 16), plain);
        let longer = frequencies(10_000.0, 8, &scaling, 32);
        assert!(longer[0] == plain[0] && longer[3] < plain[3], "{longer:?}");
    }

    #[test]
    fn angles_are_position_times_frequency() {
        let (cos, sin) = angles(4.0, 4, &RopeScaling::None, &[0, 3], [(2, 4)].into_iter());
        assert_eq!(&cos[..2], [1.0, 1.0]);
        assert!((sin[2] - 3f32.sin()).abs() < 1e-7 && (cos[3] - 1.5f32.cos()).abs() < 1e-7);
    }

    #[test]
    fn each_sequence_is_rotated_by_its_own_length() {
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0, 1.0],
            long_factor: vec![2.0, 4.0],
            original_max_position_embeddings: 4,
            attention_factor: 1.5,
        };
        let (cos, _) = angles(4.0, 4, &scaling, &[3, 3], [(1, 4), (1, 5)].into_iter());
        let expected = [3f32.cos(), 1.5f32.cos(), 1.5f32.cos(), 0.375f32.cos()].map(|c| c * 1.5);
        assert!(cos.iter().zip(expected).all(|(c, e)| (c - e).abs() < 1e-6), "{cos:?}");
    }
}

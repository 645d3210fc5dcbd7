//! Rotary frequencies and their variants, as `modeling_rope_utils` of transformers computes them.

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
    /// Each divided by its own number, as GGUF files store them (`rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl RopeScaling {
    /// What each frequency is divided by, where each has its own number: what GGUF files store in
    /// `rope_freqs.weight`. `None` where all have the same, which their metadata says.
    #[must_use]
    pub fn divisors(&self, theta: f64, head_dim: usize) -> Option<Vec<f32>> {
        match self {
            Self::None | Self::Linear { .. } => None,
            Self::Divisors(divisors) => Some(divisors.clone()),
            Self::Llama3 { .. } => {
                let plain = frequencies(theta, head_dim, &Self::None);
                let scaled = frequencies(theta, head_dim, self);
                Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
            }
        }
    }
}

/// The frequencies of a head of `head_dim` features: `[head_dim / 2]`.
pub(crate) fn frequencies(theta: f64, head_dim: usize, scaling: &RopeScaling) -> Vec<f32> {
    // Rounded where the peers round: an angle is a position times this number, so that at a thousand
    // tokens the last bit of a frequency is ten bits above that of the angle.
    let plain = (0..head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        f64::from(1.0 / (theta as f32).powf(exponent))
    });
    match scaling {
        RopeScaling::None => plain.map(|f| f as f32).collect(),
        RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
        RopeScaling::Divisors(divisors) => {
            plain.zip(divisors).map(|(f, divisor)| (f / f64::from(*divisor)) as f32).collect()
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

/// Cosines and sines of the angles of each position: two `[positions, frequencies]`, row-major.
pub(crate) fn angles(frequencies: &[f32], positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let mut cos = Vec::with_capacity(positions.len() * frequencies.len());
    let mut sin = Vec::with_capacity(positions.len() * frequencies.len());
    for &position in positions {
        for &frequency in frequencies {
            // The angle is rounded to f32, as the peers compute it; its cosine is not.
            let angle = f64::from(position as f32 * frequency);
            cos.push(angle.cos() as f32);
            sin.push(angle.sin() as f32);
        }
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
        let plain = frequencies(500_000.0, 128, &RopeScaling::None);
        let scaled = frequencies(500_000.0, 128, &scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-5);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| s <= p && *s >= p / 8.0001));
        let divisors = RopeScaling::Divisors(scaling.divisors(500_000.0, 128).unwrap());
        let again = frequencies(500_000.0, 128, &divisors);
        assert!(again.iter().zip(&scaled).all(|(a, s)| (a / s - 1.0).abs() < 2e-7));
    }

    #[test]
    fn angles_are_position_times_frequency() {
        let (cos, sin) = angles(&[1.0, 0.5], &[0, 3]);
        assert_eq!(&cos[..2], [1.0, 1.0]);
        assert!((sin[2] - 3f32.sin()).abs() < 1e-7 && (cos[3] - 1.5f32.cos()).abs() < 1e-7);
    }
}

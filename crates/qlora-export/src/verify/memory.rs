//! Memory that a comparison of models takes.

use qlora_models::{DecoderConfig, Quantization};

use super::Probe;
use super::reference::KEPT;

/// Logits that were not compared: that takes more memory than was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "comparing logits takes {:.1} GB of memory, and {:.1} GB are free",
    *needed as f64 / 1e9,
    *allowed as f64 / 1e9
)]
pub struct TooLarge {
    /// Bytes that it takes.
    pub needed: u64,
    /// Bytes that it may take.
    pub allowed: u64,
}

/// How a model is held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    F32,
    /// Linear layers in NF4, the rest in f32.
    Nf4,
}

impl From<Quantization> for Held {
    fn from(quantization: Quantization) -> Self {
        match quantization {
            Quantization::None => Self::F32,
            Quantization::Nf4(_) => Self::Nf4,
        }
    }
}

/// Whether two models may be in memory at once.
///
/// # Errors
/// When not even one may.
pub(crate) fn both_fit(
    config: &DecoderConfig,
    held: [Held; 2],
    probe: &Probe,
    allowed: u64,
) -> Result<bool, TooLarge> {
    let vocabulary = config.vocab_size as u64;
    let row = probe.rows().iter().map(Vec::len).max().unwrap_or(0) as u64;
    // Of either model: on the device, read back, and as a list.
    let logits = (6 * row + probe.tokens().min(KEPT) as u64).saturating_mul(vocabulary * 4);
    // The largest tensor of all, which is there once more while it is loaded.
    let table = (config.hidden_size as u64).saturating_mul(vocabulary * 4);
    let with = |models: u64| {
        let bytes = models.saturating_add(logits).saturating_add(table);
        // For activations, and whatever else the program has.
        bytes.saturating_add(bytes / 8)
    };
    let [a, b] = held.map(|held| model_bytes(config, held));
    let needed = with(a.max(b));
    if needed > allowed {
        Err(TooLarge { needed, allowed })
    } else {
        Ok(with(a.saturating_add(b)) <= allowed)
    }
}

fn model_bytes(config: &DecoderConfig, held: Held) -> u64 {
    let linears = match held {
        Held::F32 => 0,
        Held::Nf4 => config.linears().fold(0_u64, |sum, (_, [outputs, inputs])| {
            sum.saturating_add((outputs as u64).saturating_mul(inputs as u64))
        }),
    };
    let rest = (config.parameter_count() as u64).saturating_sub(linears);
    // 4 bits and at most one f32 scale in 32 elements.
    rest.saturating_mul(4).saturating_add(linears / 8 * 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_8b_model_takes_what_it_should() {
        let config = DecoderConfig {
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            ..DecoderConfig::default()
        };
        let probe = Probe::from_rows(vec![vec![1; 256]; 100]);
        let needed = |held| both_fit(&config, held, &probe, 0).unwrap_err().needed as f64 / 1e9;
        // 32.1 GB of weights, 2.1 of a table, 1.1 of logits, and an eighth.
        let f32 = needed([Held::F32; 2]);
        assert!((39.0..41.0).contains(&f32), "{f32}");
        let nf4 = needed([Held::Nf4; 2]);
        assert!((12.0..14.0).contains(&nf4), "{nf4}");
        assert_eq!(needed([Held::Nf4, Held::F32]), f32);
        assert_eq!(both_fit(&config, [Held::F32; 2], &probe, 41_000_000_000), Ok(false));
        assert_eq!(both_fit(&config, [Held::Nf4, Held::F32], &probe, 52_000_000_000), Ok(true));
        let error = both_fit(&config, [Held::F32; 2], &probe, 20_000_000_000).unwrap_err();
        assert!(error.to_string().ends_with("GB of memory, and 20.0 GB are free"), "{error}");
    }
}

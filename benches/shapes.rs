//! Sizes of known models, for random weights.

use qlora_core::models::DecoderConfig;
use qlora_core::prelude::*;

/// SmolLM2-135M, Llama-3.2-1B or Llama-3.1-8B, by their size.
///
/// # Panics
/// When the size is none of `135m`, `1b` and `8b`.
#[must_use]
pub fn decoder_config(size: &str) -> DecoderConfig {
    let (hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, vocab_size, tied) = match size {
        "135m" => (576, 1536, 30, 9, 3, 64, 49_152, true),
        "1b" => (2048, 8192, 16, 32, 8, 64, 128_256, true),
        "8b" => (4096, 14_336, 32, 32, 8, 128, 128_256, false),
        other => panic!("--model takes 135m, 1b or 8b, not {other}"),
    };
    DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        max_position_embeddings: 131_072,
        tie_word_embeddings: tied,
        ..DecoderConfig::default()
    }
}

/// A model of a size of [`decoder_config`]: random weights in NF4 with double quantization, and adapters of rank 16 on all
/// linear layers. The device has no more memory taken than it needs.
///
/// # Panics
/// As [`decoder_config`], and when the device fails.
#[must_use]
pub fn random_model<B: KernelBackend>(size: &str, compute: Compute, device: &B::Device) -> Decoder<B> {
    let quantization = Quantization::Nf4(Nf4Options { double_quant: true, ..Nf4Options::default() });
    let options = LoadOptions { quantization, compute };
    let mut model = Decoder::<B>::random(&decoder_config(size), options, 1, device);
    model.attach(&LoraConfig { rank: 16, ..LoraConfig::default() }, 1).expect("linear layers");
    B::sync(device).expect("the device works");
    B::memory_cleanup(device);
    model
}

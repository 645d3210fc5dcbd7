//! Sizes of known models, for random weights.

use qlora_core::models::DecoderConfig;

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

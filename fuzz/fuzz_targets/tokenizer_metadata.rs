//! Tokenizer metadata of a GGUF file: sections that 0xff ends (options, tokens, types, merges, a text, a chat
//! template), lists whose elements 0 ends. What loads is used, written back, and read again.
#![no_main]

use qlora_gguf::Metadata;
use qlora_text::{TokenStream, Tokenizer};

const KINDS: [&str; 8] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "deepseek-v3", "deepseek-coder", "default"];

fn list(section: &[u8]) -> Vec<String> {
    section.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut sections = data.split(|&byte| byte == 0xff);
    let mut section = || sections.next().unwrap_or_default();
    let options = section();
    let option = |at: usize| options.get(at).copied().unwrap_or_default();
    let mut tokens = list(section());
    let mut types: Vec<i32> = section().iter().map(|&byte| i32::from(byte)).collect();
    let merges = list(section());
    let text = String::from_utf8_lossy(section()).into_owned();
    let template = String::from_utf8_lossy(section()).into_owned();
    if option(0) & 2 != 0 {
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    }
    types.resize(tokens.len(), 1);

    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", if option(0) & 1 == 0 { "gpt2" } else { "llama" });
    metadata.insert("tokenizer.ggml.pre", KINDS[usize::from(option(1)) % KINDS.len()]);
    let scores: Vec<f32> = (0..tokens.len()).map(|at| f32::from(option(2 + at % 8)) - at as f32).collect();
    metadata.insert("tokenizer.ggml.scores", scores);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.ggml.bos_token_id", u32::from(option(3)));
    metadata.insert("tokenizer.ggml.eos_token_id", u32::from(option(4)));
    if option(0) & 4 != 0 {
        metadata.insert("tokenizer.ggml.unknown_token_id", u32::from(option(5)));
    }
    metadata.insert("tokenizer.ggml.add_space_prefix", option(0) & 8 != 0);
    metadata.insert("tokenizer.chat_template", template);

    let Ok(tokenizer) = Tokenizer::from_gguf(&metadata) else { return };
    let ids = tokenizer.encode(&text).unwrap_or_default();
    let _ = tokenizer.encode_with_offsets(&text);
    let mut stream = TokenStream::new(&tokenizer, true);
    for &id in &ids {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
    let _ = tokenizer.chat_template();
    let rows = tokenizer.vocab_size() + 3;
    if let Ok(written) = tokenizer.to_gguf_metadata(rows, None) {
        Tokenizer::from_gguf(&written).expect("what was written can be read");
    }
});

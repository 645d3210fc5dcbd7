//! What reads weights and tokenizers. `crates/qlora-text/tests/mutations.rs` runs the same on a stable compiler.

use qlora_gguf::Metadata;
use qlora_text::{TokenStream, Tokenizer};
use std::path::Path;
use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// A GGUF file: header, metadata, tensor table; every tensor dequantized, the tokenizer built.
pub fn gguf(data: &[u8]) {
    let Ok(file) = qlora_gguf::Gguf::from_bytes(data.to_vec()) else { return };
    for info in file.tensors() {
        let tensor = file.tensor(&info.name).expect("it is in the table");
        let _ = tensor.dequantize();
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(file.metadata()) {
        let ids = tokenizer.encode("a text, 12 <s>").unwrap_or_default();
        let _ = tokenizer.decode(&ids, false);
        let _ = tokenizer.chat_template();
    }
}

/// A checkpoint directory. The first byte says what follows: a `model.safetensors`, or an index of that length
/// in 16 bytes, and the shard that it names.
pub fn safetensors(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let folder = FOLDER.path();
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("it can be written");
    if first == 0 {
        let _ = std::fs::remove_file(folder.join("model.safetensors.index.json"));
        write("model.safetensors", rest);
    } else {
        let _ = std::fs::remove_file(folder.join("model.safetensors"));
        let (index, shard) = rest.split_at(rest.len().min(usize::from(first) * 16));
        write("model.safetensors.index.json", index);
        write("a.safetensors", shard);
    }
    read_checkpoint(folder);
}

fn read_checkpoint(folder: &Path) {
    let Ok(checkpoint) = qlora_files::safetensors::Checkpoint::open(folder) else { return };
    for name in checkpoint.names() {
        let _ = checkpoint.to_f32(name);
    }
}

const KINDS: [&str; 8] =
    ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "deepseek-v3", "deepseek-coder", "default"];

fn list(section: &[u8]) -> Vec<String> {
    section.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Tokenizer metadata of a GGUF file: sections that 0xff ends (options, tokens, types, merges, a text, a chat
/// template), lists whose elements 0 ends. What loads is used, written back, and read again.
pub fn tokenizer_metadata(data: &[u8]) {
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
}

const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
];

/// The files of a tokenizer directory: sections that 0xff ends, each a first byte that says which file.
pub fn tokenizer_files(data: &[u8]) {
    let folder = FOLDER.path();
    for name in FILES {
        let _ = std::fs::remove_file(folder.join(name));
    }
    // A protobuf may hold any byte: it takes all the rest.
    let mut rest = data;
    while let Some((&first, after)) = rest.split_first() {
        let file = usize::from(first) % FILES.len();
        let end = after.iter().position(|&byte| byte == 0xff).filter(|_| file != 1);
        let end = end.unwrap_or(after.len());
        std::fs::write(folder.join(FILES[file]), &after[..end]).expect("it can be written");
        rest = after.get(end + 1..).unwrap_or_default();
    }
    let Ok(mut tokenizer) = Tokenizer::from_directory(folder) else { return };
    let ids = tokenizer.encode("a text, 12 <s>").unwrap_or_default();
    let _ = tokenizer.decode(&ids, true);
    let _ = tokenizer.chat_template();
    let _ = tokenizer.to_gguf_metadata(tokenizer.vocab_size().min(1 << 20), None);
    let _ = tokenizer.add_special_tokens(&["<|new|>"]);
}

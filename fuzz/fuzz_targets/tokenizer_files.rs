//! The files of a tokenizer directory: sections that 0xff ends, each a first byte that says which file.
#![no_main]

use qlora_text::Tokenizer;
use std::sync::LazyLock;

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

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
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
});

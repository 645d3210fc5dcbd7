//! Reads and tokenizes a file with the test model's tokenizer: rows, tokens and megabytes a second.
//!
//! `cargo bench -p qlora-data -- FILE`; without a file, conversations are made (20000 rows). Threads:
//! `RAYON_NUM_THREADS`.

use qlora_data::{Dataset, DatasetOptions, Encoder};
use qlora_gguf::Gguf;
use qlora_text::Tokenizer;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let Some(model) = qlora_testing::model() else { return };
    let gguf = Gguf::open(model).expect("the test model");
    let encoder = Encoder::new(Arc::new(Tokenizer::from_gguf(gguf.metadata()).expect("a tokenizer")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = match std::env::args().skip(1).find(|argument| !argument.starts_with("--")) {
        Some(path) => path.into(),
        None => {
            let path = folder.path().join("made.jsonl");
            std::fs::write(&path, conversations(20_000)).expect("a file");
            path
        }
    };
    let bytes = std::fs::metadata(&path).expect("a file").len();
    let start = Instant::now();
    let name = path.to_str().expect("a name in UTF-8");
    let data = Dataset::open(name, &encoder, &DatasetOptions::default()).expect("rows");
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", data.report());
    println!(
        "{seconds:.2} s: {:.0} rows/s, {:.0} tokens/s, {:.1} MB/s",
        data.len() as f64 / seconds,
        data.report().tokens as f64 / seconds,
        bytes as f64 / 1e6 / seconds
    );
}

/// Two turns each, of words that repeat as words do.
fn conversations(rows: usize) -> String {
    const WORDS: [&str; 24] = [
        "the",
        "of",
        "language",
        "models",
        "are",
        "trained",
        "with",
        "data",
        "which",
        "people",
        "wrote",
        "and",
        "it's",
        "important",
        "to",
        "check",
        "every",
        "single",
        "row",
        "before",
        "training,",
        "because",
        "2024",
        "errors",
    ];
    let mut state = 1_u64;
    let mut sentence = |words: usize| {
        let mut text = String::new();
        for _ in 0..words {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let _ = write!(text, "{} ", WORDS[(state >> 33) as usize % WORDS.len()]);
        }
        text.trim_end().to_owned()
    };
    let mut lines = String::new();
    for _ in 0..rows {
        let turns = [("user", 25), ("assistant", 60), ("user", 20), ("assistant", 55)];
        let messages: Vec<String> = turns
            .map(|(role, words)| format!("{{\"role\": \"{role}\", \"content\": \"{}.\"}}", sentence(words)))
            .to_vec();
        let _ = writeln!(lines, "{{\"messages\": [{}]}}", messages.join(", "));
    }
    lines
}

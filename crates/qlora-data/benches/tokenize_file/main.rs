//! Checks, tokenizes and packs a file with the test model's tokenizer: seconds of each part, rows, tokens and megabytes
//! a second, peak memory.
//!
//! ```text
//! cargo bench -p qlora-data --bench tokenize_file -- --write FILE ROWS   # makes conversations, a kilobyte each
//! cargo bench -p qlora-data --bench tokenize_file -- FILE [--check]
//! cargo bench -p qlora-data --bench tokenize_file -- --save-tokenizer DIR  # for the peer
//! ```
//! Without a file, 20000 conversations are made. Threads: `RAYON_NUM_THREADS`. `benches/peers/tokenize_file.py` does
//! the same work in Python.

mod conversations;

use qlora_data::check::{CheckOptions, check};
use qlora_data::{Dataset, DatasetOptions, Encoder, OnLong, Packing, Sources};
use qlora_gguf::Gguf;
use qlora_text::Tokenizer;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Tokens of a pack; longer rows are skipped.
const BUDGET: usize = 2048;

fn main() {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let folder = tempfile::tempdir().expect("a folder");
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(model) = qlora_testing::model() else { return };
    let gguf = Gguf::open(model).expect("the test model");
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).expect("a tokenizer");
    let (path, checked) = match words[..] {
        ["--save-tokenizer", folder] => return tokenizer.save(folder).expect("a folder"),
        ["--write", path, rows] => return write(Path::new(path), rows.parse().expect("a number of rows")),
        [path] => (PathBuf::from(path), false),
        [path, "--check"] | ["--check", path] => (PathBuf::from(path), true),
        _ => {
            let path = folder.path().join("made.jsonl");
            write(&path, 20_000);
            (path, words.contains(&"--check"))
        }
    };
    let encoder = Encoder::new(Arc::new(tokenizer));
    let bytes = std::fs::metadata(&path).expect("a file").len();

    let begin = Instant::now();
    if checked {
        let options = CheckOptions { max_length: Some(BUDGET), ..CheckOptions::default() };
        let sources = Sources::from(path.to_str().expect("a name in UTF-8"));
        let report = check(&sources, None, Some(&encoder), &options, &mut qlora_hub::Silent).expect("rows");
        println!("checked: {:.2} s, {} findings", begin.elapsed().as_secs_f64(), report.findings.len());
    }
    let start = Instant::now();
    let name = path.to_str().expect("a name in UTF-8");
    let options =
        DatasetOptions { max_length: Some(BUDGET), on_long: OnLong::Skip, ..DatasetOptions::default() };
    let data = Dataset::open(name, &encoder, &options).expect("rows");
    println!("tokenized: {:.2} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let lengths: Vec<usize> = data.lengths().collect();
    let packing = Packing::best_fit_decreasing(&lengths, BUDGET).expect("no row is longer");
    println!("packed: {:.2} s", start.elapsed().as_secs_f64());

    let seconds = begin.elapsed().as_secs_f64();
    println!("{}", data.report());
    println!(
        "{} packs, {:.2} % full; SHA-256 of ids and weights {}",
        packing.packs().len(),
        100.0 * packing.efficiency(),
        data.content_hash(),
    );
    println!(
        "{seconds:.2} s: {:.0} rows/s, {:.0} tokens/s, {:.1} MB/s",
        data.len() as f64 / seconds,
        data.report().tokens as f64 / seconds,
        bytes as f64 / 1e6 / seconds
    );
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))
    {
        println!("peak memory: {}", peak.trim());
    }
}

fn write(path: &Path, rows: usize) {
    let file = File::create(path).expect("a file");
    conversations::write(rows, BufWriter::with_capacity(1 << 20, file)).expect("a disk with room");
}

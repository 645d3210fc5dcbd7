//! Damaged files without a fuzzer: the seeds of a fuzz target, mutated.
//!
//! `QLORA_FUZZ_SECONDS=600` lets each target run for as long, instead of a fixed number of inputs.

use std::path::Path;
use std::time::{Duration, Instant};

/// Inputs of each target without `QLORA_FUZZ_SECONDS`.
const INPUTS: usize = 400;
const LONGEST: Duration = Duration::from_secs(5);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const WORDS: [&[u8]; 8] = [
        &[0xff; 8],
        &[0, 0, 0, 0, 0, 0, 0, 0x80],
        &[0; 4],
        b"\"\\",
        b"[[[[",
        "\u{fffd}▁".as_bytes(),
        b"{\"a\":",
        b"-1e999",
    ];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), random.below(256) as u8),
            2 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            3 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
            4 if !bytes.is_empty() => {
                let end = bytes.len().min(at + 1 + random.below(16));
                bytes.drain(at..end);
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = bytes.len().min(at + word.len());
                bytes.splice(at.min(end)..end, word.iter().copied());
            }
            6 => {
                let from = random.below(other.len());
                let piece = &other[from..other.len().min(from + 1 + random.below(64))];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let end = bytes.len().min(at + random.below(64));
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}

/// Runs a fuzz target on its seeds and on mutations of them.
///
/// # Panics
/// When an input panics, takes too long, or the process grew too large.
pub fn run(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(seeds.len() >= 2);
    seeds.iter().for_each(|seed| body(seed));

    let seconds = std::env::var("QLORA_FUZZ_SECONDS").ok().map(|text| text.parse::<u64>().unwrap());
    let start = Instant::now();
    let mut random = Random(seconds.unwrap_or(0));
    let mut count = 0;
    while seconds.map_or(count < INPUTS, |seconds| start.elapsed() < Duration::from_secs(seconds)) {
        let mut input = seeds[random.below(seeds.len())].clone();
        let other = random.below(seeds.len());
        mutate(&mut input, &seeds[other], &mut random);
        let file = std::env::temp_dir().join(format!("qlora-mutation-{target}-{}", std::process::id()));
        std::fs::write(&file, &input).unwrap();
        let begin = Instant::now();
        let result = std::panic::catch_unwind(|| body(&input));
        assert!(result.is_ok(), "{target}: a panic; the input is {}", file.display());
        assert!(begin.elapsed() < LONGEST, "{target}: a hang; the input is {}", file.display());
        std::fs::remove_file(&file).unwrap();
        count += 1;
    }
    println!("{target}: {count} inputs");
    // Peak of the process, where the system tells: seeds have at most 12 KB.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes < 1 << 19, "{target}: {kilobytes} kB of memory");
    }
}

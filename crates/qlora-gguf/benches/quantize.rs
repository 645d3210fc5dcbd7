//! Times of quantizing a matrix of 4096 × 4096 to every format, best of several runs, on rayon's threads
//! (`RAYON_NUM_THREADS`). Arguments name the formats. The time of the processors, of all threads, is also there on Linux:
//! on a machine that does other things it is the one to compare.

use std::time::Instant;

use qlora_gguf::GgmlType;

const SIZE: usize = 4096;

fn main() {
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    // Sums of four: bell-shaped, as weights are.
    let values: Vec<f32> =
        (0..SIZE * SIZE).map(|_| 0.02 * (uniform() + uniform() + uniform() + uniform())).collect();
    let importance: Vec<f32> = (0..SIZE).map(|_| uniform().abs() + 0.1).collect();
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for format in GgmlType::ALL.iter().filter(|format| format.is_encodable()) {
        if !only.is_empty() && !only.iter().any(|name| name == format.name()) {
            continue;
        }
        let mut out = vec![0; format.byte_len(values.len()).expect("whole blocks")];
        for (importance, what) in [(None, ""), (Some(&importance[..]), "importance")] {
            let (mut best, mut least) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..3 {
                let (start, before) = (Instant::now(), processor_time());
                format.quantize_into(&values, SIZE, importance, &mut out).expect("ordinary values");
                best = best.min(start.elapsed().as_secs_f64());
                least = least.min(processor_time() - before);
            }
            let rate = (values.len() * 4) as f64 / best / 1e6;
            let (name, best, least) = (format.name(), best * 1e3, least * 1e3);
            println!("{name:8} {what:12} {best:8.1} ms {rate:8.0} MB/s, processors {least:8.1} ms");
        }
    }
}

/// Seconds that the threads of this process have run so far; 0 where the system does not tell.
fn processor_time() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

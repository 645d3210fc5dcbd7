//! Times of quantizing a matrix of 4096 × 4096 to every format, best of several runs, on rayon's threads
//! (`RAYON_NUM_THREADS`). Arguments name the formats.

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
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let start = Instant::now();
                format.quantize_into(&values, SIZE, importance, &mut out).expect("ordinary values");
                best = best.min(start.elapsed().as_secs_f64());
            }
            let rate = (values.len() * 4) as f64 / best / 1e6;
            println!("{:8} {what:12} {:8.1} ms {rate:8.0} MB/s", format.name(), best * 1e3);
        }
    }
}

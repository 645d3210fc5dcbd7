//! Speed of the products with a frozen weight, forward and backward.
//!
//! `cargo bench -p qlora-cpu --bench linear [-- <part of a line>]`, with `QLORA_CPU_ISA` and
//! `RAYON_NUM_THREADS` as wanted. Each number is the best of several runs; GFLOP/s counts the
//! product with the weight alone, not the adapter.

use half::bf16;
use qlora_cpu::{
    Absmax, Isa, Lora, Nf4View, Precision, Weight, WeightData, linear, linear_grad_input, lora_grads,
};
use std::time::{Duration, Instant};

const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];
const RANK: usize = 16;

struct Random(u32);

impl Random {
    fn value(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// The best of as many runs as fit in a third of a second, five at least.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut best, mut runs) = (Instant::now(), Duration::MAX, 0);
    while runs < 5 || start.elapsed() < Duration::from_millis(300) {
        let begin = Instant::now();
        run();
        best = best.min(begin.elapsed());
        runs += 1;
    }
    best.as_secs_f64()
}

fn main() {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    println!("{:?}, {} threads, rank {RANK}", Isa::detect(), rayon::current_num_threads());
    let report = |name: &str, work: usize, run: &mut dyn FnMut()| {
        if name.contains(&wanted) {
            let seconds = best(run);
            println!("{name:<44} {:>10.3} ms {:>8.1} GFLOP/s", seconds * 1e3, 2e-9 * work as f64 / seconds);
        }
    };
    for (tokens, out, k) in
        [(512, 4096, 4096), (256, 576, 576), (256, 192, 576), (256, 1536, 576), (256, 576, 1536)]
    {
        training(tokens, out, k, &report);
    }
    head(&report);
    generation(&report);
}

type Report<'a> = &'a dyn Fn(&str, usize, &mut dyn FnMut());

/// One linear layer of a training step.
fn training(tokens: usize, out: usize, k: usize, report: Report<'_>) {
    let random = &mut Random(1);
    let codes: Vec<u8> = (0..out * k / 2).map(|_| (random.value() * 127.9 + 128.0) as u8).collect();
    let absmax: Vec<f32> = (0..out * k / 64).map(|_| 0.05 + random.value() * 0.03).collect();
    let view = Nf4View { codes: &codes, absmax: Absmax::Plain(&absmax), block_size: 64, codebook: &CODEBOOK };
    let w = Weight::new(out, k, WeightData::Nf4(view));
    let (x, dy) = (random.values(tokens * k), random.values(tokens * out));
    let (a, b) = (random.values(RANK * k), random.values(out * RANK));
    let lora = Lora { a: &a, b: &b, rank: RANK, scale: 2.0 };
    let (mut y, mut dx) = (vec![0.0; tokens * out], vec![0.0; tokens * k]);
    let (mut xa, mut dyb) = (vec![0.0; tokens * RANK], vec![0.0; tokens * RANK]);
    let (mut da, mut db) = (vec![0.0; RANK * k], vec![0.0; out * RANK]);
    let work = tokens * out * k;
    for precision in [Precision::Bf16, Precision::F32] {
        let name = |what: &str| format!("{what} {tokens}x{out}x{k} {precision:?}");
        report(&name("forward, no adapter"), work, &mut || {
            linear(&x, tokens, &w, None, None, precision, &mut y, None);
        });
        report(&name("forward"), work, &mut || {
            linear(&x, tokens, &w, None, Some(&lora), precision, &mut y, Some(&mut xa));
        });
        report(&name("grad input"), work, &mut || {
            linear_grad_input(&dy, tokens, &w, Some(&lora), precision, &mut dx, Some(&mut dyb));
        });
        report(&name("lora grads"), tokens * (out + k) * RANK, &mut || {
            lora_grads(&x, &xa, &dy, &dyb, tokens, k, out, RANK, 2.0, &mut da, &mut db);
        });
        report(&name("forward + backward"), 2 * work, &mut || {
            linear(&x, tokens, &w, None, Some(&lora), precision, &mut y, Some(&mut xa));
            linear_grad_input(&dy, tokens, &w, Some(&lora), precision, &mut dx, Some(&mut dyb));
            lora_grads(&x, &xa, &dy, &dyb, tokens, k, out, RANK, 2.0, &mut da, &mut db);
        });
    }
}

/// The output head of SmolLM2, which is not quantized.
fn head(report: Report<'_>) {
    let (tokens, out, k) = (64, 49152, 576);
    let random = &mut Random(2);
    let values = random.values(out * k);
    let halves: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
    let (x, dy) = (random.values(tokens * k), random.values(tokens * out));
    let (mut y, mut dx) = (vec![0.0; tokens * out], vec![0.0; tokens * k]);
    let formats = [("bf16", WeightData::Bf16(&halves)), ("f32", WeightData::F32(&values))];
    for (format, data) in formats {
        let w = Weight::new(out, k, data);
        for precision in [Precision::Bf16, Precision::F32] {
            let name = |what: &str| format!("head of {format} {what} {precision:?}");
            report(&name("forward 64"), tokens * out * k, &mut || {
                linear(&x, tokens, &w, None, None, precision, &mut y, None);
            });
            report(&name("grad input 64"), tokens * out * k, &mut || {
                linear_grad_input(&dy, tokens, &w, None, precision, &mut dx, None);
            });
            report(&name("forward 1"), out * k, &mut || {
                linear(&x[..k], 1, &w, None, None, precision, &mut y[..out], None);
            });
        }
    }
}

/// All 210 NF4 products of a token of SmolLM2-135M.
fn generation(report: Report<'_>) {
    const SHAPES: [(usize, usize); 7] =
        [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
    let random = &mut Random(3);
    let per_layer: usize = SHAPES.iter().map(|(out, k)| out * k).sum();
    let codes: Vec<u8> = (0..30 * per_layer / 2).map(|_| (random.value() * 127.9 + 128.0) as u8).collect();
    let absmax: Vec<f32> = (0..30 * per_layer / 64).map(|_| 0.05 + random.value() * 0.03).collect();
    let x = random.values(8 * 1536);
    let mut y = vec![0.0; 8 * 1536];
    let mut weights = Vec::new();
    let mut start = 0;
    for (out, k) in (0..30).flat_map(|_| SHAPES) {
        let view = Nf4View {
            codes: &codes[start / 2..],
            absmax: Absmax::Plain(&absmax[start / 64..]),
            block_size: 64,
            codebook: &CODEBOOK,
        };
        weights.push(Weight::new(out, k, WeightData::Nf4(view)));
        start += out * k;
    }
    for precision in [Precision::Bf16, Precision::F32] {
        for tokens in [1, 2, 4, 8] {
            report(
                &format!("SmolLM2-135M, {tokens} tokens, {precision:?}"),
                tokens * 30 * per_layer,
                &mut || {
                    for w in &weights {
                        let (x, y) = (&x[..tokens * w.cols()], &mut y[..tokens * w.rows()]);
                        linear(x, tokens, w, None, None, precision, y, None);
                    }
                },
            );
        }
    }
}

//! Times of the fused kernels at the sizes of SmolLM2-135M and of an 8B model, best of several runs.

use std::time::Instant;

use qlora_cpu::{
    Activation, AdamW, AttentionShape, AttentionSpan, CrossEntropy, Isa, Precision, RmsNorm, TokenStats,
    Weight, WeightData,
};

/// Best time of `f` in seconds, over at least three runs and a quarter of a second.
fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (begin, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || begin.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn report(name: &str, seconds: f64, bytes: usize, flops: f64) {
    let rate = if flops > 0.0 {
        format!("{:8.1} GFLOP/s", flops / seconds / 1e9)
    } else {
        format!("{:8.1} GB/s", bytes as f64 / seconds / 1e9)
    };
    println!("{name:44} {:9.3} ms {rate}", seconds * 1e3);
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn attention(name: &str, heads: usize, kv_heads: usize, head_dim: usize, lengths: &[usize]) {
    let shape = AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
    };
    let spans = AttentionSpan::packed(lengths);
    let tokens: usize = lengths.iter().sum();
    let (q, dout) = (noise(tokens * heads * head_dim, 1), noise(tokens * heads * head_dim, 2));
    let (k, v) = (noise(tokens * kv_heads * head_dim, 3), noise(tokens * kv_heads * head_dim, 4));
    let (mut out, mut dq) = (vec![0.0; q.len()], vec![0.0; q.len()]);
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; k.len()]);
    let mut lse = vec![0.0; tokens * heads];
    // Pairs of query and key that see each other, two products of two operations each.
    let pairs: usize = lengths.iter().map(|n| n * (n + 1) / 2).sum();
    let flops = 4.0 * (pairs * heads * head_dim) as f64;
    let time = best(|| qlora_cpu::attention(&q, &k, &v, &shape, &spans, &mut out, Some(&mut lse)));
    report(&format!("attention {name}"), time, 0, flops);
    let time = best(|| {
        qlora_cpu::attention_backward(
            &dout, &q, &k, &v, &out, &lse, &shape, &spans, &mut dq, &mut dk, &mut dv,
        );
    });
    report(&format!("attention backward {name}"), time, 0, 2.5 * flops);
}

fn decode(heads: usize, kv_heads: usize, head_dim: usize, keys: usize) {
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.1, softcap: None, window: None };
    let spans = [AttentionSpan { q_start: 0, q_len: 1, k_start: 0, k_len: keys }];
    let q = noise(heads * head_dim, 1);
    let (k, v) = (noise(keys * kv_heads * head_dim, 3), noise(keys * kv_heads * head_dim, 4));
    let mut out = vec![0.0; q.len()];
    let time = best(|| qlora_cpu::attention(&q, &k, &v, &shape, &spans, &mut out, None));
    report(&format!("decode {heads}/{kv_heads}x{head_dim}, {keys} keys"), time, 8 * k.len(), 0.0);
}

fn main() {
    println!("{:?}, {} threads", Isa::detect(), rayon::current_num_threads());
    let (tokens, dim, ffn, vocab) = (512, 576, 1536, 49152);
    let norm = RmsNorm { eps: 1e-5, unit_offset: false };

    let (x, dy, weight) = (noise(tokens * dim, 1), noise(tokens * dim, 2), noise(dim, 3));
    let (mut y, mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; tokens]);
    let mut dweight = vec![0.0; dim];
    let bytes = 4 * x.len();
    let time = best(|| qlora_cpu::rms_norm(&x, &weight, dim, norm, &mut y, Some(&mut rstd)));
    report("rms_norm 512x576", time, 2 * bytes, 0.0);
    let time = best(|| qlora_cpu::add_rms_norm(&x, &dy, &weight, dim, norm, &mut h, &mut y, Some(&mut rstd)));
    report("add_rms_norm 512x576", time, 4 * bytes, 0.0);
    let time = best(|| qlora_cpu::rms_norm_backward(&dy, &x, &weight, &rstd, dim, norm, &mut y, None));
    report("rms_norm backward 512x576", time, 3 * bytes, 0.0);
    let time =
        best(|| qlora_cpu::rms_norm_backward(&dy, &x, &weight, &rstd, dim, norm, &mut y, Some(&mut dweight)));
    report("rms_norm backward with dweight 512x576", time, 3 * bytes, 0.0);

    let (cos, sin) = (noise(tokens * 32, 4), noise(tokens * 32, 5));
    let mut q = x.clone();
    let time = best(|| qlora_cpu::rope(&mut q, 9, 64, &cos, &sin, false));
    report("rope 512x9x64", time, 2 * bytes, 0.0);

    let (gate, up, dout) = (noise(tokens * ffn, 6), noise(tokens * ffn, 7), noise(tokens * ffn, 8));
    let (mut a, mut b) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    for activation in [Activation::Silu, Activation::GeluErf, Activation::GeluTanh] {
        let time = best(|| qlora_cpu::gated_activation(activation, &gate, &up, &mut a));
        report(&format!("gated {activation:?} 512x1536"), time, 12 * gate.len(), 0.0);
        let time =
            best(|| qlora_cpu::gated_activation_backward(activation, &dout, &gate, &up, &mut a, &mut b));
        report(&format!("gated {activation:?} backward 512x1536"), time, 20 * gate.len(), 0.0);
    }

    for (rows, cols) in [(2304, 256), (256, vocab)] {
        let mut logits = noise(rows * cols, 9);
        let time = best(|| qlora_cpu::softmax_rows(&mut logits, cols));
        report(&format!("softmax {rows}x{cols}"), time, 8 * logits.len(), 0.0);
    }
    let rows = 256;
    let (mut logits, targets, weights) = (noise(rows * vocab, 9), vec![7; rows], vec![0.01; rows]);
    let mut stats = vec![TokenStats::default(); rows];
    for (name, softcap) in [("", None), (" softcap", Some(30.0))] {
        let settings = CrossEntropy { softcap, ..CrossEntropy::default() };
        for grad in [false, true] {
            let time = best(|| {
                qlora_cpu::cross_entropy_rows(
                    &mut logits,
                    vocab,
                    &targets,
                    &weights,
                    &settings,
                    grad,
                    &mut stats,
                );
            });
            report(&format!("cross_entropy 256x49152{name} grad={grad}"), time, 8 * logits.len(), 0.0);
        }
    }
    let head = noise(vocab * dim, 10);
    let head = Weight::new(vocab, dim, WeightData::F32(&head));
    let mut dhidden = vec![0.0; rows * dim];
    for precision in [Precision::F32, Precision::Bf16] {
        let settings = CrossEntropy::default();
        let time = best(|| {
            let (hidden, dhidden) = (&x[..rows * dim], Some(&mut dhidden[..]));
            qlora_cpu::linear_cross_entropy(
                hidden, rows, &head, precision, &targets, &weights, &settings, &mut stats, dhidden,
            );
        });
        report(
            &format!("linear_cross_entropy 256x576x49152 {precision:?}"),
            time,
            0,
            4.0 * (rows * dim * vocab) as f64,
        );
    }

    attention("9/3x64, 1x512", 9, 3, 64, &[512]);
    attention("9/3x64, 4x64", 9, 3, 64, &[64; 4]);
    attention("9/3x64, 8x36", 9, 3, 64, &[36; 8]);
    attention("32/8x128, 1x2048", 32, 8, 128, &[2048]);
    decode(9, 3, 64, 1024);
    decode(32, 8, 128, 2048);

    let n = 4_884_480;
    let (mut p, g, mut m, mut v) = (noise(n, 1), noise(n, 2), vec![0.0; n], vec![0.0; n]);
    let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 3 };
    let time = best(|| qlora_cpu::adamw(&mut p, &g, &mut m, &mut v, &settings, 1.0));
    report("adamw 4.9M", time, 28 * n, 0.0);
    let time = best(|| assert!(qlora_cpu::sum_of_squares(&g) > 0.0));
    report("sum_of_squares 4.9M", time, 4 * n, 0.0);
}

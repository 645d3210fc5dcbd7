//! Every operation of the contract, tier by tier, at the sizes of Llama-3.2-1B and Llama-3.1-8B (or of small models
//! on a CPU), with the share of what the device can do at most.
//!
//! ```text
//! cargo bench --bench kernels                                      # on the CPU
//! cargo bench --bench kernels --features cuda -- --backend cuda    # on an NVIDIA GPU
//! cargo bench --bench kernels -- --tier native --only attention    # some of it
//! ```
//!
//! A tier is chosen once a process, so each runs in one of its own.

use std::process::Command;

use burn::backend::Autodiff;
use burn::tensor::{DType, Distribution, Tensor};
use qlora_benches::arguments::Arguments;
use qlora_benches::devices::{Ceiling, default_backend, seconds};
use qlora_core::burn;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::kernels::{
    Activation, AdamWStep, AttentionSpan, AttentionSpec, Compute, CrossEntropyOptions, FrozenWeight,
    KernelBackend, LoraOperands, Nf4Weight, NormOutput, RmsNormOptions, SavedNorm, adamw, attention,
    gated_activation, greedy, linear, linear_cross_entropy, residual_dtype, rms_norm, rope, sum_of_squares,
};
use qlora_core::quant::Nf4Options;

/// Sizes of a model's layer, and how many tokens go through it.
#[derive(Clone, Copy)]
struct Sizes {
    name: &'static str,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    sequences: usize,
    length: usize,
}

const SIZES: [Sizes; 3] = [
    Sizes {
        name: "135m",
        hidden: 576,
        inner: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49_152,
        sequences: 2,
        length: 128,
    },
    Sizes {
        name: "1b",
        hidden: 2048,
        inner: 8192,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocabulary: 128_256,
        sequences: 2,
        length: 2048,
    },
    Sizes {
        name: "8b",
        hidden: 4096,
        inner: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: 128_256,
        sequences: 2,
        length: 2048,
    },
];

const RANK: usize = 16;

struct Kernels {
    tier: String,
    only: String,
    sizes: Vec<Sizes>,
}

/// What an operation moves and computes at least.
#[derive(Clone, Copy, Default)]
struct Work {
    bytes: f64,
    operations: f64,
}

struct Table<'a> {
    tier: &'a str,
    only: &'a str,
    size: &'static str,
    ceiling: Ceiling,
}

impl Table<'_> {
    fn wanted(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    /// A line: time, rates, and the share of the floor that the device sets.
    fn line(&self, name: &str, time: f64, work: Work) {
        let floor = (work.bytes / self.ceiling.bytes).max(work.operations / self.ceiling.operations);
        println!(
            "{:6}{:28}{:10}{:>12.4}{:>10.0}{:>10.1}{:>9.0} %",
            self.size,
            name,
            self.tier,
            time * 1e3,
            work.bytes / time / 1e9,
            work.operations / time / 1e12,
            100.0 * floor / time,
        );
    }
}

impl OnDevice for Kernels {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device, name: &DeviceInfo) {
        let (compute, _) = Compute::fastest_on::<B>(device);
        let large = self.sizes.iter().any(|sizes| sizes.hidden > 1000);
        let ceiling = Ceiling::measure::<B>(device, compute, large);
        println!(
            "# {name}, {compute}, tier {}: copies {:.0} GB/s, products {:.1} TFLOP/s",
            self.tier,
            ceiling.bytes / 1e9,
            ceiling.operations / 1e12
        );
        for sizes in &self.sizes {
            let table = Table { tier: &self.tier, only: &self.only, size: sizes.name, ceiling };
            weights::<B>(device, *sizes, compute, &table);
            pointwise::<B>(device, *sizes, compute, &table);
            attentions::<B>(device, *sizes, compute, &table);
            losses::<B>(device, *sizes, compute, &table);
            optimizer::<B>(device, *sizes, &table);
            B::memory_cleanup(device);
        }
    }
}

fn random<B: KernelBackend>(device: &B::Device, shape: [usize; 2], dtype: DType) -> Tensor<B, 2> {
    Tensor::<B, 2>::random(shape, Distribution::Uniform(-1.0, 1.0), (device, DType::F32)).cast(dtype)
}

/// Decoding, and products with an NF4 weight, adapted.
fn weights<B: KernelBackend>(device: &B::Device, sizes: Sizes, compute: Compute, table: &Table<'_>) {
    let dtype = B::activation_dtype(compute);
    let bytes = dtype.size() as f64;
    let [out, inputs] = [sizes.inner, sizes.hidden];
    let count = (out * inputs) as f64;
    let packed = count * 0.516;
    let options = Nf4Options { double_quant: true, ..Nf4Options::default() };
    let values = random::<B>(device, [out, inputs], DType::F32);
    let weight = FrozenWeight::Nf4(Nf4Weight::quantize(values.clone(), options, compute));
    let run = |name: &str, work: Work, call: &mut dyn FnMut()| {
        if table.wanted(name) {
            table.line(name, seconds::<B>(device, 7, call), work);
        }
    };
    let work = Work { bytes: packed + 4.0 * count, operations: 0.0 };
    run("nf4_quantize", work, &mut || drop(Nf4Weight::quantize(values.clone(), options, compute)));
    let work = Work { bytes: packed + bytes * count, operations: 0.0 };
    run("nf4_dequantize", work, &mut || drop(weight.dequantize(dtype)));

    let lora = |a: Tensor<B, 2>, b: Tensor<B, 2>| LoraOperands { a, b, scale: 0.5 };
    let a = random::<B>(device, [RANK, inputs], DType::F32);
    let b = random::<B>(device, [out, RANK], DType::F32);
    for tokens in [1, 8, sizes.sequences * sizes.length] {
        let x = random::<B>(device, [tokens, inputs], dtype);
        let operations = 2.0 * tokens as f64 * (count + (RANK * (out + inputs)) as f64);
        let moved = packed + bytes * (tokens * (inputs + out)) as f64;
        let work = Work { bytes: moved, operations };
        run(&format!("linear nf4+lora {tokens}"), work, &mut || {
            drop(linear(x.clone(), &weight, None, Some(lora(a.clone(), b.clone()))));
        });
    }
    if !table.wanted("linear backward") {
        return;
    }
    // Forward and backward together, less the forward: what a training step pays for the second half.
    let tokens = sizes.sequences * sizes.length;
    let parts = weight.parts();
    let x = random::<B>(device, [tokens, inputs], dtype).into_primitive().tensor();
    let dy = random::<B>(device, [tokens, out], dtype).into_primitive().tensor();
    let operands = qlora_core::kernels::LoraParts {
        a: a.into_primitive().tensor(),
        b: b.into_primitive().tensor(),
        scale: 0.5,
    };
    let xa = B::linear_forward(x.clone(), &parts, None, Some(&operands)).xa.expect("an adapted layer");
    let operations = 2.0 * tokens as f64 * (count + (3 * RANK * (out + inputs)) as f64);
    let moved = packed + bytes * (tokens * (2 * inputs + 2 * out)) as f64;
    let time = seconds::<B>(device, 7, || {
        let input = B::linear_grad_input(dy.clone(), &parts, Some(&operands));
        drop(B::lora_grads(x.clone(), xa.clone(), dy.clone(), input.dyb.expect("an adapted layer"), 0.5));
    });
    table.line("linear backward", time, Work { bytes: moved, operations });
}

/// Operations that read and write rows.
fn pointwise<B: KernelBackend>(device: &B::Device, sizes: Sizes, compute: Compute, table: &Table<'_>) {
    let dtype = B::activation_dtype(compute);
    let bytes = dtype.size() as f64;
    let tokens = sizes.sequences * sizes.length;
    let run = |name: &str, passes: f64, width: usize, call: &mut dyn FnMut()| {
        if table.wanted(name) {
            let work = Work { bytes: passes * bytes * (tokens * width) as f64, operations: 0.0 };
            table.line(name, seconds::<B>(device, 7, call), work);
        }
    };
    let x = random::<B>(device, [tokens, sizes.hidden], dtype);
    let weight = Tensor::<B, 1>::ones([sizes.hidden], (device, DType::F32));
    let options = RmsNormOptions { eps: 1e-5, unit_offset: false, output: x.dtype() };
    run("rms_norm", 2.0, sizes.hidden, &mut || drop(rms_norm(x.clone(), weight.clone(), options)));
    let (px, pw) = (x.clone().into_primitive().tensor(), weight.into_primitive().tensor());
    let NormOutput { kept, rstd, .. } = B::rms_norm_forward(px.clone(), pw.clone(), options);
    let saved = SavedNorm { x: kept, weight: pw.clone(), rstd, dtype };
    run("rms_norm backward", 3.0, sizes.hidden, &mut || {
        drop(B::rms_norm_backward(px.clone(), saved.clone(), options, false));
    });
    let residual = random::<B>(device, [tokens, sizes.hidden], residual_dtype(dtype));
    // Elements of the stream read and written, of activations read, and written twice where the types differ.
    let stream = 2.0 * residual.dtype().size() as f64 / bytes;
    let activations = if residual.dtype() == dtype { 2.0 } else { 3.0 };
    let stream_primitive = residual.into_primitive().tensor();
    run("add_rms_norm", stream + activations, sizes.hidden, &mut || {
        drop(B::add_rms_norm_forward(stream_primitive.clone(), px.clone(), pw.clone(), options));
    });
    let table_shape = [tokens, sizes.head_dim / 2];
    let (cos, sin) =
        (random::<B>(device, table_shape, DType::F32), random::<B>(device, table_shape, DType::F32));
    run("rope", 2.0, sizes.hidden, &mut || drop(rope(x.clone(), cos.clone(), sin.clone())));
    run("residual add", 3.0, sizes.hidden, &mut || drop(x.clone() + x.clone()));
    let gate = random::<B>(device, [tokens, sizes.inner], dtype);
    run("gated_activation", 3.0, sizes.inner, &mut || {
        drop(gated_activation(Activation::Silu, gate.clone(), gate.clone()));
    });
    let gate = gate.into_primitive().tensor();
    run("gated_activation backward", 5.0, sizes.inner, &mut || {
        drop(B::gated_activation_backward(Activation::Silu, gate.clone(), gate.clone(), gate.clone()));
    });
}

fn attentions<B: KernelBackend>(device: &B::Device, sizes: Sizes, compute: Compute, table: &Table<'_>) {
    if !table.wanted("attention backward") && !table.wanted("attention") {
        return;
    }
    let dtype = B::activation_dtype(compute);
    let Sizes { heads, kv_heads, head_dim, sequences, length, .. } = sizes;
    let tokens = sequences * length;
    let q = random::<B>(device, [tokens, heads * head_dim], dtype);
    let k = random::<B>(device, [tokens, kv_heads * head_dim], dtype);
    let spec = AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
        compute,
        spans: AttentionSpan::sequences(&vec![length; sequences]).into(),
    };
    let bytes = (dtype.size() * tokens * 2 * (heads + kv_heads) * head_dim) as f64;
    let operations = 2.0 * (sequences * heads * length * length * head_dim) as f64;
    let time = seconds::<B>(device, 7, || drop(attention(q.clone(), k.clone(), k.clone(), &spec)));
    table.line("attention", time, Work { bytes, operations });
    let [q, k] = [q, k].map(|t| t.into_primitive().tensor());
    let (out, lse) = B::attention_forward(q.clone(), k.clone(), k.clone(), &spec);
    let time = seconds::<B>(device, 7, || {
        let saved = qlora_core::kernels::attention::Saved {
            q: q.clone(),
            k: k.clone(),
            v: k.clone(),
            out: out.clone(),
            lse: lse.clone(),
        };
        drop(B::attention_backward(out.clone(), saved, &spec));
    });
    table.line("attention backward", time, Work { bytes: 2.0 * bytes, operations: 2.5 * operations });
}

fn losses<B: KernelBackend>(device: &B::Device, sizes: Sizes, compute: Compute, table: &Table<'_>) {
    let dtype = B::activation_dtype(compute);
    let tokens = sizes.sequences * sizes.length;
    let count = (sizes.vocabulary * sizes.hidden) as f64;
    if table.wanted("cross_entropy + grad") {
        let head = random::<B>(device, [sizes.vocabulary, sizes.hidden], compute.dtype()) * 0.02;
        let head = FrozenWeight::from_tensor(head, compute);
        let head = FrozenWeight::<Autodiff<B>>::from_tensor(
            Tensor::from_inner(head.dequantize(compute.dtype())),
            compute,
        );
        let hidden = Tensor::<Autodiff<B>, 2>::from_inner(random::<B>(device, [tokens, sizes.hidden], dtype));
        let hidden = hidden.require_grad();
        let targets: Vec<u32> = (0..tokens).map(|i| (i * 7919 % sizes.vocabulary) as u32).collect();
        let weights = vec![1.0; tokens];
        let options = CrossEntropyOptions::default();
        let time = seconds::<B>(device, 5, || {
            drop(linear_cross_entropy(hidden.clone(), &head, &targets, &weights, options));
        });
        let operations = 4.0 * tokens as f64 * count;
        table.line("cross_entropy + grad", time, Work { bytes: 0.0, operations });
    }
    if table.wanted("greedy") {
        let logits = random::<B>(device, [64, sizes.vocabulary], DType::F32);
        let time = seconds::<B>(device, 7, || drop(greedy(logits.clone())));
        table.line("greedy 64", time, Work { bytes: 4.0 * 64.0 * sizes.vocabulary as f64, operations: 0.0 });
    }
}

fn optimizer<B: KernelBackend>(device: &B::Device, sizes: Sizes, table: &Table<'_>) {
    let shape = [sizes.inner, RANK];
    let count = (sizes.inner * RANK) as f64;
    let make = || random::<B>(device, shape, DType::F32);
    if table.wanted("adamw") {
        let (mut param, grad, mut first, mut second) = (make(), make(), make(), make().abs());
        let step = AdamWStep {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 3,
            grad_scale: 1.0,
        };
        let time = seconds::<B>(device, 7, || {
            let empty = || Tensor::empty([0, 0], device);
            let (p, m, v) = (
                std::mem::replace(&mut param, empty()),
                std::mem::replace(&mut first, empty()),
                std::mem::replace(&mut second, empty()),
            );
            (param, first, second) = adamw(p, grad.clone(), m, v, step);
        });
        table.line("adamw", time, Work { bytes: 28.0 * count, operations: 0.0 });
    }
    if table.wanted("sum_of_squares") {
        let grads: Vec<Tensor<B, 2>> = (0..32).map(|_| make()).collect();
        let time = seconds::<B>(device, 7, || {
            std::hint::black_box(sum_of_squares(grads.clone()));
        });
        table.line("sum_of_squares of 32", time, Work { bytes: 32.0 * 4.0 * count, operations: 0.0 });
    }
}

fn main() {
    let arguments = Arguments::from_env();
    let option = |name: &str| arguments.option(name).map(str::to_owned);
    let backend = option("--backend").unwrap_or_else(|| default_backend().to_owned());
    let gpu = backend == "cuda";
    let default_sizes = if gpu { "1b,8b" } else { "135m" };
    let wanted = option("--sizes").unwrap_or_else(|| default_sizes.to_owned());
    let sizes: Vec<Sizes> =
        SIZES.into_iter().filter(|sizes| wanted.split(',').any(|name| name == sizes.name)).collect();
    assert!(!sizes.is_empty(), "--sizes takes 135m, 1b, 8b");
    let only = option("--only").unwrap_or_default();
    if std::env::var_os("QLORA_BENCH_CHILD").is_some() {
        let tier = std::env::var("QLORA_KERNELS").unwrap_or_default();
        on_device(&backend, None, Kernels { tier, only, sizes }).unwrap_or_else(|error| panic!("{error}"));
        return;
    }
    println!(
        "{:6}{:28}{:10}{:>12}{:>10}{:>10}{:>11}",
        "size", "operation", "tier", "ms", "GB/s", "TFLOP/s", "of floor"
    );
    let tiers = option("--tier").unwrap_or_else(|| {
        // The reference needs memory for whole score matrices: small sizes only.
        match (gpu, backend.as_str()) {
            (true, _) => "native,cube",
            (_, "cpu") => "native,reference",
            _ => "cube,reference",
        }
        .to_owned()
    });
    let program = std::env::current_exe().expect("this program");
    for tier in tiers.split(',') {
        let status = Command::new(&program)
            .args(["--backend", &backend, "--sizes", &wanted, "--only", &only])
            .env("QLORA_KERNELS", tier)
            .env("QLORA_BENCH_CHILD", "1")
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the tier {tier} failed");
    }
}

//! One linear layer 4096 × 4096, NF4 with double quantization and LoRA of rank 16, on 512 tokens.
//!
//! `cargo bench --bench linear`

use qlora_benches::{Measurement, Runs, main as run_all, measure};
use qlora_core::burn::tensor::{Distribution, Tensor};
use qlora_core::kernels::{FrozenWeight, LoraOperands, Nf4Weight, linear};
use qlora_core::prelude::*;
use qlora_core::quant::Nf4Tensor;

const FEATURES: usize = 4096;
const TOKENS: usize = 512;
const RANK: usize = 16;

type Training = Autodiff<Cpu>;

fn random(shape: [usize; 2]) -> Tensor<Training, 2> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.02), &CpuDevice)
}

fn run(name: &str) -> Measurement {
    let (kind, dtype) = name.split_once('/').expect("name/dtype");
    let compute = if dtype == "bf16" { Compute::Bf16 } else { Compute::F32 };
    let values = random([FEATURES, FEATURES]).into_data().to_vec::<f32>().expect("f32");
    let options = Nf4Options { double_quant: true, ..Nf4Options::default() };
    let weight = Nf4Tensor::quantize(&values, &[FEATURES, FEATURES], options).expect("finite values");
    let weight = FrozenWeight::<Training>::Nf4(Nf4Weight::new(&weight, compute, &CpuDevice));
    let x = random([TOKENS, FEATURES]);
    let (a, b) = (random([RANK, FEATURES]), random([FEATURES, RANK]));
    let forward = |x: Tensor<Training, 2>, a: Tensor<Training, 2>, b: Tensor<Training, 2>| {
        linear(x, &weight, None, Some(LoraOperands { a, b, scale: 2.0 }))
    };
    let runs = Runs { warmup: 2, counted: 9 };
    if kind == "linear_forward" {
        return measure(runs, || drop(forward(x.clone(), a.clone(), b.clone())));
    }
    let dy = random([TOKENS, FEATURES]);
    measure(runs, || {
        let [x, a, b] = [&x, &a, &b].map(|t| t.clone().detach().require_grad());
        let y = forward(x.clone(), a.clone(), b.clone());
        let grads = (y * dy.clone()).sum().backward();
        let present = [&x, &a, &b].iter().all(|t| t.grad(&grads).is_some());
        assert!(present, "gradients of the input and of both factors");
    })
}

fn main() {
    let configurations = [
        "linear_forward/f32",
        "linear_forward_backward/f32",
        "linear_forward/bf16",
        "linear_forward_backward/bf16",
    ];
    run_all("linear.py", &configurations, run);
}

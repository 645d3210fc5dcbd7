//! Several linear layers of the same rows.

use burn::tensor::{DType, Tensor, TensorData};

use super::cases::{Held, weight};
use super::harness::{Failure, Operation, check, noise};
use crate::KernelBackend;
use crate::activation::Activation;
use crate::linear::{LinearOperands, LoraOperands, gated_mlp, linears};
use crate::weight::{Compute, FrozenWeight};

/// Three layers of the same rows, or a gated MLP of three.
#[derive(Debug)]
struct Joint {
    tokens: usize,
    inputs: usize,
    outputs: [usize; 3],
    ranks: [usize; 3],
    /// Of a gated MLP.
    activation: Option<Activation>,
    compute: Compute,
}

impl Joint {
    /// Inputs of a layer: those of the last one of an MLP are the outputs of the others.
    fn inputs_of(&self, layer: usize) -> usize {
        if self.activation.is_some() && layer == 2 { self.outputs[0] } else { self.inputs }
    }
}

impl Operation for Joint {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        let mut inputs = vec![[self.tokens, self.inputs]];
        for layer in (0..3).filter(|layer| self.ranks[*layer] > 0) {
            let rank = self.ranks[layer];
            inputs.extend([[rank, self.inputs_of(layer)], [self.outputs[layer], rank]]);
        }
        inputs
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], device: &B::Device) -> Tensor<B, 2> {
        let wide = if inputs[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let held = Held::Nf4 { block_size: 32, double_quant: true };
        let weights: [FrozenWeight<B>; 3] = std::array::from_fn(|layer| {
            weight(held, [self.outputs[layer], self.inputs_of(layer)], self.compute, device)
        });
        let mut factors = inputs[1..].iter().map(|factor| factor.clone().cast(wide));
        let mut operands = weights.iter().enumerate().map(|(layer, weight)| {
            let lora = (self.ranks[layer] > 0).then(|| LoraOperands {
                a: factors.next().expect("two factors a layer"),
                b: factors.next().expect("two factors a layer"),
                scale: 0.5 + 0.1 * layer as f32,
            });
            // One layer without a bias.
            let bias = (layer != 1).then(|| {
                let count = self.outputs[layer];
                let bias: Vec<f32> = noise(count, 20 + layer as u64).iter().map(|v| *v as f32).collect();
                Tensor::<B, 1>::from_data(TensorData::new(bias, [count]), (device, DType::F32))
            });
            LinearOperands { weight, bias, lora }
        });
        let x = inputs[0].clone();
        match self.activation {
            None => Tensor::cat(linears(x, operands.collect()), 1),
            Some(activation) => {
                let mut next = || operands.next().expect("three layers");
                let (gate, up, down) = (next(), next(), next());
                gated_mlp(activation, x, gate, up, down)
            }
        }
    }
}

/// Three layers of the same rows, and gated MLPs, of one token, for which there are kernels, and of several.
///
/// # Errors
/// When a case fails.
pub fn joint_linears<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let joint = |tokens, inputs, outputs, ranks, activation| {
        check::<B>(&Joint { tokens, inputs, outputs, ranks, activation, compute }, compute, device)
    };
    joint(1, 96, [40, 16, 11], [8, 16, 8], None)?;
    joint(1, 288, [9, 9, 20], [0, 8, 0], None)?;
    joint(1, 64, [20, 7, 30], [3, 8, 8], None)?;
    joint(4, 64, [20, 7, 30], [8, 8, 8], None)?;
    joint(1, 64, [96, 96, 40], [8, 16, 8], Some(Activation::Silu))?;
    joint(1, 96, [33, 33, 24], [0, 0, 0], Some(Activation::GeluTanh))?;
    joint(5, 64, [32, 32, 24], [8, 4, 2], Some(Activation::GeluErf))
}

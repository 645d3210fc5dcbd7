//! The cases: operations and their sizes.

use burn::tensor::{DType, Tensor, TensorData};
use qlora_quant::{BlockSize, Nf4Options, Nf4Tensor};

use super::harness::{Failure, Operation, check, noise, relative_error, values};
use crate::activation::Activation;
use crate::attention::{AttentionSpan, AttentionSpec};
use crate::cross_entropy::CrossEntropyOptions;
use crate::linear::LoraOperands;
use crate::nf4::Nf4Weight;
use crate::norm::RmsNormOptions;
use crate::optimizer::AdamWStep;
use crate::weight::{Compute, FrozenWeight};
use crate::{KernelBackend, activation, attention, cross_entropy, embedding, linear, norm, optimizer, rope};

/// How a weight of a case is held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    Dense,
    Nf4 { block_size: usize, double_quant: bool },
}

fn weight<B: KernelBackend>(
    held: Held,
    shape: [usize; 2],
    compute: Compute,
    device: &B::Device,
) -> FrozenWeight<B> {
    let scale = 1.0 / (shape[1] as f64).sqrt();
    let values: Vec<f32> = noise(shape[0] * shape[1], 7).iter().map(|v| (v * scale) as f32).collect();
    match held {
        Held::Dense => FrozenWeight::dense(values, shape, compute, device),
        Held::Nf4 { .. } => {
            FrozenWeight::Nf4(Nf4Weight::new(&quantize(held, &values, shape), compute, device))
        }
    }
}

fn quantize(held: Held, values: &[f32], shape: [usize; 2]) -> Nf4Tensor {
    Nf4Tensor::quantize(values, &shape, options(held)).expect("finite values")
}

fn options(held: Held) -> Nf4Options {
    let Held::Nf4 { block_size, double_quant } = held else { unreachable!("a quantized weight") };
    let block_size = BlockSize::new(block_size).expect("a block size");
    Nf4Options { block_size, double_quant, ..Nf4Options::default() }
}

#[derive(Debug)]
pub(super) struct Linear {
    pub(super) tokens: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) rank: usize,
    pub(super) held: Held,
    pub(super) compute: Compute,
}

impl Operation for Linear {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        let mut inputs = vec![[self.tokens, self.inputs]];
        if self.rank > 0 {
            inputs.extend([[self.rank, self.inputs], [self.outputs, self.rank]]);
        }
        inputs
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], device: &B::Device) -> Tensor<B, 2> {
        let x = inputs[0].clone();
        let w = weight(self.held, [self.outputs, self.inputs], self.compute, device);
        let bias: Vec<f32> = noise(self.outputs, 8).iter().map(|v| *v as f32).collect();
        let bias = Tensor::<B, 1>::from_data(TensorData::new(bias, [self.outputs]), (device, DType::F32));
        // Factors are f32 while activations may be narrower; in f64 all is f64.
        let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let lora = (self.rank > 0).then(|| LoraOperands {
            a: inputs[1].clone().cast(wide),
            b: inputs[2].clone().cast(wide),
            scale: 0.7,
        });
        linear::linear(x, &w, Some(bias), lora)
    }
}

/// Adapted and frozen linear layers, dense and NF4.
///
/// # Errors
/// When a case fails.
pub fn linears<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let nf4 = |block_size, double_quant| Held::Nf4 { block_size, double_quant };
    let cases = [
        (1, 64, 32, 4, nf4(64, false)),
        (1, 96, 30, 8, nf4(32, true)),
        (1, 2304, 20, 16, nf4(64, true)),
        (6, 160, 24, 8, nf4(32, true)),
        (5, 72, 40, 3, nf4(64, true)),
        (13, 37, 29, 5, nf4(32, true)),
        (33, 128, 96, 16, nf4(64, true)),
        (20, 64, 70, 0, nf4(4096, false)),
        (7, 64, 48, 0, Held::Dense),
        (19, 50, 33, 8, Held::Dense),
    ];
    for (tokens, inputs, outputs, rank, held) in cases {
        check::<B>(&Linear { tokens, inputs, outputs, rank, held, compute }, compute, device)?;
    }
    Ok(())
}

#[derive(Debug)]
struct GatedLinear {
    activation: Activation,
    linear: Linear,
}

impl Operation for GatedLinear {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        let mut inputs = self.linear.inputs();
        inputs.insert(0, inputs[0]);
        inputs
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], device: &B::Device) -> Tensor<B, 2> {
        let Linear { inputs: width, outputs, rank, held, compute, .. } = self.linear;
        let w = weight(held, [outputs, width], compute, device);
        let wide = if inputs[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let lora = (rank > 0).then(|| LoraOperands {
            a: inputs[2].clone().cast(wide),
            b: inputs[3].clone().cast(wide),
            scale: 0.7,
        });
        let (gate, up) = (inputs[0].clone() * 2.0, inputs[1].clone());
        linear::gated_linear(self.activation, gate, up, &w, None, lora)
    }
}

/// Linear layers behind a gated activation.
///
/// # Errors
/// When a case fails.
pub fn gated_linears<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let held = Held::Nf4 { block_size: 64, double_quant: true };
    for (activation, tokens, inputs, outputs, rank) in
        [(Activation::Silu, 21, 72, 40, 4), (Activation::GeluTanh, 3, 64, 33, 0)]
    {
        let linear = Linear { tokens, inputs, outputs, rank, held, compute };
        check::<B>(&GatedLinear { activation, linear }, compute, device)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Norm {
    rows: usize,
    width: usize,
    unit_offset: bool,
}

impl Operation for Norm {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        vec![[self.rows, self.width], [1, self.width]]
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], _: &B::Device) -> Tensor<B, 2> {
        let wide = if inputs[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let weight = inputs[1].clone().cast(wide).reshape([self.width]);
        let output = inputs[0].dtype();
        let options = RmsNormOptions { eps: 1e-3, unit_offset: self.unit_offset, output };
        norm::rms_norm(inputs[0].clone(), weight, options)
    }
}

/// A norm of the residual stream, behind an addition, both results of which go on.
#[derive(Debug)]
struct ResidualNorm {
    norm: Norm,
    /// Whether the two are one operation.
    fused: bool,
}

impl Operation for ResidualNorm {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        let Norm { rows, width, .. } = self.norm;
        vec![[rows, width], [rows, width], [1, width]]
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], _: &B::Device) -> Tensor<B, 2> {
        let output = inputs[1].dtype();
        let wide = norm::residual_dtype(output);
        // Larger than what is added, as in a model.
        let residual = inputs[0].clone().cast(wide) * 4.0;
        let weight = inputs[2].clone().cast(wide).reshape([self.norm.width]);
        let options = RmsNormOptions { eps: 1e-3, unit_offset: self.norm.unit_offset, output };
        let (sum, normed) = if self.fused {
            norm::add_rms_norm(residual, inputs[1].clone(), weight, options)
        } else {
            let sum = norm::add_to_residual(residual, inputs[1].clone());
            (sum.clone(), norm::rms_norm(sum, weight, options))
        };
        Tensor::cat(vec![sum, normed.cast(wide)], 1)
    }
}

/// RMSNorm, with both conventions of its weight, alone and of the residual stream.
///
/// # Errors
/// When a case fails.
pub fn norms<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    for (rows, width, unit_offset) in [(1, 5, false), (7, 64, false), (3, 130, true), (40, 33, true)] {
        check::<B>(&Norm { rows, width, unit_offset }, compute, device)?;
        for fused in [false, true] {
            let norm = Norm { rows, width, unit_offset };
            check::<B>(&ResidualNorm { norm, fused }, compute, device)?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Rotation {
    tokens: usize,
    heads: usize,
    head_dim: usize,
}

impl Operation for Rotation {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        vec![[self.tokens, self.heads * self.head_dim]]
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], device: &B::Device) -> Tensor<B, 2> {
        let shape = [self.tokens, self.head_dim / 2];
        let angles = noise(shape[0] * shape[1], 5);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| f(3.0 * angle) as f32).collect();
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        rope::rope(inputs[0].clone(), table(f64::cos), table(f64::sin))
    }
}

/// Rotary position embedding.
///
/// # Errors
/// When a case fails.
pub fn rotations<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    for (tokens, heads, head_dim) in [(1, 1, 2), (5, 3, 6), (17, 4, 64)] {
        check::<B>(&Rotation { tokens, heads, head_dim }, compute, device)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Gated {
    activation: Activation,
    shape: [usize; 2],
}

impl Operation for Gated {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        vec![self.shape, self.shape]
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], _: &B::Device) -> Tensor<B, 2> {
        // Wider than [-1, 1), where the functions differ from lines.
        activation::gated_activation(self.activation, inputs[0].clone() * 4.0, inputs[1].clone())
    }
}

/// SwiGLU and both kinds of GeGLU.
///
/// # Errors
/// When a case fails.
pub fn activations<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    for activation in [Activation::Silu, Activation::GeluErf, Activation::GeluTanh] {
        for shape in [[1, 3], [9, 37], [4, 128]] {
            check::<B>(&Gated { activation, shape }, compute, device)?;
        }
    }
    Ok(())
}

#[derive(Debug)]
pub(super) struct Attend {
    pub(super) spec: AttentionSpec,
    pub(super) queries: usize,
    pub(super) keys: usize,
}

impl Operation for Attend {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        let kv = self.spec.kv_heads * self.spec.head_dim;
        vec![[self.queries, self.spec.heads * self.spec.head_dim], [self.keys, kv], [self.keys, kv]]
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], _: &B::Device) -> Tensor<B, 2> {
        attention::attention(inputs[0].clone(), inputs[1].clone(), inputs[2].clone(), &self.spec)
    }
}

/// Attention: packed sequences, grouped queries, windows, soft caps, and queries after a cache.
///
/// # Errors
/// When a case fails.
pub fn attentions<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let packed =
        |lengths: &[usize]| (AttentionSpan::sequences(lengths), lengths.iter().sum(), lengths.iter().sum());
    let cached = vec![
        AttentionSpan { q_start: 0, q_len: 1, k_start: 0, k_len: 9 },
        AttentionSpan { q_start: 1, q_len: 3, k_start: 12, k_len: 7 },
    ];
    // heads, kv_heads, head_dim, softcap, window, (spans, queries, keys)
    let cases = [
        (1, 1, 8, None, None, packed(&[1])),
        (4, 2, 8, None, None, packed(&[5, 1, 9])),
        (3, 1, 16, Some(2.0), None, packed(&[17])),
        (2, 2, 6, None, Some(3), packed(&[11, 4])),
        (6, 2, 64, Some(5.0), Some(20), packed(&[70, 33])),
        (4, 4, 8, None, None, (cached, 4, 20)),
    ];
    for (heads, kv_heads, head_dim, softcap, window, (spans, queries, keys)) in cases {
        let scale = 1.3 / (head_dim as f32).sqrt();
        let spec =
            AttentionSpec { heads, kv_heads, head_dim, scale, softcap, window, compute, spans: spans.into() };
        check::<B>(&Attend { spec, queries, keys }, compute, device)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Loss {
    tokens: usize,
    width: usize,
    vocabulary: usize,
    trained_every: usize,
    options: CrossEntropyOptions,
    held: Held,
    compute: Compute,
}

impl Operation for Loss {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn inputs(&self) -> Vec<[usize; 2]> {
        vec![[self.tokens, self.width]]
    }

    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], device: &B::Device) -> Tensor<B, 2> {
        let head = weight(self.held, [self.vocabulary, self.width], self.compute, device);
        let targets: Vec<u32> = (0..self.tokens).map(|i| (i * 7 % self.vocabulary) as u32).collect();
        let weights: Vec<f32> = (0..self.tokens)
            .map(|i| if i % self.trained_every == 0 { 0.3 + i as f32 * 0.1 } else { 0.0 })
            .collect();
        let hidden = inputs[0].clone() * 3.0;
        let loss = cross_entropy::linear_cross_entropy(hidden, &head, &targets, &weights, self.options);
        loss.reshape([1, 1])
    }
}

/// The fused head and loss: masked tokens, smoothing, soft caps, scales.
///
/// # Errors
/// When a case fails.
pub fn losses<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let plain = CrossEntropyOptions::default();
    let all = CrossEntropyOptions { logit_scale: 0.8, softcap: Some(4.0), label_smoothing: 0.1 };
    let cases = [
        (1, 8, 11, 1, plain, Held::Dense),
        (9, 24, 37, 2, plain, Held::Dense),
        (30, 17, 65, 1, all, Held::Dense),
        (5, 64, 40, 3, all, Held::Nf4 { block_size: 64, double_quant: false }),
    ];
    for (tokens, width, vocabulary, trained_every, options, held) in cases {
        let case = Loss { tokens, width, vocabulary, trained_every, options, held, compute };
        check::<B>(&case, compute, device)?;
    }
    // No trained token: a loss of zero, not of NaN.
    let head = weight::<B>(Held::Dense, [5, 4], compute, device);
    let hidden = Tensor::<B, 2>::ones([3, 4], (device, B::activation_dtype(compute)));
    let loss = cross_entropy::linear_cross_entropy(hidden, &head, &[0; 3], &[0.0; 3], plain);
    expect("loss of no token", values(loss) == [0.0])
}

pub(super) fn expect(case: &str, holds: bool) -> Result<(), Failure> {
    if holds {
        return Ok(());
    }
    Err(Failure { case: case.into(), what: "the result".into(), error: f64::INFINITY, bound: 0.0 })
}

/// NF4 decoding: the very bits of `qlora-quant`, within one rounding where scales are quantized again.
///
/// # Errors
/// When a case fails.
pub fn quantized<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    for (shape, block_size, double_quant) in [
        ([1, 64], 64, false),
        ([48, 192], 64, true),
        ([3, 37], 32, false),
        ([129, 65], 128, true),
        ([1, 1], 64, false),
    ] {
        let held = Held::Nf4 { block_size, double_quant };
        let source: Vec<f32> = noise(shape[0] * shape[1], 3).iter().map(|v| *v as f32).collect();
        let quantized = quantize(held, &source, shape);
        let expected: Vec<f64> = quantized.dequantize().iter().map(|v| f64::from(*v)).collect();
        let w = FrozenWeight::<B>::Nf4(Nf4Weight::new(&quantized, Compute::F32, device));
        let got = values(w.dequantize(DType::F32));
        let error = relative_error(&got, &expected);
        let bound = if double_quant { 1e-6 } else { 0.0 };
        let values = Tensor::<B, 2>::from_data(TensorData::new(source, shape), (device, DType::F32));
        let options = options(held);
        let on_device = FrozenWeight::<B>::Nf4(Nf4Weight::quantize(values, options, Compute::F32));
        let again = self::values(on_device.dequantize(DType::F32));
        expect("the weight quantized on the device", relative_error(&again, &expected) <= bound)?;
        if error > bound {
            let case = format!("nf4 {shape:?}, blocks of {block_size}, double {double_quant}");
            return Err(Failure { case, what: "the decoded weight".into(), error, bound });
        }
    }
    Ok(())
}

/// Rows of tables.
///
/// # Errors
/// When a case fails.
pub fn embeddings<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    for compute in [Compute::F32, Compute::Bf16] {
        if !B::supports_dtype(device, compute.dtype()) {
            continue;
        }
        let table = weight::<B>(Held::Dense, [9, 5], compute, device);
        let all = values(table.dequantize(DType::F32));
        let ids = [3, 0, 8, 3];
        let expected: Vec<f64> = ids.iter().flat_map(|id| all[id * 5..(id + 1) * 5].to_vec()).collect();
        let got = values(embedding::embedding(&table, &ids.map(|id| id as u32)).cast(DType::F32));
        expect("embedding", got == expected)?;
    }
    let ids = [3, 0, 8, 3, 3];
    let rows = noise(ids.len() * 5, 4);
    let mut expected = vec![0.0; 9 * 5];
    for (row, id) in ids.iter().enumerate() {
        (0..5).for_each(|i| expected[*id as usize * 5 + i] += rows[row * 5 + i]);
    }
    let rows = rows.iter().map(|v| *v as f32).collect();
    let dout =
        Tensor::<B, 2>::from_data(TensorData::new::<f32, _>(rows, [ids.len(), 5]), (device, DType::F32));
    let got = values(embedding::embedding_gradient(dout, &ids, 9));
    expect("embedding gradient", relative_error(&got, &expected) < 1e-6)
}

/// AdamW over three steps, against its formula in f64; the norm of a gradient.
///
/// # Errors
/// When a case fails.
pub fn optimizers<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    let shape = [3, 19];
    let count = shape[0] * shape[1];
    let upload = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Tensor::<B, 2>::from_data(TensorData::new(values, shape), (device, DType::F32))
    };
    let mut expected = noise(count, 1);
    let (mut first, mut second) = (vec![0.0; count], vec![0.0; count]);
    let mut got = (upload(&expected), upload(&first), upload(&second));
    for step in 1..=3 {
        let grad = noise(count, 10 + step as u64);
        let numbers = AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        for i in 0..count {
            let g = grad[i] * 0.5;
            first[i] = 0.9 * first[i] + 0.1 * g;
            second[i] = 0.999 * second[i] + 0.001 * g * g;
            let m = first[i] / (1.0 - 0.9f64.powi(step as i32));
            let v = second[i] / (1.0 - 0.999f64.powi(step as i32));
            expected[i] = expected[i] * (1.0 - 0.01 * 0.1) - 0.01 * m / (v.sqrt() + 1e-8);
        }
        got = optimizer::adamw(got.0, upload(&grad), got.1, got.2, numbers);
    }
    expect("AdamW parameter", relative_error(&values(got.0), &expected) < 1e-6)?;
    expect("AdamW first moment", relative_error(&values(got.1), &first) < 1e-6)?;
    expect("AdamW second moment", relative_error(&values(got.2), &second) < 1e-6)?;
    let x = noise(count, 2);
    let squares: f64 = x.iter().chain(&expected).map(|v| v * v).sum();
    let found = optimizer::sum_of_squares(vec![upload(&x), upload(&expected)]);
    expect("sum of squares", (found / squares - 1.0).abs() < 1e-6)?;
    expect("sum of no squares", optimizer::sum_of_squares::<B, 2>(Vec::new()) == 0.0)?;
    optimizers_of_many::<B>(device)
}

/// Many tensors at once, of ragged sizes, more than a launch takes: as each of them alone.
fn optimizers_of_many<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    let upload = |values: &[f64]| {
        let shape = [1, values.len()];
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Tensor::<B, 2>::from_data(TensorData::new(values, shape), (device, DType::F32))
    };
    let values = |t: Tensor<B, 2>| t.into_data().iter::<f64>().collect::<Vec<_>>();
    let step = AdamWStep {
        learning_rate: 0.01,
        beta1: 0.8,
        beta2: 0.9,
        eps: 1e-6,
        weight_decay: 0.3,
        step: 2,
        grad_scale: 0.5,
    };
    let inputs: Vec<[Vec<f64>; 4]> = (0..37u64)
        .map(|i| {
            let count = 1 + (i as usize * 389) % 3001;
            let second = noise(count, 4 * i + 3).into_iter().map(f64::abs).collect();
            [noise(count, 4 * i), noise(count, 4 * i + 1), noise(count, 4 * i + 2), second]
        })
        .collect();
    let uploaded = || inputs.iter().map(|each| each.each_ref().map(|values| upload(values)));
    let together = optimizer::adamw_all(uploaded().collect(), step);
    for (number, (together, [param, grad, first, second])) in together.into_iter().zip(uploaded()).enumerate()
    {
        let (param, first, second) = optimizer::adamw(param, grad, first, second, step);
        for (name, together, alone) in [
            ("parameter", &together[0], param),
            ("first moment", &together[1], first),
            ("second moment", &together[2], second),
        ] {
            let error = relative_error(&values(together.clone()), &values(alone));
            expect(&format!("AdamW of many, {name} {number}"), error < 1e-6)?;
        }
    }
    let squares: f64 = inputs.iter().flat_map(|[param, ..]| param).map(|v| v * v).sum();
    let found = optimizer::sum_of_squares(uploaded().map(|[param, ..]| param).collect());
    expect("sum of squares of many", (found / squares - 1.0).abs() < 1e-6)
}

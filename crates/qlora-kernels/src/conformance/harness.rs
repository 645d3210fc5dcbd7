//! Runs a case: forward against the reference in f64, gradients against central differences.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};

use crate::KernelBackend;
use crate::weight::Compute;

/// A case of the suite.
pub trait Operation {
    /// What the case is, for messages.
    fn name(&self) -> String;

    /// Shapes of the inputs that are differentiated.
    fn inputs(&self) -> Vec<[usize; 2]>;

    /// The operation on any backend, in any float type of the inputs.
    fn apply<B: KernelBackend>(&self, inputs: &[Tensor<B, 2>], device: &B::Device) -> Tensor<B, 2>;
}

/// A case that did not agree with the reference.
#[derive(Debug, thiserror::Error)]
#[error("{case}: {what} is off by {error:.2e} relative to the reference, the bound is {bound:.0e}")]
pub struct Failure {
    /// The case.
    pub case: String,
    /// Forward pass or gradient.
    pub what: String,
    /// `‖got − expected‖ / ‖expected‖`.
    pub error: f64,
    /// What is allowed.
    pub bound: f64,
}

/// Numbers in `[-1, 1)`, the same on every machine.
pub(super) fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let draw = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(draw).collect()
}

/// `‖got − expected‖ / ‖expected‖`, infinite where `got` holds NaN.
///
/// A gradient can be zero (one key has all the attention whatever its score): below an average of a
/// hundredth the difference counts as such.
pub(super) fn relative_error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| (g - e) * (g - e)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    let error = (difference / norm.max(1e-4 * expected.len() as f64)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

pub(super) fn values<B: KernelBackend, const D: usize>(t: Tensor<B, D>) -> Vec<f64> {
    t.into_data().iter::<f64>().collect()
}

/// A tensor of these values; `strided` makes a transposed view of them.
pub(super) fn input<B: KernelBackend>(
    values: &[f64],
    [rows, cols]: [usize; 2],
    dtype: DType,
    strided: bool,
    device: &B::Device,
) -> Tensor<B, 2> {
    let make = |values: Vec<f64>, shape: [usize; 2]| {
        // Through f32, which is what every backend can upload.
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let data = match wide {
            DType::F64 => TensorData::new(values, shape),
            _ => TensorData::new(values.into_iter().map(|v| v as f32).collect::<Vec<_>>(), shape),
        };
        Tensor::<B, 2>::from_data(data, (device, wide)).cast(dtype)
    };
    if !strided {
        return make(values.to_vec(), [rows, cols]);
    }
    let transposed = (0..rows * cols).map(|i| values[(i % rows) * cols + i / rows]).collect();
    make(transposed, [cols, rows]).transpose()
}

/// How far a result may be from the reference.
pub(super) fn bound(compute: Compute) -> f64 {
    match compute {
        Compute::F32 => 2e-5,
        Compute::F16 => 4e-3,
        Compute::Bf16 => 2e-2,
    }
}

/// Checks one case on one backend.
///
/// # Errors
/// When the forward pass or a gradient is further from the reference than the type of the operation allows.
pub fn check<B: KernelBackend>(
    operation: &impl Operation,
    compute: Compute,
    device: &B::Device,
) -> Result<(), Failure> {
    let bound = bound(compute);
    let dtype = B::activation_dtype(compute);
    let shapes = operation.inputs();
    let inputs: Vec<Vec<f64>> = (0..shapes.len())
        // Every backend sees the same numbers: those that its type can hold.
        .map(|i| {
            noise(shapes[i][0] * shapes[i][1], i as u64 + 1).iter().map(|v| round(*v, compute)).collect()
        })
        .collect();
    let reference = |inputs: &[Vec<f64>]| {
        let tensors: Vec<Tensor<Flex, 2>> = inputs
            .iter()
            .zip(&shapes)
            .map(|(values, shape)| input(values, *shape, DType::F64, false, &FlexDevice))
            .collect();
        values(operation.apply::<Flex>(&tensors, &FlexDevice))
    };
    let expected = reference(&inputs);
    let fail = |what: String, error: f64| {
        if error <= bound { Ok(()) } else { Err(Failure { case: operation.name(), what, error, bound }) }
    };
    for strided in [false, true] {
        let tensors: Vec<Tensor<B, 2>> = inputs
            .iter()
            .zip(&shapes)
            .map(|(values, shape)| input(values, *shape, dtype, strided, device))
            .collect();
        let got = values(operation.apply::<B>(&tensors, device));
        let what = if strided { "the forward pass of strided inputs" } else { "the forward pass" };
        fail(what.into(), relative_error(&got, &expected))?;
    }

    // L = Σ out ⊙ r, with r random.
    let weights = noise(expected.len(), 99);
    let tensors: Vec<Tensor<Autodiff<B>, 2>> = inputs
        .iter()
        .zip(&shapes)
        .map(|(values, shape)| input(values, *shape, dtype, false, device).require_grad())
        .collect();
    let out = operation.apply::<Autodiff<B>>(&tensors, device);
    let r = input(&weights, out.dims(), out.dtype(), false, device);
    let grads = (out * r).sum().backward();
    for (index, tensor) in tensors.iter().enumerate() {
        let what = format!("the gradient of input {index}");
        let Some(grad) = tensor.grad(&grads) else {
            fail(format!("{what}, which is missing,"), f64::INFINITY)?;
            continue;
        };
        let grad = values(grad);
        let count = grad.len();
        let (mut got, mut numeric) = (Vec::new(), Vec::new());
        for coordinate in sample(count) {
            let value = |delta: f64| {
                let mut moved = inputs.clone();
                moved[index][coordinate] += delta;
                reference(&moved).iter().zip(&weights).map(|(o, w)| o * w).sum::<f64>()
            };
            const STEP: f64 = 1e-5;
            numeric.push((value(STEP) - value(-STEP)) / (2.0 * STEP));
            got.push(grad[coordinate]);
        }
        fail(what, relative_error(&got, &numeric))?;
    }
    Ok(())
}

/// Up to 24 coordinates, spread over all.
fn sample(count: usize) -> Vec<usize> {
    let stride = (count / 24).max(1) | 1;
    (0..count).step_by(stride).collect()
}

pub(super) fn round(value: f64, compute: Compute) -> f64 {
    match compute {
        Compute::F32 => f64::from(value as f32),
        Compute::Bf16 => half::bf16::from_f64(value).to_f64(),
        Compute::F16 => half::f16::from_f64(value).to_f64(),
    }
}

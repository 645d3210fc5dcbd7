//! Benchmarks on any backend: how long a call takes, and what a device can do at most.

use std::time::Instant;

use burn::tensor::{DType, Distribution, Tensor};
use qlora_core::burn;
use qlora_core::kernels::{Compute, FrozenWeight, KernelBackend, linear};

/// The default of this build: the fastest kind of device that it was compiled for.
#[must_use]
pub fn default_backend() -> &'static str {
    if cfg!(feature = "cuda") {
        "cuda"
    } else if cfg!(feature = "wgpu") {
        "vulkan"
    } else {
        "cpu"
    }
}

/// Seconds of one call of `run`, the median of `counted` samples, each of as many calls as fill some milliseconds.
pub fn seconds<B: KernelBackend>(device: &B::Device, counted: usize, mut run: impl FnMut()) -> f64 {
    let sync = || B::sync(device).expect("the device works");
    // The first call compiles kernels; it is not counted.
    run();
    sync();
    let start = Instant::now();
    run();
    sync();
    let once = start.elapsed().as_secs_f64();
    let calls = ((0.02 / once.max(1e-9)) as usize).clamp(1, 50);
    let mut samples: Vec<f64> = (0..counted)
        .map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|_| run());
            sync();
            start.elapsed().as_secs_f64() / calls as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// What a device does at most, measured: bytes a second of a copy, read and written, and operations a second of a
/// large product.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling {
    /// Bytes a second.
    pub bytes: f64,
    /// Floating-point operations a second.
    pub operations: f64,
}

impl Ceiling {
    /// Measures it, products in `compute`.
    pub fn measure<B: KernelBackend>(device: &B::Device, compute: Compute, large: bool) -> Self {
        let elements: usize = if large { 1 << 28 } else { 1 << 22 };
        let x = Tensor::<B, 1>::random([elements], Distribution::Default, (device, DType::F32));
        let time = seconds::<B>(device, 5, || drop(x.clone() + 1.0));
        let bytes = 8.0 * elements as f64 / time;
        let n = if large { 8192 } else { 512 };
        let dtype = B::activation_dtype(compute);
        let weight = Tensor::<B, 2>::random([n, n], Distribution::Uniform(-1.0, 1.0), (device, DType::F32));
        let weight = FrozenWeight::from_tensor(weight.cast(compute.dtype()), compute);
        let x = Tensor::<B, 2>::random([n, n], Distribution::Uniform(-1.0, 1.0), (device, DType::F32))
            .cast(dtype);
        let time = seconds::<B>(device, 5, || drop(linear(x.clone(), &weight, None, None)));
        Self { bytes, operations: 2.0 * (n as f64).powi(3) / time }
    }
}

//! CUDA C++ for NVIDIA GPUs, where it is faster than what CubeCL makes.
//!
//! The kernels are text, compiled by NVRTC on the machine where they run: nothing of CUDA is needed to build.
//! They are called from the CubeCL bodies, which stay the answer for every other device, type and size.

mod architecture;
mod attention;
mod linear;
mod optimizer;
mod products;
mod source;

use std::any::Any;

pub(crate) use attention::{BackwardInputs, attention_backward, attention_forward};
pub(crate) use linear::{Factors, forward, grad_input, logits, lora_grads};
pub(crate) use optimizer::{adamw, squares};

/// A value as what it is: `None` where the two types are different, as tensors of another runtime are.
fn same<A: 'static, B: 'static>(value: A) -> Option<B> {
    let mut slot = Some(value);
    (&mut slot as &mut dyn Any).downcast_mut::<Option<B>>().and_then(Option::take)
}

/// Whether a CUDA device is older than Ampere; `None` of any other device.
pub(crate) fn is_before_ampere<R: burn_cubecl::CubeRuntime>(device: &R::CubeDevice) -> Option<bool> {
    let device: cubecl_cuda::CudaDevice = same(device.clone())?;
    Some(architecture::architecture(&device) < 80)
}

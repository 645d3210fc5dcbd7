//! The conformance suite through Vulkan (or Metal), on whatever adapter there is, and proof that the kernels ran.
#![cfg(all(feature = "wgpu", feature = "flex"))]

use burn::tensor::Tensor;
use qlora_kernels::device::{GraphicsApi, wgpu};
use qlora_kernels::tier::{Tier, calls, forced};
use qlora_kernels::{Compute, KernelBackend, Wgpu, WgpuDevice};

/// The adapter; tests fail without one, since they would prove nothing.
fn device() -> WgpuDevice {
    let api = if cfg!(target_os = "macos") { GraphicsApi::Metal } else { GraphicsApi::Vulkan };
    let (device, info) = wgpu(api, None).expect("an adapter");
    println!("{info}");
    device
}

/// Types that this adapter computes in: bf16 is not among those of WGSL.
fn computes() -> Vec<Compute> {
    let all = [Compute::F32, Compute::F16, Compute::Bf16];
    all.into_iter().filter(|compute| Wgpu::computes_in(&device(), *compute)).collect()
}

mod conformance {
    use super::{Wgpu, computes, device};

    qlora_kernels::conformance!(Wgpu, device(), computes());
}

/// A kernel that does not compile gives zeros and no error: values are checked by the suite, the count here.
#[test]
fn conformance_is_of_cube_kernels() {
    if forced() == Some(Tier::Reference) {
        return;
    }
    let before = calls(Tier::Cube);
    let x = Tensor::<Wgpu, 2>::ones([4, 8], &device());
    assert_eq!(Wgpu::sum_of_squares(vec![x.into_primitive().tensor()]), 32.0);
    assert!(calls(Tier::Cube) > before);
}

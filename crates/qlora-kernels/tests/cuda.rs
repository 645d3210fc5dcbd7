//! The conformance suite on an NVIDIA GPU. Where there is none, every test says so and is ignored by name:
//! run them with `--ignored`.
#![cfg(all(feature = "cuda", feature = "flex"))]

use qlora_kernels::device::cuda;
use qlora_kernels::tier::{Tier, calls, forced};
use qlora_kernels::{Compute, Cuda, CudaDevice, KernelBackend};

fn device() -> CudaDevice {
    cuda(0).expect("a CUDA device").0
}

const COMPUTES: [Compute; 3] = [Compute::F32, Compute::Bf16, Compute::F16];

qlora_kernels::conformance!(
    #[ignore = "needs an NVIDIA GPU"]
    Cuda,
    device(),
    COMPUTES
);

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn conformance_is_of_cube_kernels() {
    if forced() == Some(Tier::Reference) {
        return;
    }
    let before = calls(Tier::Cube);
    let x = burn::tensor::Tensor::<Cuda, 2>::ones([4, 8], &device());
    assert_eq!(Cuda::sum_of_squares(vec![x.into_primitive().tensor()]), 32.0);
    assert!(calls(Tier::Cube) > before);
}

//! The conformance suite on an NVIDIA GPU. Where there is none, every test says so and is ignored by name:
//! run them with `--ignored`.
#![cfg(all(feature = "cuda", feature = "flex"))]

use qlora_kernels::conformance::{large_attentions, large_linears};
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

/// How many operations ran a body of this tier.
fn calls_of(tier: Tier, body: impl FnOnce()) -> usize {
    let before = calls(tier);
    body();
    calls(tier) - before
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn conformance_is_of_cube_kernels() {
    if forced() == Some(Tier::Reference) {
        return;
    }
    let x = burn::tensor::Tensor::<Cuda, 2>::ones([4, 8], &device());
    let counted = calls_of(Tier::Cube, || {
        assert_eq!(Cuda::sum_of_squares(vec![x.into_primitive().tensor()]), 32.0);
    });
    assert!(counted > 0);
}

/// The products and the attention of Hopper, at the sizes that they are made for, and proof that they ran.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn layers_of_real_sizes_agree_with_f32() {
    let (device, info) = cuda(0).expect("a CUDA device");
    let hopper = ["H100", "H200", "GH200"].iter().any(|name| info.name.contains(name));
    for compute in [Compute::Bf16, Compute::F16] {
        // Six updates have a rank that kernels are made for; all 32 attentions have a backward pass, half a forward one.
        let (linears, attentions) = if hopper { (7 + 7 + 6, 16 + 32) } else { (6, 32) };
        for (name, least, suite) in [
            ("linear layers", linears, large_linears::<Cuda> as fn(&CudaDevice, Compute) -> _),
            ("attention", attentions, large_attentions::<Cuda>),
        ] {
            let native = calls_of(Tier::Native, || suite(&device, compute).unwrap());
            println!("{name} in {compute:?}: {native} native kernels");
            assert!(forced().is_some() || native >= least, "{name}: {native} of {least} native kernels ran");
        }
    }
}

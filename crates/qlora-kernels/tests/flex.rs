//! The conformance suite on the CPU backend, and proof that the SIMD kernels ran.
#![cfg(feature = "flex")]

use qlora_kernels::tier::{Tier, calls};
use qlora_kernels::{Compute, Flex, FlexDevice, KernelBackend};

qlora_kernels::conformance!(Flex, FlexDevice, [Compute::F32, Compute::Bf16]);

/// Under `QLORA_KERNELS=reference` this test, and only this one, has nothing to see.
#[test]
fn native_bodies_run() {
    if qlora_kernels::tier::forced() == Some(Tier::Reference) {
        return;
    }
    let before = calls(Tier::Native);
    let x = burn::tensor::Tensor::<Flex, 2>::ones([4, 8], &FlexDevice);
    let squares = Flex::sum_of_squares(vec![x.into_primitive().tensor()]);
    assert_eq!(squares, 32.0);
    assert!(calls(Tier::Native) > before);
}

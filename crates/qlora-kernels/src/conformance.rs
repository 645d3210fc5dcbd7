//! One suite for every backend: [`conformance!`](crate::conformance!) makes its tests, one line a backend.
//!
//! A case is an operation with its sizes. Its forward pass is compared with the reference in f64 on the
//! CPU, its gradients with central differences of that reference, on inputs that are random, not zero,
//! contiguous and strided, of ragged sizes.

mod adamw8bit;
mod cases;
mod decoding;
mod harness;
mod large;

pub use adamw8bit::optimizers_8bit;
pub use cases::{
    activations, attentions, embeddings, gated_linears, linears, losses, norms, optimizers, quantized,
    rotations,
};
pub use decoding::{caches, paged_attentions, rotated_caches, samplings};
pub use harness::{Failure, Operation, check};
pub use large::{large_attentions, large_linears};

/// Makes the tests of one backend: `conformance!(Backend, device, [Compute::F32, Compute::Bf16])`.
///
/// Each checks one operation in each of the compute types, forward and backward. An attribute before the
/// backend is put on every test: `#[ignore = "needs a GPU"]`.
#[macro_export]
macro_rules! conformance {
    ($(#[$attribute:meta])* $backend:ty, $device:expr, $computes:expr) => {
        $crate::conformance!(@typed [$(#[$attribute])*] $backend, $device, $computes;
            linears gated_linears norms rotations activations attentions paged_attentions
            rotated_caches losses);
        $crate::conformance!(@plain [$(#[$attribute])*] $backend, $device;
            quantized embeddings optimizers optimizers_8bit caches samplings);
    };
    (@typed $attributes:tt $backend:ty, $device:expr, $computes:expr; $($name:ident)*) => {
        $($crate::conformance!(@test $attributes $name {
            for compute in $computes {
                $crate::conformance::$name::<$backend>(&$device, compute).unwrap();
            }
        });)*
    };
    (@plain $attributes:tt $backend:ty, $device:expr; $($name:ident)*) => {
        $($crate::conformance!(@test $attributes $name {
            $crate::conformance::$name::<$backend>(&$device).unwrap();
        });)*
    };
    (@test [$($attribute:tt)*] $name:ident $body:block) => {
        #[test]
        $($attribute)*
        fn $name() $body
    };
}

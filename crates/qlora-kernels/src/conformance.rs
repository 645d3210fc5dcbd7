//! One suite for every backend: [`conformance!`](crate::conformance!) makes its tests, one line a backend.
//!
//! A case is an operation with its sizes. Its forward pass is compared with the reference in f64 on the
//! CPU, its gradients with central differences of that reference, on inputs that are random, not zero,
//! contiguous and strided, of ragged sizes.

mod cases;
mod harness;

pub use cases::{
    activations, attentions, embeddings, linears, losses, norms, optimizers, quantized, rotations, rows,
};
pub use harness::{Failure, Operation, check};

/// Makes the tests of one backend: `conformance!(Backend, device, [Compute::F32, Compute::Bf16])`.
///
/// Each checks one operation in each of the compute types, forward and backward.
#[macro_export]
macro_rules! conformance {
    ($backend:ty, $device:expr, $computes:expr) => {
        $crate::conformance!(@tests $backend, $device, $computes;
            linears, norms, rotations, activations, attentions, losses);
        $crate::conformance!(@plain $backend, $device; quantized, embeddings, optimizers, rows);
    };
    (@tests $backend:ty, $device:expr, $computes:expr; $($name:ident),*) => {$(
        #[test]
        fn $name() {
            for compute in $computes {
                $crate::conformance::$name::<$backend>(&$device, compute).unwrap();
            }
        }
    )*};
    (@plain $backend:ty, $device:expr; $($name:ident),*) => {$(
        #[test]
        fn $name() {
            $crate::conformance::$name::<$backend>(&$device).unwrap();
        }
    )*};
}

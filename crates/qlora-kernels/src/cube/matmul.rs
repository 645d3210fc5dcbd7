//! Matrix products through cubek, by a strategy that is chosen and never tuned.
//!
//! Tuning measures every candidate on the first product of a shape: 95 s on an H100, in the middle of a
//! training step. Here f32 goes to the units' own arithmetic (tensor cores would round it to tf32), narrower types
//! to tensor cores where the device has them.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::tensors::empty;

/// The transposed view of a matrix.
pub(crate) fn transposed<R: CubeRuntime>(mut t: CubeTensor<R>) -> CubeTensor<R> {
    t.meta.swap(0, 1);
    t
}

/// `lhs rhs` of matrices of one type, either of them a view, in the given type. Accumulates in f32.
pub(crate) fn matmul<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let (rows, columns) = (lhs.shape()[0], rhs.shape()[1]);
    let out = empty(&lhs, [rows, columns], dtype);
    let client = lhs.client.clone();
    let launch = |strategy: &Strategy| {
        let mut types = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: lhs.dtype.into(),
            rhs: rhs.dtype.into(),
            out: dtype.into(),
        });
        launch_ref(
            strategy,
            &client,
            InputBinding::new(lhs.clone().binding(), lhs.dtype.into()),
            InputBinding::new(rhs.clone().binding(), rhs.dtype.into()),
            out.clone().binding(),
            &mut types,
        )
    };
    let first = match lhs.dtype {
        DType::F32 => Strategy::SimpleUnit(Default::default()),
        _ => Strategy::SimpleCyclicCmma(Default::default()),
    };
    let strategies = [first, Strategy::SimpleUnit(Default::default()), Strategy::Naive];
    let launched = strategies.iter().any(|strategy| launch(strategy).is_ok());
    assert!(launched, "the naive product takes any shape");
    out
}

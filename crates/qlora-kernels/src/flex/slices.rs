//! Flex tensors as slices.

use burn::tensor::{DType, Element, TensorData};
use burn_flex::FlexTensor;

pub(super) fn is_f32(t: &FlexTensor) -> bool {
    t.dtype() == DType::F32
}

/// The tensor as rows of memory: itself, or a copy of a view.
pub(super) fn rows(t: FlexTensor) -> FlexTensor {
    // The argument is gone when this returns, so that a tensor with one owner keeps one.
    t.to_contiguous()
}

/// The elements of a tensor that [`rows`] gave.
pub(super) fn elements<E: Element + bytemuck::Pod>(t: &FlexTensor) -> &[E] {
    t.as_slice().expect("rows of memory, of the type that was asked for")
}

pub(super) fn floats(t: &FlexTensor) -> &[f32] {
    elements(t)
}

/// A new tensor that `fill` writes, and what `fill` gives.
pub(super) fn zeros<const D: usize, T>(
    shape: [usize; D],
    fill: impl FnOnce(&mut [f32]) -> T,
) -> (FlexTensor, T) {
    let mut values = vec![0.0; shape.iter().product()];
    let given = fill(&mut values);
    (FlexTensor::from_data(TensorData::new(values, shape)), given)
}

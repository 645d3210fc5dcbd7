//! Handles, shapes and launch arguments of CubeCL tensors.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Rows in memory, one after the other, without padding: what all kernels take.
pub(crate) fn rows<R: CubeRuntime>(t: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(t)
}

/// An uninitialised tensor beside `like`. Contiguous by name: other constructors pad rows on CUDA.
pub(crate) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// A tensor of zeros beside `like`.
pub(crate) fn zeros<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    rows(zeros_client(like.client.clone(), like.device.clone(), shape.into(), dtype))
}

/// This tensor, or a copy where somebody else holds it too: what is updated in place.
pub(crate) fn own<R: CubeRuntime>(t: CubeTensor<R>) -> CubeTensor<R> {
    let t = rows(t);
    if t.can_mut() { t } else { rows(t.copy()) }
}

/// `[rows, columns]`.
pub(crate) fn dims<R: CubeRuntime>(t: &CubeTensor<R>) -> [usize; 2] {
    let shape = t.shape();
    [shape[0], shape[1]]
}

/// The elements of a contiguous tensor, as an argument of a kernel that takes vectors of `vector` elements.
pub(crate) fn array<R: CubeRuntime>(t: &CubeTensor<R>, vector: usize) -> ArrayArg<R> {
    let length = t.shape().num_elements() / vector;
    // SAFETY: the handle holds that many vectors: the tensor is contiguous.
    unsafe { ArrayArg::from_raw_parts(t.handle.clone(), length) }
}

/// Host words as an argument; at least one, since bindings can't be empty.
pub(crate) fn upload<R: CubeRuntime>(client: &ComputeClient<R>, words: &[u32]) -> ArrayArg<R> {
    let words = if words.is_empty() { &[0][..] } else { words };
    let handle = client.create_from_slice(u32::as_bytes(words));
    // SAFETY: the handle was made of these words.
    unsafe { ArrayArg::from_raw_parts(handle, words.len()) }
}

/// Host floats as an argument; at least one.
pub(crate) fn upload_floats<R: CubeRuntime>(client: &ComputeClient<R>, values: &[f32]) -> ArrayArg<R> {
    let values = if values.is_empty() { &[0.0][..] } else { values };
    let handle = client.create_from_slice(f32::as_bytes(values));
    // SAFETY: the handle was made of these values.
    unsafe { ArrayArg::from_raw_parts(handle, values.len()) }
}

/// Elements that a unit reads and writes at a time, for rows of this length.
pub(crate) fn vector_width(length: usize) -> usize {
    if length.is_multiple_of(4) { 4 } else { 1 }
}

/// Whether kernels exist for this float type.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether all of these are of types that kernels exist for.
pub(crate) fn are_floats<'a, R: CubeRuntime>(tensors: impl IntoIterator<Item = &'a CubeTensor<R>>) -> bool {
    tensors.into_iter().all(|t| is_float(t.dtype))
}

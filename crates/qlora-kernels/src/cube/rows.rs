//! Whole rows: lookups in a table, writes into a cache, the gradient of an embedding.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::elementwise::flat;
use super::tensors::{array, dims, empty, own, rows, upload, zeros};

#[cube(launch_unchecked)]
fn gather_kernel<S: Float, T: Float>(
    table: &Array<S>,
    ids: &Array<u32>,
    out: &mut Array<T>,
    count: usize,
    width: usize,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let row = ids[i / width] as usize;
        out[i] = T::cast_from(table[row * width + i % width]);
    }
}

/// Rows `ids` of a table, in the given type.
pub(crate) fn gather<R: CubeRuntime>(table: CubeTensor<R>, ids: &[u32], dtype: DType) -> CubeTensor<R> {
    let table = rows(table);
    let [_, width] = dims(&table);
    let out = empty(&table, [ids.len(), width], dtype);
    let elements = ids.len() * width;
    let (count, dim) = flat(&table.client, elements);
    // SAFETY: units beyond the elements do nothing; ids are below the number of rows.
    unsafe {
        gather_kernel::launch_unchecked::<R>(
            &table.client,
            count,
            dim,
            array(&table, 1),
            upload(&table.client, ids),
            array(&out, 1),
            elements,
            width,
            [table.dtype.into(), dtype.into()],
        );
    }
    out
}

#[cube(launch_unchecked)]
fn scatter_kernel<S: Float, T: Float>(
    source: &Array<S>,
    at: &Array<u32>,
    target: &mut Array<T>,
    count: usize,
    width: usize,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let row = at[i / width] as usize;
        target[row * width + i % width] = T::cast_from(source[i]);
    }
}

/// Writes rows at the given rows of `target`, in place where nobody else holds it.
pub(crate) fn scatter<R: CubeRuntime>(
    target: CubeTensor<R>,
    source: CubeTensor<R>,
    at: &[u32],
) -> CubeTensor<R> {
    let (target, source) = (own(target), rows(source));
    let [_, width] = dims(&target);
    let elements = at.len() * width;
    if elements == 0 {
        return target;
    }
    let (count, dim) = flat(&target.client, elements);
    // SAFETY: units beyond the elements do nothing; the rows exist.
    unsafe {
        scatter_kernel::launch_unchecked::<R>(
            &target.client,
            count,
            dim,
            array(&source, 1),
            upload(&target.client, at),
            array(&target, 1),
            elements,
            width,
            [source.dtype.into(), target.dtype.into()],
        );
    }
    target
}

/// A unit a feature of a distinct id: rows that share an id are summed in their order.
#[cube(launch_unchecked)]
fn embedding_gradient_kernel<T: Float>(
    dout: &Array<T>,
    order: &Array<u32>,
    segments: &Array<u32>,
    grad: &mut Array<f32>,
    count: usize,
    width: usize,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let segment = i / width * 3;
        let column = i % width;
        let id = segments[segment] as usize;
        let first = segments[segment + 1] as usize;
        let last = segments[segment + 2] as usize;
        let mut sum = 0.0f32;
        for at in first..last {
            sum += f32::cast_from(dout[order[at] as usize * width + column]);
        }
        grad[id * width + column] = sum;
    }
}

/// The gradient of a table `[vocabulary, width]` of which rows `ids` were looked up, f32.
pub(crate) fn embedding_gradient<R: CubeRuntime>(
    dout: CubeTensor<R>,
    ids: &[u32],
    vocabulary: usize,
) -> CubeTensor<R> {
    let dout = rows(dout);
    let width = dout.shape()[1];
    let grad = zeros(&dout, [vocabulary, width], DType::F32);
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|row| ids[*row as usize]);
    let mut segments: Vec<u32> = Vec::new();
    let mut start = 0;
    for rows in order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
        segments.extend([ids[rows[0] as usize], start, start + rows.len() as u32]);
        start += rows.len() as u32;
    }
    let elements = segments.len() / 3 * width;
    if elements == 0 {
        return grad;
    }
    let (count, dim) = flat(&dout.client, elements);
    // SAFETY: units beyond the elements do nothing; segments and order were made of the ids.
    unsafe {
        embedding_gradient_kernel::launch_unchecked::<R>(
            &dout.client,
            count,
            dim,
            array(&dout, 1),
            upload(&dout.client, &order),
            upload(&dout.client, &segments),
            array(&grad, 1),
            elements,
            width,
            dout.dtype.into(),
        );
    }
    grad
}

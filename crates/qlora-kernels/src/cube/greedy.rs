//! The likeliest token of each row of logits: one cube a row.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::norm::row_cubes;
use super::reduce::{UNITS, cube_max, cube_sum, scratch};
use super::tensors::{array, dims, empty, rows};

#[cube(launch_unchecked)]
fn greedy_kernel<T: Float>(
    logits: &Array<T>,
    found: &mut Array<f32>,
    vocabulary: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = scratch();
    let row = CUBE_POS as usize;
    let start = row * vocabulary;
    let mut most = f32::new(-1e30);
    let mut i = UNIT_POS as usize;
    while i < vocabulary {
        most = max(most, f32::cast_from(logits[start + i]));
        i += comptime!(UNITS as usize);
    }
    let most = cube_max(most, &mut shared);
    // The first of equals. Vocabularies are far below 2²⁴: an f32 holds every index.
    let mut first = f32::new(-16777216.0);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vocabulary {
        let logit = f32::cast_from(logits[start + i]);
        sum += f32::exp(logit - most);
        if logit >= most {
            first = max(first, -f32::cast_from(i));
        }
        i += comptime!(UNITS as usize);
    }
    let first = cube_max(first, &mut shared);
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        found[row * 2] = -first;
        found[row * 2 + 1] = -f32::ln(sum);
    }
}

pub(super) fn greedy<R: CubeRuntime>(logits: CubeTensor<R>) -> Vec<(u32, f32)> {
    let logits = rows(logits);
    let [count, vocabulary] = dims(&logits);
    if count == 0 {
        return Vec::new();
    }
    let found = empty(&logits, [count, 2], DType::F32);
    // SAFETY: a cube a row, indices below the vocabulary.
    unsafe {
        greedy_kernel::launch_unchecked::<R>(
            &logits.client,
            row_cubes(count),
            CubeDim::new_1d(UNITS),
            array(&logits, 1),
            array(&found, 1),
            vocabulary,
            logits.dtype.into(),
        );
    }
    let bytes = found.client.read_one_unchecked(found.handle);
    f32::from_bytes(&bytes).chunks_exact(2).map(|found| (found[0] as u32, found[1])).collect()
}

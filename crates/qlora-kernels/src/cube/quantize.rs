//! NF4 codes and scales from floats, on the device: a unit a block of weights.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::elementwise::flat;
use super::tables::Table;
use super::tensors::{array, empty, rows};

const LEVELS: usize = 16;
const WORD: usize = 8;

#[cube(launch_unchecked)]
fn quantize_kernel<T: Float>(
    values: &Array<T>,
    thresholds: &Array<f32>,
    codes: &mut Array<u32>,
    absmax: &mut Array<f32>,
    count: usize,
    blocks: usize,
    #[comptime] block_size: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut limits = SharedMemory::<f32>::new(comptime!(LEVELS));
    if UNIT_POS < comptime!(LEVELS as u32 - 1) {
        limits[UNIT_POS as usize] = thresholds[UNIT_POS as usize];
    }
    sync_cube();
    let block = ABSOLUTE_POS;
    if block < blocks {
        let start = block * comptime!(block_size);
        let mut most = 0.0f32;
        for i in 0..comptime!(block_size) {
            if start + i < count {
                most = max(most, f32::abs(f32::cast_from(values[start + i])));
            }
        }
        absmax[block] = most;
        let reciprocal = 1.0f32 / most;
        for word in 0..comptime!(block_size / WORD) {
            let first = start + word * comptime!(WORD);
            if first < count {
                let mut packed = 0u32;
                #[unroll]
                for e in 0..comptime!(WORD) {
                    // The code of zero: what pads the last word of an odd count, and a block of zeros.
                    let mut code = 7u32;
                    if first + e < count && most > 0.0f32 {
                        let x = f32::cast_from(values[first + e]) * reciprocal;
                        code = 0u32;
                        for level in 0..comptime!(LEVELS - 1) {
                            if x > limits[level] {
                                code += 1u32;
                            }
                        }
                    }
                    if first + (e / 2) * 2 < count {
                        packed |= code << comptime!((8 * (e / 2) + 4 * (1 - e % 2)) as u32);
                    }
                }
                codes[first / comptime!(WORD)] = packed;
            }
        }
    }
}

/// Codes (U32 words) and scales of a matrix, read row by row in blocks.
pub(super) fn quantize<R: CubeRuntime>(
    values: CubeTensor<R>,
    block_size: usize,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let values = rows(values);
    let count = values.shape().num_elements();
    let blocks = count.div_ceil(block_size);
    let codes = empty(&values, [count.div_ceil(WORD)], DType::U32);
    let absmax = empty(&values, [blocks], DType::F32);
    let (cubes, dim) = flat(&values.client, blocks);
    // SAFETY: units beyond the blocks do nothing, nor do elements beyond the count.
    unsafe {
        quantize_kernel::launch_unchecked::<R>(
            &values.client,
            cubes,
            dim,
            array(&values, 1),
            Table::Nf4Thresholds.argument(&values),
            array(&codes, 1),
            array(&absmax, 1),
            count,
            blocks,
            block_size,
            values.dtype.into(),
        );
    }
    (codes, absmax)
}

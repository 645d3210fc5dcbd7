//! The fused update of AdamW, and the norm of gradients.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::elementwise::flat;
use super::norm::row_cubes;
use super::reduce::{UNITS, cube_max, cube_sum, scratch};
use super::tables::Table;
use super::tensors::{array, empty, own, rows};
use crate::optimizer::AdamWStep;
use crate::quantized8::BLOCK;

/// The constants of one step, in f32.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Constants {
    beta1: f32,
    beta2: f32,
    eps: f32,
    /// `1 − lr · weight_decay`.
    decay: f32,
    /// `lr / (1 − β₁ᵗ)`.
    rate: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    correction: f32,
    grad_scale: f32,
}

#[cube(launch_unchecked)]
fn adamw_kernel(
    param: &mut Array<f32>,
    grad: &Array<f32>,
    first: &mut Array<f32>,
    second: &mut Array<f32>,
    constants: Constants,
    count: usize,
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let g = grad[i] * constants.grad_scale;
        let m = constants.beta1 * first[i] + (1.0f32 - constants.beta1) * g;
        let v = constants.beta2 * second[i] + (1.0f32 - constants.beta2) * g * g;
        first[i] = m;
        second[i] = v;
        let denominator = f32::sqrt(v) * constants.correction + constants.eps;
        param[i] = param[i] * constants.decay - constants.rate * m / denominator;
    }
}

/// β₁, β₂, ε, the decay, the rate, the correction and the scale of gradients: [`Constants`] in their order.
fn numbers(step: AdamWStep) -> [f32; 7] {
    let t = i32::try_from(step.step).unwrap_or(i32::MAX);
    let (correction1, correction2) = (1.0 - step.beta1.powi(t), 1.0 - step.beta2.powi(t));
    [
        step.beta1,
        step.beta2,
        step.eps,
        1.0 - step.learning_rate * step.weight_decay,
        step.learning_rate / correction1,
        1.0 / correction2.sqrt(),
        step.grad_scale,
    ]
    .map(|number| number as f32)
}

fn constants<R: CubeRuntime>(step: AdamWStep) -> ConstantsLaunch<R> {
    let [beta1, beta2, eps, decay, rate, correction, grad_scale] = numbers(step);
    ConstantsLaunch::new(beta1, beta2, eps, decay, rate, correction, grad_scale)
}

/// One step, in place where nobody else holds the tensors.
pub(super) fn adamw<R: CubeRuntime>(
    param: CubeTensor<R>,
    grad: CubeTensor<R>,
    first: CubeTensor<R>,
    second: CubeTensor<R>,
    step: AdamWStep,
) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
    let (param, grad, first, second) = (own(param), rows(grad), own(first), own(second));
    let elements = param.shape().num_elements();
    let (count, dim) = flat(&param.client, elements);
    // SAFETY: units beyond the elements do nothing; all are of one length.
    unsafe {
        adamw_kernel::launch_unchecked::<R>(
            &param.client,
            count,
            dim,
            array(&param, 1),
            array(&grad, 1),
            array(&first, 1),
            array(&second, 1),
            constants(step),
            elements,
        );
    }
    (param, first, second)
}

/// One step on all of `[param, grad, first, second]`, many to a launch, in place where nobody else holds the tensors;
/// the tensors themselves where no kernel does that.
#[cfg(feature = "cuda")]
pub(super) fn adamw_all<R: CubeRuntime>(
    tensors: Vec<[CubeTensor<R>; 4]>,
    step: AdamWStep,
) -> Result<Vec<[CubeTensor<R>; 3]>, Vec<[CubeTensor<R>; 4]>> {
    let mine =
        |[param, grad, first, second]: [CubeTensor<R>; 4]| [own(param), rows(grad), own(first), own(second)];
    let tensors: Vec<_> = tensors.into_iter().map(mine).collect();
    if !crate::cuda::adamw(&tensors, numbers(step)) {
        return Err(tensors);
    }
    Ok(tensors.into_iter().map(|[param, _, first, second]| [param, first, second]).collect())
}

/// Words of a block of 8-bit codes.
const WORDS: usize = BLOCK / 4;
/// Values of a dynamic map.
const CODES: usize = 256;

/// The value of the element of a block that this unit owns.
#[cube]
fn moment(codes: &Array<u32>, absmax: &Array<f32>, maps: &SharedMemory<f32>, #[comptime] map: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let block = CUBE_POS as usize;
    let word = codes[block * comptime!(WORDS) + unit / 4];
    let code = (word >> (8 * (unit % 4) as u32)) & 255u32;
    maps[comptime!(map * CODES) + code as usize] * absmax[block]
}

/// Writes the nearest codes of a block, and its scale. `keep_sign`: a negative number does not become zero.
#[cube]
fn store_moment(
    value: f32,
    codes: &mut Array<u32>,
    absmax: &mut Array<f32>,
    maps: &SharedMemory<f32>,
    packed: &mut SharedMemory<u32>,
    shared: &mut SharedMemory<f32>,
    words: usize,
    inside: bool,
    #[comptime] map: usize,
    #[comptime] keep_sign: bool,
) {
    let unit = UNIT_POS as usize;
    let block = CUBE_POS as usize;
    let scale = cube_max(f32::abs(value), shared);
    let mut x = 0.0f32;
    if scale > 0.0f32 {
        x = value / scale;
    }
    // The map ascends: the last of its values that is not above x, then the nearer of it and the next.
    let first = comptime!(map * CODES);
    let mut low = 0u32;
    let mut step = 128u32;
    for _ in 0..8u32 {
        if maps[first + (low + step) as usize] <= x {
            low += step;
        }
        step /= 2u32;
    }
    let mut code = low;
    if low < 255u32 && maps[first + low as usize + 1] - x < x - maps[first + low as usize] {
        code = low + 1;
    }
    if keep_sign {
        if x < 0.0f32 && maps[first + code as usize] >= 0.0f32 {
            code -= 1u32;
        }
    }
    if !inside {
        code = 0u32;
    }
    sync_cube();
    packed[unit] = code << (8 * (unit % 4) as u32);
    sync_cube();
    if unit < comptime!(WORDS) && block * comptime!(WORDS) + unit < words {
        codes[block * comptime!(WORDS) + unit] =
            packed[unit * 4] | packed[unit * 4 + 1] | packed[unit * 4 + 2] | packed[unit * 4 + 3];
    }
    if unit == 0 {
        absmax[block] = scale;
    }
}

/// One cube a block of 256 elements, a unit an element.
#[cube(launch_unchecked)]
fn adamw8bit_kernel(
    param: &mut Array<f32>,
    grad: &Array<f32>,
    first_codes: &mut Array<u32>,
    first_absmax: &mut Array<f32>,
    second_codes: &mut Array<u32>,
    second_absmax: &mut Array<f32>,
    maps: &Array<f32>,
    constants: Constants,
    count: usize,
) {
    let mut shared = scratch();
    let mut table = SharedMemory::<f32>::new(comptime!(2 * CODES));
    let mut packed = SharedMemory::<u32>::new(comptime!(BLOCK));
    let unit = UNIT_POS as usize;
    table[unit] = maps[unit];
    table[unit + comptime!(CODES)] = maps[unit + comptime!(CODES)];
    sync_cube();
    let i = CUBE_POS as usize * comptime!(BLOCK) + unit;
    let inside = i < count;
    let mut m = 0.0f32;
    let mut v = 0.0f32;
    if inside {
        let g = grad[i] * constants.grad_scale;
        // Exponent bits: comparisons with NaN are not to be relied on in every shading language.
        let finite = (u32::reinterpret(g) & 0x7f80_0000u32) != 0x7f80_0000u32;
        if finite {
            m = constants.beta1 * moment(first_codes, first_absmax, &table, 0usize)
                + (1.0f32 - constants.beta1) * g;
            v = constants.beta2 * moment(second_codes, second_absmax, &table, 1usize)
                + (1.0f32 - constants.beta2) * g * g;
            let denominator = f32::sqrt(v) * constants.correction + constants.eps;
            param[i] = (param[i] - constants.rate * m / denominator) * constants.decay;
        }
    }
    // Every unit has read the old codes before the new ones are written: `cube_max` waits for all.
    let words = (count + 3) / 4;
    store_moment(m, first_codes, first_absmax, &table, &mut packed, &mut shared, words, inside, 0usize, true);
    store_moment(
        v,
        second_codes,
        second_absmax,
        &table,
        &mut packed,
        &mut shared,
        words,
        inside,
        1usize,
        false,
    );
}

/// One step with 8-bit moments, in place where nobody else holds the tensors. Moments are codes and scales.
pub(super) fn adamw8bit<R: CubeRuntime>(
    param: CubeTensor<R>,
    grad: CubeTensor<R>,
    first: [CubeTensor<R>; 2],
    second: [CubeTensor<R>; 2],
    step: AdamWStep,
) -> (CubeTensor<R>, [CubeTensor<R>; 2], [CubeTensor<R>; 2]) {
    let (param, grad) = (own(param), rows(grad));
    let (first, second) = (first.map(own), second.map(own));
    let count = param.shape().num_elements();
    if count == 0 {
        return (param, first, second);
    }
    // SAFETY: a cube a block, units beyond the elements touch no element.
    unsafe {
        adamw8bit_kernel::launch_unchecked::<R>(
            &param.client,
            row_cubes(count.div_ceil(BLOCK)),
            CubeDim::new_1d(UNITS),
            array(&param, 1),
            array(&grad, 1),
            array(&first[0], 1),
            array(&first[1], 1),
            array(&second[0], 1),
            array(&second[1], 1),
            Table::Moments.argument(&param),
            constants(step),
            count,
        );
    }
    (param, first, second)
}

/// Cubes that share one tensor.
const CUBES: usize = 32;

#[cube(launch_unchecked)]
fn squares_kernel(x: &Array<f32>, partial: &mut Array<f32>, count: usize, at: usize) {
    let mut shared = scratch();
    let mut sum = 0.0f32;
    let mut i = ABSOLUTE_POS;
    while i < count {
        sum += x[i] * x[i];
        i += comptime!(CUBES * UNITS as usize);
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        partial[at + CUBE_POS as usize] = sum;
    }
}

/// `Σ x²` of all tensors together: one read for all.
pub(super) fn sum_of_squares<R: CubeRuntime>(tensors: Vec<CubeTensor<R>>) -> f64 {
    let tensors: Vec<_> = tensors.into_iter().map(rows).collect();
    let Some(first) = tensors.first() else { return 0.0 };
    let client = first.client.clone();
    #[cfg(feature = "cuda")]
    if let Some(partial) = crate::cuda::squares(&tensors) {
        return total(&client, partial);
    }
    let partial = empty(first, [tensors.len() * CUBES], DType::F32);
    for (index, tensor) in tensors.into_iter().enumerate() {
        // SAFETY: units beyond the elements add nothing; a slot a cube.
        unsafe {
            squares_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static(CUBES as u32, 1, 1),
                CubeDim::new_1d(UNITS),
                array(&tensor, 1),
                array(&partial, 1),
                tensor.shape().num_elements(),
                index * CUBES,
            );
        }
    }
    total(&client, partial)
}

/// The sum of partial sums, on the host.
fn total<R: CubeRuntime>(client: &ComputeClient<R>, partial: CubeTensor<R>) -> f64 {
    let bytes = client.read_one_unchecked(partial.handle);
    f32::from_bytes(&bytes).iter().map(|sum| f64::from(*sum)).sum()
}

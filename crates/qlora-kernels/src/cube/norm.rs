//! RMSNorm, forward and backward: one cube a row.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::reduce::{UNITS, cube_sum, scratch};
use super::tensors::{array, dims, empty, is_float, rows, vector_width};
use crate::norm::RmsNormOptions;

/// What the forward kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Variant {
    /// `delta` is added first, and the sum written.
    add: bool,
    /// The rows are also written in the type of the result.
    keep: bool,
    unit_offset: bool,
}

/// One kernel with and without the addition, so that both give the same bits.
#[cube(launch_unchecked)]
fn forward_kernel<S: Float, T: Float, N: Size>(
    x: &Array<Vector<S, N>>,
    delta: &Array<Vector<T, N>>,
    weight: &Array<Vector<f32, N>>,
    sum: &mut Array<Vector<S, N>>,
    kept: &mut Array<Vector<T, N>>,
    y: &mut Array<Vector<T, N>>,
    rstd: &mut Array<f32>,
    width: usize,
    eps: f32,
    #[comptime] variant: Variant,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let mut shared = scratch();
    let row = CUBE_POS as usize;
    let vectors = width / N::value();
    let start = row * vectors;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let mut v = Vector::<f32, N>::cast_from(x[start + i]);
        if comptime!(variant.add) {
            let rounded = Vector::<S, N>::cast_from(v + Vector::<f32, N>::cast_from(delta[start + i]));
            sum[start + i] = rounded;
            v = Vector::<f32, N>::cast_from(rounded);
        }
        if comptime!(variant.keep) {
            kept[start + i] = Vector::cast_from(v);
        }
        let square = v * v;
        #[unroll]
        for lane in 0..N::value() {
            squares += square[lane];
        }
        i += comptime!(UNITS as usize);
    }
    let mean = cube_sum(squares, &mut shared) / f32::cast_from(width);
    let scale = 1.0f32 / f32::sqrt(mean + eps);
    if UNIT_POS == 0 {
        rstd[row] = scale;
    }
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let mut v = Vector::<f32, N>::cast_from(x[start + i]);
        if comptime!(variant.add) {
            // What this unit wrote.
            v = Vector::<f32, N>::cast_from(sum[start + i]);
        }
        let w = factor::<N>(weight[i], comptime!(variant.unit_offset));
        y[start + i] = Vector::cast_from(v * Vector::<f32, N>::new(scale) * w);
        i += comptime!(UNITS as usize);
    }
}

/// The weight, or one more.
#[cube]
fn factor<N: Size>(weight: Vector<f32, N>, #[comptime] unit_offset: bool) -> Vector<f32, N> {
    if unit_offset { weight + Vector::<f32, N>::new(1.0f32) } else { weight }
}

#[cube(launch_unchecked)]
fn backward_kernel<T: Float, S: Float, N: Size>(
    dy: &Array<Vector<T, N>>,
    x: &Array<Vector<T, N>>,
    weight: &Array<Vector<f32, N>>,
    rstd: &Array<f32>,
    dx: &mut Array<Vector<S, N>>,
    width: usize,
    #[comptime] unit_offset: bool,
    #[define(T, S)] _dtypes: [StorageType; 2],
) {
    let mut shared = scratch();
    let row = CUBE_POS as usize;
    let vectors = width / N::value();
    let start = row * vectors;
    let scale = Vector::<f32, N>::new(rstd[row]);
    let mut dot = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let n = Vector::<f32, N>::cast_from(x[start + i]) * scale;
        let g = Vector::<f32, N>::cast_from(dy[start + i]) * factor::<N>(weight[i], unit_offset);
        let product = g * n;
        #[unroll]
        for lane in 0..N::value() {
            dot += product[lane];
        }
        i += comptime!(UNITS as usize);
    }
    let mean = Vector::<f32, N>::new(cube_sum(dot, &mut shared) / f32::cast_from(width));
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let n = Vector::<f32, N>::cast_from(x[start + i]) * scale;
        let g = Vector::<f32, N>::cast_from(dy[start + i]) * factor::<N>(weight[i], unit_offset);
        dx[start + i] = Vector::cast_from(scale * (g - n * mean));
        i += comptime!(UNITS as usize);
    }
}

/// The gradient of the weight: a unit a column, rows in order.
#[cube(launch_unchecked)]
fn weight_kernel<T: Float>(
    dy: &Array<T>,
    x: &Array<T>,
    rstd: &Array<f32>,
    dweight: &mut Array<f32>,
    rows: usize,
    width: usize,
    #[define(T)] _dtype: StorageType,
) {
    let column = ABSOLUTE_POS;
    if column < width {
        let mut sum = 0.0f32;
        for row in 0..rows {
            let at = row * width + column;
            sum += f32::cast_from(dy[at]) * f32::cast_from(x[at]) * rstd[row];
        }
        dweight[column] = sum;
    }
}

/// What the forward pass gives.
pub(super) struct Forward<R: CubeRuntime> {
    /// What was normalised: `x`, or its sum with `delta`.
    pub(super) sum: CubeTensor<R>,
    pub(super) y: CubeTensor<R>,
    /// What was normalised in the type of `y`; without a backward pass in its own.
    pub(super) kept: CubeTensor<R>,
    pub(super) rstd: CubeTensor<R>,
}

/// Whether [`forward`] takes this.
pub(super) fn fits<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    options: RmsNormOptions,
) -> bool {
    is_float(x.dtype) && is_float(options.output) && weight.dtype == DType::F32
}

/// Normalises `x`, or the sum of `x` and `delta`, which is of the type of the result. `trained`: there will be a
/// backward pass.
pub(super) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    delta: Option<CubeTensor<R>>,
    weight: CubeTensor<R>,
    options: RmsNormOptions,
    trained: bool,
) -> Forward<R> {
    let (x, weight, delta) = (rows(x), rows(weight), delta.map(rows));
    let [count, width] = dims(&x);
    let (y, rstd) = (empty(&x, [count, width], options.output), empty(&x, [count], DType::F32));
    let vector = vector_width(width);
    // What is not used is bound all the same, to something of its own.
    let unused = |dtype| empty(&x, [1, vector], dtype);
    let keep = trained && x.dtype != options.output;
    let sum = if delta.is_some() { empty(&x, [count, width], x.dtype) } else { unused(x.dtype) };
    let kept = if keep { empty(&x, [count, width], options.output) } else { unused(options.output) };
    let variant = Variant { add: delta.is_some(), keep, unit_offset: options.unit_offset };
    let added = delta.clone().unwrap_or_else(|| unused(options.output));
    // SAFETY: a cube a row, and every index below the width.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &x.client,
            row_cubes(count),
            CubeDim::new_1d(UNITS),
            vector,
            array(&x, vector),
            array(&added, vector),
            array(&weight, vector),
            array(&sum, vector),
            array(&kept, vector),
            array(&y, vector),
            array(&rstd, 1),
            width,
            options.eps,
            variant,
            [x.dtype.into(), options.output.into()],
        );
    }
    let sum = if delta.is_some() { sum } else { x };
    let kept = if keep { kept } else { sum.clone() };
    Forward { sum, y, kept, rstd }
}

/// Gradients of the rows, in type `dtype`, and of the weight. `x` are the rows that were kept.
pub(super) fn backward<R: CubeRuntime>(
    dy: CubeTensor<R>,
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    rstd: CubeTensor<R>,
    dtype: DType,
    options: RmsNormOptions,
    weight_grad: bool,
) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
    let [dy, x, weight, rstd] = [dy, x, weight, rstd].map(rows);
    let [count, width] = dims(&x);
    let dx = empty(&x, [count, width], dtype);
    let vector = vector_width(width);
    // SAFETY: as in the forward pass.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &x.client,
            row_cubes(count),
            CubeDim::new_1d(UNITS),
            vector,
            array(&dy, vector),
            array(&x, vector),
            array(&weight, vector),
            array(&rstd, 1),
            array(&dx, vector),
            width,
            options.unit_offset,
            [x.dtype.into(), dtype.into()],
        );
    }
    let dweight = weight_grad.then(|| {
        let dweight = empty(&x, [width], DType::F32);
        let dim = CubeDim::new_1d(64);
        // SAFETY: units beyond the width do nothing.
        unsafe {
            weight_kernel::launch_unchecked::<R>(
                &x.client,
                CubeCount::Static(width.div_ceil(64) as u32, 1, 1),
                dim,
                array(&dy, 1),
                array(&x, 1),
                array(&rstd, 1),
                array(&dweight, 1),
                count,
                width,
                x.dtype.into(),
            );
        }
        dweight
    });
    (dx, dweight)
}

/// One cube for each of `count` rows, folded where the first dimension is not long enough for them.
pub(super) fn row_cubes(count: usize) -> CubeCount {
    const LONGEST: usize = 65_535;
    if count <= LONGEST {
        return CubeCount::Static(count as u32, 1, 1);
    }
    // The smallest fold that divides: kernels do not expect a cube more than rows.
    let fold = (count.div_ceil(LONGEST)..=count).find(|fold| count.is_multiple_of(*fold)).unwrap_or(count);
    CubeCount::Static((count / fold) as u32, fold as u32, 1)
}

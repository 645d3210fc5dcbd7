//! RMSNorm, forward and backward: one cube a row.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::reduce::{UNITS, cube_sum, scratch};
use super::tensors::{array, dims, empty, rows, vector_width};
use crate::norm::RmsNormOptions;

#[cube(launch_unchecked)]
fn forward_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    weight: &Array<Vector<f32, N>>,
    y: &mut Array<Vector<T, N>>,
    rstd: &mut Array<f32>,
    width: usize,
    eps: f32,
    #[comptime] unit_offset: bool,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = scratch();
    let row = CUBE_POS as usize;
    let vectors = width / N::value();
    let start = row * vectors;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
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
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        let w = factor::<N>(weight[i], unit_offset);
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
fn backward_kernel<T: Float, N: Size>(
    dy: &Array<Vector<T, N>>,
    x: &Array<Vector<T, N>>,
    weight: &Array<Vector<f32, N>>,
    rstd: &Array<f32>,
    dx: &mut Array<Vector<T, N>>,
    width: usize,
    #[comptime] unit_offset: bool,
    #[define(T)] _dtype: StorageType,
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

pub(super) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    options: RmsNormOptions,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (x, weight) = (rows(x), rows(weight));
    let [count, width] = dims(&x);
    let (y, rstd) = (empty(&x, [count, width], x.dtype), empty(&x, [count], DType::F32));
    let vector = vector_width(width);
    // SAFETY: a cube a row, and every index below the width.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &x.client,
            row_cubes(count),
            CubeDim::new_1d(UNITS),
            vector,
            array(&x, vector),
            array(&weight, vector),
            array(&y, vector),
            array(&rstd, 1),
            width,
            options.eps,
            options.unit_offset,
            x.dtype.into(),
        );
    }
    (y, rstd)
}

pub(super) fn backward<R: CubeRuntime>(
    dy: CubeTensor<R>,
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    rstd: CubeTensor<R>,
    options: RmsNormOptions,
    weight_grad: bool,
) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
    let [dy, x, weight, rstd] = [dy, x, weight, rstd].map(rows);
    let [count, width] = dims(&x);
    let dx = empty(&x, [count, width], x.dtype);
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
            x.dtype.into(),
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

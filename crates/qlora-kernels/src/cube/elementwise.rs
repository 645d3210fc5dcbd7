//! Operations on one element, or one pair, at a time: rotary embedding, gated activations, casts.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

use super::tensors::{array, dims, empty, own, rows, vector_width};
use crate::activation::Activation;

/// Cubes and units for so many independent units.
pub(super) fn flat<R: CubeRuntime>(client: &ComputeClient<R>, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(256);
    (calculate_cube_count_elemwise(client, units, dim), dim)
}

#[cube(launch_unchecked)]
fn rope_kernel<T: Float>(
    x: &mut Array<T>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    pairs: usize,
    heads: usize,
    half: usize,
    #[comptime] inverse: bool,
    #[define(T)] _dtype: StorageType,
) {
    let pair = ABSOLUTE_POS;
    if pair < pairs {
        let i = pair % half;
        let head = pair / half;
        let angle = (head / heads) * half + i;
        let c = cos[angle];
        let mut s = sin[angle];
        if inverse {
            s = -s;
        }
        let first = head * half * 2 + i;
        let second = first + half;
        let a = f32::cast_from(x[first]);
        let b = f32::cast_from(x[second]);
        x[first] = T::cast_from(a * c - b * s);
        x[second] = T::cast_from(b * c + a * s);
    }
}

/// Rotates in place where nobody else holds the rows, else on a copy.
pub(super) fn rope<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    inverse: bool,
) -> CubeTensor<R> {
    let (x, cos, sin) = (own(x), rows(cos), rows(sin));
    let [tokens, width] = dims(&x);
    let half = dims(&cos)[1];
    let pairs = tokens * width / 2;
    let (count, dim) = flat(&x.client, pairs);
    // SAFETY: units beyond the pairs do nothing.
    unsafe {
        rope_kernel::launch_unchecked::<R>(
            &x.client,
            count,
            dim,
            array(&x, 1),
            array(&cos, 1),
            array(&sin, 1),
            pairs,
            width / (2 * half),
            half,
            inverse,
            x.dtype.into(),
        );
    }
    x
}

const TANH_FACTOR: f32 = 0.797_884_56; // √(2/π)
const TANH_CUBIC: f32 = 0.044_715;
const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// `tanh`, by exponentials: the built-in one of some drivers overflows to NaN.
#[cube]
pub(super) fn tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let limit = Vector::<f32, N>::new(15.0f32);
    // The negation of a vector is a compile error on CUDA (cubecl 0.10 negates the struct): not used in this file.
    let clamped = min(max(x, Vector::<f32, N>::new(0.0f32) - limit), limit);
    let e = Vector::exp(clamped * Vector::<f32, N>::new(2.0f32));
    (e - one) / (e + one)
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + Vector::exp(Vector::<f32, N>::new(0.0f32) - x))
}

#[cube]
fn inner_tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    tanh::<N>(
        (x + x * x * x * Vector::<f32, N>::new(comptime!(TANH_CUBIC)))
            * Vector::<f32, N>::new(comptime!(TANH_FACTOR)),
    )
}

#[cube]
fn activate<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let half = Vector::<f32, N>::new(0.5f32);
    match activation {
        Activation::Silu => x * sigmoid::<N>(x),
        Activation::GeluErf => {
            x * half * (one + Vector::erf(x * Vector::<f32, N>::new(comptime!(FRAC_1_SQRT_2))))
        }
        Activation::GeluTanh => x * half * (one + inner_tanh::<N>(x)),
    }
}

#[cube]
fn derivative<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let half = Vector::<f32, N>::new(0.5f32);
    match activation {
        Activation::Silu => {
            let s = sigmoid::<N>(x);
            s * (one + x * (one - s))
        }
        Activation::GeluErf => {
            let density = Vector::exp(Vector::<f32, N>::new(0.0f32) - x * x * half)
                * Vector::<f32, N>::new(comptime!(FRAC_1_SQRT_2PI));
            (one + Vector::erf(x * Vector::<f32, N>::new(comptime!(FRAC_1_SQRT_2)))) * half + x * density
        }
        Activation::GeluTanh => {
            let t = inner_tanh::<N>(x);
            let slope = (one + x * x * Vector::<f32, N>::new(comptime!(3.0 * TANH_CUBIC)))
                * Vector::<f32, N>::new(comptime!(TANH_FACTOR));
            (one + t) * half + x * half * (one - t * t) * slope
        }
    }
}

#[cube(launch_unchecked)]
fn gated_kernel<T: Float, N: Size>(
    gate: &Array<Vector<T, N>>,
    up: &Array<Vector<T, N>>,
    out: &mut Array<Vector<T, N>>,
    vectors: usize,
    #[comptime] activation: Activation,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < vectors {
        let g = Vector::<f32, N>::cast_from(gate[i]);
        let u = Vector::<f32, N>::cast_from(up[i]);
        out[i] = Vector::cast_from(activate::<N>(g, activation) * u);
    }
}

#[cube(launch_unchecked)]
fn gated_backward_kernel<T: Float, N: Size>(
    dout: &Array<Vector<T, N>>,
    gate: &Array<Vector<T, N>>,
    up: &Array<Vector<T, N>>,
    dgate: &mut Array<Vector<T, N>>,
    dup: &mut Array<Vector<T, N>>,
    vectors: usize,
    #[comptime] activation: Activation,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < vectors {
        let d = Vector::<f32, N>::cast_from(dout[i]);
        let g = Vector::<f32, N>::cast_from(gate[i]);
        let u = Vector::<f32, N>::cast_from(up[i]);
        dgate[i] = Vector::cast_from(d * u * derivative::<N>(g, activation));
        dup[i] = Vector::cast_from(d * activate::<N>(g, activation));
    }
}

pub(super) fn gated<R: CubeRuntime>(
    activation: Activation,
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
) -> CubeTensor<R> {
    let (gate, up) = (rows(gate), rows(up));
    let out = empty(&gate, gate.shape(), gate.dtype);
    let elements = gate.shape().num_elements();
    let vector = vector_width(elements);
    let (count, dim) = flat(&gate.client, elements / vector);
    // SAFETY: units beyond the elements do nothing.
    unsafe {
        gated_kernel::launch_unchecked::<R>(
            &gate.client,
            count,
            dim,
            vector,
            array(&gate, vector),
            array(&up, vector),
            array(&out, vector),
            elements / vector,
            activation,
            gate.dtype.into(),
        );
    }
    out
}

pub(super) fn gated_backward<R: CubeRuntime>(
    activation: Activation,
    dout: CubeTensor<R>,
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [dout, gate, up] = [dout, gate, up].map(rows);
    let dgate = empty(&gate, gate.shape(), gate.dtype);
    let dup = empty(&gate, gate.shape(), gate.dtype);
    let elements = gate.shape().num_elements();
    let vector = vector_width(elements);
    let (count, dim) = flat(&gate.client, elements / vector);
    // SAFETY: units beyond the elements do nothing.
    unsafe {
        gated_backward_kernel::launch_unchecked::<R>(
            &gate.client,
            count,
            dim,
            vector,
            array(&dout, vector),
            array(&gate, vector),
            array(&up, vector),
            array(&dgate, vector),
            array(&dup, vector),
            elements / vector,
            activation,
            gate.dtype.into(),
        );
    }
    (dgate, dup)
}

#[cube(launch_unchecked)]
fn scaled_cast_kernel<S: Float, T: Float>(
    x: &Array<S>,
    out: &mut Array<T>,
    count: usize,
    scale: f32,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < count {
        out[ABSOLUTE_POS] = T::cast_from(f32::cast_from(x[ABSOLUTE_POS]) * scale);
    }
}

/// `scale · x` in another type.
pub(crate) fn scaled_cast<R: CubeRuntime>(x: CubeTensor<R>, scale: f32, dtype: DType) -> CubeTensor<R> {
    let x = rows(x);
    if x.dtype == dtype && scale == 1.0 {
        return x;
    }
    let out = empty(&x, x.shape(), dtype);
    let elements = x.shape().num_elements();
    let (count, dim) = flat(&x.client, elements);
    // SAFETY: units beyond the elements do nothing.
    unsafe {
        scaled_cast_kernel::launch_unchecked::<R>(
            &x.client,
            count,
            dim,
            array(&x, 1),
            array(&out, 1),
            elements,
            scale,
            [x.dtype.into(), dtype.into()],
        );
    }
    out
}

#[cfg(feature = "cuda")]
#[cube(launch_unchecked)]
fn cast_factors_kernel<S: Float, T: Float>(
    a: &Array<S>,
    b: &Array<S>,
    a_out: &mut Array<T>,
    b_out: &mut Array<T>,
    a_scale: f32,
    b_scale: f32,
    a_count: usize,
    b_count: usize,
    outputs: usize,
    #[comptime] transposed: bool,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < a_count {
        a_out[i] = T::cast_from(f32::cast_from(a[i]) * a_scale);
    } else if i < a_count + b_count {
        let j = i - a_count;
        let mut from = j;
        if transposed {
            from = (j % outputs) * (b_count / outputs) + j / outputs;
        }
        b_out[j] = T::cast_from(f32::cast_from(b[from]) * b_scale);
    }
}

/// The factors of an update, `A` `[rank, in]` and `B` `[out, rank]`, each scaled, in another type, by one launch; `B`
/// as `[rank, out]` where `transposed`.
#[cfg(feature = "cuda")]
pub(crate) fn cast_factors<R: CubeRuntime>(
    (a, a_scale): (CubeTensor<R>, f32),
    (b, b_scale): (CubeTensor<R>, f32),
    transposed: bool,
    dtype: DType,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (a, b) = (rows(a), rows(b));
    let [outputs, rank] = dims(&b);
    let a_out = empty(&a, a.shape(), dtype);
    let b_out = empty(&b, if transposed { [rank, outputs] } else { [outputs, rank] }, dtype);
    let (a_count, b_count) = (a.shape().num_elements(), outputs * rank);
    let (count, dim) = flat(&a.client, a_count + b_count);
    // SAFETY: units beyond the elements do nothing.
    unsafe {
        cast_factors_kernel::launch_unchecked::<R>(
            &a.client,
            count,
            dim,
            array(&a, 1),
            array(&b, 1),
            array(&a_out, 1),
            array(&b_out, 1),
            a_scale,
            b_scale,
            a_count,
            b_count,
            outputs,
            transposed,
            [a.dtype.into(), dtype.into()],
        );
    }
    (a_out, b_out)
}

#[cube(launch_unchecked)]
fn add_to_residual_kernel<S: Float, T: Float, N: Size>(
    residual: &Array<Vector<S, N>>,
    delta: &Array<Vector<T, N>>,
    sum: &mut Array<Vector<S, N>>,
    vectors: usize,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < vectors {
        let x = Vector::<f32, N>::cast_from(residual[i]);
        sum[i] = Vector::cast_from(x + Vector::<f32, N>::cast_from(delta[i]));
    }
}

/// `residual + delta`, in the type of the former.
pub(super) fn add_to_residual<R: CubeRuntime>(
    residual: CubeTensor<R>,
    delta: CubeTensor<R>,
) -> CubeTensor<R> {
    let (residual, delta) = (rows(residual), rows(delta));
    let sum = empty(&residual, residual.shape(), residual.dtype);
    let elements = residual.shape().num_elements();
    let vector = vector_width(elements);
    let (count, dim) = flat(&residual.client, elements / vector);
    // SAFETY: units beyond the elements do nothing.
    unsafe {
        add_to_residual_kernel::launch_unchecked::<R>(
            &residual.client,
            count,
            dim,
            vector,
            array(&residual, vector),
            array(&delta, vector),
            array(&sum, vector),
            elements / vector,
            [residual.dtype.into(), delta.dtype.into()],
        );
    }
    sum
}

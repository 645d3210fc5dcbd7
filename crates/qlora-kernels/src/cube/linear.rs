//! The adapted linear layer on any CubeCL device: the weight is decoded, products are cubek's.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::Cube;
use super::elementwise::{flat, scaled_cast};
use super::matmul::{matmul, transposed};
use super::tensors::{array, dims, empty, rows, vector_width};
use super::{nf4, nf4_product};
use crate::linear::{GradInput, LinearOutput, LoraParts};
use crate::weight::WeightParts;

/// `out = y + update + bias`, the bias being one row, rounded once.
#[cube(launch_unchecked)]
fn add_kernel<T: Float, N: Size>(
    y: &Array<Vector<f32, N>>,
    update: &Array<Vector<f32, N>>,
    bias: &Array<Vector<f32, N>>,
    out: &mut Array<Vector<T, N>>,
    vectors: usize,
    width: usize,
    #[comptime] updated: bool,
    #[comptime] biased: bool,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < vectors {
        let mut sum = y[i];
        if updated {
            sum += update[i];
        }
        if biased {
            sum += bias[i % width];
        }
        out[i] = Vector::cast_from(sum);
    }
}

/// A wide product, and what is added to it.
struct Sum<R: CubeRuntime> {
    /// f32, if there is something to add: in bf16 the product would be on the grid of its type, and an update of less
    /// than half a step, as all are when training begins, would be rounded away, every time.
    y: CubeTensor<R>,
    update: Option<CubeTensor<R>>,
    bias: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Sum<R> {
    /// The type of the product, where the result is to be of type `dtype`.
    fn wide(dtype: DType, added: bool) -> DType {
        if added { DType::F32 } else { dtype }
    }

    fn add(self, dtype: DType) -> CubeTensor<R> {
        let Self { y, update, bias } = self;
        if update.is_none() && bias.is_none() {
            return y;
        }
        let y = rows(y);
        let out = empty(&y, y.shape(), dtype);
        let [_, width] = dims(&y);
        let vector = vector_width(width);
        let vectors = y.shape().num_elements() / vector;
        let (count, dim) = flat(&y.client, vectors);
        let (updated, biased) = (update.is_some(), bias.is_some());
        let bias = bias.map(|bias| scaled_cast(bias, 1.0, DType::F32));
        let update = update.map(rows);
        // SAFETY: units beyond the elements do nothing. An operand that is absent is not read.
        unsafe {
            add_kernel::launch_unchecked::<R>(
                &y.client,
                count,
                dim,
                vector,
                array(&y, vector),
                array(update.as_ref().or(bias.as_ref()).unwrap_or(&y), vector),
                array(bias.as_ref().or(update.as_ref()).unwrap_or(&y), vector),
                array(&out, vector),
                vectors,
                width / vector,
                updated,
                biased,
                dtype.into(),
            );
        }
        out
    }
}

pub(super) fn forward<R: CubeRuntime, F, I, BT>(
    x: CubeTensor<R>,
    w: &WeightParts<Cube<R, F, I, BT>>,
    bias: Option<CubeTensor<R>>,
    lora: Option<&LoraParts<Cube<R, F, I, BT>>>,
) -> LinearOutput<Cube<R, F, I, BT>>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let x = rows(x);
    let dtype = x.dtype;
    let few = matches!(w, WeightParts::Nf4(parts) if nf4_product::product_fits(parts, dims(&x)[0]));
    #[cfg(feature = "cuda")]
    if !few
        && let Some((y, xa)) =
            crate::cuda::forward(&x, &dense(w, dtype), bias.as_ref(), factors(lora).as_ref())
    {
        return LinearOutput { y, xa };
    }
    let xa = lora.map(|lora| {
        let a = scaled_cast(lora.a.clone(), 1.0, dtype);
        if few { nf4_product::narrow(&x, &a) } else { matmul(x.clone(), transposed(a), dtype) }
    });
    if let WeightParts::Nf4(parts) = w
        && few
    {
        let bias = bias.map(|bias| scaled_cast(bias, 1.0, DType::F32));
        let update = xa.clone().zip(lora).map(|(xa, lora)| {
            let b = scaled_cast(lora.b.clone(), 1.0, dtype);
            nf4_product::Update { xa, b, scale: lora.scale }
        });
        return LinearOutput { y: nf4_product::product(&x, parts, bias, update), xa };
    }
    let wide = Sum::<R>::wide(dtype, lora.is_some() || bias.is_some());
    let y = matmul(x, transposed(dense(w, dtype)), wide);
    let update = xa.clone().zip(lora).map(|(xa, lora)| {
        let b = scaled_cast(lora.b.clone(), lora.scale, dtype);
        matmul(xa, transposed(b), wide)
    });
    LinearOutput { y: Sum { y, update, bias }.add(dtype), xa }
}

pub(super) fn grad_input<R: CubeRuntime, F, I, BT>(
    dy: CubeTensor<R>,
    w: &WeightParts<Cube<R, F, I, BT>>,
    lora: Option<&LoraParts<Cube<R, F, I, BT>>>,
) -> GradInput<Cube<R, F, I, BT>>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let dy = rows(dy);
    let dtype = dy.dtype;
    let weight = dense(w, dtype);
    #[cfg(feature = "cuda")]
    if let Some((dx, dyb)) = crate::cuda::grad_input(&dy, &weight, factors(lora).as_ref()) {
        return GradInput { dx, dyb };
    }
    let wide = Sum::<R>::wide(dtype, lora.is_some());
    let y = matmul(dy.clone(), weight, wide);
    let Some(lora) = lora else { return GradInput { dx: y, dyb: None } };
    let dyb = matmul(dy, scaled_cast(lora.b.clone(), 1.0, dtype), dtype);
    let update = Some(matmul(dyb.clone(), scaled_cast(lora.a.clone(), lora.scale, dtype), wide));
    GradInput { dx: Sum { y, update, bias: None }.add(dtype), dyb: Some(dyb) }
}

pub(super) fn lora_grads<R: CubeRuntime>(
    x: CubeTensor<R>,
    xa: CubeTensor<R>,
    dy: CubeTensor<R>,
    dyb: CubeTensor<R>,
    scale: f32,
) -> (CubeTensor<R>, CubeTensor<R>) {
    #[cfg(feature = "cuda")]
    if let Some(grads) = crate::cuda::lora_grads(&x, &xa, &dy, &dyb, scale) {
        return grads;
    }
    // The small operand carries the scale; the sums over tokens are f32.
    let (dyb, xa) = (scaled_cast(dyb.clone(), scale, dyb.dtype), scaled_cast(xa.clone(), scale, xa.dtype));
    let da = matmul(transposed(dyb), rows(x), DType::F32);
    let db = matmul(transposed(rows(dy)), xa, DType::F32);
    (da, db)
}

#[cfg(feature = "cuda")]
fn factors<R: CubeRuntime, F, I, BT>(
    lora: Option<&LoraParts<Cube<R, F, I, BT>>>,
) -> Option<crate::cuda::Factors<R>>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    lora.map(|lora| crate::cuda::Factors { a: lora.a.clone(), b: lora.b.clone(), scale: lora.scale })
}

/// The weight in the type of the product.
pub(crate) fn dense<R: CubeRuntime, F, I, BT>(
    w: &WeightParts<Cube<R, F, I, BT>>,
    dtype: DType,
) -> CubeTensor<R>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    match w {
        WeightParts::Dense(values, _) => scaled_cast(values.clone(), 1.0, dtype),
        WeightParts::Nf4(parts) => nf4::dequantize(parts, dtype),
    }
}

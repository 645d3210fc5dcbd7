//! The adapted linear layer on any CubeCL device: the weight is decoded, products are cubek's.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::Cube;
use super::elementwise::{flat, scaled_cast};
use super::matmul::{matmul, transposed};
use super::tables::Table;
use super::tensors::{array, dims, empty, rows, vector_width};
use super::{joint_product, nf4, nf4_product, supported};
use crate::activation::Activation;
use crate::linear::{GradInput, LinearOutput, LinearParts, LoraParts};
use crate::nf4::Nf4Parts;
use crate::tier::cube;
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
            nf4_product::Update::Narrow(xa, b, lora.scale)
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

/// Whether [`one_launch`] takes this: one token, an NF4 weight, an update of low rank.
pub(super) fn takes_one_launch<R: CubeRuntime, F, I, BT>(
    x: &CubeTensor<R>,
    w: &Nf4Parts<Cube<R, F, I, BT>>,
    lora: &LoraParts<Cube<R, F, I, BT>>,
) -> bool
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let ([tokens, _], [rank, _]) = (dims(x), dims(&lora.a));
    nf4_product::product_fits(w, tokens) && nf4_product::computes_update(tokens, rank)
}

/// The whole layer for one token.
pub(super) fn one_launch<R: CubeRuntime, F, I, BT>(
    x: &CubeTensor<R>,
    w: &Nf4Parts<Cube<R, F, I, BT>>,
    bias: Option<CubeTensor<R>>,
    lora: &LoraParts<Cube<R, F, I, BT>>,
) -> CubeTensor<R>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let bias = bias.map(|bias| scaled_cast(bias, 1.0, DType::F32));
    let [a, b] = [&lora.a, &lora.b].map(|factor| scaled_cast(factor.clone(), 1.0, x.dtype));
    nf4_product::product(x, w, bias, Some(nf4_product::Update::Factors(a, b, lora.scale)))
}

/// The operand of a layer, where it can be one of several of one launch.
fn joint_operand<R: CubeRuntime, F, I, BT>(
    x: &CubeTensor<R>,
    layer: &LinearParts<Cube<R, F, I, BT>>,
) -> Option<nf4_product::Operand<R>>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let WeightParts::Nf4(w) = &layer.weight else { return None };
    let fits = match &layer.lora {
        Some(lora) => takes_one_launch(x, w, lora),
        None => dims(x)[0] == 1 && nf4_product::product_fits(w, 1),
    };
    if !fits || !supported(x, &layer.weight) {
        return None;
    }
    let bias = layer.bias.clone().map(|bias| scaled_cast(bias, 1.0, DType::F32));
    let update = layer.lora.as_ref().map(|lora| {
        let [a, b] = [&lora.a, &lora.b].map(|factor| scaled_cast(factor.clone(), 1.0, x.dtype));
        nf4_product::Update::Factors(a, b, lora.scale)
    });
    Some(nf4_product::Operand::new(x, w, bias, update))
}

/// Codebook and block size that weights have in common.
fn joint_format<R: CubeRuntime, F, I, BT>(
    x: &CubeTensor<R>,
    layers: &[&LinearParts<Cube<R, F, I, BT>>],
) -> Option<(Table, usize)>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    // Bindings: what all share, and eight a layer.
    let bindings = 2 + 8 * layers.len();
    if dims(x)[0] != 1 || (x.client.properties().hardware.max_bindings as usize) < bindings {
        return None;
    }
    let mut format = None;
    for layer in layers {
        let WeightParts::Nf4(w) = &layer.weight else { return None };
        let own = (w.codebook, w.block_size);
        if *format.get_or_insert(own) != own {
            return None;
        }
    }
    format.map(|(codebook, block_size)| (Table::Nf4(codebook), block_size))
}

/// Three layers of one token, where a kernel takes them: their outputs.
pub(super) fn three_in_one_launch<R: CubeRuntime, F, I, BT>(
    x: &CubeTensor<R>,
    layers: &[LinearParts<Cube<R, F, I, BT>>],
) -> Option<[CubeTensor<R>; 3]>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let [first, second, third] = layers else { return None };
    let (table, block_size) = joint_format(x, &[first, second, third])?;
    let operands = [joint_operand(x, first)?, joint_operand(x, second)?, joint_operand(x, third)?];
    cube(true).then(|| joint_product::three(x, &operands, table, block_size))
}

/// `act(gate(x)) ⊙ up(x)` of one token, where a kernel takes it.
pub(super) fn gated_in_one_launch<R: CubeRuntime, F, I, BT>(
    activation: Activation,
    x: &CubeTensor<R>,
    gate: &LinearParts<Cube<R, F, I, BT>>,
    up: &LinearParts<Cube<R, F, I, BT>>,
) -> Option<CubeTensor<R>>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let (table, block_size) = joint_format(x, &[gate, up])?;
    let (gate, up) = (joint_operand(x, gate)?, joint_operand(x, up)?);
    cube(true).then(|| joint_product::gated(activation, x, &gate, &up, table, block_size))
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

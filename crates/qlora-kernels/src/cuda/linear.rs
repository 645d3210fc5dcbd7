//! The adapted linear layer: the low-rank update rides along in the contraction of the wide product.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl_cuda::CudaRuntime;

use super::architecture::architecture;
use super::products::{Right, gemm, gemm_fits, is_narrow, narrow_columns, narrow_fits, narrow_rows};
use super::same;
use crate::cube::elementwise::{cast_factors, scaled_cast};
use crate::cube::tensors::{dims, rows};
use crate::tier::native_over_cube;

/// The factors of an update, as they are trained: A `[rank, in]` and B `[out, rank]` in f32.
pub(crate) struct Factors<R: CubeRuntime> {
    pub(crate) a: CubeTensor<R>,
    pub(crate) b: CubeTensor<R>,
    pub(crate) scale: f32,
}

impl<R: CubeRuntime> Factors<R> {
    fn rank(&self) -> usize {
        self.a.shape()[0]
    }
}

/// A result, and the narrow product beside it.
pub(crate) type WithNarrow<R> = (CubeTensor<R>, Option<CubeTensor<R>>);

fn hopper(t: &CubeTensor<CudaRuntime>) -> bool {
    architecture(&t.device) == 90
}

/// `x Wᵀ + b + s (x Aᵀ) Bᵀ`, and `x Aᵀ`. `None` where another body has to do it.
pub(crate) fn forward<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    bias: Option<&CubeTensor<R>>,
    lora: Option<&Factors<R>>,
) -> Option<WithNarrow<R>> {
    let (x, weight): (CubeTensor<CudaRuntime>, _) = (same(rows(x.clone()))?, same(rows(weight.clone()))?);
    let narrow = lora.is_none_or(|lora| is_narrow(lora.rank()));
    if !native_over_cube(narrow && hopper(&x) && gemm_fits(&x, Right::Rows(&weight))) {
        return None;
    }
    let bias = match bias {
        Some(bias) => Some(same(scaled_cast(bias.clone(), 1.0, DType::F32))?),
        None => None,
    };
    let Some(lora) = lora else {
        let y = gemm(&x, Right::Rows(&weight), None, bias.as_ref(), x.dtype);
        return Some((same(y)?, None));
    };
    let (a, b) = cast_factors((lora.a.clone(), 1.0), (lora.b.clone(), lora.scale), false, x.dtype);
    let (a, b) = (same(a)?, same(b)?);
    let xa = narrow_rows(&x, &a);
    let y = gemm(&x, Right::Rows(&weight), Some((&xa, Right::Rows(&b))), bias.as_ref(), x.dtype);
    Some((same(y)?, Some(same(xa)?)))
}

/// `dY W + s (dY B) A`, and `dY B`.
pub(crate) fn grad_input<R: CubeRuntime>(
    dy: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    lora: Option<&Factors<R>>,
) -> Option<WithNarrow<R>> {
    let (dy, weight): (CubeTensor<CudaRuntime>, _) = (same(rows(dy.clone()))?, same(rows(weight.clone()))?);
    let narrow = lora.is_none_or(|lora| is_narrow(lora.rank()));
    if !native_over_cube(narrow && hopper(&dy) && gemm_fits(&dy, Right::Columns(&weight))) {
        return None;
    }
    let Some(lora) = lora else {
        return Some((same(gemm(&dy, Right::Columns(&weight), None, None, dy.dtype))?, None));
    };
    // B is [out, rank]; the narrow product wants its rows along the contraction.
    let (a, b) = cast_factors((lora.a.clone(), lora.scale), (lora.b.clone(), 1.0), true, dy.dtype);
    let (a, b) = (same(a)?, same(b)?);
    let dyb = narrow_rows(&dy, &b);
    let dx = gemm(&dy, Right::Columns(&weight), Some((&dyb, Right::Columns(&a))), None, dy.dtype);
    Some((same(dx)?, Some(same(dyb)?)))
}

/// `dA = s (dY B)ᵀ x` and `dB = s dYᵀ (x Aᵀ)`, f32.
pub(crate) fn lora_grads<R: CubeRuntime>(
    x: &CubeTensor<R>,
    xa: &CubeTensor<R>,
    dy: &CubeTensor<R>,
    dyb: &CubeTensor<R>,
    scale: f32,
) -> Option<(CubeTensor<R>, CubeTensor<R>)> {
    let [x, xa, dy, dyb] = [x, xa, dy, dyb].map(|t| same::<_, CubeTensor<CudaRuntime>>(rows(t.clone())));
    let (x, xa, dy, dyb) = (x?, xa?, dy?, dyb?);
    let types = [&xa, &dy, &dyb].iter().all(|t| t.dtype == x.dtype);
    let sizes = is_narrow(dims(&xa)[1]) && narrow_fits(&x) && narrow_fits(&dy);
    if !native_over_cube(types && sizes && architecture(&x.device) >= 80) {
        return None;
    }
    let da = narrow_columns(&x, &dyb, scale, true);
    let db = narrow_columns(&dy, &xa, scale, false);
    Some((same(da)?, same(db)?))
}

/// `hidden · headᵀ` in f32.
pub(crate) fn logits<R: CubeRuntime>(hidden: &CubeTensor<R>, head: &CubeTensor<R>) -> Option<CubeTensor<R>> {
    let (hidden, head): (CubeTensor<CudaRuntime>, _) =
        (same(rows(hidden.clone()))?, same(rows(head.clone()))?);
    if !native_over_cube(hopper(&hidden) && gemm_fits(&hidden, Right::Rows(&head))) {
        return None;
    }
    same(gemm(&hidden, Right::Rows(&head), None, None, DType::F32))
}

//! RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), alone and after a residual addition.

use crate::dispatch::{current_isa, per_isa};
use crate::parallel::{for_each, next_chunk, rows_per_task};
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// Settings of a root-mean-square normalization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// The stored weight is the offset from one, as in Gemma: the factor is `1 + w`.
    pub unit_offset: bool,
}

/// Rows whose contributions to the weight's gradient are added before they meet those of other rows.
const GRADIENT_ROWS: usize = 64;

/// `y = x / sqrt(mean(x²) + eps) · w`, for each row of `dim` elements.
///
/// `x` and `y` are `[rows, dim]`, `weight` `[dim]`; `rstd`, `[rows]`, receives `1 / sqrt(mean(x²) + eps)`,
/// which the backward pass needs.
///
/// # Panics
/// When the lengths of the slices do not agree.
pub fn rms_norm(
    x: &[f32],
    weight: &[f32],
    dim: usize,
    norm: RmsNorm,
    y: &mut [f32],
    rstd: Option<&mut [f32]>,
) {
    let rows = check_rows(x.len(), dim, weight.len());
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert!(rstd.as_ref().is_none_or(|rstd| rstd.len() == rows), "rstd has another length than x has rows");
    let isa = current_isa();
    let step = rows_per_task(dim, 1);
    let mut rstd = rstd.map(|rstd| rstd.chunks_mut(step));
    let tasks =
        x.chunks(step * dim).zip(y.chunks_mut(step * dim)).map(|(x, y)| (x, y, next_chunk(&mut rstd)));
    for_each(tasks, |(x, y, rstd)| normalize(isa, x, weight, dim, norm, y, rstd));
}

/// `h = x + residual`, `y = rms_norm(h)`: one pass over memory for both.
///
/// `x`, `residual`, `h`, `y` are `[rows, dim]`; the rest is as for [`rms_norm`].
///
/// # Panics
/// When the lengths of the slices do not agree.
pub fn add_rms_norm(
    x: &[f32],
    residual: &[f32],
    weight: &[f32],
    dim: usize,
    norm: RmsNorm,
    h: &mut [f32],
    y: &mut [f32],
    rstd: Option<&mut [f32]>,
) {
    let rows = check_rows(x.len(), dim, weight.len());
    assert!(
        residual.len() == x.len() && h.len() == x.len() && y.len() == x.len(),
        "x, residual, h and y differ in length"
    );
    assert!(rstd.as_ref().is_none_or(|rstd| rstd.len() == rows), "rstd has another length than x has rows");
    let isa = current_isa();
    let step = rows_per_task(dim, 1);
    let block = step * dim;
    let mut rstd = rstd.map(|rstd| rstd.chunks_mut(step));
    let tasks = (x.chunks(block).zip(residual.chunks(block)))
        .zip(h.chunks_mut(block).zip(y.chunks_mut(block)))
        .map(|((x, residual), (h, y))| (x, residual, h, y, next_chunk(&mut rstd)));
    for_each(tasks, |(x, residual, h, y, rstd)| {
        add_normalize(isa, x, residual, weight, dim, norm, h, y, rstd);
    });
}

/// Gradients of [`rms_norm`]: with `n = x · rstd` and `g = dy · w`, `dx = rstd · (g − n · mean(g · n))` and
/// `dw = Σ dy · n` over the rows.
///
/// `dx` and `dweight` are overwritten.
///
/// # Panics
/// When the lengths of the slices do not agree.
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    dim: usize,
    norm: RmsNorm,
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    backward(dy, None, x, weight, rstd, dim, norm, dx, dweight);
}

/// Gradients of [`add_rms_norm`]: `dx = dh +` what [`rms_norm_backward`] gives at `h`. It is the gradient
/// of `x` and of `residual` alike; `dh` is what reaches `h` by the residual path.
///
/// # Panics
/// When the lengths of the slices do not agree.
pub fn add_rms_norm_backward(
    dy: &[f32],
    dh: &[f32],
    h: &[f32],
    weight: &[f32],
    rstd: &[f32],
    dim: usize,
    norm: RmsNorm,
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    assert_eq!(dh.len(), h.len(), "dh and h differ in length");
    backward(dy, Some(dh), h, weight, rstd, dim, norm, dx, dweight);
}

fn backward(
    dy: &[f32],
    dh: Option<&[f32]>,
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    dim: usize,
    norm: RmsNorm,
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    let rows = check_rows(x.len(), dim, weight.len());
    assert!(dy.len() == x.len() && dx.len() == x.len(), "dy, x and dx differ in length");
    assert_eq!(rstd.len(), rows, "rstd has another length than x has rows");
    let isa = current_isa();
    // The sums over rows are cut at the same rows whatever the number of threads.
    let step = if dweight.is_some() { GRADIENT_ROWS } else { rows_per_task(dim, 2) };
    let block = step * dim;
    let mut partial = vec![0.0; if dweight.is_some() { rows.div_ceil(step) * dim } else { 0 }];
    {
        let mut partials = dweight.is_some().then(|| partial.chunks_mut(dim));
        let mut dhs = dh.map(|dh| dh.chunks(block));
        let tasks = (dy.chunks(block).zip(x.chunks(block)))
            .zip(rstd.chunks(step).zip(dx.chunks_mut(block)))
            .map(|((dy, x), (rstd, dx))| {
                let dh = dhs.as_mut().and_then(Iterator::next);
                (dy, dh, x, rstd, dx, next_chunk(&mut partials))
            });
        for_each(tasks, |(dy, dh, x, rstd, dx, dweight)| {
            gradient(isa, dy, dh, x, weight, rstd, dim, norm, dx, dweight);
        });
    }
    if let Some(dweight) = dweight {
        assert_eq!(dweight.len(), dim, "dweight and weight differ in length");
        dweight.fill(0.0);
        for partial in partial.chunks(dim) {
            dweight.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
        }
    }
}

fn check_rows(elements: usize, dim: usize, weight: usize) -> usize {
    assert!(dim > 0 && elements.is_multiple_of(dim), "x is not rows of {dim} elements");
    assert_eq!(weight, dim, "weight is not one row of {dim} elements");
    elements / dim
}

/// The factor of a stored weight.
#[inline(always)]
fn factor<V: Vector>(weight: V, norm: RmsNorm) -> V {
    if norm.unit_offset { weight + V::splat(1.0) } else { weight }
}

#[inline(always)]
fn sum_of_squares<V: Vector>(x: &[f32]) -> f32 {
    let mut sums = [V::zero(); 4];
    for x in x.chunks(4 * V::LANES) {
        for (sum, x) in sums.iter_mut().zip(x.chunks(V::LANES)) {
            let x = V::load(x);
            *sum = x.mul_add(x, *sum);
        }
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
}

#[inline(always)]
fn normalize_row<V: Vector>(x: &[f32], weight: &[f32], norm: RmsNorm, y: &mut [f32]) -> f32 {
    let rstd = 1.0 / (sum_of_squares::<V>(x) / x.len() as f32 + norm.eps).sqrt();
    let scale = V::splat(rstd);
    for ((x, weight), y) in x.chunks(V::LANES).zip(weight.chunks(V::LANES)).zip(y.chunks_mut(V::LANES)) {
        (V::load(x) * scale * factor(V::load(weight), norm)).store(y);
    }
    rstd
}

#[inline(always)]
fn normalize_body<V: Vector>(
    x: &[f32],
    weight: &[f32],
    dim: usize,
    norm: RmsNorm,
    y: &mut [f32],
    mut rstd: Option<&mut [f32]>,
) {
    for (row, (x, y)) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).enumerate() {
        let scale = normalize_row::<V>(x, weight, norm, y);
        if let Some(rstd) = &mut rstd {
            rstd[row] = scale;
        }
    }
}

per_isa!(fn normalize = normalize_body(
    x: &[f32], weight: &[f32], dim: usize, norm: RmsNorm, y: &mut [f32], rstd: Option<&mut [f32]>
));

#[inline(always)]
fn add_normalize_body<V: Vector>(
    x: &[f32],
    residual: &[f32],
    weight: &[f32],
    dim: usize,
    norm: RmsNorm,
    h: &mut [f32],
    y: &mut [f32],
    mut rstd: Option<&mut [f32]>,
) {
    let inputs = x.chunks_exact(dim).zip(residual.chunks_exact(dim));
    let outputs = h.chunks_exact_mut(dim).zip(y.chunks_exact_mut(dim));
    for (row, ((x, residual), (h, y))) in inputs.zip(outputs).enumerate() {
        for ((x, residual), h) in
            x.chunks(V::LANES).zip(residual.chunks(V::LANES)).zip(h.chunks_mut(V::LANES))
        {
            (V::load(x) + V::load(residual)).store(h);
        }
        let scale = normalize_row::<V>(h, weight, norm, y);
        if let Some(rstd) = &mut rstd {
            rstd[row] = scale;
        }
    }
}

per_isa!(fn add_normalize = add_normalize_body(
    x: &[f32], residual: &[f32], weight: &[f32], dim: usize, norm: RmsNorm,
    h: &mut [f32], y: &mut [f32], rstd: Option<&mut [f32]>
));

#[inline(always)]
fn gradient_body<V: Vector>(
    dy: &[f32],
    dh: Option<&[f32]>,
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    dim: usize,
    norm: RmsNorm,
    dx: &mut [f32],
    mut dweight: Option<&mut [f32]>,
) {
    let rows = dy.chunks_exact(dim).zip(x.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)).zip(rstd);
    for (row, (((dy, x), dx), &rstd)) in rows.enumerate() {
        let mut sums = [V::zero(); 2];
        for ((dy, x), weight) in
            dy.chunks(2 * V::LANES).zip(x.chunks(2 * V::LANES)).zip(weight.chunks(2 * V::LANES))
        {
            let parts = dy.chunks(V::LANES).zip(x.chunks(V::LANES)).zip(weight.chunks(V::LANES));
            for (sum, ((dy, x), weight)) in sums.iter_mut().zip(parts) {
                *sum = (V::load(dy) * factor(V::load(weight), norm)).mul_add(V::load(x), *sum);
            }
        }
        // dx = rstd·dy·w − x·rstd³·mean(dy·w·x)
        let mean = (sums[0] + sums[1]).sum() / dim as f32;
        let (scale, pull) = (V::splat(rstd), V::splat(-rstd * rstd * rstd * mean));
        let dh = dh.map(|dh| &dh[row * dim..(row + 1) * dim]);
        for at in (0..dim).step_by(V::LANES) {
            let x = V::load(&x[at..]);
            let dy = V::load(&dy[at..]) * scale;
            let direct = dh.map_or(V::zero(), |dh| V::load(&dh[at..]));
            let through = dy.mul_add(factor(V::load(&weight[at..]), norm), direct);
            x.mul_add(pull, through).store(&mut dx[at..]);
            if let Some(dweight) = &mut dweight {
                dy.mul_add(x, V::load(&dweight[at..])).store(&mut dweight[at..]);
            }
        }
    }
}

per_isa!(fn gradient = gradient_body(
    dy: &[f32], dh: Option<&[f32]>, x: &[f32], weight: &[f32], rstd: &[f32], dim: usize, norm: RmsNorm,
    dx: &mut [f32], dweight: Option<&mut [f32]>
));

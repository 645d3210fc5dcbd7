//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the rotate-half layout.

use crate::dispatch::{current_isa, per_isa};
use crate::parallel::{for_each, rows_per_task};
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// Rotates the pairs `(i, i + head_dim/2)` of every head by its token's angles, in place:
/// `a' = a cos − b sin`, `b' = b cos + a sin`.
///
/// `x` is `[tokens, heads · head_dim]`, `cos` and `sin` are `[tokens, head_dim / 2]`. `inverse` rotates
/// back, which is the backward pass as well.
///
/// # Panics
/// When `head_dim` is odd or the lengths of the slices do not agree.
pub fn rope(x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32], inverse: bool) {
    let (width, half) = (heads * head_dim, head_dim / 2);
    assert!(width > 0 && head_dim.is_multiple_of(2), "{heads} heads of {head_dim} elements can't be rotated");
    assert!(x.len().is_multiple_of(width), "x is not rows of {width} elements");
    let tokens = x.len() / width;
    assert!(
        cos.len() == tokens * half && sin.len() == cos.len(),
        "cos and sin are not {tokens} rows of {half}"
    );
    let isa = current_isa();
    let step = rows_per_task(width, 1);
    let tasks = (x.chunks_mut(step * width)).zip(cos.chunks(step * half).zip(sin.chunks(step * half)));
    for_each(tasks, |(x, (cos, sin))| rotate(isa, x, heads, head_dim, cos, sin, inverse));
}

#[inline(always)]
fn rotate_body<V: Vector>(
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    inverse: bool,
) {
    let half = head_dim / 2;
    let sign = V::splat(if inverse { -1.0 } else { 1.0 });
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (x, (cos, sin)) in x.chunks_exact_mut(heads * head_dim).zip(angles) {
        for head in x.chunks_exact_mut(head_dim) {
            let (a, b) = head.split_at_mut(half);
            let pairs = a.chunks_mut(V::LANES).zip(b.chunks_mut(V::LANES));
            for ((a, b), (cos, sin)) in pairs.zip(cos.chunks(V::LANES).zip(sin.chunks(V::LANES))) {
                let (cos, sin) = (V::load(cos), V::load(sin) * sign);
                let (old_a, old_b) = (V::load(a), V::load(b));
                (old_a * cos - old_b * sin).store(a);
                (old_b * cos + old_a * sin).store(b);
            }
        }
    }
}

per_isa!(fn rotate = rotate_body(
    x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32], inverse: bool
));

//! Softmax and log-softmax over rows, in place.

use crate::dispatch::{current_isa, per_isa};
use crate::exp::exp;
use crate::parallel::{for_each, rows_per_task};
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// `xᵢ ← e^(xᵢ − m) / Σⱼ e^(xⱼ − m)` with `m` the row's maximum, for each row of `cols` elements.
///
/// # Panics
/// When `x` is not whole rows.
pub fn softmax_rows(x: &mut [f32], cols: usize) {
    rows(x, cols, false);
}

/// `xᵢ ← xᵢ − m − ln Σⱼ e^(xⱼ − m)` with `m` the row's maximum, for each row of `cols` elements.
///
/// # Panics
/// When `x` is not whole rows.
pub fn log_softmax_rows(x: &mut [f32], cols: usize) {
    rows(x, cols, true);
}

fn rows(x: &mut [f32], cols: usize, log: bool) {
    assert!(cols > 0 && x.len().is_multiple_of(cols), "x is not rows of {cols} elements");
    let isa = current_isa();
    let step = rows_per_task(cols, 4);
    for_each(x.chunks_mut(step * cols), |x| softmax(isa, x, cols, log));
}

/// Largest element; NaN elements are passed over.
#[inline(always)]
pub(crate) fn maximum<V: Vector>(x: &[f32]) -> f32 {
    let mut largest = [V::splat(f32::NEG_INFINITY); 4];
    for x in x.chunks(4 * V::LANES) {
        for (largest, x) in largest.iter_mut().zip(x.chunks(V::LANES)) {
            *largest = V::load_or(x, f32::NEG_INFINITY).max(*largest);
        }
    }
    largest[0].max(largest[1]).max(largest[2].max(largest[3])).largest()
}

#[inline(always)]
fn softmax_body<V: Vector>(x: &mut [f32], cols: usize, log: bool) {
    for row in x.chunks_exact_mut(cols) {
        let max = V::splat(maximum::<V>(row));
        let mut sums = [V::zero(); 2];
        for pair in row.chunks_mut(2 * V::LANES) {
            for (sum, x) in sums.iter_mut().zip(pair.chunks_mut(V::LANES)) {
                let e = exp(V::load_or(x, f32::NEG_INFINITY) - max);
                *sum = *sum + e;
                if !log {
                    e.store(x);
                }
            }
        }
        let sum = (sums[0] + sums[1]).sum();
        if log {
            let log_sum = V::splat(sum.ln());
            for x in row.chunks_mut(V::LANES) {
                (V::load(x) - max - log_sum).store(x);
            }
        } else {
            let scale = V::splat(1.0 / sum);
            for x in row.chunks_mut(V::LANES) {
                (V::load(x) * scale).store(x);
            }
        }
    }
}

per_isa!(fn softmax = softmax_body(x: &mut [f32], cols: usize, log: bool));

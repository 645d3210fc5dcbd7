//! Sums and scaled sums of equally long slices.

use crate::dispatch::{current_isa, per_isa};
use crate::parallel::{elements_per_task, for_each};
use crate::vector::Vector;

/// `out = a + b`.
///
/// # Panics
/// When the slices differ in length.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "a, b and out differ in length");
    let isa = current_isa();
    let step = elements_per_task(1);
    let tasks = a.chunks(step).zip(b.chunks(step)).zip(out.chunks_mut(step));
    for_each(tasks, |((a, b), out)| sum(isa, a, b, out));
}

/// `y = y + factor · x`.
///
/// # Panics
/// When the slices differ in length.
pub fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    let isa = current_isa();
    let step = elements_per_task(1);
    for_each(y.chunks_mut(step).zip(x.chunks(step)), |(y, x)| scaled_sum(isa, y, factor, x));
}

/// `x = factor · x`.
pub fn scale(x: &mut [f32], factor: f32) {
    let isa = current_isa();
    for_each(x.chunks_mut(elements_per_task(1)), |x| product(isa, x, factor));
}

#[inline(always)]
fn sum_body<V: Vector>(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((a, b), out) in a.chunks(V::LANES).zip(b.chunks(V::LANES)).zip(out.chunks_mut(V::LANES)) {
        (V::load(a) + V::load(b)).store(out);
    }
}

per_isa!(fn sum = sum_body(a: &[f32], b: &[f32], out: &mut [f32]));

#[inline(always)]
fn scaled_sum_body<V: Vector>(y: &mut [f32], factor: f32, x: &[f32]) {
    let factor = V::splat(factor);
    for (y, x) in y.chunks_mut(V::LANES).zip(x.chunks(V::LANES)) {
        V::load(x).mul_add(factor, V::load(y)).store(y);
    }
}

per_isa!(fn scaled_sum = scaled_sum_body(y: &mut [f32], factor: f32, x: &[f32]));

#[inline(always)]
fn product_body<V: Vector>(x: &mut [f32], factor: f32) {
    for x in x.chunks_mut(V::LANES) {
        (V::load(x) * V::splat(factor)).store(x);
    }
}

per_isa!(fn product = product_body(x: &mut [f32], factor: f32));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::dispatch::with_isa;

    #[test]
    fn sums_and_scales() {
        for n in [0, 1, 15, 16, 17, 40_003] {
            let a: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
            for isa in Isa::available() {
                with_isa(isa, || {
                    let mut out = vec![f32::NAN; n];
                    add(&a, &b, &mut out);
                    assert!((0..n).all(|i| out[i] == a[i] + b[i]));
                    add_scaled(&mut out, -2.0, &b);
                    assert!((0..n).all(|i| out[i] == a[i] - b[i]));
                    scale(&mut out, 3.0);
                    assert!((0..n).all(|i| out[i] == 3.0 * (a[i] - b[i])));
                });
            }
        }
    }
}

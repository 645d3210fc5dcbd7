//! What the tests of the kernels share: inputs, comparison with `f64`, every instruction set and thread count.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Isa;
use crate::dispatch::with_isa;

/// `n` numbers in −1..1, the same for the same seed, none of them zero.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 + 0.5) / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Fails where `actual` is further from `expected` than `tolerance · (1 + |expected|)`, or NaN.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{what}[{i}]: {actual} instead of {expected}");
    }
}

/// Runs `f` with every instruction set, on one thread and on two: the bits must agree. `check` gets the result.
#[track_caller]
pub(crate) fn everywhere(f: impl Fn() -> Vec<Vec<f32>> + Sync, check: impl Fn(Isa, &[Vec<f32>])) {
    static POOLS: OnceLock<[ThreadPool; 2]> = OnceLock::new();
    let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let pools = POOLS.get_or_init(|| [pool(1), pool(2)]);
    for isa in Isa::available() {
        let [one, two] = pools.each_ref().map(|pool| pool.install(|| with_isa(isa, &f)));
        for (one, two) in one.iter().zip(&two) {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(one) == bits(two), "{isa:?}: the number of threads changes the result");
        }
        check(isa, &one);
    }
}

/// Central differences of a scalar function at `x`.
pub(crate) fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let middle = x[i];
            x[i] = middle + step;
            let above = f(&x);
            x[i] = middle - step;
            let below = f(&x);
            x[i] = middle;
            (above - below) / (2.0 * step)
        })
        .collect()
}

pub(crate) fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}

//! Exponentials, sigmoids and the normal distribution on vectors.
//!
//! Polynomials are minimax fits of this project; the errors named are those of the `f32` results.

use crate::vector::Vector;

/// `c[0] xⁿ + c[1] xⁿ⁻¹ + … + c[n]`, by Horner's rule.
#[inline(always)]
fn polynomial<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let mut sum = V::splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, V::splat(coefficient));
    }
    sum
}

/// `eˣ` to 1 ulp; subnormal results, 0 and infinity where they belong, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    // Past these bounds the result is 0 or infinity; the order of the operands keeps NaN.
    let x = V::splat(89.0).min(V::splat(-104.0).max(x));
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split in two so that r keeps its last bits.
    let n = (x * V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(V::splat(-0.693_145_75), x);
    let r = n.mul_add(V::splat(-1.428_606_8e-6), r);
    let q = polynomial(r, [1.381_401e-3, 8.369_001e-3, 4.166_841_5e-2, 1.666_651_8e-1, 4.999_999_4e-1]);
    (r * r).mul_add(q, r + V::splat(1.0)).scale(n)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid<V: Vector>(x: V) -> V {
    V::splat(1.0) / (V::splat(1.0) + exp(V::zero() - x))
}

/// `tanh x` to 2 ulp.
#[inline(always)]
pub(crate) fn tanh<V: Vector>(x: V) -> V {
    let magnitude = x.max(V::zero() - x);
    let square = x * x;
    // Near zero 1 − 2/(e²ˣ+1) would cancel.
    let small =
        polynomial(square, [-6.274_232e-3, 2.107_167_2e-2, -5.385_231e-2, 1.333_258_6e-1, -3.333_331_6e-1]);
    let small = (x * square).mul_add(small, x);
    let large = V::splat(1.0) - V::splat(2.0) / (exp(magnitude + magnitude) + V::splat(1.0));
    let large = x.select_less(V::zero(), V::zero() - large, large);
    magnitude.select_less(V::splat(0.55), small, large)
}

/// Distribution function and density of the standard normal distribution at `x`.
///
/// `Φ(−t√2) = ½ e^(−t²) erfcx(t)`: both share one exponential, and the tail keeps its relative precision.
#[inline(always)]
pub(crate) fn normal<V: Vector>(x: V) -> (V, V) {
    let magnitude = x.max(V::zero() - x);
    let gauss = exp(x * x * V::splat(-0.5));
    // erfcx(t) = s P(s), s = 1/(1 + 0.375 t), t = |x| / √2, to 1.2e-8 on t <= 10.
    let s =
        V::splat(1.0) / magnitude.mul_add(V::splat(0.375 * std::f32::consts::FRAC_1_SQRT_2), V::splat(1.0));
    let p = polynomial(
        s,
        [
            6.153_840_6e-2,
            -2.873_293_2e-1,
            4.323_971_6e-1,
            -2.294_118_3e-1,
            2.737_237e-1,
            1.215_053_2e-1,
            2.053_134e-1,
            2.106_496_5e-1,
            2.116_134_8e-1,
        ],
    );
    let tail = V::splat(0.5) * gauss * s * p;
    let distribution = x.select_less(V::zero(), tail, V::splat(1.0) - tail);
    let density = gauss * V::splat(0.398_942_3);
    (distribution, density)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::dispatch::per_isa;

    #[inline(always)]
    fn map_body<V: Vector>(which: usize, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(V::LANES).zip(y.chunks_mut(V::LANES)) {
            let v = V::load(x);
            let result = match which {
                0 => exp(v),
                1 => sigmoid(v),
                2 => tanh(v),
                3 => normal(v).0,
                _ => normal(v).1,
            };
            result.store(y);
        }
    }

    per_isa!(fn map = map_body(which: usize, x: &[f32], y: &mut [f32]));

    /// Taylor series of erf, enough terms for |x| <= 3; continued fraction of erfc beyond.
    fn normal_cdf(x: f64) -> f64 {
        let t = x.abs() / std::f64::consts::SQRT_2;
        let erfc = if t < 3.0 {
            let (mut term, mut sum) = (t, t);
            for n in 1..200 {
                term *= -t * t / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            1.0 - sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let mut fraction = 0.0;
            for n in (1..200).rev() {
                fraction = n as f64 / 2.0 / (t + fraction);
            }
            (-t * t).exp() / std::f64::consts::PI.sqrt() / (t + fraction)
        };
        if x < 0.0 { 0.5 * erfc } else { 1.0 - 0.5 * erfc }
    }

    /// Largest error in ulps of the exact result.
    fn worst(isa: Isa, which: usize, from: f32, to: f32, exact: impl Fn(f64) -> f64) -> f64 {
        let x: Vec<f32> = (0..100_003).map(|i| from + (to - from) * (i as f32 / 100_002.0)).collect();
        let mut y = vec![f32::NAN; x.len()];
        map(isa, which, &x, &mut y);
        x.iter().zip(&y).fold(0.0, |worst: f64, (&x, &y)| {
            let exact = exact(f64::from(x));
            let ulp = f64::from((exact.abs() as f32).max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON) / 2.0;
            worst.max((f64::from(y) - exact).abs() / ulp.max(1e-45))
        })
    }

    #[test]
    fn errors_are_small_on_every_instruction_set() {
        for isa in Isa::available() {
            // One unit here is half an ulp at the top of a binade.
            assert!(worst(isa, 0, -87.0, 88.0, f64::exp) < 3.0, "{isa:?}");
            assert!(worst(isa, 0, -103.9, -80.0, f64::exp) < 3.0, "{isa:?}");
            assert!(worst(isa, 0, -0.4, 0.4, f64::exp) < 2.5, "{isa:?}");
            assert!(worst(isa, 1, -80.0, 80.0, |x| 1.0 / (1.0 + (-x).exp())) < 5.0, "{isa:?}");
            assert!(worst(isa, 2, -12.0, 12.0, f64::tanh) < 5.0, "{isa:?}");
            assert!(worst(isa, 2, -0.001, 0.001, f64::tanh) < 3.0, "{isa:?}");
            assert!(worst(isa, 3, -3.0, 9.0, normal_cdf) < 12.0, "{isa:?}");
            assert!(worst(isa, 3, -12.0, -3.0, normal_cdf) < 150.0, "{isa:?}");
            let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            assert!(worst(isa, 4, -3.0, 3.0, density) < 12.0, "{isa:?}");
        }
    }

    #[test]
    fn extremes() {
        let x = [f32::NEG_INFINITY, -1e30, -200.0, 0.0, 89.0, 1e30, f32::INFINITY, f32::NAN, 1.0];
        for isa in Isa::available() {
            let mut y = [7.0; 9];
            map(isa, 0, &x, &mut y);
            assert_eq!(y[..7], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY], "{isa:?}");
            assert!(y[7].is_nan() && (y[8] - std::f32::consts::E).abs() < 1e-6);
            map(isa, 2, &x, &mut y);
            assert_eq!(y[..7], [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0], "{isa:?}");
            assert!(y[7].is_nan());
        }
    }
}

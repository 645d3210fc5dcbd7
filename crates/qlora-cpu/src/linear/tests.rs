//! Every processor's kernels against sums in `f64`, on shapes that fit nothing.

use super::lora_grads::lora_grads_with;
use super::{linear_grad_input_with, linear_with};
use crate::decode::{dequantize, round_bf16};
use crate::isa::Isa;
use crate::weight::{Absmax, Lora, Nf4View, Precision, Weight, WeightData};
use half::{bf16, f16};

const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    /// In [-1, 1).
    fn value(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }
    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// Storage that a [`Weight`] borrows, in every format.
struct Matrix {
    rows: usize,
    cols: usize,
    f32s: Vec<f32>,
    bf16s: Vec<bf16>,
    f16s: Vec<f16>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
    absmax_codes: Vec<u8>,
    nested: Vec<f32>,
    map: [f32; 256],
}

#[derive(Clone, Copy, Debug)]
enum Format {
    F32,
    Bf16,
    F16,
    Nf4 { block: usize },
    Nf4Double { block: usize, nested: usize },
}

const OFFSET: f32 = 0.031;

impl Matrix {
    fn new(rows: usize, cols: usize, random: &mut Random) -> Self {
        let len = rows * cols;
        let f32s = random.values(len);
        Self {
            rows,
            cols,
            bf16s: f32s.iter().map(|&v| bf16::from_f32(v)).collect(),
            f16s: f32s.iter().map(|&v| f16::from_f32(v)).collect(),
            codes: (0..len.div_ceil(2)).map(|_| random.next() as u8).collect(),
            absmax: (0..len).map(|_| 0.5 + random.value() * 0.4).collect(),
            absmax_codes: (0..len).map(|_| random.next() as u8).collect(),
            nested: (0..len).map(|_| 0.5 + random.value() * 0.4).collect(),
            map: std::array::from_fn(|i| (i as f32 - 127.0) / 128.0),
            f32s,
        }
    }

    fn weight(&self, format: Format) -> Weight<'_> {
        let len = self.rows * self.cols;
        let nf4 = |block: usize, absmax| {
            WeightData::Nf4(Nf4View { codes: &self.codes, absmax, block_size: block, codebook: &CODEBOOK })
        };
        let data = match format {
            Format::F32 => WeightData::F32(&self.f32s),
            Format::Bf16 => WeightData::Bf16(&self.bf16s),
            Format::F16 => WeightData::F16(&self.f16s),
            Format::Nf4 { block } => nf4(block, Absmax::Plain(&self.absmax[..len.div_ceil(block)])),
            Format::Nf4Double { block, nested } => nf4(
                block,
                Absmax::Double {
                    codes: &self.absmax_codes[..len.div_ceil(block)],
                    map: &self.map,
                    nested_absmax: &self.nested[..len.div_ceil(block).div_ceil(nested)],
                    nested_block: nested,
                    offset: OFFSET,
                },
            ),
        };
        Weight::new(self.rows, self.cols, data)
    }

    /// Element by element, from the definition.
    fn element(&self, format: Format, i: usize) -> f32 {
        let code =
            usize::from(if i.is_multiple_of(2) { self.codes[i / 2] >> 4 } else { self.codes[i / 2] & 15 });
        match format {
            Format::F32 => self.f32s[i],
            Format::Bf16 => self.bf16s[i].to_f32(),
            Format::F16 => self.f16s[i].to_f32(),
            Format::Nf4 { block } => CODEBOOK[code] * self.absmax[i / block],
            Format::Nf4Double { block, nested } => {
                let scale = self.map[usize::from(self.absmax_codes[i / block])];
                CODEBOOK[code] * (scale * self.nested[i / block / nested] + OFFSET)
            }
        }
    }

    fn dense(&self, format: Format, precision: Precision) -> Vec<f64> {
        (0..self.rows * self.cols).map(|i| operand(self.element(format, i), precision)).collect()
    }
}

fn operand(value: f32, precision: Precision) -> f64 {
    f64::from(match precision {
        Precision::F32 => value,
        Precision::Bf16 => bf16::from_f32(value).to_f32(),
    })
}

fn operands(values: &[f32], precision: Precision) -> Vec<f64> {
    values.iter().map(|&v| operand(v, precision)).collect()
}

/// `a[m, k] · b[k, n]`, the elements of `b` where `at` says.
fn multiply(
    a: &[f64],
    b: &[f64],
    m: usize,
    k: usize,
    n: usize,
    at: impl Fn(usize, usize) -> usize,
) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k).map(|c| a[i * k + c] * b[at(c, j)]).sum();
        }
    }
    out
}

/// Sums of `k` products of numbers of size one: `f32` rounding, and in bf16 the rounding of the scaled
/// low-rank activations, which the reference rounds from a slightly different sum.
fn assert_close(name: &str, found: &[f32], expected: &[f64], k: usize, precision: Precision) {
    let tolerance = match precision {
        Precision::F32 => 1e-6 * (k as f64).sqrt() + 1e-6,
        Precision::Bf16 => 2e-6 * (k as f64).sqrt() + 2e-6,
    };
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(f) - e).abs() <= tolerance * (1.0 + e.abs()),
            "{name}: element {i} is {f}, not {e}"
        );
    }
}

struct Case {
    tokens: usize,
    rows: usize,
    cols: usize,
    format: Format,
    rank: usize,
    bias: bool,
}

const NF4: Format = Format::Nf4 { block: 64 };
const DOUBLE: Format = Format::Nf4Double { block: 64, nested: 256 };

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Whole panels and chunks, as real models have them.
    Case { tokens: 64, rows: 96, cols: 192, format: NF4, rank: 16, bias: false },
    Case { tokens: 100, rows: 64, cols: 128, format: DOUBLE, rank: 5, bias: true },
    // One short of and one past everything.
    Case { tokens: 37, rows: 33, cols: 65, format: Format::F32, rank: 4, bias: true },
    Case { tokens: 35, rows: 31, cols: 63, format: Format::Bf16, rank: 1, bias: false },
    Case { tokens: 29, rows: 47, cols: 97, format: Format::F16, rank: 0, bias: true },
    // Blocks that cross rows, an odd count of elements, rows that begin in the middle of a byte.
    Case { tokens: 26, rows: 37, cols: 51, format: Format::Nf4 { block: 32 }, rank: 16, bias: true },
    Case { tokens: 27, rows: 35, cols: 77, format: Format::Nf4Double { block: 32, nested: 3 }, rank: 4, bias: false },
    // Blocks that cross rows on the fast path, and a block size that is no power of two.
    Case { tokens: 38, rows: 40, cols: 96, format: Format::Nf4 { block: 128 }, rank: 2, bias: false },
    Case { tokens: 38, rows: 40, cols: 96, format: Format::Nf4Double { block: 48, nested: 256 }, rank: 2, bias: true },
    // Several contraction blocks on either side.
    Case { tokens: 25, rows: 5, cols: 4200, format: NF4, rank: 3, bias: true },
    Case { tokens: 25, rows: 4163, cols: 33, format: Format::Bf16, rank: 3, bias: false },
    // More token rows than a block.
    Case { tokens: 1030, rows: 33, cols: 160, format: NF4, rank: 4, bias: true },
    // A rank of several panels.
    Case { tokens: 31, rows: 34, cols: 96, format: NF4, rank: 70, bias: false },
    // Few tokens.
    Case { tokens: 1, rows: 67, cols: 160, format: NF4, rank: 16, bias: true },
    Case { tokens: 2, rows: 70, cols: 96, format: DOUBLE, rank: 4, bias: false },
    Case { tokens: 3, rows: 33, cols: 71, format: Format::Nf4 { block: 32 }, rank: 5, bias: true },
    Case { tokens: 5, rows: 66, cols: 131, format: Format::Bf16, rank: 0, bias: true },
    Case { tokens: 7, rows: 37, cols: 45, format: Format::F32, rank: 1, bias: false },
    Case { tokens: 8, rows: 33, cols: 64, format: Format::F16, rank: 2, bias: false },
    Case { tokens: 13, rows: 41, cols: 192, format: DOUBLE, rank: 16, bias: true },
    Case { tokens: 24, rows: 34, cols: 112, format: Format::Bf16, rank: 17, bias: true },
    // Degenerate.
    Case { tokens: 1, rows: 1, cols: 1, format: Format::F32, rank: 1, bias: true },
    Case { tokens: 30, rows: 1, cols: 1, format: Format::Nf4 { block: 32 }, rank: 1, bias: true },
    Case { tokens: 0, rows: 3, cols: 5, format: Format::F32, rank: 2, bias: true },
    Case { tokens: 30, rows: 3, cols: 0, format: Format::F32, rank: 2, bias: true },
    Case { tokens: 2, rows: 3, cols: 0, format: Format::F32, rank: 2, bias: true },
];

/// Everything a training step computes with one linear layer.
struct Results {
    y: Vec<f32>,
    xa: Vec<f32>,
    dx: Vec<f32>,
    dyb: Vec<f32>,
    da: Vec<f32>,
    db: Vec<f32>,
}

const SCALE: f32 = 1.7;

struct Inputs {
    matrix: Matrix,
    x: Vec<f32>,
    dy: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let random = &mut Random(7);
        let Case { tokens, rows, cols, rank, .. } = *case;
        Self {
            matrix: Matrix::new(rows, cols, random),
            x: random.values(tokens * cols),
            dy: random.values(tokens * rows),
            a: random.values(rank * cols),
            b: random.values(rows * rank),
            bias: random.values(rows),
        }
    }

    fn run(&self, case: &Case, isa: Isa, precision: Precision) -> Results {
        let Case { tokens, rows, cols, rank, .. } = *case;
        let w = self.matrix.weight(case.format);
        let poison = |len: usize| vec![f32::NAN; len];
        let mut r = Results {
            y: poison(tokens * rows),
            xa: poison(tokens * rank),
            dx: poison(tokens * cols),
            dyb: poison(tokens * rank),
            da: poison(rank * cols),
            db: poison(rows * rank),
        };
        let lora = Lora { a: &self.a, b: &self.b, rank, scale: SCALE };
        let lora = (rank > 0).then_some(&lora);
        let bias = case.bias.then_some(&self.bias[..]);
        let xa = lora.map(|_| &mut r.xa[..]);
        linear_with(isa, &self.x, tokens, &w, bias, lora, precision, &mut r.y, xa);
        let dyb = lora.map(|_| &mut r.dyb[..]);
        linear_grad_input_with(isa, &self.dy, tokens, &w, lora, precision, &mut r.dx, dyb);
        lora_grads_with(
            isa, &self.x, &r.xa, &self.dy, &r.dyb, tokens, cols, rows, rank, SCALE, &mut r.da, &mut r.db,
        );
        r
    }
}

#[test]
fn agrees_with_f64_sums_everywhere() {
    for case in CASES {
        let Case { tokens, rows, cols, rank, format, bias } = *case;
        let inputs = Inputs::new(case);
        for precision in [Precision::F32, Precision::Bf16] {
            let w = inputs.matrix.dense(format, precision);
            let (x, dy) = (operands(&inputs.x, precision), operands(&inputs.dy, precision));
            let (a, b) = (operands(&inputs.a, precision), operands(&inputs.b, precision));
            let xa = multiply(&x, &a, tokens, cols, rank, |c, j| j * cols + c);
            let dyb = multiply(&dy, &b, tokens, rows, rank, |c, j| c * rank + j);
            for isa in Isa::available() {
                let name = format!("{isa:?} {precision:?} {tokens}x{rows}x{cols} {format:?} rank {rank}");
                let found = inputs.run(case, isa, precision);
                let scaled = |inner: &[f32]| -> Vec<f64> {
                    inner.iter().map(|&v| operand(v * SCALE, precision)).collect()
                };
                let mut y = multiply(&x, &w, tokens, cols, rows, |c, j| j * cols + c);
                let up = multiply(&scaled(&found.xa), &b, tokens, rank, rows, |r, j| j * rank + r);
                y.iter_mut().zip(up).for_each(|(y, v)| *y += v);
                if bias {
                    y.chunks_mut(rows).for_each(|y| {
                        y.iter_mut().zip(&inputs.bias).for_each(|(y, &v)| *y += f64::from(v));
                    });
                }
                let mut dx = multiply(&dy, &w, tokens, rows, cols, |c, j| c * cols + j);
                let up = multiply(&scaled(&found.dyb), &a, tokens, rank, cols, |r, j| r * cols + j);
                dx.iter_mut().zip(up).for_each(|(y, v)| *y += v);
                let exact = |v: &[f32]| operands(v, Precision::F32);
                let transposed = |v: &[f32], cols: usize| -> Vec<f64> {
                    (0..v.len()).map(|i| f64::from(v[i % tokens * cols + i / tokens])).collect()
                };
                let scale = |mut v: Vec<f64>| {
                    v.iter_mut().for_each(|v| *v *= f64::from(SCALE));
                    v
                };
                let da =
                    multiply(&transposed(&found.dyb, rank), &exact(&inputs.x), rank, tokens, cols, |t, j| {
                        t * cols + j
                    });
                let db =
                    multiply(&transposed(&inputs.dy, rows), &exact(&found.xa), rows, tokens, rank, |t, j| {
                        t * rank + j
                    });
                assert_close(&format!("{name}: xa"), &found.xa, &xa, cols, precision);
                assert_close(&format!("{name}: y"), &found.y, &y, cols + rank, precision);
                assert_close(&format!("{name}: dyb"), &found.dyb, &dyb, rows, precision);
                assert_close(&format!("{name}: dx"), &found.dx, &dx, rows + rank, precision);
                // The inner activations have the size of a sum themselves.
                assert_close(&format!("{name}: da"), &found.da, &scale(da), tokens * rows, precision);
                assert_close(&format!("{name}: db"), &found.db, &scale(db), tokens * cols, precision);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pools = [pool(1), pool(2), pool(5)];
    for (tokens, rows, cols) in [(200, 70, 352), (1, 2000, 700)] {
        let case = Case { tokens, rows, cols, format: NF4, rank: 8, bias: true };
        let inputs = Inputs::new(&case);
        for precision in [Precision::F32, Precision::Bf16] {
            let [one, more @ ..] = pools.each_ref().map(|pool| {
                let r = pool.install(|| inputs.run(&case, Isa::detect(), precision));
                [r.y, r.xa, r.dx, r.dyb, r.da, r.db]
                    .map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            });
            assert!(more.iter().all(|other| *other == one), "{precision:?} with {tokens} tokens");
        }
    }
}

#[test]
fn a_row_does_not_see_the_batch_around_it() {
    let case = Case { tokens: 61, rows: 96, cols: 96, format: NF4, rank: 4, bias: true };
    // Either side of what counts as few tokens.
    for (tokens, other) in [(61, 25), (12, 1), (7, 3), (5, 2)] {
        let whole = Case { tokens, ..case };
        let inputs = Inputs::new(&whole);
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                let all = inputs.run(&whole, isa, precision);
                let part = Inputs {
                    matrix: Matrix::new(96, 96, &mut Random(7)),
                    x: inputs.x[..other * 96].to_vec(),
                    dy: inputs.dy[..other * 96].to_vec(),
                    a: inputs.a.clone(),
                    b: inputs.b.clone(),
                    bias: inputs.bias.clone(),
                };
                let part = part.run(&Case { tokens: other, ..case }, isa, precision);
                assert_eq!(part.y, all.y[..other * 96], "{isa:?} {precision:?}: {other} of {tokens}");
                assert_eq!(part.dx, all.dx[..other * 96], "{isa:?} {precision:?}: {other} of {tokens}");
            }
        }
    }
}

#[test]
fn few_and_many_tokens_agree_within_rounding() {
    let many = Case { tokens: 25, rows: 80, cols: 576, format: NF4, rank: 4, bias: false };
    let inputs = Inputs::new(&many);
    for isa in Isa::available() {
        let all = inputs.run(&many, isa, Precision::F32);
        let one = Inputs { x: inputs.x[..576].to_vec(), dy: inputs.dy[..80].to_vec(), ..Inputs::new(&many) };
        let one = one.run(&Case { tokens: 1, ..many }, isa, Precision::F32);
        let expected = all.y[..80].iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        assert_close(&format!("{isa:?}"), &one.y, &expected, 576, Precision::F32);
    }
}

#[test]
fn dequantizes_every_format() {
    let formats = [
        Format::F32,
        Format::Bf16,
        Format::F16,
        Format::Nf4 { block: 32 },
        Format::Nf4Double { block: 64, nested: 256 },
    ];
    for (rows, cols) in [(1, 1), (7, 33), (300, 301)] {
        let matrix = Matrix::new(rows, cols, &mut Random(3));
        for format in formats {
            let mut out = vec![f32::NAN; rows * cols];
            dequantize(&matrix.weight(format), &mut out);
            assert!(
                (0..rows * cols).all(|i| out[i] == matrix.element(format, i)),
                "{format:?} [{rows}, {cols}]"
            );
        }
    }
}

#[test]
fn rounds_to_bf16_as_the_format_says() {
    let random = &mut Random(11);
    let some = (0..10_000).map(|_| f32::from_bits(random.next() << 1 | random.next() & 1));
    for value in some.chain([
        0.0,
        -0.0,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
    ]) {
        let expected = bf16::from_f32(value).to_f32();
        let found = round_bf16(value);
        assert!(found == expected || found.is_nan() && expected.is_nan(), "{value:e} became {found:e}");
    }
}

#[test]
#[should_panic(expected = "too few codes")]
fn refuses_too_few_codes() {
    let view = Nf4View { codes: &[0; 7], absmax: Absmax::Plain(&[1.0]), block_size: 64, codebook: &CODEBOOK };
    let _ = Weight::new(3, 5, WeightData::Nf4(view));
}

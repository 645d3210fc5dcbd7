use super::*;
use crate::checks::{assert_close, differences, dot, everywhere, noise, to_f64};

struct Case {
    shape: AttentionShape,
    spans: Vec<AttentionSpan>,
    queries: usize,
    keys: usize,
}

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, lengths: &[usize]) -> Self {
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.7, softcap: None, window: None };
        let rows = lengths.iter().sum();
        Self { shape, spans: AttentionSpan::packed(lengths), queries: rows, keys: rows }
    }

    fn window(mut self, window: usize) -> Self {
        self.shape.window = Some(window);
        self
    }

    fn softcap(mut self, softcap: f32) -> Self {
        self.shape.softcap = Some(softcap);
        self
    }

    /// As with a cache: spans `(queries, keys)`, with three unused rows of keys between them.
    fn cached(mut self, lengths: &[(usize, usize)]) -> Self {
        (self.queries, self.keys) = (0, 0);
        self.spans.clear();
        for &(q_len, k_len) in lengths {
            self.spans.push(AttentionSpan { q_start: self.queries, q_len, k_start: self.keys, k_len });
            self.queries += q_len;
            self.keys += k_len + 3;
        }
        self
    }

    /// Queries, keys, values; scores up to about ±5.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let spread = (24.0 / self.shape.head_dim as f32).sqrt();
        let q = noise(self.queries * self.shape.q_width(), 1).iter().map(|x| x * spread).collect();
        let k = noise(self.keys * self.shape.kv_width(), 2).iter().map(|x| x * 2.0).collect();
        [q, k, noise(self.keys * self.shape.kv_width(), 3)]
    }

    /// For every query and head: query row, head, key head, and its probabilities with slopes of the cap.
    fn rows(&self, q: &[f64], k: &[f64]) -> Vec<Row> {
        let s = &self.shape;
        let mut rows = Vec::new();
        for span in &self.spans {
            for (i, head) in (0..span.q_len).flat_map(|i| (0..s.heads).map(move |head| (i, head))) {
                let position = span.k_len - span.q_len + i;
                let first = s.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let (query, kv_head) = (span.q_start + i, head / s.group());
                let keys: Vec<usize> = (first..=position).map(|key| span.k_start + key).collect();
                let scores: Vec<f64> = (keys.iter())
                    .map(|key| {
                        let q = &q[query * s.q_width() + head * s.head_dim..][..s.head_dim];
                        let k = &k[key * s.kv_width() + kv_head * s.head_dim..][..s.head_dim];
                        f64::from(s.scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
                    })
                    .collect();
                let cap = s.softcap.map(f64::from);
                let capped = |s: &f64| cap.map_or(*s, |cap| cap * (s / cap).tanh());
                let slope = |s: &f64| cap.map_or(1.0, |cap| 1.0 - (s / cap).tanh().powi(2));
                let lse = scores.iter().map(|s| capped(s).exp()).sum::<f64>().ln();
                let p = scores.iter().map(|s| (capped(s) - lse).exp()).collect();
                let slopes = scores.iter().map(slope).collect();
                rows.push(Row { query, head, kv_head, keys, p, slopes, lse });
            }
        }
        rows
    }

    fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let s = &self.shape;
        let (mut out, mut lse) = (vec![f64::NAN; q.len()], vec![f64::NAN; self.queries * s.heads]);
        for row in self.rows(q, k) {
            lse[row.query * s.heads + row.head] = row.lse;
            for d in 0..s.head_dim {
                let value = |key: &usize| v[key * s.kv_width() + row.kv_head * s.head_dim + d];
                out[row.query * s.q_width() + row.head * s.head_dim + d] =
                    row.keys.iter().zip(&row.p).map(|(key, p)| p * value(key)).sum();
            }
        }
        (out, lse)
    }

    fn backward(&self, q: &[f64], k: &[f64], v: &[f64], dout: &[f32]) -> [Vec<f64>; 3] {
        let s = &self.shape;
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for row in self.rows(q, k) {
            let q_at = row.query * s.q_width() + row.head * s.head_dim;
            let k_at = |key: usize| key * s.kv_width() + row.kv_head * s.head_dim;
            let dp: Vec<f64> = (row.keys.iter())
                .map(|&key| (0..s.head_dim).map(|d| f64::from(dout[q_at + d]) * v[k_at(key) + d]).sum())
                .collect();
            let delta: f64 = dp.iter().zip(&row.p).map(|(dp, p)| dp * p).sum();
            for (j, &key) in row.keys.iter().enumerate() {
                let ds = row.p[j] * (dp[j] - delta) * row.slopes[j] * f64::from(s.scale);
                for d in 0..s.head_dim {
                    dq[q_at + d] += ds * k[k_at(key) + d];
                    dk[k_at(key) + d] += ds * q[q_at + d];
                    dv[k_at(key) + d] += row.p[j] * f64::from(dout[q_at + d]);
                }
            }
        }
        [dq, dk, dv]
    }

    /// Rows of keys that belong to a span.
    fn used(&self, key_element: usize) -> bool {
        let key = key_element / self.shape.kv_width();
        self.spans.iter().any(|span| (span.k_start..span.k_start + span.k_len).contains(&key))
    }

    fn check(&self) {
        let [q, k, v] = self.inputs();
        let dout = noise(q.len(), 4);
        let run = || {
            let (mut out, mut lse) =
                (vec![f32::NAN; q.len()], vec![f32::NAN; self.queries * self.shape.heads]);
            attention(&q, &k, &v, &self.shape, &self.spans, &mut out, Some(&mut lse));
            let mut plain = vec![f32::NAN; q.len()];
            attention(&q, &k, &v, &self.shape, &self.spans, &mut plain, None);
            assert_eq!(out, plain);
            let (mut dq, mut dk, mut dv) =
                (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
            attention_backward(
                &dout,
                &q,
                &k,
                &v,
                &out,
                &lse,
                &self.shape,
                &self.spans,
                &mut dq,
                &mut dk,
                &mut dv,
            );
            vec![out, lse, dq, dk, dv]
        };
        let [q64, k64, v64] = [&q, &k, &v].map(|x| to_f64(x));
        let (out, lse) = self.forward(&q64, &k64, &v64);
        let [dq, dk, dv] = self.backward(&q64, &k64, &v64, &dout);
        everywhere(run, |isa, results| {
            let name = |what| format!("{what} on {isa:?}, {:?}, {} spans", self.shape, self.spans.len());
            assert_close(&name("out"), &results[0], &out, 3e-6);
            assert_close(&name("lse"), &results[1], &lse, 3e-6);
            assert_close(&name("dq"), &results[2], &dq, 2e-5);
            for (what, actual, expected) in [("dk", &results[3], &dk), ("dv", &results[4], &dv)] {
                let pairs = actual.iter().zip(expected).enumerate();
                let (used, unused): (Vec<_>, Vec<_>) = pairs.partition(|(i, _)| self.used(*i));
                let (actual, expected): (Vec<f32>, Vec<f64>) = used.into_iter().map(|(_, pair)| pair).unzip();
                assert_close(&name(what), &actual, &expected, 2e-5);
                assert!(unused.iter().all(|(_, (x, _))| x.is_nan()), "rows of no span are not written");
            }
        });
    }
}

struct Row {
    query: usize,
    head: usize,
    kv_head: usize,
    keys: Vec<usize>,
    p: Vec<f64>,
    slopes: Vec<f64>,
    lse: f64,
}

#[test]
fn the_reference_has_the_gradients_of_its_differences() {
    for case in [Case::new(4, 2, 6, &[5, 1, 3]), Case::new(2, 1, 4, &[7]).window(3).softcap(2.0)] {
        let [q, k, v] = case.inputs().map(|x| to_f64(&x));
        let dout = noise(q.len(), 4);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&case.forward(q, k, v).0, &dout);
        let numeric = [
            differences(&q, |q| loss(q, &k, &v)),
            differences(&k, |k| loss(&q, k, &v)),
            differences(&v, |v| loss(&q, &k, v)),
        ];
        for (analytic, numeric) in case.backward(&q, &k, &v, &dout).iter().zip(&numeric) {
            assert!(analytic.iter().zip(numeric).all(|(a, n)| (a - n).abs() < 1e-7));
        }
    }
}

#[test]
fn ragged_batches() {
    Case::new(9, 3, 64, &[36, 1, 17, 64, 2]).check();
    Case::new(1, 1, 8, &[1]).check();
    Case::new(2, 2, 16, &[]).check();
    Case::new(2, 1, 16, &[0, 5, 0]).check();
    Case::new(4, 1, 32, &[3; 20]).check();
}

#[test]
fn several_tiles() {
    Case::new(2, 1, 64, &[300]).check();
    Case::new(3, 3, 128, &[131, 200]).check();
    Case::new(7, 1, 16, &[150]).check();
}

#[test]
fn any_head_dimension() {
    for head_dim in [1, 3, 24, 72, 80, 96] {
        Case::new(4, 2, head_dim, &[19, 6]).check();
    }
}

#[test]
fn windows_and_caps() {
    for window in [1, 2, 7, 16, 40, 128, 500] {
        Case::new(4, 2, 24, &[50, 9]).window(window).check();
        Case::new(2, 2, 16, &[290]).window(window).softcap(3.0).check();
    }
    Case::new(6, 2, 40, &[33, 140]).softcap(1.5).check();
}

#[test]
fn keys_of_a_cache() {
    let case = |head_dim| Case::new(6, 2, head_dim, &[]);
    case(64).cached(&[(1, 1), (1, 200), (5, 300), (1, 17), (16, 16)]).check();
    case(20).cached(&[(1, 131), (2, 9), (1, 128)]).check();
    case(64).cached(&[(1, 200), (40, 170)]).window(30).softcap(2.0).check();
}

#[test]
fn extreme_scores_are_finite() {
    let case = Case::new(2, 1, 16, &[40]);
    let [q, k, v] = case.inputs();
    let q: Vec<f32> = q.iter().map(|x| x * 3000.0).collect();
    let run = || {
        let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; 80]);
        attention(&q, &k, &v, &case.shape, &case.spans, &mut out, Some(&mut lse));
        let (mut dq, mut dk, mut dv) =
            (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; k.len()]);
        let spans = &case.spans;
        attention_backward(
            &v.repeat(2),
            &q,
            &k,
            &v,
            &out,
            &lse,
            &case.shape,
            spans,
            &mut dq,
            &mut dk,
            &mut dv,
        );
        vec![out, lse, dq, dk, dv]
    };
    everywhere(run, |isa, results| {
        assert!(results.iter().flatten().all(|x| x.is_finite()), "{isa:?}");
        assert!(results[1].iter().any(|lse| lse.abs() > 5e3), "the scores are not extreme");
    });
}

#[test]
fn a_nan_reaches_the_queries_that_see_it_and_no_others() {
    let case = Case::new(2, 2, 16, &[20, 3]);
    let [q, mut k, v] = case.inputs();
    k[10 * case.shape.kv_width()] = f32::NAN;
    let run = || {
        let mut out = vec![0.0; q.len()];
        attention(&q, &k, &v, &case.shape, &case.spans, &mut out, None);
        vec![out]
    };
    everywhere(run, |isa, out| {
        for (i, out) in out[0].chunks(16).enumerate() {
            let (query, head) = (i / 2, i % 2);
            assert_eq!(
                out.iter().all(|x| x.is_nan()),
                head == 0 && (10..20).contains(&query),
                "{isa:?}: {i}"
            );
        }
    });
}

#[test]
#[should_panic(expected = "two spans share a row")]
fn overlapping_spans_are_refused() {
    let case = Case::new(1, 1, 8, &[4]);
    let spans = [AttentionSpan::causal(0, 3), AttentionSpan::causal(2, 2)];
    let x = [0.0; 32];
    attention(&x, &x, &x, &case.shape, &spans, &mut [0.0; 32], None);
}

/// Pages in any order give what the same keys give in a row.
#[test]
fn keys_in_pages() {
    let page_size = 8;
    let pages: [&[u32]; 4] = [&[5], &[3, 4, 0, 9], &[7, 2], &[12, 1, 11, 6, 8, 10, 13]];
    let lengths = [3, 30, 16, 50];
    for (head_dim, window, softcap) in [(64, None, None), (20, Some(12), Some(2.0)), (16, Some(1), None)] {
        let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim, scale: 0.3, softcap, window };
        let [k, v] = [2, 3].map(|seed| noise(14 * page_size * shape.kv_width(), seed));
        let q = noise(4 * shape.q_width(), 1);
        let (mut rows, mut spans) = ([Vec::new(), Vec::new()], Vec::new());
        for (query, (pages, length)) in pages.iter().zip(lengths).enumerate() {
            let k_start = rows[0].len() / shape.kv_width();
            spans.push(AttentionSpan { q_start: query, q_len: 1, k_start, k_len: length });
            for token in 0..length {
                let row = pages[token / page_size] as usize * page_size + token % page_size;
                let range = row * shape.kv_width()..(row + 1) * shape.kv_width();
                rows[0].extend_from_slice(&k[range.clone()]);
                rows[1].extend_from_slice(&v[range]);
            }
        }
        let mut expected = vec![f32::NAN; q.len()];
        attention(&q, &rows[0], &rows[1], &shape, &spans, &mut expected, None);
        let sequences: Vec<_> =
            pages.iter().zip(lengths).map(|(pages, length)| PagedSequence { length, pages }).collect();
        let mut out = vec![f32::NAN; q.len()];
        paged_attention(&q, &k, &v, &shape, page_size, &sequences, &mut out);
        assert_close("paged", &out, &to_f64(&expected), 1e-6);
    }
}

//! What generation asks for: caches, attention to pages, tokens drawn.

use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};

use super::cases::expect;
use super::harness::{Failure, noise, relative_error, values};
use crate::attention::{AttentionSpec, write_rows};
use crate::primitive::{primitive, tensor};
use crate::sampling::{Draw, Warpers, sample_row};
use crate::weight::Compute;
use crate::{
    CacheRows, KernelBackend, PageTable, append_to_cache, gather_rows, paged_attention, rotate_and_append,
    sample,
};

/// Writing into a cache: the rows change, the others and other holders of the tensor do not; rows are found again.
///
/// # Errors
/// When a case fails.
pub fn caches<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    let upload = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::<B, 2>::from_data(TensorData::new(values, shape), (device, DType::F32))
    };
    let count = |from: usize, count: usize| (from..from + count).map(|v| v as f32).collect::<Vec<_>>();
    let (keys, cached) = (upload(count(0, 12), [6, 2]), upload(count(20, 12), [6, 2]));
    let held = keys.clone();
    let new = (upload(count(100, 4), [2, 2]), upload(count(200, 4), [2, 2]));
    let rows = CacheRows::new(vec![4, 1], device);
    let written = append_to_cache((keys, cached), new.clone(), &rows);
    let expected = [0., 1., 102., 103., 4., 5., 6., 7., 100., 101., 10., 11.];
    expect("written keys", values(written.0) == expected)?;
    let expected_values = [20., 21., 202., 203., 24., 25., 26., 27., 200., 201., 30., 31.];
    expect("written values", values(written.1.clone()) == expected_values)?;
    expect("the other holder", values(held.clone()) == (0..12).map(f64::from).collect::<Vec<_>>())?;
    expect("rows found again", values(gather_rows(&written.1, &rows)) == [200., 201., 202., 203.])?;
    let reference: Tensor<B, 2> = tensor(write_rows::<B>(primitive(held), primitive(new.0), &[4, 1]));
    expect("the reference", values(reference) == expected)
}

/// Rotation and writing at once, against the two one after the other.
///
/// # Errors
/// When a case fails.
pub fn rotated_caches<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let dtype = B::activation_dtype(compute);
    for (heads, kv_heads, head_dim, at) in
        [(1, 1, 2, vec![2]), (6, 2, 10, vec![4, 1, 6]), (8, 8, 64, vec![0])]
    {
        let tokens = at.len();
        let upload = |rows: usize, width: usize, seed: u64, dtype| {
            let values: Vec<f32> = noise(rows * width, seed).iter().map(|v| *v as f32).collect();
            let data = TensorData::new(values, [rows, width]);
            Tensor::<B, 2>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let q = upload(tokens, width, 1, dtype);
        let (k, v) = (upload(tokens, kv_width, 2, dtype), upload(tokens, kv_width, 3, dtype));
        let table = |seed| upload(tokens, head_dim / 2, seed, DType::F32);
        let (cos, sin) = (table(4), table(5));
        let cache = || (upload(7, kv_width, 6, dtype), upload(7, kv_width, 7, dtype));
        let rows = CacheRows::new(at, device);
        let turned = crate::rope(q.clone(), cos.clone(), sin.clone());
        let rotated = (crate::rope(k.clone(), cos.clone(), sin.clone()), v.clone());
        let expected = append_to_cache(cache(), rotated, &rows);
        let (got, written) = rotate_and_append(q, (k, v), (cos, sin), cache(), &rows);
        for (what, got, expected) in
            [("queries", got, turned), ("keys", written.0, expected.0), ("values", written.1, expected.1)]
        {
            // The same formula; compilers may contract it differently.
            let bound = if compute == Compute::F32 { 1e-6 } else { 1e-3 };
            let error = relative_error(&values(got), &values(expected));
            if error > bound {
                let case = format!("rotate and append {heads}/{kv_heads} x {head_dim}");
                return Err(Failure { case, what: what.into(), error, bound });
            }
        }
    }
    Ok(())
}

struct Paged {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_size: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    lengths: Vec<usize>,
}

impl Paged {
    fn run<B: KernelBackend>(&self, compute: Compute, dtype: DType, device: &B::Device) -> Vec<f64> {
        let spec = AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 0.8 / (self.head_dim as f32).sqrt(),
            softcap: self.softcap,
            window: self.window,
            compute,
            spans: Arc::new([]),
        };
        // Pages are handed out from the last to the first, in turns.
        let needed = |length: usize| length.div_ceil(self.page_size);
        let total: usize = self.lengths.iter().map(|length| needed(*length)).sum::<usize>() + 3;
        let mut pages = vec![Vec::new(); self.lengths.len()];
        let mut next = total as u32;
        while self.lengths.iter().zip(&pages).any(|(length, pages)| pages.len() < needed(*length)) {
            for (length, pages) in self.lengths.iter().zip(&mut pages) {
                if pages.len() < needed(*length) {
                    next -= 1;
                    pages.push(next);
                }
            }
        }
        let sequences: Vec<(usize, &[u32])> =
            self.lengths.iter().zip(&pages).map(|(length, pages)| (*length, pages.as_slice())).collect();
        let table = PageTable::<B>::new(&sequences, self.page_size, device);
        let upload = |rows: usize, width: usize, seed: u64| {
            let values: Vec<f32> = noise(rows * width, seed).iter().map(|v| *v as f32).collect();
            let data = TensorData::new(values, [rows, width]);
            // Through the type of the products, so that every backend sees the same numbers.
            let rounded = Tensor::<B, 2>::from_data(data, (device, DType::F32)).cast(compute.dtype());
            rounded.cast(dtype)
        };
        let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let rows = total * self.page_size;
        let q = upload(self.lengths.len(), width, 1) * 4.0;
        let (keys, cached) = (upload(rows, kv_width, 2), upload(rows, kv_width, 3));
        values(paged_attention(q, keys, cached, &table, &spec))
    }
}

/// Attention to pages against the reference on gathered keys: short and long sequences, windows, soft caps, heads that
/// do not fill a vector, and few sequences, whose keys are split.
///
/// # Errors
/// When a case fails.
pub fn paged_attentions<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let case = |heads, kv_heads, head_dim, lengths: &[usize]| Paged {
        heads,
        kv_heads,
        head_dim,
        page_size: 16,
        window: None,
        softcap: None,
        lengths: lengths.to_vec(),
    };
    let cases = [
        case(8, 2, 64, &[1, 17, 16, 100]),
        case(4, 4, 128, &[700, 3]),
        case(9, 3, 20, &[33, 600]),
        case(32, 4, 16, &(1..=40).map(|i| 8 * i).collect::<Vec<_>>()),
        Paged { window: Some(20), softcap: Some(3.0), page_size: 8, ..case(6, 1, 32, &[5, 20, 21, 300]) },
        Paged { window: Some(300), ..case(2, 2, 256, &[290, 800]) },
    ];
    let bound = match compute {
        Compute::F32 => 2e-5,
        Compute::F16 => 4e-3,
        Compute::Bf16 => 2e-2,
    };
    for case in cases {
        let got = case.run::<B>(compute, B::activation_dtype(compute), device);
        let expected = case.run::<Flex>(Compute::F32, DType::F64, &FlexDevice);
        let error = relative_error(&got, &expected);
        if error > bound {
            let Paged { heads, kv_heads, head_dim, window, lengths, .. } = case;
            let case = format!("paged attention {heads}/{kv_heads} x {head_dim}, {window:?}, {lengths:?}");
            return Err(Failure { case, what: "the result".into(), error, bound });
        }
    }
    Ok(())
}

/// The likeliest tokens, and tokens drawn: as the reference draws them, but where rounding decides.
///
/// # Errors
/// When a case fails.
pub fn samplings<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    let vocabulary = 70_001;
    let mut logits: Vec<f32> = noise(3 * vocabulary, 6).iter().map(|v| 5.0 * *v as f32).collect();
    for (row, at) in [(0, 0), (1, vocabulary - 1), (2, 77), (2, 500)] {
        logits[row * vocabulary + at] = 6.0;
    }
    let upload = |values: Vec<f32>, rows: usize| {
        let data = TensorData::new(values, [rows, vocabulary]);
        Tensor::<B, 2>::from_data(data, (device, DType::F32))
    };
    for (row, (id, log_prob)) in crate::greedy(upload(logits.clone(), 3)).into_iter().enumerate() {
        let sum: f64 =
            logits[row * vocabulary..][..vocabulary].iter().map(|z| f64::from(*z - 6.0).exp()).sum();
        expect("greedy token", id as usize == [0, vocabulary - 1, 77][row])?;
        expect("its log-probability", (f64::from(log_prob) + sum.ln()).abs() < 1e-4)?;
    }

    let plain = Warpers::default();
    let all = [
        plain,
        Warpers { temperature: 0.7, ..plain },
        Warpers { temperature: 0.0, ..plain },
        Warpers { top_k: 50, ..plain },
        Warpers { top_k: 1, ..plain },
        Warpers { top_p: 0.9, temperature: 0.5, ..plain },
        Warpers { top_p: 0.001, ..plain },
        Warpers { min_p: 0.05, ..plain },
        Warpers { temperature: 0.8, top_k: 40, top_p: 0.8, min_p: 0.01, ..plain },
        Warpers { typical_p: 0.5, ..plain },
    ];
    let uniforms = [0.0, 0.003, 0.31, 0.5, 0.77, 0.998];
    let draws: Vec<Draw> = (all.iter())
        .flat_map(|warpers| uniforms.map(|uniform| Draw { warpers: *warpers, uniform }))
        .collect();
    // Entropic warpers run on the host: apart, so that the others do not.
    let (entropic, simple): (Vec<_>, Vec<_>) = draws.into_iter().partition(|draw| draw.warpers.is_entropic());
    for draws in [simple, entropic] {
        let rows: Vec<f32> =
            (0..draws.len()).flat_map(|i| logits[i % 3 * vocabulary..][..vocabulary].to_vec()).collect();
        let found = sample(upload(rows.clone(), draws.len()), &draws);
        let mut moved = 0;
        for (row, (draw, (id, log_prob))) in draws.iter().zip(found).enumerate() {
            let row = &rows[row * vocabulary..][..vocabulary];
            let near = |uniform: f64| sample_row(row, &Draw { uniform, ..*draw });
            let (exact, expected) = near(draw.uniform);
            // Sums in f32 are good for 1e-5 of the mass: there another token may be hit.
            let neighbours = [draw.uniform - 2e-5, draw.uniform + 2e-5].map(|u| near(u.clamp(0.0, 1.0)).0);
            moved += usize::from(id != exact);
            expect("a drawn token", id == exact || neighbours.contains(&id) || drawn_near(row, draw, id))?;
            let bound = if id == exact { 1e-3 } else { 20.0 };
            expect("log-probability of a drawn token", (log_prob - expected).abs() < bound)?;
        }
        expect("most tokens are those of the reference", moved * 5 <= draws.len())?;
    }
    Ok(())
}

/// Whether a token is among those that uniform numbers near the draw's hit.
fn drawn_near(row: &[f32], draw: &Draw, id: u32) -> bool {
    (-20..=20).any(|i| {
        let uniform = (draw.uniform + f64::from(i) * 1e-6).clamp(0.0, 1.0 - 1e-9);
        sample_row(row, &Draw { uniform, ..*draw }).0 == id
    })
}

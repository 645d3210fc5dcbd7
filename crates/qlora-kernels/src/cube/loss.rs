//! The head and the loss, some rows of logits at a time.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::norm::row_cubes;
use super::reduce::{UNITS, cube_max, cube_sum, scratch};
use super::rows::{gather, scatter};
use super::tensors::{array, dims, empty, rows, zeros};
use crate::cross_entropy::{CrossEntropySpec, LossParts, TokenLosses};

/// Numbers that [`row_kernel`] writes for each row: loss, log-probability, entropy, whether the target came first.
const STATS: usize = 4;

/// `cap · tanh(scale · logit / cap)`.
#[cube]
fn transformed(logit: f32, scale: f32, cap: f32, #[comptime] softcap: bool) -> f32 {
    let z = logit * scale;
    if softcap {
        let x = clamp(z / cap, f32::new(-15.0), f32::new(15.0));
        let e = f32::exp(2.0f32 * x);
        cap * (e - 1.0f32) / (e + 1.0f32)
    } else {
        z
    }
}

/// One cube a row: what its logits come to and, where asked for, their gradient.
#[cube(launch_unchecked)]
fn row_kernel<T: Float>(
    logits: &Array<f32>,
    targets: &Array<u32>,
    weights: &Array<f32>,
    stats: &mut Array<f32>,
    dlogits: &mut Array<T>,
    first_row: usize,
    vocabulary: usize,
    scale: f32,
    cap: f32,
    smoothing: f32,
    #[comptime] softcap: bool,
    #[comptime] grad: bool,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = scratch();
    let row = CUBE_POS as usize;
    let start = row * vocabulary;
    let unit = UNIT_POS as usize;
    let mut most = f32::new(-1e30);
    let mut i = unit;
    while i < vocabulary {
        most = max(most, transformed(logits[start + i], scale, cap, softcap));
        i += comptime!(UNITS as usize);
    }
    let most = cube_max(most, &mut shared);
    let mut sum = 0.0f32;
    let mut plain = 0.0f32;
    let mut weighted = 0.0f32;
    let mut i = unit;
    while i < vocabulary {
        let z = transformed(logits[start + i], scale, cap, softcap);
        let e = f32::exp(z - most);
        sum += e;
        plain += z;
        weighted += e * (z - most);
        i += comptime!(UNITS as usize);
    }
    let sum = cube_sum(sum, &mut shared);
    let plain = cube_sum(plain, &mut shared);
    let weighted = cube_sum(weighted, &mut shared);
    let log_sum = f32::ln(sum);
    let lse = most + log_sum;
    let target = targets[first_row + row] as usize;
    let at_target = transformed(logits[start + target], scale, cap, softcap);
    if unit == 0 {
        let log_prob = at_target - lse;
        let at = (first_row + row) * comptime!(STATS);
        let uniform = lse - plain / f32::cast_from(vocabulary);
        stats[at] = -log_prob * (1.0f32 - smoothing) + uniform * smoothing;
        stats[at + 1] = log_prob;
        stats[at + 2] = log_sum - weighted / sum;
        let mut first = 0.0f32;
        if at_target >= most {
            first = 1.0f32;
        }
        stats[at + 3] = first;
    }
    if grad {
        let weight = weights[first_row + row];
        let share = smoothing / f32::cast_from(vocabulary);
        let mut i = unit;
        while i < vocabulary {
            let z = transformed(logits[start + i], scale, cap, softcap);
            let mut d = f32::exp(z - lse) - share;
            if i == target {
                d -= 1.0f32 - smoothing;
            }
            d *= weight * scale;
            if softcap {
                let ratio = z / cap;
                d *= 1.0f32 - ratio * ratio;
            }
            dlogits[start + i] = T::cast_from(d);
            i += comptime!(UNITS as usize);
        }
    }
}

/// `Σ weight · loss`, in one cube.
#[cube(launch_unchecked)]
fn total_kernel(stats: &Array<f32>, weights: &Array<f32>, loss: &mut Array<f32>, count: usize) {
    let mut shared = scratch();
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < count {
        sum += stats[i * comptime!(STATS)] * weights[i];
        i += comptime!(UNITS as usize);
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        loss[0] = sum;
    }
}

/// The two products with the head.
pub(crate) trait Head<R: CubeRuntime> {
    /// Logits `[rows, vocabulary]`, f32.
    fn logits(&self, hidden: CubeTensor<R>) -> CubeTensor<R>;

    /// `dlogits · head`, in the type of `dlogits`.
    fn grad_hidden(&self, dlogits: CubeTensor<R>) -> CubeTensor<R>;

    /// Rows of the head.
    fn vocabulary(&self) -> usize;
}

/// What [`forward`] gives.
pub(crate) struct Output<R: CubeRuntime> {
    pub(crate) loss: CubeTensor<R>,
    pub(crate) tokens: Option<TokenLosses>,
    pub(crate) dhidden: Option<CubeTensor<R>>,
}

/// Bytes of f32 logits that exist at a time.
fn logit_bytes<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    const MOST: u64 = 128 << 20;
    // Some drivers bind no more than 128 MiB at once.
    let page = client.properties().memory.max_page_size;
    (page / 2).min(MOST) as usize
}

/// Rows whose logits exist at a time.
fn chunk_rows<R: CubeRuntime>(client: &ComputeClient<R>, vocabulary: usize) -> usize {
    (logit_bytes(client) / (4 * vocabulary)).clamp(1, 4096)
}

/// Bytes of the buffers that [`forward`] makes for so many trained tokens, whose gradients have elements of `element`
/// bytes.
pub(crate) fn buffer_bytes<R: CubeRuntime>(
    client: &ComputeClient<R>,
    tokens: usize,
    vocabulary: usize,
    width: usize,
    element: usize,
) -> Vec<usize> {
    let rows = chunk_rows(client, vocabulary).min(tokens);
    vec![4 * rows * vocabulary, element * rows * vocabulary, element * rows * width]
}

pub(crate) fn forward<R: CubeRuntime>(
    hidden: CubeTensor<R>,
    head: &impl Head<R>,
    spec: &CrossEntropySpec,
    LossParts { grad, tokens }: LossParts,
) -> Output<R> {
    let hidden = rows(hidden);
    let (client, dtype) = (hidden.client.clone(), hidden.dtype);
    let [count, width] = dims(&hidden);
    let vocabulary = head.vocabulary();
    let trained: Vec<u32> = (0..count as u32).filter(|i| spec.weights[*i as usize] != 0.0).collect();
    let targets: Vec<u32> = trained.iter().map(|row| spec.targets[*row as usize]).collect();
    let weights: Vec<f32> = trained.iter().map(|row| spec.weights[*row as usize]).collect();
    let stats = empty(&hidden, [trained.len().max(1), STATS], DType::F32);
    let loss = empty(&hidden, [1], DType::F32);
    let whole = trained.len() == count;
    let mut dhidden = grad.then(|| match whole {
        true => empty(&hidden, [count, width], dtype),
        false => zeros(&hidden, [count, width], dtype),
    });
    let (targets, device_weights) = (words(&hidden, &targets), floats(&hidden, &weights));
    let chunk = chunk_rows(&client, vocabulary);
    for (index, rows) in trained.chunks(chunk).enumerate() {
        // The last chunk of several is filled up, so that all buffers are of one size. What its further rows come
        // to is not looked at.
        let mut gathered = rows.to_vec();
        if trained.len() > chunk {
            gathered.resize(chunk, 0);
        }
        let logits = head.logits(gather(hidden.clone(), &gathered, dtype));
        let dlogits = match grad {
            true => empty(&hidden, [gathered.len(), vocabulary], dtype),
            false => empty(&hidden, [1, 1], dtype),
        };
        let options = spec.options;
        // SAFETY: a cube a row of the chunk, targets are below the vocabulary.
        unsafe {
            row_kernel::launch_unchecked::<R>(
                &client,
                row_cubes(rows.len()),
                CubeDim::new_1d(UNITS),
                array(&logits, 1),
                array(&targets, 1),
                array(&device_weights, 1),
                array(&stats, 1),
                array(&dlogits, 1),
                index * chunk,
                vocabulary,
                options.logit_scale,
                options.softcap.unwrap_or(1.0),
                options.label_smoothing,
                options.softcap.is_some(),
                grad,
                dtype.into(),
            );
        }
        drop(logits);
        if let Some(all) = dhidden.take() {
            dhidden = Some(scatter(all, head.grad_hidden(dlogits), rows));
        }
    }
    // SAFETY: one cube; reads as many rows as there are.
    unsafe {
        total_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS),
            array(&stats, 1),
            array(&device_weights, 1),
            array(&loss, 1),
            trained.len(),
        );
    }
    Output { loss, tokens: tokens.then(|| read(&stats, trained.len())), dhidden }
}

fn words<R: CubeRuntime>(like: &CubeTensor<R>, words: &[u32]) -> CubeTensor<R> {
    let words = if words.is_empty() { &[0][..] } else { words };
    let handle = like.client.create_from_slice(u32::as_bytes(words));
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        [words.len()].into(),
        handle,
        DType::U32,
    )
}

fn floats<R: CubeRuntime>(like: &CubeTensor<R>, values: &[f32]) -> CubeTensor<R> {
    let values = if values.is_empty() { &[0.0][..] } else { values };
    let handle = like.client.create_from_slice(f32::as_bytes(values));
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        [values.len()].into(),
        handle,
        DType::F32,
    )
}

/// The numbers of every row, read back.
fn read<R: CubeRuntime>(stats: &CubeTensor<R>, count: usize) -> TokenLosses {
    let bytes = stats.client.read_one_unchecked(stats.handle.clone());
    let values = &f32::from_bytes(&bytes)[..count * STATS];
    let column = |i: usize| values.iter().skip(i).step_by(STATS).copied();
    TokenLosses {
        losses: column(0).collect(),
        log_probs: column(1).collect(),
        entropies: column(2).collect(),
        correct: column(3).map(|first| first > 0.5).collect(),
    }
}

//! Decoding from a cache in pages: rows appended, and attention of one query a sequence.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::elementwise::flat;
use super::reduce::{UNITS, cube_sum, scratch};
use super::tensors::{array, dims, empty, own, rows};
use crate::attention::AttentionSpec;

#[cube(launch_unchecked)]
fn append_kernel<S: Float, T: Float>(
    new_keys: &Array<S>,
    new_values: &Array<S>,
    at: &Array<u32>,
    keys: &mut Array<T>,
    values: &mut Array<T>,
    count: usize,
    width: usize,
    #[define(S, T)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let target = at[i / width] as usize * width + i % width;
        keys[target] = T::cast_from(new_keys[i]);
        values[target] = T::cast_from(new_values[i]);
    }
}

/// Writes rows of keys and of values at rows `at` of a cache, in place where nobody else holds it.
pub(super) fn append<R: CubeRuntime>(
    (keys, values): (CubeTensor<R>, CubeTensor<R>),
    new: (CubeTensor<R>, CubeTensor<R>),
    at: CubeTensor<R>,
    count: usize,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (keys, values) = (own(keys), own(values));
    let (new_keys, new_values) = (rows(new.0), rows(new.1));
    let [_, width] = dims(&keys);
    let elements = count * width;
    if elements == 0 {
        return (keys, values);
    }
    let (cubes, dim) = flat(&keys.client, elements);
    // SAFETY: units beyond the elements do nothing; the rows exist.
    unsafe {
        append_kernel::launch_unchecked::<R>(
            &keys.client,
            cubes,
            dim,
            array(&new_keys, 1),
            array(&new_values, 1),
            array(&at, 1),
            array(&keys, 1),
            array(&values, 1),
            elements,
            width,
            [new_keys.dtype.into(), keys.dtype.into()],
        );
    }
    (keys, values)
}

/// A unit a pair of numbers of a query head, a key head or a value head.
#[cube(launch_unchecked)]
fn rotate_append_kernel<T: Float>(
    q: &mut Array<T>,
    new_keys: &Array<T>,
    new_values: &Array<T>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    at: &Array<u32>,
    keys: &mut Array<T>,
    values: &mut Array<T>,
    pairs: usize,
    heads: usize,
    kv_heads: usize,
    half: usize,
    #[define(T)] _dtype: StorageType,
) {
    let pair = ABSOLUTE_POS;
    if pair < pairs {
        let i = pair % half;
        let slots = heads + 2 * kv_heads;
        let slot = pair / half % slots;
        let token = pair / half / slots;
        let c = cos[token * half + i];
        let s = sin[token * half + i];
        if slot < heads {
            let first = (token * heads + slot) * half * 2 + i;
            let second = first + half;
            let a = f32::cast_from(q[first]);
            let b = f32::cast_from(q[second]);
            q[first] = T::cast_from(a * c - b * s);
            q[second] = T::cast_from(b * c + a * s);
        } else {
            let row = at[token] as usize;
            if slot < heads + kv_heads {
                let head = slot - heads;
                let first = (token * kv_heads + head) * half * 2 + i;
                let target = (row * kv_heads + head) * half * 2 + i;
                let a = f32::cast_from(new_keys[first]);
                let b = f32::cast_from(new_keys[first + half]);
                keys[target] = T::cast_from(a * c - b * s);
                keys[target + half] = T::cast_from(b * c + a * s);
            } else {
                let head = slot - heads - kv_heads;
                let first = (token * kv_heads + head) * half * 2 + i;
                let target = (row * kv_heads + head) * half * 2 + i;
                values[target] = new_values[first];
                values[target + half] = new_values[first + half];
            }
        }
    }
}

/// Rotates queries, in place where nobody else holds them, and writes rotated keys and values at rows `at` of a cache.
pub(super) fn rotate_and_append<R: CubeRuntime>(
    q: CubeTensor<R>,
    new: (CubeTensor<R>, CubeTensor<R>),
    angles: (CubeTensor<R>, CubeTensor<R>),
    (keys, values): (CubeTensor<R>, CubeTensor<R>),
    at: CubeTensor<R>,
) -> (CubeTensor<R>, (CubeTensor<R>, CubeTensor<R>)) {
    let (q, keys, values) = (own(q), own(keys), own(values));
    let [new_keys, new_values, cos, sin] = [new.0, new.1, angles.0, angles.1].map(rows);
    let ([tokens, width], [_, kv_width], [_, half]) = (dims(&q), dims(&keys), dims(&cos));
    let pairs = tokens * (width + 2 * kv_width) / 2;
    if pairs == 0 {
        return (q, (keys, values));
    }
    let (cubes, dim) = flat(&q.client, pairs);
    // SAFETY: units beyond the pairs do nothing; the rows exist.
    unsafe {
        rotate_append_kernel::launch_unchecked::<R>(
            &q.client,
            cubes,
            dim,
            array(&q, 1),
            array(&new_keys, 1),
            array(&new_values, 1),
            array(&cos, 1),
            array(&sin, 1),
            array(&at, 1),
            array(&keys, 1),
            array(&values, 1),
            pairs,
            width / (2 * half),
            kv_width / (2 * half),
            half,
            q.dtype.into(),
        );
    }
    (q, (keys, values))
}

/// Most queries that share the keys a cube reads.
const MOST_QUERIES: usize = 8;
/// Cubes that fill a large GPU.
const MANY_CUBES: usize = 256;
const LOWEST: f32 = -1e30;

/// The pages of the sequences, as the kernel takes them.
pub(super) struct Pages<R: CubeRuntime> {
    /// `[sequences, columns]`: length, then pages.
    pub(super) table: CubeTensor<R>,
    pub(super) columns: usize,
    /// Rows of a page.
    pub(super) size: usize,
    /// Tokens of the longest sequence.
    pub(super) longest: usize,
}

/// Whether [`attention`] takes heads of this size.
pub(super) fn fits(spec: &AttentionSpec) -> bool {
    spec.head_dim <= 256
}

/// Sizes that the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sizes {
    head_dim: usize,
    /// Queries of a cube: heads that read the same keys.
    queries: usize,
    /// Elements of a vector.
    vector: usize,
    page: usize,
    capped: bool,
    /// Whether the keys of a sequence are split over cubes.
    split: bool,
}

/// A cube reads the keys of one sequence and key head, or a part of them, for up to eight query heads: a unit a key for
/// the scores; for the sums, a unit a vector of features, with a stride of keys.
#[cube(launch_unchecked)]
fn attention_kernel<T: Float, N: Size>(
    q: &Array<T>,
    keys: &Array<Vector<T, N>>,
    values: &Array<Vector<T, N>>,
    table: &Array<u32>,
    out: &mut Array<T>,
    partial: &mut Array<f32>,
    columns: usize,
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] sizes: Sizes,
    #[define(T)] _dtype: StorageType,
) {
    let head_dim = comptime!(sizes.head_dim);
    let queries = comptime!(sizes.queries);
    let width = comptime!(sizes.vector);
    let vectors = comptime!(sizes.head_dim / sizes.vector);
    let parts = comptime!(UNITS as usize / (sizes.head_dim / sizes.vector));
    let units = comptime!(UNITS as usize);

    let mut query = SharedMemory::<f32>::new(comptime!(sizes.queries * sizes.head_dim));
    let mut weights = SharedMemory::<f32>::new(comptime!(sizes.queries * UNITS as usize));
    let mut row_of = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut maxima = SharedMemory::<f32>::new(comptime!(sizes.queries * 16));
    let mut joined = SharedMemory::<f32>::new(comptime!(UNITS as usize * sizes.vector));
    let mut shared = scratch();

    let unit = UNIT_POS as usize;
    let groups = heads / queries;
    let sequence = CUBE_POS_X as usize / groups;
    let group = CUBE_POS_X as usize % groups;
    let first_head = group * queries;
    let kv_head = first_head / (heads / kv_heads);
    let stride = kv_heads * vectors;

    let mut i = unit;
    while i < comptime!(sizes.queries * sizes.head_dim) {
        query[i] = f32::cast_from(q[(sequence * heads + first_head) * head_dim + i]) * scale;
        i += units;
    }
    let length = table[sequence * columns] as usize;
    let mut first = 0usize;
    if window > 0 && length > window {
        first = length - window;
    }
    let mut end = length;
    if comptime!(sizes.split) {
        let splits = CUBE_COUNT_Y as usize;
        let share = (length - first + splits - 1) / splits;
        first += share * CUBE_POS_Y as usize;
        end = min(first + share, length);
    }

    let mut sums = Array::<f32>::new(comptime!(sizes.queries * sizes.vector));
    let mut totals = Array::<f32>::new(queries);
    let mut highest = Array::<f32>::new(queries);
    #[unroll]
    for i in 0..comptime!(sizes.queries * sizes.vector) {
        sums[i] = 0.0f32;
    }
    #[unroll]
    for g in 0..queries {
        totals[g] = 0.0f32;
        highest[g] = f32::new(LOWEST);
    }
    let part = unit / vectors;
    let feature = unit % vectors;

    let mut start = first;
    while start < end {
        // Whoever still reads the last chunk's rows and weights has to be done.
        sync_cube();
        let token = start + unit;
        let mut scores = Array::<f32>::new(queries);
        #[unroll]
        for g in 0..queries {
            scores[g] = f32::new(LOWEST);
        }
        if token < end {
            let page = table[sequence * columns + 1 + token / comptime!(sizes.page)];
            let row = page as usize * comptime!(sizes.page) + token % comptime!(sizes.page);
            row_of[unit] = row as u32;
            #[unroll]
            for g in 0..queries {
                scores[g] = 0.0f32;
            }
            let base = row * stride + kv_head * vectors;
            for v in 0..vectors {
                let key = keys[base + v];
                #[unroll]
                for lane in 0..width {
                    let k = f32::cast_from(key[lane]);
                    #[unroll]
                    for g in 0..queries {
                        scores[g] += k * query[comptime!(g * head_dim) + v * width + lane];
                    }
                }
            }
            if comptime!(sizes.capped) {
                #[unroll]
                for g in 0..queries {
                    scores[g] = softcap * f32::tanh(scores[g] / softcap);
                }
            }
        }
        #[unroll]
        for g in 0..queries {
            weights[comptime!(g * units) + unit] = scores[g];
        }
        sync_cube();
        // Sixteen units a query, sixteen scores each.
        if unit < comptime!(sizes.queries * 16) {
            let mut most = weights[unit * 16];
            for i in 1..16usize {
                most = max(most, weights[unit * 16 + i]);
            }
            maxima[unit] = most;
        }
        sync_cube();
        #[unroll]
        for g in 0..queries {
            let mut most = highest[g];
            for i in 0..16usize {
                most = max(most, maxima[comptime!(g * 16) + i]);
            }
            let shrink = f32::exp(highest[g] - most);
            let mut weight = 0.0f32;
            if token < end {
                weight = f32::exp(scores[g] - most);
            }
            totals[g] = totals[g] * shrink + weight;
            weights[comptime!(g * units) + unit] = weight;
            highest[g] = most;
            #[unroll]
            for lane in 0..width {
                sums[comptime!(g * width + lane)] *= shrink;
            }
        }
        sync_cube();
        let count = min(end - start, units);
        let mut j = part;
        // Units beyond the last whole part have no keys.
        if part >= parts {
            j = count;
        }
        while j < count {
            let value = values[row_of[j] as usize * stride + kv_head * vectors + feature];
            #[unroll]
            for g in 0..queries {
                let weight = weights[comptime!(g * units) + j];
                #[unroll]
                for lane in 0..width {
                    sums[comptime!(g * width + lane)] += weight * f32::cast_from(value[lane]);
                }
            }
            j += parts;
        }
        start += units;
    }

    let splits = CUBE_COUNT_Y as usize;
    #[unroll]
    for g in 0..queries {
        let total = cube_sum(totals[g], &mut shared);
        #[unroll]
        for lane in 0..width {
            joined[unit * width + lane] = sums[comptime!(g * width + lane)];
        }
        sync_cube();
        let head = first_head + g;
        if unit < head_dim {
            let mut sum = 0.0f32;
            for p in 0..parts {
                sum += joined[p * head_dim + unit];
            }
            if comptime!(sizes.split) {
                let at = ((sequence * heads + head) * splits + CUBE_POS_Y as usize)
                    * comptime!(sizes.head_dim + 2);
                partial[at + unit] = sum;
                if unit == 0 {
                    partial[at + head_dim] = highest[g];
                    partial[at + head_dim + 1] = total;
                }
            } else {
                out[(sequence * heads + head) * head_dim + unit] = T::cast_from(sum / total);
            }
        }
        sync_cube();
    }
}

/// Joins the parts of the keys: a unit a feature.
#[cube(launch_unchecked)]
fn join_kernel<T: Float>(
    partial: &Array<f32>,
    out: &mut Array<T>,
    count: usize,
    splits: usize,
    head_dim: usize,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let width = head_dim + 2;
        let base = i / head_dim * splits * width;
        let mut most = partial[base + head_dim];
        for s in 1..splits {
            most = max(most, partial[base + s * width + head_dim]);
        }
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for s in 0..splits {
            let at = base + s * width;
            let factor = f32::exp(partial[at + head_dim] - most);
            sum += factor * partial[at + i % head_dim];
            total += factor * partial[at + head_dim + 1];
        }
        out[i] = T::cast_from(sum / total);
    }
}

/// Attention of one query a sequence to its pages: `[sequences, heads · d]`.
pub(super) fn attention<R: CubeRuntime>(
    q: CubeTensor<R>,
    keys: CubeTensor<R>,
    values: CubeTensor<R>,
    pages: Pages<R>,
    spec: &AttentionSpec,
) -> CubeTensor<R> {
    let [q, keys, values] = [q, keys, values].map(rows);
    let [sequences, _] = dims(&q);
    let AttentionSpec { heads, kv_heads, head_dim, scale, softcap, window, .. } = *spec;
    let out = empty(&q, [sequences, heads * head_dim], q.dtype);
    if sequences == 0 {
        return out;
    }
    let sharing = heads / kv_heads;
    let queries = (1..=MOST_QUERIES).rev().find(|n| sharing.is_multiple_of(*n)).unwrap_or(1);
    let client = q.client.clone();
    let wide = q.dtype.size() == 2 && client.properties().hardware.max_vector_size >= 8;
    let vector = match head_dim {
        d if wide && d.is_multiple_of(8) => 8,
        d if d.is_multiple_of(4) => 4,
        _ => 1,
    };
    let cubes = sequences * heads / queries;
    // Few cubes with many keys leave most of a GPU idle.
    let visible = window.map_or(pages.longest, |window| window.min(pages.longest));
    let splits = visible.div_ceil(UNITS as usize).min(MANY_CUBES.div_ceil(cubes)).max(1);
    let sizes =
        Sizes { head_dim, queries, vector, page: pages.size, capped: softcap.is_some(), split: splits > 1 };
    let partial = match splits {
        1 => empty(&q, [1, 1], DType::F32),
        _ => empty(&q, [sequences * heads * splits, head_dim + 2], DType::F32),
    };
    // SAFETY: a cube a sequence and group of heads; the pages of the table lie within the rows.
    unsafe {
        attention_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(cubes as u32, splits as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            array(&q, 1),
            array(&keys, vector),
            array(&values, vector),
            array(&rows(pages.table), 1),
            array(&out, 1),
            array(&partial, 1),
            pages.columns,
            heads,
            kv_heads,
            window.unwrap_or(0),
            scale,
            softcap.unwrap_or(1.0),
            sizes,
            q.dtype.into(),
        );
    }
    if splits > 1 {
        let elements = sequences * heads * head_dim;
        let (count, dim) = flat(&client, elements);
        // SAFETY: units beyond the elements do nothing.
        unsafe {
            join_kernel::launch_unchecked::<R>(
                &client,
                count,
                dim,
                array(&partial, 1),
                array(&out, 1),
                elements,
                splits,
                head_dim,
                q.dtype.into(),
            );
        }
    }
    out
}

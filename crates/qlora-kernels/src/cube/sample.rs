//! Tokens drawn where the logits are: one cube a row.
//!
//! A row of logits is half a megabyte, a batch of them more than a bus carries between two steps. Temperature,
//! top-k, top-p and min-p leave a set of the form `logit ≥ floor`; the floor is found by bisection, in passes over
//! the row. Tokens with the same logit as the last that top-p keeps are all kept.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::norm::row_cubes;
use super::reduce::{UNITS, cube_max, cube_sum, scratch};
use super::tensors::{array, dims, empty, rows, upload_floats};
use crate::sampling::{Draw, LANES};

/// Halvings of the interval that holds a floor: to the last bits of an f32.
const HALVINGS: usize = 30;
/// Numbers that describe a draw.
const SETTINGS: usize = 5;

/// Whether [`sample`] does all that these draws ask for.
pub(super) fn fits(draws: &[Draw]) -> bool {
    const { assert!(LANES == UNITS as usize, "a unit sums a lane") };
    let simple = |draw: &Draw| {
        let warpers = &draw.warpers;
        let filtered = warpers.top_p < 1.0 || warpers.min_p > 0.0;
        !warpers.is_entropic() && !(filtered && warpers.min_tokens_to_keep > 1)
    };
    draws.iter().all(simple)
}

#[cube]
fn score<T: Float>(logits: &Array<T>, at: usize, inverse: f32) -> f32 {
    f32::cast_from(logits[at]) * inverse
}

/// How many scores of a row are at least `floor`.
#[cube]
fn count_above<T: Float>(
    logits: &Array<T>,
    start: usize,
    end: usize,
    inverse: f32,
    floor: f32,
    shared: &mut SharedMemory<f32>,
) -> f32 {
    let mut count = 0.0f32;
    let mut i = start + UNIT_POS as usize;
    while i < end {
        if score::<T>(logits, i, inverse) >= floor {
            count += 1.0f32;
        }
        i += comptime!(UNITS as usize);
    }
    cube_sum(count, shared)
}

/// `Σ exp(score − most)` of the scores of at least `floor`, of this unit's lane.
#[cube]
fn lane_mass<T: Float>(
    logits: &Array<T>,
    start: usize,
    end: usize,
    inverse: f32,
    floor: f32,
    most: f32,
) -> f32 {
    let mut mass = 0.0f32;
    let mut i = start + UNIT_POS as usize;
    while i < end {
        let z = score::<T>(logits, i, inverse);
        if z >= floor {
            mass += f32::exp(z - most);
        }
        i += comptime!(UNITS as usize);
    }
    mass
}

#[cube(launch_unchecked)]
fn sample_kernel<T: Float>(
    logits: &Array<T>,
    drawing: &Array<f32>,
    found: &mut Array<f32>,
    vocabulary: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = scratch();
    let mut lanes = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut chosen = SharedMemory::<f32>::new(comptime!(2usize));
    let row = CUBE_POS as usize;
    let unit = UNIT_POS as usize;
    let start = row * vocabulary;
    let end = start + vocabulary;
    let inverse = drawing[row * comptime!(SETTINGS)];
    let top_k = drawing[row * comptime!(SETTINGS) + 1];
    let top_p = drawing[row * comptime!(SETTINGS) + 2];
    let log_min_p = drawing[row * comptime!(SETTINGS) + 3];
    let uniform = drawing[row * comptime!(SETTINGS) + 4];

    let mut most = f32::new(-1e30);
    let mut least = f32::new(1e30);
    let mut i = start + unit;
    while i < end {
        let z = score::<T>(logits, i, inverse);
        most = max(most, z);
        least = min(least, z);
        i += comptime!(UNITS as usize);
    }
    let most = cube_max(most, &mut shared);
    let least = -cube_max(-least, &mut shared);

    let mut floor = least;
    if top_k > 0.5f32 {
        // The highest floor with at least k scores above it.
        let mut low = least;
        let mut high = most;
        if count_above::<T>(logits, start, end, inverse, high, &mut shared) >= top_k {
            low = high;
        }
        for _ in 0..comptime!(HALVINGS) {
            let middle = 0.5f32 * (low + high);
            if count_above::<T>(logits, start, end, inverse, middle, &mut shared) >= top_k {
                low = middle;
            } else {
                high = middle;
            }
        }
        floor = max(floor, low);
    }
    if top_p < 1.0f32 {
        // The highest floor with at least top_p of the mass above it.
        let total = cube_sum(lane_mass::<T>(logits, start, end, inverse, floor, most), &mut shared);
        let wanted = top_p * total;
        let mut low = floor;
        let mut high = most;
        let top = cube_sum(lane_mass::<T>(logits, start, end, inverse, high, most), &mut shared);
        if top >= wanted {
            low = high;
        }
        for _ in 0..comptime!(HALVINGS) {
            let middle = 0.5f32 * (low + high);
            let above = cube_sum(lane_mass::<T>(logits, start, end, inverse, middle, most), &mut shared);
            if above >= wanted {
                low = middle;
            } else {
                high = middle;
            }
        }
        floor = low;
    }
    floor = max(floor, most + log_min_p);

    let mass = lane_mass::<T>(logits, start, end, inverse, floor, most);
    let total = cube_sum(mass, &mut shared);
    sync_cube();
    lanes[unit] = mass;
    sync_cube();
    if unit == 0 {
        let mut rest = uniform * total;
        let mut lane = 0usize;
        let mut last = 0usize;
        for i in 0..comptime!(UNITS as usize) {
            if lanes[i] > 0.0f32 {
                last = i;
            }
        }
        while lane < last && rest >= lanes[lane] {
            rest -= lanes[lane];
            lane += 1;
        }
        chosen[0] = f32::cast_from(lane);
        chosen[1] = rest;
    }
    sync_cube();
    let lane = u32::cast_from(chosen[0]) as usize;
    let mut rest = chosen[1];
    // The tokens of the lane, as many at a time as there are units.
    let mut token = lane;
    let mut best = f32::new(-1.0);
    let mut done = false;
    let mut first = lane;
    while first < vocabulary && !done {
        sync_cube();
        let mine = first + unit * comptime!(UNITS as usize);
        let mut weight = 0.0f32;
        if mine < vocabulary {
            let z = score::<T>(logits, start + mine, inverse);
            if z >= floor {
                weight = f32::exp(z - most);
            }
        }
        lanes[unit] = weight;
        sync_cube();
        let mut i = 0usize;
        while i < comptime!(UNITS as usize) && !done {
            let weight = lanes[i];
            if weight > 0.0f32 {
                token = first + i * comptime!(UNITS as usize);
                best = 1.0f32;
                rest -= weight;
                if rest < 0.0f32 {
                    done = true;
                }
            }
            i += 1;
        }
        first += comptime!((UNITS * UNITS) as usize);
    }
    if unit == 0 {
        found[row * 2] = f32::cast_from(token);
        found[row * 2 + 1] = score::<T>(logits, start + token, inverse) - most - f32::ln(total);
        if best < 0.0f32 {
            // No number was above the floor: the logits hold a NaN.
            found[row * 2 + 1] = f32::new(-1e30);
        }
    }
}

/// Draws a token a row; rows of temperature 0 get their likeliest.
pub(super) fn sample<R: CubeRuntime>(logits: CubeTensor<R>, draws: &[Draw]) -> Vec<(u32, f32)> {
    let greedy = |draw: &Draw| draw.warpers.temperature == 0.0;
    if draws.iter().all(greedy) {
        return super::greedy::greedy(logits);
    }
    let logits = rows(logits);
    let [count, vocabulary] = dims(&logits);
    let settings: Vec<f32> = (draws.iter())
        .flat_map(|draw| {
            let warpers = &draw.warpers;
            let temperature = if greedy(draw) { 1.0 } else { warpers.temperature };
            // One row wide, bisection would not end below its k.
            let top_k = if warpers.top_k < vocabulary { warpers.top_k } else { 0 };
            let log_min_p = if warpers.min_p > 0.0 { warpers.min_p.ln() } else { -1e30 };
            let uniform = (draw.uniform as f32).min(1.0 - f32::EPSILON);
            [(1.0 / temperature) as f32, top_k as f32, warpers.top_p as f32, log_min_p as f32, uniform]
        })
        .collect();
    let found = empty(&logits, [count, 2], DType::F32);
    // SAFETY: a cube a row, indices below the vocabulary.
    unsafe {
        sample_kernel::launch_unchecked::<R>(
            &logits.client,
            row_cubes(count),
            CubeDim::new_1d(UNITS),
            array(&logits, 1),
            upload_floats(&logits.client, &settings),
            array(&found, 1),
            vocabulary,
            logits.dtype.into(),
        );
    }
    let bytes = found.client.read_one_unchecked(found.handle.clone());
    let mut chosen: Vec<(u32, f32)> =
        f32::from_bytes(&bytes).chunks_exact(2).map(|found| (found[0] as u32, found[1])).collect();
    if draws.iter().any(greedy) {
        let likeliest = super::greedy::greedy(logits);
        for ((chosen, draw), likeliest) in chosen.iter_mut().zip(draws).zip(likeliest) {
            if greedy(draw) {
                *chosen = likeliest;
            }
        }
    }
    chosen
}

//! Sums and maxima over the units of a cube, through shared memory.
//!
//! Not through plane operations: lavapipe, on which all kernels are tested, has none. The order of a sum
//! depends on nothing but the number of units, so that results are the same in every run.

use cubecl::prelude::*;

/// Units of the cubes that reduce.
pub(crate) const UNITS: u32 = 256;
const SIDE: usize = 16;

/// Shared memory of [`cube_sum`] and [`cube_max`].
#[cube]
pub(crate) fn scratch() -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(UNITS as usize + SIDE))
}

/// The sum of `value` over all units, for every unit.
#[cube]
pub(crate) fn cube_sum(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    // Whoever still reads the last result has to be done.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    if unit < comptime!(SIDE) {
        let mut sum = 0.0f32;
        for i in 0..comptime!(SIDE) {
            sum += shared[unit * comptime!(SIDE) + i];
        }
        shared[comptime!(UNITS as usize) + unit] = sum;
    }
    sync_cube();
    let mut sum = 0.0f32;
    for i in 0..comptime!(SIDE) {
        sum += shared[comptime!(UNITS as usize) + i];
    }
    sum
}

/// The largest `value` of all units, for every unit.
#[cube]
pub(crate) fn cube_max(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    if unit < comptime!(SIDE) {
        let mut largest = shared[unit * comptime!(SIDE)];
        for i in 1..comptime!(SIDE) {
            largest = max(largest, shared[unit * comptime!(SIDE) + i]);
        }
        shared[comptime!(UNITS as usize) + unit] = largest;
    }
    sync_cube();
    let mut largest = shared[comptime!(UNITS as usize)];
    for i in 1..comptime!(SIDE) {
        largest = max(largest, shared[comptime!(UNITS as usize) + i]);
    }
    largest
}

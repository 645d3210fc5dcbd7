//! The matrix product inside a tile: a block of sums in registers, one multiply-add per element of the operands.

#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// Left operand, element `(m, k)` at `at + m · row + k · step`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) at: *const f32,
    pub(super) row: usize,
    pub(super) step: usize,
}

/// Right operand, vector `j` of row `k` at `at + k · step + j · vector`.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub(super) at: *const f32,
    pub(super) step: usize,
    pub(super) vector: usize,
}

/// Result, element `(m, n)` at `at + m · row + n`.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) at: *mut f32,
    pub(super) row: usize,
}

/// Extent of a product: `rows × vectors · LANES`, contracted over `depth`.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) vectors: usize,
    pub(super) depth: usize,
}

/// Products with the register block that suits the vectors.
pub(super) trait TileProduct: Vector {
    /// `c = a · b`, or `c += a · b` with `accumulate`.
    ///
    /// # Safety
    /// The processor has the vector's instructions; the operands are valid for reading and `c` for writing
    /// over all of `extent`, and `c` does not overlap them.
    unsafe fn product(extent: Extent, a: Left, b: Right, c: Output, accumulate: bool);
}

impl TileProduct for Portable {
    unsafe fn product(extent: Extent, a: Left, b: Right, c: Output, accumulate: bool) {
        // SAFETY: handed on.
        unsafe { blocks::<Self, 4>(extent, a, b, c, accumulate) }
    }
}

#[cfg(target_arch = "x86_64")]
impl TileProduct for Avx2 {
    unsafe fn product(extent: Extent, a: Left, b: Right, c: Output, accumulate: bool) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn enabled(extent: Extent, a: Left, b: Right, c: Output, accumulate: bool) {
            // SAFETY: handed on. Sixteen registers: six rows of two vectors.
            unsafe { blocks::<Avx2, 2>(extent, a, b, c, accumulate) }
        }
        // SAFETY: handed on.
        unsafe { enabled(extent, a, b, c, accumulate) }
    }
}

#[cfg(target_arch = "x86_64")]
impl TileProduct for Avx512 {
    unsafe fn product(extent: Extent, a: Left, b: Right, c: Output, accumulate: bool) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        unsafe fn enabled(extent: Extent, a: Left, b: Right, c: Output, accumulate: bool) {
            // SAFETY: handed on. Thirty-two registers: six rows of four vectors.
            unsafe { blocks::<Avx512, 4>(extent, a, b, c, accumulate) }
        }
        // SAFETY: handed on.
        unsafe { enabled(extent, a, b, c, accumulate) }
    }
}

/// Rows of a register block.
const ROWS: usize = 6;

/// Cuts a product into register blocks: all rows against the few columns that stay in the first cache.
#[inline(always)]
unsafe fn blocks<V: Vector, const VECTORS: usize>(
    extent: Extent,
    a: Left,
    b: Right,
    c: Output,
    accumulate: bool,
) {
    let mut vector = 0;
    while vector < extent.vectors {
        let vectors = (extent.vectors - vector).min(VECTORS);
        // SAFETY: within the extent.
        unsafe {
            let b = Right { at: b.at.add(vector * b.vector), ..b };
            let c = Output { at: c.at.add(vector * V::LANES), ..c };
            match vectors {
                1 => column::<V, 1>(extent.rows, extent.depth, a, b, c, accumulate),
                2 => column::<V, 2>(extent.rows, extent.depth, a, b, c, accumulate),
                3 => column::<V, 3>(extent.rows, extent.depth, a, b, c, accumulate),
                _ => column::<V, 4>(extent.rows, extent.depth, a, b, c, accumulate),
            }
        }
        vector += vectors;
    }
}

#[inline(always)]
unsafe fn column<V: Vector, const VECTORS: usize>(
    rows: usize,
    depth: usize,
    a: Left,
    b: Right,
    c: Output,
    accumulate: bool,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: within the extent.
        unsafe {
            let a = Left { at: a.at.add(row * a.row), ..a };
            let c = Output { at: c.at.add(row * c.row), ..c };
            match rows - row {
                1 => block::<V, 1, VECTORS>(depth, a, b, c, accumulate),
                2 => block::<V, 2, VECTORS>(depth, a, b, c, accumulate),
                3 => block::<V, 3, VECTORS>(depth, a, b, c, accumulate),
                4 => block::<V, 4, VECTORS>(depth, a, b, c, accumulate),
                5 => block::<V, 5, VECTORS>(depth, a, b, c, accumulate),
                _ => block::<V, ROWS, VECTORS>(depth, a, b, c, accumulate),
            }
        }
        row += ROWS;
    }
}

#[inline(always)]
unsafe fn block<V: Vector, const M: usize, const N: usize>(
    depth: usize,
    a: Left,
    b: Right,
    c: Output,
    accumulate: bool,
) {
    let mut sums = [[V::zero(); N]; M];
    // SAFETY: the caller vouches for every element of the block.
    unsafe {
        if accumulate {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = V::read(c.at.add(m * c.row + n * V::LANES));
                }
            }
        }
        for k in 0..depth {
            let (a_at, b_at) = (a.at.add(k * a.step), b.at.add(k * b.step));
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = V::read(b_at.add(n * b.vector));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*a_at.add(m * a.row));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = left.mul_add(right, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                sum.write(c.at.add(m * c.row + n * V::LANES));
            }
        }
    }
}

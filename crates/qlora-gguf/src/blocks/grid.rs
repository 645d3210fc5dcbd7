//! The grids of the IQ1, IQ2 and IQ3 formats: which combinations of eight (or four) magnitudes exist. They are
//! constants of the formats; `tests/golden/make_grids.py` reads them off ggml's decoders.

/// Eight fields of two bits, or four of three, the first value lowest: ranks among a format's levels.
type Point = [u8; 2];

const GRIDS: &[u8; 9216] = include_bytes!("grids.bin");

/// A grid: where its points start in [`GRIDS`], and the levels that their fields choose among.
pub(super) struct Grid<const LEVELS: usize> {
    first: usize,
    levels: [f32; LEVELS],
}

const IQ2_LEVELS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];

/// 256 points of eight.
pub(super) const IQ2_XXS: Grid<4> = Grid { first: 0, levels: IQ2_LEVELS };
/// 512 points of eight.
pub(super) const IQ2_XS: Grid<4> = Grid { first: 256, levels: IQ2_LEVELS };
/// 1024 points of eight.
pub(super) const IQ2_S: Grid<4> = Grid { first: 768, levels: IQ2_LEVELS };
/// 2048 points of eight, with signs.
pub(super) const IQ1: Grid<4> = Grid { first: 1792, levels: [-1.0, 0.0, 1.0, 0.0] };
/// 256 points of four.
pub(super) const IQ3_XXS: Grid<8> =
    Grid { first: 3840, levels: [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0] };
/// 512 points of four.
pub(super) const IQ3_S: Grid<8> = Grid { first: 4096, levels: [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0] };

impl<const LEVELS: usize> Grid<LEVELS> {
    /// The values of point `index`: eight with four levels, four with eight.
    fn point<const LEN: usize>(&self, index: usize) -> [f32; LEN] {
        let points: &[Point] = GRIDS.as_chunks().0;
        let point = u16::from_le_bytes(points[self.first + index]);
        let bits = LEVELS.ilog2();
        std::array::from_fn(|i| self.levels[usize::from(point) >> (i as u32 * bits) & (LEVELS - 1)])
    }
}

impl Grid<4> {
    pub(super) fn eight(&self, index: usize) -> [f32; 8] {
        self.point(index)
    }
}

impl Grid<8> {
    /// Two points of four.
    pub(super) fn eight(&self, first: usize, second: usize) -> [f32; 8] {
        let (first, second) = (self.point::<4>(first), self.point::<4>(second));
        std::array::from_fn(|i| if i < 4 { first[i] } else { second[i - 4] })
    }
}

/// Writes scale × magnitude, negated where the bits of `signs` say so.
pub(super) fn write_signed(scale: f32, magnitudes: [f32; 8], signs: u8, out: &mut [f32; 8]) {
    for (i, (out, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let value = scale * magnitude;
        *out = if signs >> i & 1 == 1 { -value } else { value };
    }
}

/// Eight signs from seven bits: their number is even.
pub(super) fn even_signs(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    bits | (bits.count_ones() as u8 & 1) << 7
}

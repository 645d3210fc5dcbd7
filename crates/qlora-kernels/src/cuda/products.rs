//! Matrix products for Hopper (`wgmma`) and, with one narrow side, for Ampere and later (`mma.sync`).

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl_cuda::CudaRuntime;

use super::architecture::multiprocessors;
use super::source::{Kernel, Map};
use crate::cube::tensors::{dims, empty};

type Tensor = CubeTensor<CudaRuntime>;

const TILE_ROWS: usize = 128;
const BLOCK_K: usize = 64;

/// The second factor of a product.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// `[n, k]`: the product is with its transpose.
    Rows(&'a Tensor),
    /// `[k, n]`.
    Columns(&'a Tensor),
}

impl Right<'_> {
    fn tensor(&self) -> &Tensor {
        match self {
            Self::Rows(t) | Self::Columns(t) => t,
        }
    }

    /// Columns of the product.
    fn columns(&self) -> usize {
        match self {
            Self::Rows(t) => dims(t)[0],
            Self::Columns(t) => dims(t)[1],
        }
    }
}

/// Whether [`gemm`] takes this: rows must start at multiples of 16 bytes.
pub(super) fn gemm_fits(a: &Tensor, b: Right<'_>) -> bool {
    let half = |t: &Tensor| matches!(t.dtype, DType::BF16 | DType::F16);
    half(a)
        && b.tensor().dtype == a.dtype
        && dims(a)[1].is_multiple_of(8)
        && dims(b.tensor())[1].is_multiple_of(8)
}

/// `a b + a2 b2 + bias` in the type `out`, f32 or that of `a`. `b2` is laid out as `b`, `bias` is f32.
pub(super) fn gemm(
    a: &Tensor,
    b: Right<'_>,
    update: Option<(&Tensor, Right<'_>)>,
    bias: Option<&Tensor>,
    out: DType,
) -> Tensor {
    let ([m, k], n) = (dims(a), b.columns());
    let c = empty(a, [m, n], out);
    let by_columns = matches!(b, Right::Columns(_));
    let wide = out == DType::F32;
    let sms = multiprocessors(&a.device);
    let Shape { width, cluster } = Shape::choose(m, n, by_columns, sms);
    let vectors = if wide { n.is_multiple_of(4) } else { n.is_multiple_of(8) };
    let mut maps = vec![tile_map(a, [TILE_ROWS, BLOCK_K]), right_map(b, width / cluster)];
    let mut rank = 0;
    if let Some((a2, b2)) = update {
        rank = dims(a2)[1];
        maps.extend([tile_map(a2, [TILE_ROWS, BLOCK_K]), right_map(b2, width / cluster)]);
    }
    let mut buffers = vec![c.handle.clone()];
    buffers.extend(bias.map(|bias| bias.handle.clone()));
    let staged_wide = wide || !vectors;
    let kernel = Kernel {
        entry: "gemm_nt",
        text: include_str!("kernels/gemm_nt_sm90.cu"),
        defines: vec![
            ("IS_BF16", usize::from(a.dtype == DType::BF16)),
            ("OUT_F32", usize::from(wide)),
            ("HAS_LORA", usize::from(update.is_some())),
            ("HAS_BIAS", usize::from(bias.is_some())),
            ("HAS_ADD", 0),
            ("VEC_STORE", usize::from(vectors)),
            ("B_COLUMNS", usize::from(by_columns)),
            ("BN", width),
            ("SPLIT_K", 1),
            ("CLUSTER", cluster),
        ],
        threads: 384,
        shared: 1024 + 196_608 + if staged_wide { 32_768 } else { 16_384 } + 128,
    };
    let (tile_rows, tile_columns) = (m.div_ceil(TILE_ROWS), n.div_ceil(width));
    let blocks = cluster * (sms / cluster).min(tile_rows.div_ceil(cluster) * tile_columns);
    let info = [m, n, k, rank].map(|size| size as u64).to_vec();
    kernel.launch(&a.client, (blocks, 1, 1), maps, buffers, info);
    c
}

/// How a product is cut for the device.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    /// Columns of a tile.
    width: usize,
    /// Blocks that share what they load.
    cluster: usize,
}

impl Shape {
    fn choose(m: usize, n: usize, by_columns: bool, sms: usize) -> Self {
        let rows = m.div_ceil(TILE_ROWS);
        let tiles = |width: usize| rows * n.div_ceil(width);
        // What a tile costs beside one of 256 columns, measured on an H100. Wide tiles do the most arithmetic for
        // what they load; narrow ones leave fewer multiprocessors idle in the last round.
        let cost = |width: usize| {
            let tile = match width {
                256 => 1.0,
                128 => 0.6,
                _ => 0.5,
            };
            tiles(width).div_ceil(sms) as f64 * tile
        };
        let width = [256, 128, 64].into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(128);
        // Pairs help where tiles of 128 columns come in several rounds. A box of columns is 64 wide at least.
        let pairs = width == 128 && rows.is_multiple_of(2) && tiles(width) > sms;
        let cluster = if pairs && (!by_columns || width >= 128) { 2 } else { 1 };
        Self { width, cluster }
    }
}

fn tile_map(t: &Tensor, tile: [usize; 2]) -> Map {
    Map { handle: t.handle.clone(), shape: dims(t), tile, element: t.dtype.into() }
}

/// Rows of `b` come in one box of `width` of them, columns in boxes of 64.
fn right_map(b: Right<'_>, width: usize) -> Map {
    match b {
        Right::Rows(t) => tile_map(t, [width, BLOCK_K]),
        Right::Columns(t) => tile_map(t, [BLOCK_K, BLOCK_K]),
    }
}

/// Most columns of a narrow side.
pub(super) const MOST_NARROW: usize = 128;

/// Whether a narrow side has a size that the kernels take.
pub(super) fn is_narrow(columns: usize) -> bool {
    columns.is_multiple_of(8) && (8..=MOST_NARROW).contains(&columns)
}

fn narrow_tile(columns: usize) -> usize {
    columns.next_power_of_two().max(16)
}

/// `a bᵀ` with `b` `[r, k]` of few rows, in the type of `a`.
pub(super) fn narrow_rows(a: &Tensor, b: &Tensor) -> Tensor {
    let ([m, k], [r, _]) = (dims(a), dims(b));
    let c = empty(a, [m, r], a.dtype);
    let tile = narrow_tile(r);
    let kernel = Kernel {
        entry: "skinny_nt",
        text: include_str!("kernels/gemm_skinny.cu"),
        defines: vec![
            ("IS_BF16", usize::from(a.dtype == DType::BF16)),
            ("R_TILE", tile),
            ("OUT_TRANSPOSED", 0),
        ],
        threads: 512,
        shared: if tile <= 32 { 2048 * tile } else { 65_536 },
    };
    let buffers = vec![a.handle.clone(), b.handle.clone(), c.handle.clone()];
    let info = [m, k, r].map(|size| size as u64).to_vec();
    kernel.launch(&a.client, (m.div_ceil(32), 1, 1), vec![], buffers, info);
    c
}

/// `factor · xᵀ y`, f32, with `x` `[m, p]` and `y` `[m, r]` narrow: `[p, r]`, or `[r, p]` where `transposed`.
pub(super) fn narrow_columns(x: &Tensor, y: &Tensor, factor: f32, transposed: bool) -> Tensor {
    let ([m, p], [_, r]) = (dims(x), dims(y));
    let shape = if transposed { [r, p] } else { [p, r] };
    let c = empty(x, shape, DType::F32);
    let tile = narrow_tile(r);
    let (tiles, most, shared) = match tile <= 32 {
        true => (p.div_ceil(64), 2 * multiprocessors(&x.device), 2048 * tile),
        false => (p.div_ceil(128), 2 * multiprocessors(&x.device), 6 * (8192 + 64 * tile)),
    };
    // A second launch to add up the parts is worth it for many rows only.
    let splits = (most / tiles).min(m / 256).max(1);
    let defines = vec![
        ("IS_BF16", usize::from(x.dtype == DType::BF16)),
        ("R_TILE", tile),
        ("OUT_TRANSPOSED", usize::from(transposed)),
    ];
    let text = include_str!("kernels/gemm_skinny.cu");
    let info = vec![m as u64, p as u64, r as u64, splits as u64, u64::from(factor.to_bits())];
    let kernel = Kernel { entry: "skinny_tn", text, defines: defines.clone(), threads: 256, shared };
    let target = if splits == 1 { c.clone() } else { empty(x, [splits, r * p], DType::F32) };
    let buffers = vec![x.handle.clone(), y.handle.clone(), target.handle.clone()];
    kernel.launch(&x.client, (tiles, splits, 1), vec![], buffers, info.clone());
    if splits > 1 {
        let kernel = Kernel { entry: "reduce_partials", text, defines, threads: 256, shared: 0 };
        let buffers = vec![target.handle, c.handle.clone()];
        kernel.launch(&x.client, ((p * r).div_ceil(1024), 1, 1), vec![], buffers, info);
    }
    c
}

/// Whether the narrow kernels take these rows.
pub(super) fn narrow_fits(wide: &Tensor) -> bool {
    matches!(wide.dtype, DType::BF16 | DType::F16) && wide.shape()[1].is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_follow_the_measurements() {
        let choose = |m, n| Shape::choose(m, n, false, 132);
        // The best of those measured, in TFLOP/s: 768, 745 and 348.
        assert_eq!(choose(4096, 14_336).width, 256);
        assert_eq!(choose(4096, 1024).width, 256);
        assert_eq!(choose(512, 1024), Shape { width: 64, cluster: 1 });
        assert_eq!(choose(4096, 512), Shape { width: 128, cluster: 1 });
        // `conformance::large_linears` has one of each, and with the second factor by columns too.
        assert_eq!(choose(4096, 4096).width, 256);
        assert_eq!(choose(2000, 2296), Shape { width: 128, cluster: 2 });
        assert_eq!(Shape::choose(2000, 2296, true, 132), Shape { width: 128, cluster: 2 });
        for (m, n) in [(1, 8), (130, 49_152), (3840, 8192)] {
            let shape = Shape::choose(m, n, true, 132);
            assert!(shape.width / shape.cluster >= 64, "a box of columns is 64 wide: {shape:?}");
        }
    }
}

//! The optimizer's passes over all trained tensors, many to a launch.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::server::Handle;
use cubecl_cuda::CudaRuntime;

use super::same;
use super::source::Kernel;
use crate::cube::tensors::empty;
use crate::tier::native_over_cube;

type Tensor = CubeTensor<CudaRuntime>;

const TEXT: &str = include_str!("kernels/optimizer.cu");
const THREADS: usize = 256;
/// Tensors of a launch.
const ADAMW_SLOTS: usize = 16;
const SQUARES_SLOTS: usize = 32;
/// Most blocks that share a tensor.
const BLOCKS: usize = 64;
/// Blocks that share a tensor in sums.
const SUMS: usize = 8;

fn elements(t: &Tensor) -> usize {
    t.shape().num_elements()
}

/// One step of AdamW on all of `[param, grad, first, second]`, in place: contiguous f32 tensors that nobody else holds.
/// `numbers` are β₁, β₂, ε, the decay, the rate, the correction of the second moment and the scale of gradients. `false`
/// where another body has to do it.
pub(crate) fn adamw<R: CubeRuntime>(tensors: &[[CubeTensor<R>; 4]], numbers: [f32; 7]) -> bool {
    let same_all = |t: &[CubeTensor<R>; 4]| -> Option<[Tensor; 4]> {
        let [param, grad, first, second] = t.each_ref().map(|t| same(t.clone()));
        Some([param?, grad?, first?, second?])
    };
    let Some(tensors) = tensors.iter().map(same_all).collect::<Option<Vec<_>>>() else { return false };
    let f32 = tensors.iter().flatten().all(|t| t.dtype == DType::F32);
    if !native_over_cube(f32) {
        return false;
    }
    for group in tensors.chunks(ADAMW_SLOTS) {
        let slots: Vec<&[Tensor; 4]> =
            group.iter().chain(std::iter::repeat(&group[0])).take(ADAMW_SLOTS).collect();
        let buffers: Vec<Handle> =
            slots.iter().flat_map(|slot| slot.each_ref().map(|t| t.handle.clone())).collect();
        let counts: Vec<usize> = group.iter().map(|[param, ..]| elements(param)).collect();
        let most = counts.iter().max().copied().unwrap_or(0);
        let mut info = slot_counts(&counts, ADAMW_SLOTS);
        info.extend(numbers.map(|number| u64::from(number.to_bits())));
        let kernel = Kernel {
            entry: "adamw",
            text: TEXT,
            defines: vec![("ADAMW", 1)],
            threads: THREADS as u32,
            shared: 0,
        };
        let blocks = most.div_ceil(4 * THREADS).clamp(1, BLOCKS);
        kernel.launch(&group[0][0].client, (blocks, group.len(), 1), vec![], buffers, info);
    }
    true
}

/// Partial sums of the squares of contiguous tensors. `None` where another body has to do it.
pub(crate) fn squares<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> Option<CubeTensor<R>> {
    let tensors = tensors.iter().map(|t| same(t.clone())).collect::<Option<Vec<Tensor>>>()?;
    let first = tensors.first()?;
    if !native_over_cube(tensors.iter().all(|t| t.dtype == DType::F32)) {
        return None;
    }
    let partial = empty(first, [tensors.len() * SUMS], DType::F32);
    for (number, group) in tensors.chunks(SQUARES_SLOTS).enumerate() {
        let slots = group.iter().chain(std::iter::repeat(&group[0])).take(SQUARES_SLOTS);
        let mut buffers = vec![partial.handle.clone()];
        buffers.extend(slots.map(|t| t.handle.clone()));
        let mut info = slot_counts(&group.iter().map(elements).collect::<Vec<_>>(), SQUARES_SLOTS);
        info.push((number * SQUARES_SLOTS) as u64);
        let kernel =
            Kernel { entry: "squares", text: TEXT, defines: vec![], threads: THREADS as u32, shared: 0 };
        kernel.launch(&first.client, (SUMS, group.len(), 1), vec![], buffers, info);
    }
    same(partial)
}

/// The elements of each slot, none in those past the last tensor.
fn slot_counts(counts: &[usize], slots: usize) -> Vec<u64> {
    counts.iter().map(|count| *count as u64).chain(std::iter::repeat(0)).take(slots).collect()
}

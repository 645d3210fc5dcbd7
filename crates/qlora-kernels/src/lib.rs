//! What fine-tuning asks of a burn backend: one operation trait, its reference and its fast bodies.
//!
//! [`KernelBackend`] is the contract. Every operation has
//!
//! 1. a *reference* body in plain tensor operations, which runs on any burn backend and in any float
//!    type (f64 too: that is what the fast bodies are compared with);
//! 2. *native* bodies where they exist: on the CPU backend (Flex) the SIMD kernels of `qlora-cpu`;
//! 3. a hand-written backward pass, registered with burn's autodiff.
//!
//! `QLORA_KERNELS=reference` forces the first everywhere; [`tier::calls`] tells which bodies ran on a thread.
//!
//! A model calls the typed functions ([`linear()`], [`rms_norm()`], [`rope()`], …), which take and return
//! [`burn::tensor::Tensor`], and bounds its backend by [`KernelBackend`], or by [`TrainBackend`] to train.

pub mod activation;
pub mod attention;
mod autodiff;
mod backend;
#[cfg(feature = "flex")]
pub mod conformance;
pub mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub mod embedding;
#[cfg(feature = "flex")]
mod flex;
mod greedy;
pub mod injection;
pub mod linear;
pub mod nf4;
pub mod norm;
pub mod optimizer;
pub mod paged;
mod primitive;
pub mod quantized8;
pub mod rope;
pub mod sampling;
pub mod tier;
pub mod weight;

pub use activation::{Activation, gated_activation};
pub use attention::{AttentionSpan, AttentionSpec, attention};
pub use backend::{KernelBackend, TrainBackend};
pub use cross_entropy::{
    CrossEntropyOptions, LossParts, TokenLosses, linear_cross_entropy, logits, token_losses,
};
pub use embedding::{embedding, embedding_gradient};
pub use greedy::greedy;
pub use injection::inject_gradient;
pub use linear::{LoraOperands, LoraParts, gated_linear, linear};
pub use nf4::{AbsmaxParts, Nf4Parts, Nf4Weight};
pub use norm::{
    NormOutput, RmsNormOptions, SavedNorm, add_rms_norm, add_to_residual, residual_dtype, rms_norm,
};
pub use optimizer::{AdamWStep, adamw, adamw_all, adamw8bit, sum_of_squares};
pub use paged::{CacheRows, PageTable, append_to_cache, gather_rows, paged_attention, rotate_and_append};
pub use quantized8::{Quantized8, Quantized8Parts};
pub use rope::rope;
pub use sampling::{Draw, Warpers, sample};
pub use weight::{Compute, FrozenWeight, WeightParts};

#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;
#[cfg(feature = "flex")]
pub use burn_flex::{Flex, FlexDevice};
#[cfg(feature = "wgpu")]
pub use burn_wgpu::WgpuDevice;

/// NVIDIA GPUs, without burn's fusion.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cuda::Cuda<f32, i32>;

/// GPUs through Vulkan, Metal or WebGPU, without burn's fusion.
#[cfg(feature = "wgpu")]
pub type Wgpu = burn_wgpu::Wgpu<f32, i32, u32>;

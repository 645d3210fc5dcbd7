//! What fine-tuning asks of a burn backend: one operation trait, its reference and its fast bodies.
//!
//! [`KernelBackend`] is the contract. Every operation has
//!
//! 1. a *reference* body in plain tensor operations, which runs on any burn backend and in any float
//!    type (f64 too: that is what the fast bodies are compared with);
//! 2. *native* bodies where they exist: on the CPU backend (Flex) the SIMD kernels of `qlora-cpu`;
//! 3. a hand-written backward pass, registered with burn's autodiff.
//!
//! `QLORA_KERNELS=reference` forces the first everywhere; [`tier::calls`] tells which bodies ran.
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
pub mod embedding;
#[cfg(feature = "flex")]
mod flex;
pub mod linear;
pub mod nf4;
pub mod norm;
pub mod optimizer;
mod primitive;
pub mod rope;
pub mod tier;
pub mod weight;

pub use activation::{Activation, gated_activation};
pub use attention::{AttentionSpan, AttentionSpec, attention};
pub use backend::{KernelBackend, TrainBackend};
pub use cross_entropy::{CrossEntropyOptions, TokenLosses, linear_cross_entropy, token_losses};
pub use embedding::embedding;
pub use linear::{LoraOperands, LoraParts, linear};
pub use nf4::{AbsmaxParts, Nf4Parts, Nf4Weight};
pub use norm::{RmsNormOptions, rms_norm};
pub use optimizer::{AdamWStep, adamw, sum_of_squares};
pub use rope::rope;
pub use weight::{Compute, FrozenWeight, WeightParts};

#[cfg(feature = "cuda")]
pub use burn_cuda::{Cuda, CudaDevice};
#[cfg(feature = "flex")]
pub use burn_flex::{Flex, FlexDevice};
#[cfg(feature = "wgpu")]
pub use burn_wgpu::{Wgpu, WgpuDevice};

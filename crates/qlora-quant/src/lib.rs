//! NF4 and block-wise 8-bit quantization, in the layout of bitsandbytes.
//!
//! An NF4 weight spends four bits an element and one f32 scale a block; double quantization stores
//! the scales themselves in eight bits (QLoRA, <https://arxiv.org/abs/2305.14314>). Bytes, scales and
//! checkpoint tensors equal those of bitsandbytes, so that a checkpoint goes either way.
//!
//! | module | what |
//! |---|---|
//! | [`nf4`] | codebook, thresholds, slices in and slices out |
//! | [`Nf4Tensor`] | a quantized weight: codes, scales and shape |
//! | [`DoubleQuantized`] | the scales of a weight in eight bits |
//! | [`dynamic_map`] | the 8-bit dynamic maps and block-wise quantization, for optimizer states too |
//! | [`bnb`] | the tensors and the `quant_state` JSON of a bitsandbytes checkpoint |
//!
//! Everything here works on slices of the host. Products with quantized weights, and anything on an
//! accelerator, are in `qlora-kernels`.

pub mod bnb;
pub mod dynamic_map;
pub mod nf4;

mod block;
mod double_quant;
mod error;
mod normalizer;
mod tensor;

pub use block::BlockSize;
pub use double_quant::DoubleQuantized;
pub use dynamic_map::DynamicMap;
pub use error::QuantError;
pub use tensor::{Nf4Options, Nf4Tensor, Scales, SourceDtype};

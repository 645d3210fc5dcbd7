//! CPU kernels for training with a frozen, quantized base: slices in, slices out.
//!
//! No burn here: this crate builds and tests in seconds. `qlora-kernels` puts these functions behind
//! the operation trait of burn's Flex backend.

mod activation;
mod adamw8bit;
mod attention;
#[cfg(test)]
mod checks;
mod cross_entropy;
mod decode;
mod dispatch;
mod elementwise;
mod exp;
mod gemm;
mod isa;
mod linear;
mod linear_cross_entropy;
mod norm;
mod optimizer;
mod parallel;
mod rope;
mod scratch;
mod softmax;
mod vector;
mod weight;

pub use activation::{Activation, gated_activation, gated_activation_backward};
pub use adamw8bit::{MOMENT_BLOCK, Moment8, adamw8bit};
pub use attention::{
    AttentionShape, AttentionSpan, PagedSequence, attention, attention_backward, paged_attention,
};
pub use cross_entropy::{CrossEntropy, TokenStats, cross_entropy_rows};
pub use decode::dequantize;
pub use elementwise::{add, add_scaled, scale};
pub use isa::Isa;
pub use linear::{linear, linear_grad_input, lora_grads};
pub use linear_cross_entropy::linear_cross_entropy;
pub use norm::{RmsNorm, add_rms_norm, add_rms_norm_backward, rms_norm, rms_norm_backward};
pub use optimizer::{AdamW, adamw, sum_of_squares};
pub use rope::rope;
pub use softmax::{log_softmax_rows, softmax_rows};
pub use weight::{Absmax, Lora, Nf4View, Precision, Weight, WeightData};

//! The tensors that bitsandbytes stores for an NF4 weight.
//!
//! A weight named `W` (`model.layers.0.mlp.up_proj.weight`) takes these entries of a checkpoint:
//!
//! | name | type | shape | |
//! |---|---|---|---|
//! | `W` | u8 | `[⌈n/2⌉, 1]` | packed codes |
//! | `W.absmax` | u8, or f32 without double quantization | `[blocks]` | scales |
//! | `W.quant_map` | f32 | `[16]` | value of each code |
//! | `W.nested_absmax` | f32 | `[⌈blocks/256⌉]` | with double quantization only |
//! | `W.nested_quant_map` | f32 | `[256]` | with double quantization only |
//! | `W.quant_state.bitsandbytes__nf4` | u8 | `[bytes]` | JSON: block sizes, shape, type |

mod checkpoint;
mod quant_state;

pub use checkpoint::{BnbDtype, BnbError, BnbTensor, RawTensor, from_tensors, is_nf4, to_tensors};

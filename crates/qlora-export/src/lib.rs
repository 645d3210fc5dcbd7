//! Adapters and checkpoints, written for others to load.
//!
//! | what | where |
//! |---|---|
//! | PEFT's adapter directory, read and written | [`PeftAdapter`], [`PeftConfig`] |
//! | the adapters of a model as a PEFT adapter, and back | [`PeftAdapter::from_adapter_set`], [`PeftAdapter::adapter_set`] |
//! | a checkpoint directory for `transformers`, adapters merged | [`export_safetensors`] |

mod adapter_set;
mod peft;
mod safetensors;
mod save;

pub use peft::{
    AdapterTensor, Factor, InvalidAdapter, PeftAdapter, PeftConfig, PeftError, PeftLayer, TargetModules,
};
pub use safetensors::{
    ExportedCheckpoint, FloatType, SafetensorsError, SafetensorsOptions, export_safetensors,
};
pub use save::SaveAdapter;

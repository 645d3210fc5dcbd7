//! Adapters and checkpoints, written for others to load.
//!
//! | what | where |
//! |---|---|
//! | PEFT's adapter directory, read and written | [`PeftAdapter`], [`PeftConfig`] |
//! | the adapters of a model as a PEFT adapter, and back | [`PeftAdapter::from_adapter_set`], [`PeftAdapter::adapter_set`] |

mod adapter_set;
mod peft;
mod save;

pub use peft::{
    AdapterTensor, Factor, InvalidAdapter, PeftAdapter, PeftConfig, PeftError, PeftLayer, TargetModules,
};
pub use save::SaveAdapter;

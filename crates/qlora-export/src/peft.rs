//! PEFT's adapter directory: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! [`PeftAdapter::read`] refuses, by name, whatever would change the arithmetic and is not supported
//! (DoRA, biases, whole trained modules...), rather than load a model that answers differently.
//! [`PeftAdapter::write`] writes the keys that every release of PEFT understands.

mod adapter;
mod config;
mod config_json;
mod directory;
mod error;
mod model_card;

pub use adapter::{AdapterTensor, Factor, PeftAdapter, PeftLayer};
pub use config::{PeftConfig, TargetModules};
pub use directory::export_peft;
pub use error::{InvalidAdapter, PeftError};

//! Adapters and checkpoints, written for others to load, and compared with their source afterwards.
//!
//! | what | where |
//! |---|---|
//! | what is exported: a checkpoint, an adapter in its weights | [`ExportSource`], [`MergeBase`] |
//! | PEFT's adapter directory, read and written | [`PeftAdapter`], [`PeftConfig`], [`export_peft`] |
//! | the adapters of a model as a PEFT adapter, and back | [`PeftAdapter::from_adapter_set`], [`PeftAdapter::adapter_set`] |
//! | a checkpoint directory for `transformers` | [`export_safetensors`] |
//! | the same in NF4, for `transformers` with bitsandbytes | [`export_bnb_4bit`] |
//! | a GGUF file for llama.cpp, an adapter as GGUF | [`export_gguf`], [`export_gguf_lora`] |
//! | which columns matter, from a calibration text | [`importance_matrix`], [`GgufOptions`] |
//! | a folder for Ollama | [`export_ollama`], [`Modelfile`] |
//! | what was written, opened again and compared | [`verify`], [`verify_bnb_4bit`], [`verify_peft`], [`verify_gguf_lora`] |
//! | what a merge into other weights than those trained on changes | [`MergeReport`] |
//! | from a model in one call | [`SaveAdapter`], [`SaveMerged`] |

mod adapter_set;
mod bnb4bit;
mod error;
mod float_type;
mod gguf;
mod importance;
mod merge;
mod ollama;
mod peft;
mod report;
mod safetensors;
mod save;
mod source;
mod target;
mod tolerance;
mod verify;

pub use bnb4bit::{Bnb4BitOptions, export_bnb_4bit};
pub use error::ExportError;
pub use float_type::FloatType;
pub use gguf::{
    ExportedGguf, ExportedGgufLora, GgufOptions, check_gguf_target, check_ollama_target, export_gguf,
    export_gguf_lora,
};
pub use importance::importance_matrix;
pub use ollama::{Modelfile, ModelfileTemplate, export_ollama};
pub use peft::{
    AdapterTensor, Factor, InvalidAdapter, PeftAdapter, PeftConfig, PeftError, PeftLayer, TargetModules,
    export_peft,
};
pub use qlora_gguf::FileType as GgufType;
pub use report::{MergeReport, MergedLayer, MergedLogits};
pub use safetensors::{ExportedCheckpoint, SafetensorsOptions, export_safetensors};
pub use save::{SaveAdapter, SaveMerged};
pub use source::{ExportSource, MergeBase};
pub use verify::{
    Difference, Probe, Tolerance, TooLarge, Verification, VerifyError, verify, verify_bnb_4bit,
    verify_gguf_lora, verify_peft,
};

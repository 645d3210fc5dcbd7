//! Fine-tuning of large language models with LoRA and QLoRA: the crate to depend on.
//!
//! This crate holds no logic. It gathers the crates of the workspace under short names, chooses
//! backends by cargo features (`flex`, the CPU, is on by default; `cuda`; `wgpu`), and offers a
//! [`prelude`] and one opaque [`Error`] for programs.
//!
//! ```no_run
//! use qlora_core::prelude::*;
//!
//! # fn main() -> qlora_core::Result<()> {
//! let checkpoint = Checkpoint::open(ModelStore::from_env()?.resolve("smollm2-135m")?.path())?;
//! let options = LoadOptions { quantization: Quantization::Nf4(Nf4Options::default()), ..LoadOptions::default() };
//! let mut model = load::<Autodiff<Cpu>>(&checkpoint, options, &CpuDevice, &mut |_, _| {})?;
//! model.attach(&LoraConfig::default(), 42)?;
//!
//! let encoder = Encoder::new(checkpoint.tokenizer()?.into());
//! let data = Dataset::from_jsonl("train.jsonl", &encoder, &DatasetOptions::default())?;
//! let mut objective = SupervisedFineTuning::new(data, 8, 1, Some(42))?;
//! Engine::new(EngineOptions::linear(100, 1e-3))
//!     .with_observer(ProgressDisplay::new())
//!     .run(&mut model, &mut objective)?;
//!
//! // The adapter alone, for PEFT and vLLM; merged, for transformers; merged, for llama.cpp.
//! let tokenizer = checkpoint.tokenizer()?;
//! model.save_adapter_with_tokenizer("adapter", &LoraConfig::default(), None, &tokenizer)?;
//! model.save_merged(&checkpoint, "merged")?;
//! model.save_gguf(&checkpoint, "model.gguf", GgufType::Q4KM)?;
//! # Ok(())
//! # }
//! ```

mod error;
pub mod prelude;

pub use burn;
pub use error::{Error, Result};
pub use qlora_data as data;
pub use qlora_export as export;
pub use qlora_files as files;
pub use qlora_gguf as gguf;
pub use qlora_hub as hub;
pub use qlora_kernels as kernels;
pub use qlora_lora as lora;
pub use qlora_models as models;
pub use qlora_quant as quant;
pub use qlora_rl as rl;
pub use qlora_text as text;
pub use qlora_train as train;

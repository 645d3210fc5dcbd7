//! What a program that fine-tunes a model uses.

pub use burn::backend::Autodiff;
pub use burn::module::AutodiffModule;
pub use qlora_data::{Batch, Dataset, DatasetOptions, Encoder, OnBadRow, OnLong, TrainOn};
pub use qlora_export::{GgufType, PeftAdapter, SaveAdapter, SaveMerged};
pub use qlora_hub::ModelStore;
pub use qlora_kernels::{Compute, KernelBackend, TrainBackend};
#[cfg(feature = "flex")]
pub use qlora_kernels::{Flex as Cpu, FlexDevice as CpuDevice};
pub use qlora_lora::{LoraConfig, Pass, Targets};
pub use qlora_models::{
    Checkpoint, Checkpointing, Decoder, GenerateOptions, LoadOptions, Quantization, Sampling, TokenBatch,
    load,
};
pub use qlora_quant::Nf4Options;
pub use qlora_text::{ChatTemplate, ChatTemplates, Message, RenderInput, TokenStream, Tokenizer};
pub use qlora_train::{
    Engine, EngineOptions, Interrupt, ProgressDisplay, RunDirectory, SupervisedFineTuning,
};

//! Decoder-only language models: checkpoints, forward pass, generation.
//!
//! | what | where |
//! |---|---|
//! | a checkpoint on disk: GGUF, or a directory of safetensors | [`Checkpoint`] |
//! | what a model computes, and its tensors | [`DecoderConfig`], [`Family`] |
//! | the model as a burn module | [`Decoder`] |
//! | less memory in training: layers computed twice | [`Checkpointing`], [`LayerTape`] |
//! | loading, and quantizing on arrival | [`LoadOptions`], [`load`] |
//! | random weights of a size | [`Decoder::random`] |
//! | what goes into each linear layer on given tokens | [`Decoder::input_statistics`] |
//! | adapters of the whole model | [`AdapterSet`], [`Decoder::attach`] |
//! | completions of prompts | [`generate`](Decoder::generate), [`Sampling`] |
//! | requests that come and go, a cache that they share | [`Generator`], [`Request`], [`KvCache`] |

mod adapters;
mod assembly;
mod attention;
mod cache;
mod checkpoint;
mod config;
mod decoder;
mod error;
mod family;
mod generate;
mod generator;
mod input_statistics;
mod layer;
mod layer_tape;
mod loading;
mod mlp;
mod norm;
mod policy;
mod random;
mod residual;
mod rope;
mod sampling;
mod tensors;

pub use adapters::AdapterSet;
pub use attention::SelfAttention;
pub use cache::KvCache;
pub use checkpoint::Checkpoint;
pub use config::{
    DecoderConfig, ExpertsConfig, LayerAttention, LayerRope, NormKind, NormPlacement, QkNorm, RopePairs,
};
pub use decoder::{Decoder, TokenBatch};
pub use error::{ModelError, TensorProblems};
pub use family::{Family, GgufName, NotInGguf};
pub use generate::{Completion, FinishReason, GenerateOptions, SampledToken};
pub use generator::{Flow, Generator, GeneratorOptions, Request};
pub use input_statistics::InputStatistics;
pub use layer::DecoderLayer;
pub use layer_tape::{Checkpointing, LayerTape};
pub use loading::{LoadOptions, LoadProgress, Quantization, load};
pub use mlp::{GatedMlp, Mlp};
pub use norm::Norm;
pub use qlora_lora::{DropoutKey, LoraConfig, LoraError, Pass, Targets};
pub use rope::RopeScaling;
pub use sampling::{Sampler, Sampling};

//! What can go wrong between a file and a model.

use std::path::PathBuf;

/// A checkpoint that cannot be used, or a request that a model cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a GGUF file nor a checkpoint directory.
    #[error("{}: {problem}; expected a .gguf file, or a directory with config.json and safetensors", path.display())]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A family of models that is not implemented.
    #[error("{}: architecture `{found}` is not supported; supported are {}", path.display(), crate::Family::names())]
    UnsupportedArchitecture {
        /// The file that names it.
        path: PathBuf,
        /// Its name.
        found: String,
    },
    /// A configuration value that is absent, of the wrong kind, or not implemented.
    #[error("{}: `{key}` {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor `{name}` is {found:?}, the configuration says {expected:?}", path.display())]
    TensorShape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A tensor that the model needs and the checkpoint does not have.
    #[error("{}: tensor `{name}` is missing; the checkpoint is incomplete or of another architecture", path.display())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A request that a cache could not hold if it were alone.
    #[error(
        "{tokens} tokens do not fit a cache of {pages} pages of 16 tokens; give the generator more pages"
    )]
    CacheTooSmall {
        /// Tokens of the prompt and of its completion.
        tokens: usize,
        /// Pages of the cache.
        pages: usize,
    },
    /// A weight that holds NaN or infinity.
    #[error("{}: tensor `{name}` cannot be quantized: {source}", path.display())]
    Quantize {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: qlora_quant::QuantError,
    },
    /// More tokens than the model was trained for.
    #[error(
        "{tokens} tokens are more than the model's context of {limit}; shorten the prompt or ask for fewer new tokens"
    )]
    ContextTooLong {
        /// Tokens asked for, prompt and completion.
        tokens: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A prompt without a token.
    #[error("prompt {index} is empty; give at least one token")]
    EmptyPrompt {
        /// Which prompt.
        index: usize,
    },
    /// A token that the model does not know.
    #[error(
        "token id {id} is outside of the model's vocabulary of {vocabulary}; was it made by another tokenizer?"
    )]
    TokenOutOfRange {
        /// The token.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A sampling parameter outside of its range.
    #[error("{key} is {value}: expected {expected}")]
    Sampling {
        /// The parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A GGUF file.
    #[error(transparent)]
    Gguf(#[from] qlora_gguf::GgufError),
    /// A safetensors or JSON file.
    #[error(transparent)]
    Files(#[from] qlora_files::Error),
    /// A tokenizer or a chat template.
    #[error(transparent)]
    Text(#[from] qlora_text::Error),
    /// An adapter.
    #[error(transparent)]
    Lora(#[from] qlora_lora::LoraError),
}

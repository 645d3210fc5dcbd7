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
    /// Tensors that are not those of the model.
    #[error("{}: {problems}", path.display())]
    Tensors {
        /// The checkpoint.
        path: PathBuf,
        /// All that do not fit.
        problems: Box<TensorProblems>,
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
    /// A weight in NF4 that cannot be read.
    #[error("{}: {source}", path.display())]
    Bnb {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with which tensor.
        source: Box<qlora_quant::bnb::BnbError>,
    },
    /// More tokens than the model was trained for.
    #[error(
        "{tokens} tokens are more than the model's context of {limit}; shorten the prompt or ask for fewer new tokens"
    )]
    ContextTooLong {
        /// Tokens asked for, prompt and completion.
        tokens: usize,
        /// What the model reaches, rotary scaling included.
        limit: usize,
    },
    /// A prompt without a token.
    #[error("prompt {index} is empty; give at least one token")]
    EmptyPrompt {
        /// Which prompt.
        index: usize,
    },
    /// A request for adapters that the generator does not hold.
    #[error("adapter {adapter} is unknown: the generator holds {held}, counted from 0; add it first")]
    UnknownAdapter {
        /// The number asked for.
        adapter: usize,
        /// Sets of adapters held.
        held: usize,
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

/// How the tensors of a checkpoint differ from those of the model that its configuration describes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// Tensors that the model needs and the checkpoint does not have.
    pub missing: Vec<String>,
    /// Tensors that the checkpoint has and the model would not use.
    pub extra: Vec<String>,
    /// Tensors of another shape: name, shape found, shape expected.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl TensorProblems {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 4;
        let list = |names: &mut dyn Iterator<Item = String>, count: usize| {
            let shown: Vec<String> = names.take(SHOWN).collect();
            let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
            format!("{}{more}", shown.join(", "))
        };
        let quoted = |names: &[String]| list(&mut names.iter().map(|name| format!("`{name}`")), names.len());
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing tensors: {}", quoted(&self.missing)));
        }
        if !self.misshapen.is_empty() {
            let shape = |(name, found, expected): &(String, Vec<usize>, Vec<usize>)| {
                format!("`{name}` is {found:?}, the configuration says {expected:?}")
            };
            let shapes = list(&mut self.misshapen.iter().map(shape), self.misshapen.len());
            parts.push(format!("tensors of another shape: {shapes}"));
        }
        if !self.extra.is_empty() {
            parts.push(format!("tensors that this architecture does not use: {}", quoted(&self.extra)));
        }
        let advice = "the checkpoint is incomplete or of another architecture than its configuration says";
        write!(f, "{}; {advice}", parts.join("; "))
    }
}

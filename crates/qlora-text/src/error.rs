use std::path::PathBuf;

/// Why a tokenizer or a chat template could not be read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write the tokenizer: {source}")]
    Write {
        /// What went wrong, with the file.
        source: qlora_files::Error,
    },
    /// A JSON file is damaged.
    #[error("{}: not valid JSON ({source}); fetch the model's files again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why the parser stopped.
        source: serde_json::Error,
    },
    /// A JSON file is sound but a key holds something unexpected.
    #[error("{}: key `{key}`: expected {expected}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A special token that a configuration names is not in the vocabulary.
    #[error("{origin}: `{key}` names {token:?}, which is not in the vocabulary")]
    NotInVocabulary {
        /// The file or the metadata key.
        origin: String,
        /// The key.
        key: String,
        /// The token, or the id, that is named.
        token: String,
    },
    /// The tokenizer's definition was refused.
    #[error("{origin}: not a usable tokenizer: {reason}")]
    Definition {
        /// The file or "GGUF metadata".
        origin: String,
        /// Why.
        reason: String,
    },
    /// GGUF metadata lacks a key or holds a wrong type.
    #[error("{source}")]
    Gguf {
        /// The file, the key, and what was expected.
        source: qlora_gguf::GgufError,
    },
    /// GGUF metadata contradicts itself.
    #[error("GGUF metadata: `{key}`: {reason}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// GGUF metadata names a tokenizer or a pre-tokenizer whose exact rules are not implemented.
    #[error(
        "GGUF metadata: `{key}` is {found:?}, and the supported are {supported}; \
         use a directory with the model's tokenizer.json instead"
    )]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The values that are supported.
        supported: String,
    },
    /// GGUF cannot hold a tokenizer.
    #[error("{origin}: this tokenizer cannot be written to GGUF: {reason}")]
    NotInGguf {
        /// Where the tokenizer comes from.
        origin: String,
        /// Why.
        reason: String,
    },
    /// A `tokenizer.model` of SentencePiece is damaged, or of an unsupported kind.
    #[error("{}: not a usable SentencePiece model: {reason}", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A text that cannot become a special token.
    #[error("{token:?} cannot become a special token: {reason}")]
    SpecialToken {
        /// The text.
        token: String,
        /// Why.
        reason: &'static str,
    },
    /// Text could not be encoded, or ids could not be decoded.
    #[error("the tokenizer failed: {reason}")]
    Tokenizer {
        /// What the `tokenizers` crate said.
        reason: String,
    },
    /// An id that no token has.
    #[error("no token has the id {id}: the vocabulary has {vocab_size} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// The model brings no chat template.
    #[error("{origin} has no chat template; give one, or use rows with `prompt` and `completion`")]
    NoChatTemplate {
        /// Where the tokenizer comes from.
        origin: String,
    },
    /// Neither the name of a chat template nor a file.
    #[error("there is no chat template {name:?}; give the path of a Jinja file, or one of {known}")]
    UnknownTemplate {
        /// What was given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The chat template is not valid Jinja.
    #[error("chat template, line {line}: {reason}")]
    TemplateSyntax {
        /// Line in the template, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// The chat template refused the conversation by `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Raised {
        /// The template's own message.
        message: String,
    },
    /// The chat template failed on this conversation.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// Line in the template, from 1.
        line: usize,
        /// What failed.
        reason: String,
    },
    /// A message is not an object with a string under `role`.
    #[error("message {index}: {reason}")]
    Message {
        /// Position in the conversation, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    pub(crate) fn tokenizer(error: tokenizers::Error) -> Self {
        Self::Tokenizer { reason: error.to_string() }
    }
}

impl From<qlora_gguf::GgufError> for Error {
    fn from(source: qlora_gguf::GgufError) -> Self {
        Self::Gguf { source }
    }
}

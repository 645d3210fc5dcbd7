//! Tokenizers and chat templates, from Hugging Face files and from GGUF metadata.
//!
//! * [`Tokenizer`]: text to ids and back, with byte offsets, stop tokens, and the model's chat template;
//!   [`TokenStream`] turns ids into text while they are being generated, [`StopStrings`] finds where it ends.
//! * [`ChatTemplate`]: the model's own Jinja template, rendered as `transformers` renders it, with the
//!   spans of its `{% generation %}` blocks.
//! * [`NamedTemplate`]: chat formats for models that bring no template ([`Tokenizer::choose_template`]);
//!   [`ChatTemplates`]: the sources of a model's templates, as its files hold them.
//! * [`Message`]: one turn of a conversation, with whatever extra keys its row had.
//!
//! Nothing is added behind the caller's back: [`Tokenizer::encode`] recognises special tokens that are
//! written in the text and adds none; truncation and padding settings of a `tokenizer.json` are ignored.

mod byte_level;
mod chat_template;
mod chat_templates;
mod error;
mod generation_blocks;
mod gguf;
mod message;
mod named_template;
mod prepared_conversation;
mod pretrained;
mod python_json;
mod python_text;
mod sentencepiece;
mod special_tokens;
mod stop_strings;
mod strftime;
mod token_stream;
mod tokenizer;
mod vocabulary;

pub use chat_template::{ChatTemplate, RenderInput, Rendered};
pub use chat_templates::ChatTemplates;
pub use error::Error;
pub use message::Message;
pub use named_template::{ChosenTemplate, NAMED_TEMPLATES, NamedTemplate};
pub use prepared_conversation::PreparedConversation;
pub use stop_strings::StopStrings;
pub use token_stream::TokenStream;
pub use tokenizer::{TokenSpan, Tokenizer};

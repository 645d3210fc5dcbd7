//! Texts that two models, or two tokenizers, are compared on.

use std::path::Path;

use qlora_models::Checkpoint;
use qlora_text::{Error, Message, RenderInput, Tokenizer};

use super::VerifyError;
use crate::ExportError;

/// Prose, code, other scripts, numbers, white space: where tokenizers differ.
const TEXTS: [&str; 5] = [
    "The lighthouse keeper climbed the narrow stairs every evening, lit the lamp, and wrote the hour into his \
     book. Ships passed far out, and now and then one of them answered with a short flash. He knew the captains \
     by their lights, though he had never met any of them.",
    "fn main() {\n    let total: u32 = (1..=10).filter(|n| n % 2 == 0).sum();\n\tprintln!(\"{total}\");\n}\n",
    "Zwölf große Boxkämpfer jagen Viktor quer über den Sylter Deich. Быстрая лиса, 速い狐, 🦊 et l'été déjà fini.",
    "In 1969, 400,000 people worked on a journey of 384,400 km; it took 3 days, 3 hours and 49 minutes.",
    "  two  spaces,\ttabs\n\n\nand don't, we'll, I'VE - \"quotes\" (and [brackets])...",
];

/// Tokens of a row when there is no tokenizer.
const ROW: u32 = 24;

/// Rows of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    rows: Vec<Vec<u32>>,
}

impl Probe {
    /// The texts that come with this crate, in the tokens of a checkpoint; any tokens when it has no tokenizer.
    ///
    /// # Errors
    /// When the tokenizer is damaged.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        if !checkpoint.has_tokenizer() {
            let vocabulary = checkpoint.config().vocab_size as u32;
            let length = ROW.min(checkpoint.config().max_position_embeddings as u32);
            let row =
                |row: u32| (0..length).map(|i| (i * i * 31 + i * 7 + row * 13 + 1) % vocabulary).collect();
            return Ok(Self { rows: (0..3).map(row).collect() });
        }
        let (tokenizer, context) = (checkpoint.tokenizer()?, checkpoint.config().max_position_embeddings);
        let mut rows = Vec::new();
        for text in TEXTS {
            rows.extend(rows_of(&tokenizer, text, context)?);
        }
        Ok(Self { rows })
    }

    /// All of a text in the tokens of a checkpoint, in rows of at most `length`, or of the context if that is less.
    ///
    /// # Errors
    /// When there is no tokenizer, or the text gives no two tokens.
    pub fn of_text(checkpoint: &Checkpoint, text: &str, length: usize) -> Result<Self, ExportError> {
        let length = length.min(checkpoint.config().max_position_embeddings);
        let rows = rows_of(&checkpoint.tokenizer()?, text, length)?;
        if rows.iter().all(|row| row.len() < 2) {
            return Err(ExportError::Inexpressible {
                path: checkpoint.path().to_owned(),
                what: "a text of less than two tokens".to_owned(),
                form: "a comparison",
                hint: "; give a longer one",
            });
        }
        Ok(Self { rows })
    }

    /// Rows of token ids, each of at least one.
    #[must_use]
    pub fn from_rows(rows: Vec<Vec<u32>>) -> Self {
        Self { rows }
    }

    /// The same tokens in rows of at most `length`.
    #[must_use]
    pub(super) fn within(&self, length: usize) -> Self {
        Self { rows: self.rows.iter().flat_map(|row| row.chunks(length)).map(<[u32]>::to_vec).collect() }
    }

    /// The rows.
    #[must_use]
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }

    /// Tokens of all rows.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }
}

/// All tokens of a text, in rows that each begin as a text does.
fn rows_of(tokenizer: &Tokenizer, text: &str, length: usize) -> Result<Vec<Vec<u32>>, Error> {
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let own = length.max(2) - usize::from(bos.is_some());
    let ids = tokenizer.encode(text)?;
    Ok(ids.chunks(own).map(|row| bos.iter().chain(row).copied().collect()).collect())
}

/// Compares the token ids of texts and of conversations; returns how many were equal. `path` is what was written.
pub(super) fn compare_tokens(
    expected: &Tokenizer,
    found: &Tokenizer,
    path: &Path,
) -> Result<usize, ExportError> {
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).to_vec();
    if expected.chat_template_source().is_some() {
        let template = expected.chat_template()?;
        let written = found.chat_template().map_err(|error| VerifyError::unreadable(path, error))?;
        for messages in conversations() {
            let input =
                RenderInput { messages: &messages, add_generation_prompt: true, ..RenderInput::default() };
            // Some templates refuse a system message: then both must.
            match (template.render(&input), written.render(&input)) {
                (Ok(expected), Ok(found)) if expected == found => texts.push(expected.text),
                (Err(_), Err(_)) => {}
                _ => return Err(VerifyError::Template { path: path.to_owned() }.into()),
            }
        }
    }
    let mut compared = 0;
    for text in texts {
        let (expected, found) = (expected.encode(&text)?, found.encode(&text)?);
        if expected != found {
            let from = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
            let part = |ids: &[u32]| ids[from..ids.len().min(from + 8)].to_vec();
            let (expected, found) = (part(&expected), part(&found));
            return Err(VerifyError::Tokens { path: path.to_owned(), text, expected, found }.into());
        }
        compared += expected.len();
    }
    Ok(compared)
}

/// With and without a system message.
fn conversations() -> [Vec<Message>; 2] {
    let plain =
        vec![Message::user("What is 2 + 3?"), Message::assistant("5."), Message::user("And\n  twice that?")];
    let system = [vec![Message::system("Answer in one word.")], plain.clone()].concat();
    [plain, system]
}

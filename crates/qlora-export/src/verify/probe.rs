//! Texts that two models, or two tokenizers, are compared on.

use std::path::Path;

use qlora_kernels::KernelBackend;
use qlora_models::{Checkpoint, Decoder, Pass, TokenBatch};
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
        let tokenizer = checkpoint.tokenizer()?;
        let rows = TEXTS.iter().map(|text| Self::row(checkpoint, &tokenizer, text));
        Ok(Self { rows: rows.collect::<Result<_, _>>()? })
    }

    /// A text in the tokens of a checkpoint, cut into rows of at most `length`.
    ///
    /// # Errors
    /// When there is no tokenizer, or the text gives no two tokens.
    pub fn of_text(checkpoint: &Checkpoint, text: &str, length: usize) -> Result<Self, ExportError> {
        let ids = Self::row(checkpoint, &checkpoint.tokenizer()?, text)?;
        let length = length.clamp(2, checkpoint.config().max_position_embeddings);
        let rows: Vec<Vec<u32>> =
            ids.chunks(length).filter(|row| row.len() > 1).map(<[u32]>::to_vec).collect();
        if rows.is_empty() {
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

    fn row(checkpoint: &Checkpoint, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = tokenizer.encode(text)?;
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
            ids.insert(0, bos);
        }
        ids.truncate(checkpoint.config().max_position_embeddings);
        Ok(ids)
    }

    /// The beginning of each row, of at most `length` tokens.
    #[must_use]
    pub(super) fn within(&self, length: usize) -> Self {
        Self { rows: self.rows.iter().map(|row| row[..row.len().min(length)].to_vec()).collect() }
    }

    /// The rows.
    #[must_use]
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }

    /// The logits of all rows, one after the other.
    #[must_use]
    pub fn logits<B: KernelBackend>(&self, model: &Decoder<B>) -> Vec<f32> {
        let mut logits = Vec::new();
        for row in &self.rows {
            let hidden = model.hidden_states(TokenBatch { ids: row, lengths: &[row.len()] }, Pass::default());
            logits.extend(model.logits(hidden).into_data().iter::<f32>());
        }
        logits
    }
}

/// Compares the token ids of texts and of conversations; returns how many were equal.
pub(super) fn compare_tokens(
    source: &Checkpoint,
    written: &Checkpoint,
    path: &Path,
) -> Result<usize, ExportError> {
    if !source.has_tokenizer() {
        return Ok(0);
    }
    let unreadable =
        |source: ExportError| VerifyError::Unreadable { path: path.to_owned(), source: source.into() };
    let (expected, found) =
        (source.tokenizer()?, written.tokenizer().map_err(|error| unreadable(error.into()))?);
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).to_vec();
    if expected.chat_template_source().is_some() {
        let template = expected.chat_template()?;
        let written = found.chat_template().map_err(|error| unreadable(error.into()))?;
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

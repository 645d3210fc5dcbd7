use crate::{Error, Tokenizer};

/// Text from ids as they come, for printing while a model generates.
///
/// A character is given out when all its bytes are there, never half of it: the pieces, together with
/// [`finish`](Self::finish), are exactly [`Tokenizer::decode`] of all ids. There is one exception: in a run of
/// byte tokens (`<0xE4>`) that is no UTF-8, `decode` gives U+FFFD for each byte, also for those of characters
/// that were whole, while the stream has given those out.
#[derive(Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids since the last place where the text was whole, and the piece before it, which the decoder needs
    /// to know whether a leading space belongs to the text.
    window: Vec<u32>,
    /// How many ids of the window were given out already.
    given: usize,
}

impl<'a> TokenStream<'a> {
    /// A stream that begins. With `skip_special`, special tokens give no text.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), given: 0 }
    }

    /// Adds an id. Gives the text that is now certain, often empty in the middle of a character.
    ///
    /// # Errors
    /// [`Error::UnknownId`]; the stream is then as it was before.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.window.push(id);
        let text = match self.tokenizer.decode(&self.window, self.skip_special) {
            Ok(text) => text,
            Err(error) => {
                self.window.pop();
                return Err(error);
            }
        };
        // An unfinished character decodes to U+FFFD at the end: wait for the rest of it.
        if text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.give(&text)
    }

    /// As [`push`](Self::push), of an id that a model chose: one without a token gives no text, as in
    /// [`Tokenizer::decode_generated`].
    ///
    /// # Errors
    /// When the tokenizer's own rules fail.
    pub fn push_generated(&mut self, id: u32) -> Result<String, Error> {
        if self.tokenizer.has_token(id) { self.push(id) } else { Ok(String::new()) }
    }

    /// Ends the stream. Gives what was held back: U+FFFD for bytes that never became a character.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<String, Error> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        self.give(&text)
    }

    fn give(&mut self, text: &str) -> Result<String, Error> {
        let before = self.tokenizer.decode(&self.window[..self.given], self.skip_special)?;
        let new = match text.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // A run of byte tokens that is no UTF-8 in the end: what was given out of it stays.
            None => self.tokenizer.decode(&self.window[self.given..], self.skip_special)?,
        };
        // Special tokens that give no text are no context for the decoder: keep what came before them.
        if !new.is_empty() {
            self.window.drain(..self.given);
            self.given = self.window.len();
        }
        Ok(new)
    }
}

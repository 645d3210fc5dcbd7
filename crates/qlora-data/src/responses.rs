//! Where in a rendered conversation the assistant speaks.

use crate::{RowProblem, TrainOn};
use qlora_text::{ChatTemplate, Message, RenderInput, TokenSpan, Tokenizer};
use serde_json::{Map, Value};
use std::ops::Range;

const ASSISTANT: &str = "assistant";

/// A conversation and how it is rendered.
#[derive(Clone, Copy)]
pub(crate) struct Conversation<'a> {
    pub(crate) template: &'a ChatTemplate,
    pub(crate) messages: &'a [Message],
    /// Assistant turns before this index are context.
    pub(crate) trained_from: usize,
    pub(crate) tools: Option<&'a [Value]>,
    pub(crate) variables: Option<&'a Map<String, Value>>,
}

/// A rendered conversation and the byte ranges of it that are trained.
pub(crate) struct Layout {
    pub(crate) text: String,
    pub(crate) spans: Vec<Range<usize>>,
}

impl Conversation<'_> {
    /// Renders the first `count` messages.
    fn render(&self, count: usize, add_generation_prompt: bool) -> Result<qlora_text::Rendered, RowProblem> {
        Ok(self.template.render(&RenderInput {
            messages: &self.messages[..count],
            tools: self.tools,
            add_generation_prompt,
            variables: self.variables,
            ..RenderInput::default()
        })?)
    }

    /// The text, and what of it is trained.
    ///
    /// Where the template has `{% generation %}` blocks they decide, to the byte. Elsewhere an assistant's
    /// turn is what the text has beyond the template's own generation prompt, up to and including the token
    /// that ends the turn; white space after that token (ChatML's line end) is written by the template, not by
    /// the model, and is not trained.
    pub(crate) fn layout(&self, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Layout, RowProblem> {
        let rendered = self.render(self.messages.len(), false)?;
        let text = rendered.text;
        let mut turns: Vec<usize> = (self.trained_from..self.messages.len())
            .filter(|&i| self.messages[i].role() == ASSISTANT)
            .collect();
        if train_on == TrainOn::LastResponse {
            turns.drain(..turns.len().saturating_sub(1));
        }
        let spans = if train_on == TrainOn::All {
            std::iter::once(0..text.len()).collect()
        } else if self.template.has_generation_blocks() {
            self.generation_spans(&text, rendered.generation_spans, &turns)?
        } else {
            self.added_spans(&text, tokenizer, &turns)?
        };
        Ok(Layout { text, spans })
    }

    fn generation_spans(
        &self,
        text: &str,
        spans: Vec<Range<usize>>,
        turns: &[usize],
    ) -> Result<Vec<Range<usize>>, RowProblem> {
        let Some(&first) = turns.first() else { return Ok(Vec::new()) };
        if !self.messages[..first].iter().any(|message| message.role() == ASSISTANT) {
            return Ok(spans);
        }
        let prompt = self.render(first, true)?.text;
        if !text.starts_with(&prompt) {
            return Err(RowProblem::HistoryRewritten { turn: first });
        }
        // A block may begin inside the generation prompt (with its last line end); it ends beyond it.
        Ok(spans.into_iter().filter(|span| span.end > prompt.len()).collect())
    }

    fn added_spans(
        &self,
        text: &str,
        tokenizer: &Tokenizer,
        turns: &[usize],
    ) -> Result<Vec<Range<usize>>, RowProblem> {
        let mut spans = Vec::with_capacity(turns.len());
        for &turn in turns {
            let prompt = self.render(turn, true)?.text;
            let until_turn;
            let until_turn = if turn + 1 == self.messages.len() {
                text
            } else {
                until_turn = self.render(turn + 1, false)?.text;
                &until_turn
            };
            let added =
                until_turn.strip_prefix(prompt.as_str()).ok_or(RowProblem::PromptMismatch { turn })?;
            let rest = text.strip_prefix(prompt.as_str()).ok_or(RowProblem::HistoryRewritten { turn })?;
            // Some templates write an end of text after the last turn, whichever it is: what the turn has in
            // the whole conversation is what both have.
            let common = common_prefix(added, rest);
            let tokens = tokenizer.encode_with_offsets(added)?;
            let length = match turn_ends(added, &tokens, tokenizer) {
                ends if ends.is_empty() && common == added.len() => common,
                ends => ends
                    .into_iter()
                    .find(|&end| end <= common)
                    .ok_or(RowProblem::HistoryRewritten { turn })?,
            };
            spans.push(prompt.len()..prompt.len() + length);
        }
        Ok(spans)
    }
}

/// The ends of the special tokens after which `text` has only white space and special tokens, the last first.
pub(crate) fn turn_ends(text: &str, tokens: &[TokenSpan], tokenizer: &Tokenizer) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut rest = text.len();
    for token in tokens.iter().rev().filter(|token| tokenizer.is_special(token.id)) {
        if !text.get(token.end..rest).is_some_and(|between| between.trim().is_empty()) {
            break;
        }
        ends.push(token.end);
        rest = token.start;
    }
    ends
}

/// Length in bytes of the longest common prefix of whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(c, _)| c.len_utf8()).sum()
}

//! Where in a rendered conversation the assistant speaks.

use crate::{RowProblem, TrainOn};
use qlora_text::{ChatTemplate, Message, PreparedConversation, RenderInput, TokenSpan, Tokenizer};
use serde_json::{Map, Value};
use std::ops::Range;

pub(crate) const ASSISTANT: &str = "assistant";
/// The key of a message that says how much its turn counts.
const WEIGHT: &str = "weight";

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

/// A rendered conversation and what of it is trained.
pub(crate) struct Layout {
    pub(crate) text: String,
    /// In order, apart, none of weight 0.
    pub(crate) spans: Vec<TrainedSpan>,
}

/// A byte range of a text, and the weight of the loss on its tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TrainedSpan {
    pub(crate) range: Range<usize>,
    pub(crate) weight: f32,
}

impl TrainedSpan {
    pub(crate) fn new(range: Range<usize>, weight: f32) -> Self {
        Self { range, weight }
    }
}

/// What an assistant's message, by its position, has of the text.
type TurnSpan = (usize, Range<usize>);

impl Conversation<'_> {
    /// The text, and what of it is trained.
    ///
    /// Where the template has `{% generation %}` blocks they decide, to the byte. Elsewhere an assistant's
    /// turn is what the text has beyond the template's own generation prompt, up to and including the token
    /// that ends the turn; white space after that token (ChatML's line end) is written by the template, not by
    /// the model, and is not trained.
    ///
    /// A `weight` of an assistant's message is that of its turn, whatever else is trained.
    pub(crate) fn layout(&self, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Layout, RowProblem> {
        let weights = self.message_weights()?;
        let prepared = self.template.prepare(&RenderInput {
            messages: self.messages,
            tools: self.tools,
            variables: self.variables,
            ..RenderInput::default()
        });
        let rendered = prepared.render(self.messages.len(), false)?;
        let mut turns: Vec<usize> = (self.trained_from..self.messages.len())
            .filter(|&i| self.messages[i].role() == ASSISTANT)
            .collect();
        let whole = match train_on {
            TrainOn::All => {
                turns = (0..self.messages.len()).filter(|&i| self.messages[i].role() == ASSISTANT).collect();
                Some(0..rendered.text.len())
            }
            TrainOn::Completions => Some(self.completion(&prepared, &rendered.text, tokenizer)?),
            TrainOn::Assistant => None,
            TrainOn::Last => {
                turns.drain(..turns.len().saturating_sub(1));
                None
            }
        };
        if whole.is_some() {
            // Only turns of another weight than that of the whole matter.
            turns.retain(|&turn| weights[turn] != 1.0);
        }
        let found = if turns.is_empty() {
            Vec::new()
        } else if self.template.has_generation_blocks() {
            let uniform = turns.iter().all(|&turn| weights[turn] == weights[turns[0]]);
            self.generation_spans(&prepared, &rendered.text, rendered.generation_spans, &turns, uniform)?
        } else {
            self.added_spans(&prepared, &rendered.text, tokenizer, &turns)?
        };
        let weighted = found.into_iter().map(|(turn, range)| TrainedSpan::new(range, weights[turn]));
        let mut spans = match whole {
            Some(whole) => overlaid(whole, weighted),
            None => weighted.collect(),
        };
        spans.retain(|span| span.weight != 0.0 && !span.range.is_empty());
        Ok(Layout { text: rendered.text, spans })
    }

    /// The `weight` of each message; 1 where it has none.
    fn message_weights(&self) -> Result<Vec<f32>, RowProblem> {
        let weight = |(message, fields): (usize, &Message)| {
            let value = match fields.get(WEIGHT) {
                None | Some(Value::Null) => return Ok(1.0),
                Some(value) => value,
            };
            let problem =
                |expected| RowProblem::MessageWeight { message, expected, found: value.to_string() };
            let weight = value
                .as_f64()
                .map(|weight| weight as f32)
                .filter(|weight| weight.is_finite() && *weight >= 0.0)
                .ok_or_else(|| problem("a number of at least 0 (0 for a turn that is only context)"))?;
            if fields.role() != ASSISTANT && weight != 0.0 {
                return Err(problem("it on messages of the assistant only; remove it here"));
            }
            Ok(weight)
        };
        self.messages.iter().enumerate().map(weight).collect()
    }

    /// What the text has beyond the prompt, up to its last special token.
    fn completion(
        &self,
        prepared: &PreparedConversation<'_>,
        text: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Range<usize>, RowProblem> {
        let first = self.trained_from;
        if first == 0 || first >= self.messages.len() {
            return Err(RowProblem::NoCompletion);
        }
        let prompt = prepared.render(first, self.messages[first].role() == ASSISTANT)?.text;
        let added = text.strip_prefix(prompt.as_str()).ok_or(RowProblem::HistoryRewritten { turn: first })?;
        let ends = last_turn_ends(added, tokenizer)?;
        Ok(prompt.len()..prompt.len() + ends.first().copied().unwrap_or(added.len()))
    }

    fn generation_spans(
        &self,
        prepared: &PreparedConversation<'_>,
        text: &str,
        spans: Vec<Range<usize>>,
        turns: &[usize],
        uniform: bool,
    ) -> Result<Vec<TurnSpan>, RowProblem> {
        let assistant = |i: &usize| self.messages[*i].role() == ASSISTANT;
        if uniform && turns.len() == (0..self.messages.len()).filter(assistant).count() {
            return Ok(spans.into_iter().map(|span| (turns[0], span)).collect());
        }
        // Which span is whose: it ends beyond the prompt of its turn, and not beyond that of the next. (A block may
        // begin inside the generation prompt, with its last line end.)
        let last = turns[turns.len() - 1];
        let mut prompts: Vec<(usize, usize)> = Vec::new();
        for turn in (turns[0]..self.messages.len()).filter(assistant) {
            let prompt = prepared.render(turn, true)?.text;
            if !text.starts_with(&prompt) {
                return Err(RowProblem::HistoryRewritten { turn });
            }
            prompts.push((prompt.len(), turn));
            if turn > last {
                break;
            }
        }
        let owner = |span: &Range<usize>| {
            let after = prompts.partition_point(|&(length, _)| length < span.end);
            after.checked_sub(1).map(|i| prompts[i].1).filter(|turn| turns.contains(turn))
        };
        Ok(spans.into_iter().filter_map(|span| Some((owner(&span)?, span))).collect())
    }

    fn added_spans(
        &self,
        prepared: &PreparedConversation<'_>,
        text: &str,
        tokenizer: &Tokenizer,
        turns: &[usize],
    ) -> Result<Vec<TurnSpan>, RowProblem> {
        let mut spans = Vec::with_capacity(turns.len());
        for &turn in turns {
            let prompt = prepared.render(turn, true)?.text;
            let until_turn;
            let until_turn = if turn + 1 == self.messages.len() {
                text
            } else {
                until_turn = prepared.render(turn + 1, false)?.text;
                &until_turn
            };
            let added =
                until_turn.strip_prefix(prompt.as_str()).ok_or(RowProblem::PromptMismatch { turn })?;
            let rest = text.strip_prefix(prompt.as_str()).ok_or(RowProblem::HistoryRewritten { turn })?;
            // Some templates write an end of text after the last turn, whichever it is: what the turn has in
            // the whole conversation is what both have.
            let common = common_prefix(added, rest);
            let length = match last_turn_ends(added, tokenizer)? {
                ends if ends.is_empty() && common == added.len() => common,
                ends => ends
                    .into_iter()
                    .find(|&end| end <= common)
                    .ok_or(RowProblem::HistoryRewritten { turn })?,
            };
            spans.push((turn, prompt.len()..prompt.len() + length));
        }
        Ok(spans)
    }
}

/// A range of weight 1, in which some spans (in order, apart) have weights of their own.
fn overlaid(whole: Range<usize>, spans: impl Iterator<Item = TrainedSpan>) -> Vec<TrainedSpan> {
    let mut all = Vec::new();
    let mut start = whole.start;
    for span in spans {
        all.push(TrainedSpan::new(start..span.range.start.max(start), 1.0));
        start = span.range.end.max(start);
        all.push(span);
    }
    all.push(TrainedSpan::new(start..whole.end.max(start), 1.0));
    all
}

/// The [`turn_ends`] of a text of which only the end was tokenized, unless that is nothing but special tokens.
fn last_turn_ends(text: &str, tokenizer: &Tokenizer) -> Result<Vec<usize>, RowProblem> {
    /// Longer than a few special tokens.
    const TAIL: usize = 256;
    let start = (0..=text.len().saturating_sub(TAIL)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    let tail = &text[start..];
    let tokens = tokenizer.encode_with_offsets(tail)?;
    let is_text = |token: &TokenSpan| {
        !tokenizer.is_special(token.id)
            && tail.get(token.start..token.end).is_some_and(|text| !text.trim().is_empty())
    };
    if start == 0 || tokens.iter().any(is_text) {
        return Ok(turn_ends(tail, &tokens, tokenizer).into_iter().map(|end| start + end).collect());
    }
    Ok(turn_ends(text, &tokenizer.encode_with_offsets(text)?, tokenizer))
}

/// The ends of the special tokens after which `text` has only white space and special tokens, the last first.
pub(crate) fn turn_ends(text: &str, tokens: &[TokenSpan], tokenizer: &Tokenizer) -> Vec<usize> {
    let is_blank = |start: usize, end: usize| text.get(start..end).is_some_and(|text| text.trim().is_empty());
    let mut ends = Vec::new();
    let mut rest = text.len();
    for token in tokens.iter().rev() {
        if tokenizer.is_special(token.id) {
            if !is_blank(token.end, rest) {
                break;
            }
            ends.push(token.end);
            rest = token.start;
        } else if !is_blank(token.start, token.end) {
            // No special token before this one has only white space behind it.
            break;
        }
    }
    ends
}

/// Length in bytes of the longest common prefix of whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(c, _)| c.len_utf8()).sum()
}

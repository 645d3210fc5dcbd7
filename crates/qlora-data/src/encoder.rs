use crate::responses::{ASSISTANT, Conversation, Layout, TrainedSpan, turn_ends};
use crate::{Row, RowProblem, Sample};
use qlora_text::{ChatTemplate, Message, TokenSpan, Tokenizer};
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;
use std::sync::Arc;

/// Which tokens are trained. Rows of token ids bring their own labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// Every turn of the assistant with the token that ends it; of a prompt and its completion, those of the
    /// completion.
    #[default]
    Assistant,
    /// The last turn of the assistant; of a prompt and its completion, the completion's.
    Last,
    /// All that follows the prompt, whoever says it; only for rows of prompt and completion.
    Completions,
    /// Everything.
    All,
}

/// Turns rows into samples.
///
/// A conversation is rendered by the chat template and tokenized as a whole; loss weights are 1 on what the
/// assistant says and 0 elsewhere, mapped to tokens by byte offsets. Where a token would straddle the beginning
/// or the end of a trained span, the text is tokenized in pieces cut there, as generation will see it. The
/// weighted tokens are decoded again and compared with the text they stand for.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Option<Arc<Tokenizer>>,
    /// Or why there is none: a model without a template can still be trained on other rows.
    template: Result<Arc<ChatTemplate>, String>,
    train_on: TrainOn,
    vocab_size: Option<usize>,
}

/// A sample, and what is worth counting about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The sample.
    pub sample: Sample,
    /// What was noticed.
    pub remarks: Remarks,
}

/// What was noticed while encoding rows: nothing wrong, but good to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Remarks {
    /// Beginnings and ends of trained spans at which the text had to be cut before tokenizing.
    pub split_boundaries: usize,
    /// Trained spans that end without a special token: the model does not learn to stop there.
    pub unended_responses: usize,
    /// Messages, prompts and completions whose text contains a special token.
    pub special_in_content: usize,
}

impl AddAssign for Remarks {
    fn add_assign(&mut self, other: Self) {
        self.split_boundaries += other.split_boundaries;
        self.unended_responses += other.unended_responses;
        self.special_in_content += other.special_in_content;
    }
}

impl Encoder {
    /// With a tokenizer and its own chat template.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let template = tokenizer.chat_template().map(Arc::new).map_err(|error| error.to_string());
        Self { tokenizer: Some(tokenizer), template, train_on: TrainOn::default(), vocab_size: None }
    }

    /// Without a tokenizer: only for rows of token ids.
    #[must_use]
    pub fn token_ids_only() -> Self {
        let template = Err("there is no tokenizer".to_owned());
        Self { tokenizer: None, template, train_on: TrainOn::default(), vocab_size: None }
    }

    /// With another chat template than the model's.
    #[must_use]
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = Ok(Arc::new(template));
        self
    }

    /// With a choice of what is trained.
    #[must_use]
    pub fn with_train_on(mut self, train_on: TrainOn) -> Self {
        self.train_on = train_on;
        self
    }

    /// With the number of rows of the model's embedding: larger ids are refused.
    #[must_use]
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Self {
        self.vocab_size = Some(vocab_size);
        self
    }

    /// A row as a sample of at least one trained token. `line` is kept in the sample.
    ///
    /// # Errors
    /// A [`RowProblem`] that says what to do.
    pub fn encode(&self, row: &Row, line: usize) -> Result<Encoded, RowProblem> {
        self.encode_with_text(row, line).map(|(encoded, _)| encoded)
    }

    /// [`encode`](Self::encode), and the text that the ids stand for; `None` for rows of token ids.
    pub(crate) fn encode_with_text(
        &self,
        row: &Row,
        line: usize,
    ) -> Result<(Encoded, Option<String>), RowProblem> {
        let (Weighted { ids, weights, remarks }, text) = match row {
            Row::Tokens { ids, weights } => {
                let (ids, weights) = (ids.clone(), weights.clone());
                (Weighted { ids, weights, remarks: Remarks::default() }, None)
            }
            Row::Text { prompt, completion } => {
                let (weighted, text) = self.text(prompt, completion)?;
                (weighted, Some(text))
            }
            Row::Conversation { messages, trained_from, tools, variables } => {
                let conversation = Conversation {
                    template: self
                        .template
                        .as_deref()
                        .map_err(|reason| RowProblem::NoTemplate { reason: reason.clone() })?,
                    messages,
                    trained_from: *trained_from,
                    tools: tools.as_deref(),
                    variables: variables.as_ref(),
                };
                let (weighted, text) = self.conversation(&conversation)?;
                (weighted, Some(text))
            }
        };
        let limit = self.vocab_size.or_else(|| self.tokenizer.as_ref().map(|t| t.vocab_size()));
        if let Some(vocab_size) = limit
            && let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size)
        {
            return Err(RowProblem::IdOutOfRange { position, id: ids[position].into(), vocab_size });
        }
        let sample = Sample::new(ids, weights, line);
        if sample.trained_tokens() == 0 {
            return Err(RowProblem::Untrained { reason: untrained_reason(row) });
        }
        Ok((Encoded { sample, remarks }, text))
    }

    /// The tokenizer, if there is one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref()
    }

    fn needed_tokenizer(&self) -> Result<&Tokenizer, RowProblem> {
        self.tokenizer.as_deref().ok_or(RowProblem::NoTokenizer)
    }

    fn conversation(&self, conversation: &Conversation<'_>) -> Result<(Weighted, String), RowProblem> {
        let tokenizer = self.needed_tokenizer()?;
        let Layout { text, spans } = conversation.layout(tokenizer, self.train_on)?;
        let mut weighted = weigh(tokenizer, &text, &spans)?;
        if self.train_on == TrainOn::All {
            weighted.remarks.unended_responses = 0;
        }
        let contents = conversation.messages.iter().filter_map(Message::text);
        weighted.remarks.special_in_content =
            contents.filter(|text| tokenizer.mentions_special(text)).count();
        refuse_doubled_bos(tokenizer, &weighted.ids)?;
        Ok((weighted, text))
    }

    fn text(&self, prompt: &str, completion: &str) -> Result<(Weighted, String), RowProblem> {
        let tokenizer = self.needed_tokenizer()?;
        if completion.is_empty() {
            return Err(RowProblem::Untrained { reason: "the completion is empty" });
        }
        let mut text = format!("{prompt}{completion}");
        let trained = match self.train_on {
            TrainOn::All => 0..text.len(),
            TrainOn::Assistant | TrainOn::Last | TrainOn::Completions => prompt.len()..text.len(),
        };
        let mut weighted = weigh(tokenizer, &text, &[TrainedSpan::new(trained, 1.0)])?;
        weighted.remarks.unended_responses = 0;
        let token_text = |id| tokenizer.token(id).unwrap_or_default();
        match tokenizer.eos() {
            [] => weighted.remarks.unended_responses = 1,
            stops if weighted.ids.last().is_some_and(|last| stops.contains(last)) => {}
            stops => {
                weighted.ids.push(stops[0]);
                weighted.weights.push(1.0);
                text += &token_text(stops[0]);
            }
        }
        if let Some(bos) = tokenizer.bos()
            && tokenizer.adds_bos()
            && weighted.ids.first() != Some(&bos)
        {
            weighted.ids.insert(0, bos);
            weighted.weights.insert(0, 0.0);
            text.insert_str(0, &token_text(bos));
        }
        weighted.remarks.special_in_content =
            [prompt, completion].iter().filter(|text| tokenizer.mentions_special(text)).count();
        refuse_doubled_bos(tokenizer, &weighted.ids)?;
        Ok((weighted, text))
    }
}

/// Ids, the weight of each, and what was noticed.
struct Weighted {
    ids: Vec<u32>,
    weights: Vec<f32>,
    remarks: Remarks,
}

/// Tokenizes a text of which the spans are trained.
fn weigh(tokenizer: &Tokenizer, text: &str, spans: &[TrainedSpan]) -> Result<Weighted, RowProblem> {
    let mut remarks = Remarks::default();
    let mut boundaries: Vec<usize> =
        spans.iter().flat_map(|span| [span.range.start, span.range.end]).collect();
    boundaries.dedup();
    let mut cuts: Vec<usize> = Vec::new();
    let mut tokens = tokenizer.encode_with_offsets(text)?;
    // A cut changes the tokens beside it, so look again until none straddles; each round adds a cut.
    loop {
        let straddled = |at: &usize| {
            // Tokens are in order: the one that could hold the boundary is the last that begins before it.
            let next = tokens.partition_point(|token| token.start < *at);
            next > 0 && tokens[next - 1].end > *at
        };
        let new: Vec<usize> =
            boundaries.iter().copied().filter(|at| !cuts.contains(at) && straddled(at)).collect();
        if new.is_empty() {
            break;
        }
        cuts.extend(new);
        cuts.sort_unstable();
        tokens = encode_pieces(tokenizer, text, &cuts)?;
    }
    remarks.split_boundaries = cuts.len();

    let mut weights = vec![0.0; tokens.len()];
    for TrainedSpan { range, weight } in spans {
        let first = tokens.partition_point(|token| token.start < range.start);
        let end = first + tokens[first..].partition_point(|token| token.start < range.end);
        weights[first..end].fill(*weight);
        verify(tokenizer, &tokens[first..end], &text[range.clone()])?;
        let within: Vec<TokenSpan> = tokens[first..end]
            .iter()
            .map(|token| TokenSpan {
                start: token.start - range.start,
                end: token.end - range.start,
                ..*token
            })
            .collect();
        if turn_ends(&text[range.clone()], &within, tokenizer).is_empty() {
            remarks.unended_responses += 1;
        }
    }
    let ids = tokens.into_iter().map(|token| token.id).collect();
    Ok(Weighted { ids, weights, remarks })
}

fn encode_pieces(tokenizer: &Tokenizer, text: &str, cuts: &[usize]) -> Result<Vec<TokenSpan>, RowProblem> {
    let mut tokens = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([text.len()]) {
        let piece = tokenizer.encode_with_offsets(&text[start..end])?;
        tokens.extend(piece.into_iter().map(|token| TokenSpan {
            start: token.start + start,
            end: token.end + start,
            ..token
        }));
        start = end;
    }
    Ok(tokens)
}

/// Proves that the weighted tokens are the trained text.
fn verify(tokenizer: &Tokenizer, tokens: &[TokenSpan], text: &str) -> Result<(), RowProblem> {
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let decoded = tokenizer.decode(&ids, false)?;
    // Some tokenizers normalize the text, or give no leading space back: then the ids must be those of the
    // text alone, or all but that space be there.
    if decoded == text || decoded.trim_start() == text.trim_start() || tokenizer.encode(text)? == ids {
        return Ok(());
    }
    Err(RowProblem::RoundTrip { decoded, text: text.to_owned() })
}

fn refuse_doubled_bos(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), RowProblem> {
    match (tokenizer.bos(), ids) {
        (Some(bos), [first, second, ..]) if *first == bos && *second == bos => {
            Err(RowProblem::DoubledBos { token: tokenizer.token(bos).unwrap_or_default() })
        }
        _ => Ok(()),
    }
}

fn untrained_reason(row: &Row) -> &'static str {
    match row {
        Row::Tokens { .. } => {
            "every label is -100 (the first label never counts: nothing precedes it); remove the row"
        }
        Row::Text { .. } => "the completion has no tokens",
        Row::Conversation { messages, .. } if messages.iter().any(|m| m.role() == ASSISTANT) => {
            "every message of the assistant that would be trained has `weight` 0 or is empty; remove the row"
        }
        Row::Conversation { .. } => {
            "the conversation has no message of the role `assistant` to train on; remove the row, or train on all"
        }
    }
}

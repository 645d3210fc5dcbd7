//! What was found, and what to do about it.

use crate::{Position, RowProblem};
use serde::Serialize;
use std::path::PathBuf;

/// Places that are told of each finding.
const PLACES: usize = 5;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Training would stop, or learn something wrong.
    Error,
    /// Probably not meant.
    Warning,
    /// Good to know.
    Note,
}

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A line is no JSON object.
    Unreadable,
    /// A row has not the keys and values of a known shape.
    WrongShape,
    /// Rows of different shapes.
    MixedShapes,
    /// The chat template refuses a conversation, or does not write turns as it asks for them.
    TemplateRefuses,
    /// The beginning-of-text token stands twice.
    DoubledBos,
    /// The tokens to train on are not those of the text.
    TextChanged,
    /// No token is trained.
    Untrained,
    /// A row can't be used for another reason.
    Unusable,
    /// All trained tokens are beyond `max_length`.
    CutUntrained,
    /// More tokens than `max_length`.
    TooLong,
    /// More tokens than a batch may have.
    OverBudget,
    /// A response that does not end with a special token.
    UnendedResponse,
    /// The chat template cuts white space.
    WhitespaceLost,
    /// Decoding all tokens does not give the text.
    LossyTokens,
    /// A held-out row is also trained on.
    Leaked,
    /// The prompt of a held-out row is also trained on.
    LeakedPrompt,
    /// A held-out row is almost one that is trained on.
    NearLeaked,
    /// A row that was there before.
    Duplicate,
    /// A row that is almost an earlier one.
    NearDuplicate,
    /// Roles in an order that models do not expect.
    RoleOrder,
    /// A turn without text.
    EmptyTurn,
    /// Characters that are seldom meant.
    OddCharacters,
    /// Text that contains a special token.
    SpecialInContent,
    /// Keys that have no meaning.
    IgnoredKeys,
    /// Text that was tokenized in pieces at the edge of a response.
    SplitBoundary,
}

impl FindingKind {
    /// The kind of a row's problem.
    pub(super) fn of_problem(problem: &RowProblem) -> Self {
        match problem {
            RowProblem::NotUtf8 { .. }
            | RowProblem::Json { .. }
            | RowProblem::NotAnObject { .. }
            | RowProblem::Cells { .. }
            | RowProblem::TooLarge { .. }
            | RowProblem::TooManyValues { .. } => Self::Unreadable,
            RowProblem::UnknownShape { .. }
            | RowProblem::AmbiguousShape { .. }
            | RowProblem::OtherShape { .. }
            | RowProblem::Field { .. }
            | RowProblem::Turn { .. }
            | RowProblem::NotSupervised { .. }
            | RowProblem::Label { .. }
            | RowProblem::IdOutOfRange { .. }
            | RowProblem::MessageWeight { .. } => Self::WrongShape,
            RowProblem::Text { .. }
            | RowProblem::NoTemplate { .. }
            | RowProblem::PromptMismatch { .. }
            | RowProblem::HistoryRewritten { .. } => Self::TemplateRefuses,
            RowProblem::DoubledBos { .. } => Self::DoubledBos,
            RowProblem::RoundTrip { .. } => Self::TextChanged,
            RowProblem::Untrained { .. } => Self::Untrained,
            _ => Self::Unusable,
        }
    }

    /// How bad it is, unless training is told to pass such rows over.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::Unreadable
            | Self::WrongShape
            | Self::MixedShapes
            | Self::TemplateRefuses
            | Self::DoubledBos
            | Self::TextChanged
            | Self::Untrained
            | Self::Unusable
            | Self::CutUntrained
            | Self::TooLong
            | Self::OverBudget => Severity::Error,
            Self::IgnoredKeys | Self::SplitBoundary => Severity::Note,
            _ => Severity::Warning,
        }
    }

    /// What it is.
    #[must_use]
    pub fn summary(self) -> &'static str {
        match self {
            Self::Unreadable => "lines that are no JSON object",
            Self::WrongShape => "rows without the keys and values of a known shape",
            Self::MixedShapes => "rows of another shape than most of their file",
            Self::TemplateRefuses => "conversations that the chat template cannot write",
            Self::DoubledBos => "rows that begin with the beginning-of-text token twice",
            Self::TextChanged => "rows whose trained tokens do not give back their text",
            Self::Untrained => "rows without a trained token",
            Self::Unusable => "rows that cannot be used",
            Self::CutUntrained => "rows whose trained tokens are all beyond max_length",
            Self::TooLong => "rows longer than max_length",
            Self::OverBudget => "rows longer than a batch",
            Self::UnendedResponse => "rows in which a response has no end token",
            Self::WhitespaceLost => "rows that lose white space",
            Self::LossyTokens => "rows whose tokens do not give back their text",
            Self::Leaked => "held-out rows that are also trained on",
            Self::LeakedPrompt => "held-out rows whose prompt is also trained on",
            Self::NearLeaked => "held-out rows that are almost trained on",
            Self::Duplicate => "exact duplicates of earlier rows",
            Self::NearDuplicate => "near-duplicates of earlier rows",
            Self::RoleOrder => "conversations with an unusual order of roles",
            Self::EmptyTurn => "conversations with an empty turn",
            Self::OddCharacters => "rows with characters that are seldom meant",
            Self::SpecialInContent => "rows whose text contains a special token",
            Self::IgnoredKeys => "rows with keys that are not used",
            Self::SplitBoundary => "rows tokenized in pieces at the edge of a response",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unreadable => "write one JSON object a line (JSONL), in UTF-8",
            Self::WrongShape => "correct these rows, or convert the file with `qlora data convert`",
            Self::MixedShapes => "correct them, or put the rows of each shape into a file of their own",
            Self::TemplateRefuses => {
                "correct the conversations, or use another chat template (data.template, train_on = \"last\")"
            }
            Self::DoubledBos => "remove the token from the chat template or from the beginning of the text",
            Self::TextChanged => "remove the rows, or tokenize them yourself (`input_ids`, `labels`)",
            Self::Untrained => "remove the rows, or train on more (data.train_on)",
            Self::Unusable => "correct or remove the rows",
            Self::CutUntrained => "raise max_length, or remove the rows: nothing is learned from them",
            Self::TooLong => {
                "raise max_length, shorten the rows, or let training cut or skip them (data.on_long, --on-long)"
            }
            Self::OverBudget => "raise train.tokens_per_batch, or lower max_length",
            Self::UnendedResponse => {
                "the model does not learn to stop there: use a chat template that ends turns with a special token"
            }
            Self::WhitespaceLost => {
                "harmless for prose; for drawings, code or tables use a chat template that does not trim"
            }
            Self::LossyTokens => "the tokenizer normalizes text: see whether what is lost matters",
            Self::Leaked | Self::LeakedPrompt | Self::NearLeaked => {
                "remove them from one of the two, or the evaluation measures memory"
            }
            Self::Duplicate | Self::NearDuplicate => {
                "remove them unless they are meant to count more: `weight` and mixing do that openly"
            }
            Self::RoleOrder => "see whether turns are missing or in the wrong place",
            Self::EmptyTurn => "remove the turn or the row: the model would learn to say nothing",
            Self::OddCharacters => "repair the encoding of the file, or remove the characters",
            Self::SpecialInContent => {
                "the model reads it as the end of a turn, say: remove it unless it is meant"
            }
            Self::IgnoredKeys => "nothing, unless a key was misspelt",
            Self::SplitBoundary => "nothing: it is what generation will see",
        }
    }
}

/// Where something was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The place in it.
    #[serde(flatten)]
    pub position: Position,
    /// What exactly.
    pub detail: String,
}

/// Rows with the same fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// How bad it is.
    pub severity: Severity,
    /// In how many rows.
    pub rows: usize,
    /// What it is, in words.
    pub summary: &'static str,
    /// What to do about it.
    pub advice: &'static str,
    /// The first rows with it.
    pub places: Vec<Place>,
}

impl Finding {
    pub(super) fn new(kind: FindingKind, severity: Severity) -> Self {
        Self { kind, severity, rows: 0, summary: kind.summary(), advice: kind.advice(), places: Vec::new() }
    }

    /// Counts a row; whether it is the first.
    pub(super) fn add(&mut self, place: impl FnOnce() -> Place) -> bool {
        self.rows += 1;
        if self.places.len() < PLACES {
            self.places.push(place());
        }
        self.rows == 1
    }
}

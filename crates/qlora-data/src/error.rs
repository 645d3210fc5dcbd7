use crate::{Position, RowShape};
use std::path::PathBuf;

/// Why a data set could not be made or sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file as a whole is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A source names no files.
    #[error("{source_path}: {problem}")]
    Source {
        /// The source, as it was named.
        source_path: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A data set of the hub could not be had.
    #[error(transparent)]
    Hub {
        /// Why.
        source: Box<qlora_hub::HubError>,
    },
    /// Token ids could not be kept in a temporary file.
    #[error("cannot write token ids to a temporary file: {source}; set TMPDIR to a folder with space")]
    Spill {
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write {
        /// Why.
        source: qlora_files::Error,
    },
    /// An option has a value that means nothing.
    #[error("{option} is {found}: expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A row cannot be used.
    #[error("{}, {line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The place in it.
        line: Position,
        /// What is wrong with the row.
        problem: Box<RowProblem>,
    },
    /// A split with nothing on one side.
    #[error(
        "the split leaves no row to {purpose}: fraction {fraction} of {rows} rows{grouped}, seed {seed}; {advice}, \
         choose another seed, or name the rows to evaluate on by `eval`"
    )]
    OneSidedSplit {
        /// What there is no row for.
        purpose: &'static str,
        /// The share that was asked for.
        fraction: f64,
        /// All rows.
        rows: usize,
        /// By which column, in words.
        grouped: String,
        /// The seed of the split.
        seed: u64,
        /// What to do with the fraction.
        advice: &'static str,
    },
    /// The file has no rows.
    #[error("{}: no rows; the file is empty or holds only blank lines", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Every row was skipped.
    #[error("{}: none of the {rows} rows can be used; the first problem, in {line}: {problem}", path.display())]
    NothingLeft {
        /// The file.
        path: PathBuf,
        /// How many rows there are.
        rows: usize,
        /// The place of the first skipped row.
        line: String,
        /// Why it was skipped.
        problem: String,
    },
    /// A sampler over nothing, or with batches of nothing.
    #[error("cannot sample {samples} samples in batches of {batch_size}: both must be at least 1")]
    NothingToSample {
        /// Number of samples.
        samples: usize,
        /// Samples per batch.
        batch_size: usize,
    },
    /// A sample is longer than a batch may be.
    #[error(
        "sample {sample} has {tokens} tokens, and a batch may have {budget}; raise the token budget of a batch, or \
         lower max_length"
    )]
    LongerThanBudget {
        /// Position of the sample, from 0.
        sample: usize,
        /// Its tokens.
        tokens: usize,
        /// The most tokens of a batch.
        budget: usize,
    },
    /// A sampler's state does not belong to this data set.
    #[error(
        "the data cursor {cursor} is beyond the {samples} samples; the data is not that of the checkpoint"
    )]
    Cursor {
        /// The position within the epoch.
        cursor: usize,
        /// Number of samples.
        samples: usize,
    },
}

/// What is wrong with one row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// The line is not UTF-8.
    #[error("not valid UTF-8 at byte {byte} of the line; save the file as UTF-8")]
    NotUtf8 {
        /// Offset in the line, from 0.
        byte: usize,
    },
    /// The line is not JSON.
    #[error("not valid JSON: {source}")]
    Json {
        /// Where (the column is that of the line) and why the parser stopped.
        source: serde_json::Error,
    },
    /// The line is JSON but no object.
    #[error("expected one JSON object per line (JSONL), found {found}; {hint}")]
    NotAnObject {
        /// What stands there.
        found: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The row has none of the known shapes.
    #[error(
        "expected `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `chosen` and \
         `rejected`, `prompt`, `text`, or `input_ids`; found the keys {keys:?}; map others by `columns`"
    )]
    UnknownShape {
        /// The keys of the row.
        keys: Vec<String>,
    },
    /// The row has another shape than most rows of its file.
    #[error(
        "the row has the shape {shape}, and {rows} of the file's {of} rows have {common}; correct the row, or put the \
         rows of each shape into a file of their own"
    )]
    OtherShape {
        /// The shape of the row.
        shape: RowShape,
        /// The shape of the file.
        common: RowShape,
        /// Rows that have it.
        rows: usize,
        /// Rows of the file whose shape is known.
        of: usize,
    },
    /// The row has the keys of several shapes.
    #[error(
        "the row could be {first} or {second}; name the shape of the file: shape = \"{}\" or \"{}\"",
        first.name(), second.name()
    )]
    AmbiguousShape {
        /// One shape.
        first: RowShape,
        /// Another.
        second: RowShape,
    },
    /// A key is missing or holds something unexpected.
    #[error("`{key}`: expected {expected}, found {found}")]
    Field {
        /// The key.
        key: &'static str,
        /// What should stand there.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A turn of a conversation is not understood.
    #[error("turn {index}: {problem}")]
    Turn {
        /// Position of the turn, from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A column that `columns` or a template names is not there.
    #[error("the column {column:?} is missing or empty; the row has {keys:?}")]
    Column {
        /// The column.
        column: String,
        /// The columns of the row.
        keys: Vec<String>,
    },
    /// The row has more or fewer cells than the table has columns.
    #[error(
        "expected {expected} cells, as many as columns, found {found}; quote cells that hold the delimiter"
    )]
    Cells {
        /// Columns of the table.
        expected: usize,
        /// Cells of the row.
        found: usize,
    },
    /// More bytes than any row should have.
    #[error("larger than {limit} bytes; is a line end or a bracket missing?")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// More values than any row should have, though few bytes say them.
    #[error("more than {limit} values (numbers, texts, lists and the keys of objects); split the row")]
    TooManyValues {
        /// The limit.
        limit: usize,
    },
    /// A document of white space.
    #[error("the document is empty")]
    BlankDocument,
    /// The better and the worse answer are one.
    #[error("`chosen` and `rejected` are equal; remove the row")]
    SamePreference,
    /// A row that supervised fine-tuning cannot use.
    #[error(
        "rows with {shape} are not for supervised fine-tuning; expected something to imitate{}",
        if *shape == RowShape::Prompt { ": `completion` beside `prompt`, or `messages`" } else { "" }
    )]
    NotSupervised {
        /// The shape.
        shape: RowShape,
    },
    /// A row that has no text to write.
    #[error("rows with {shape} have no text and can't be converted")]
    NoText {
        /// The shape.
        shape: RowShape,
    },
    /// A row that becomes something else than those before it.
    #[error(
        "becomes a row with {shape}, and the rows before became rows with {first}: no file can have both; convert them \
         into files of their own"
    )]
    OtherConversion {
        /// What it becomes.
        shape: RowShape,
        /// What the first row became.
        first: RowShape,
    },
    /// The tokenizer or the chat template refused the row.
    #[error("{source}")]
    Text {
        /// Why.
        source: qlora_text::Error,
    },
    /// The row is a conversation and there is no usable chat template.
    #[error("{reason}")]
    NoTemplate {
        /// Why there is none.
        reason: String,
    },
    /// The row is text and there is no tokenizer.
    #[error("the row is text, and only rows with `input_ids` can be used without a tokenizer")]
    NoTokenizer,
    /// The chat template does not continue its own generation prompt with the assistant's turn.
    #[error(
        "message {turn}: the chat template, asked for an assistant's turn, writes something else than what stands \
         before that turn in the conversation, so that the model would be trained on what it is never asked; begin \
         the conversation with a user's message, set the template's variables by `chat_template_kwargs`, or use a \
         chat template with {{% generation %}} blocks"
    )]
    PromptMismatch {
        /// Position of the assistant's message, from 0.
        turn: usize,
    },
    /// The chat template writes an assistant's turn differently once other turns follow.
    #[error(
        "message {turn}: the chat template changes an assistant's turn, or what stands before it, when more turns \
         follow, so that the trained text would not be what the model generates; train on the last turn only, \
         or use a chat template with {{% generation %}} blocks"
    )]
    HistoryRewritten {
        /// Position of the assistant's message, from 0.
        turn: usize,
    },
    /// The weighted tokens do not give back the assistant's text.
    #[error(
        "the tokens to train on decode to {decoded:?}, not to {text:?}: the tokenizer changes the text in a way that \
         cannot be mapped to tokens; tokenize the data yourself (`input_ids`, `labels`)"
    )]
    RoundTrip {
        /// What they decode to.
        decoded: String,
        /// The text they should stand for.
        text: String,
    },
    /// The text begins with two beginning-of-text tokens.
    #[error(
        "begins with the token {token:?} twice; remove it from the chat template or from the beginning of the text"
    )]
    DoubledBos {
        /// The token.
        token: String,
    },
    /// A token id outside the vocabulary.
    #[error("`input_ids`: position {position} holds {id}, and the vocabulary has {vocab_size} tokens")]
    IdOutOfRange {
        /// Position, from 0.
        position: usize,
        /// What stands there.
        id: i64,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A label that is neither -100 nor the id at its place.
    #[error(
        "`labels`: position {position} holds {label}, and `input_ids` holds {id}; a label is the id at its own place \
         (not shifted), or -100 where nothing is trained"
    )]
    Label {
        /// Position, from 0.
        position: usize,
        /// The label.
        label: i64,
        /// The id.
        id: u32,
    },
    /// More tokens than allowed.
    #[error(
        "{tokens} tokens, and max_length is {limit}; raise max_length, shorten the row, or set on_long to \
         \"truncate\" or \"skip\""
    )]
    TooLong {
        /// Tokens of the row.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// Completions are to be trained, and the row has none.
    #[error(
        "train_on = \"completions\" needs a prompt and a completion, and the row is one list of messages; set \
         train_on to \"assistant\" or \"last\", or write the row as `prompt` and `completion`"
    )]
    NoCompletion,
    /// A message has a `weight` that means nothing.
    #[error("message {message}: `weight` is {found}, expected {expected}")]
    MessageWeight {
        /// Position of the message, from 0.
        message: usize,
        /// What should stand there.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// No token of the row is trained.
    #[error("no trained token: {reason}")]
    Untrained {
        /// Why, and what to do.
        reason: &'static str,
    },
}

impl From<qlora_text::Error> for RowProblem {
    fn from(source: qlora_text::Error) -> Self {
        Self::Text { source }
    }
}

//! Rows of one file on their way to samples: read by one thread while the others parse and tokenize.

use crate::dataset::{DatasetOptions, OnLong};
use crate::reader::RawRow;
use crate::row_reader::{self, ParsedRow};
use crate::shape_vote::ShapeVote;
use crate::turn_joiner::TurnJoiner;
use crate::{
    Augmentation, Encoded, Encoder, Error, EvalSplit, Position, Record, Row, RowProblem, RowShape, Source,
};
use rayon::prelude::*;

/// Bytes of a file that are worked on at a time, by all threads together.
const CHUNK_BYTES: usize = 4 << 20;

/// What is done to the rows of one file.
#[derive(Clone, Copy)]
pub(crate) struct Pipeline<'a> {
    pub(crate) source: &'a Source,
    pub(crate) file: u32,
    pub(crate) encoder: &'a Encoder,
    pub(crate) options: &'a DatasetOptions,
    pub(crate) augmentation: &'a Augmentation,
    pub(crate) split: Option<&'a EvalSplit>,
}

/// A row before tokenization.
pub(crate) struct Prepared {
    pub(crate) position: Position,
    pub(crate) shape: Option<RowShape>,
    pub(crate) ignored_keys: Vec<String>,
    pub(crate) for_eval: bool,
    pub(crate) row: Result<Row, RowProblem>,
}

/// A row after tokenization.
pub(crate) struct EncodedRow {
    pub(crate) position: Position,
    pub(crate) shape: Option<RowShape>,
    pub(crate) ignored_keys: Vec<String>,
    pub(crate) for_eval: bool,
    pub(crate) outcome: Result<Outcome, RowProblem>,
}

impl EncodedRow {
    /// Rows that no fine-tuning can use have no say in what the shape of their file is.
    pub(crate) fn vote(&self, vote: &mut ShapeVote) {
        if let Some(shape) = self.shape.filter(|shape| shape.is_supervised()) {
            vote.add(shape);
        }
    }
}

pub(crate) struct Outcome {
    pub(crate) encoded: Encoded,
    pub(crate) truncated: bool,
}

impl Pipeline<'_> {
    /// Gives all rows to `sink`, in order.
    pub(crate) fn run(
        &self,
        rows: &mut (dyn Iterator<Item = Result<RawRow, Error>> + Send),
        sink: &mut dyn FnMut(EncodedRow) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut joiner =
            self.augmentation.join_turns.map(|settings| TurnJoiner::new(settings, self.augmentation.seed));
        let mut chunk = read_chunk(rows)?;
        while !chunk.is_empty() {
            let (next, encoded) = rayon::join(|| read_chunk(rows), || self.encode(chunk, joiner.as_mut()));
            encoded.into_iter().try_for_each(&mut *sink)?;
            chunk = next?;
        }
        let rest = joiner.map_or_else(Vec::new, |mut joiner| joiner.finish());
        let rest: Vec<EncodedRow> = rest.into_par_iter().map(|row| self.encode_row(row)).collect();
        rest.into_iter().try_for_each(sink)
    }

    fn encode(&self, chunk: Vec<RawRow>, joiner: Option<&mut TurnJoiner>) -> Vec<EncodedRow> {
        match joiner {
            None => chunk.into_par_iter().map(|row| self.encode_row(self.prepare(row))).collect(),
            Some(joiner) => {
                let prepared = chunk.into_par_iter().map(|row| self.prepare(row)).collect();
                joiner.push(prepared).into_par_iter().map(|row| self.encode_row(row)).collect()
            }
        }
    }

    fn prepare(&self, raw: RawRow) -> Prepared {
        let position = raw.position;
        let mut for_eval = false;
        let parsed = raw.parse().and_then(row_reader::fields).and_then(|fields| {
            if let Some(split) = self.split {
                for_eval = split.is_eval(&fields)?;
            }
            let fields = row_reader::map_columns(fields, self.source)?;
            row_reader::parse(fields, self.source.shape.or(self.options.shape))
        });
        match parsed {
            Err(problem) => {
                Prepared { position, shape: None, ignored_keys: Vec::new(), for_eval, row: Err(problem) }
            }
            Ok(ParsedRow { record, shape, rest }) => {
                let group = self.split.and_then(|split| split.group.as_ref());
                let ignored_keys =
                    rest.into_iter().map(|(key, _)| key).filter(|key| Some(key) != group).collect();
                let row = match record {
                    Record::Row(row) if self.augmentation.changes_rows() => {
                        Ok(self.augmentation.vary(row, self.file, position.number))
                    }
                    Record::Row(row) => Ok(row),
                    Record::Preference(_) | Record::Prompt(_) => Err(RowProblem::NotSupervised { shape }),
                };
                Prepared { position, shape: Some(shape), ignored_keys, for_eval, row }
            }
        }
    }

    fn encode_row(&self, prepared: Prepared) -> EncodedRow {
        let Prepared { position, shape, ignored_keys, for_eval, row } = prepared;
        let outcome = row
            .and_then(|row| self.encoder.encode(&row, position.number))
            .and_then(|encoded| fit(encoded, self.options.max_length, self.options.on_long));
        EncodedRow { position, shape, ignored_keys, for_eval, outcome }
    }
}

/// The next rows, some megabytes; none at the end.
pub(crate) fn read_chunk(
    rows: &mut (dyn Iterator<Item = Result<RawRow, Error>> + Send),
) -> Result<Vec<RawRow>, Error> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while bytes < CHUNK_BYTES {
        let Some(row) = rows.next().transpose()? else { break };
        bytes += row.bytes();
        chunk.push(row);
    }
    Ok(chunk)
}

fn fit(mut encoded: Encoded, max_length: Option<usize>, on_long: OnLong) -> Result<Outcome, RowProblem> {
    let tokens = encoded.sample.len();
    let limit = max_length.unwrap_or(usize::MAX);
    let truncated = tokens > limit;
    if truncated {
        if on_long != OnLong::Truncate {
            return Err(RowProblem::TooLong { tokens, limit });
        }
        encoded.sample.ids.truncate(limit);
        encoded.sample.weights.truncate(limit);
        if encoded.sample.trained_tokens() == 0 {
            return Err(RowProblem::Untrained { reason: "max_length cuts all trained tokens off; raise it" });
        }
    }
    Ok(Outcome { encoded, truncated })
}

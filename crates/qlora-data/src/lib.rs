//! Files to conversations to token ids and loss weights to batches.
//!
//! ```no_run
//! use qlora_data::{Batch, Dataset, DatasetOptions, Encoder, Sampler};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tokenizer = Arc::new(qlora_text::Tokenizer::from_directory("model/")?);
//! let encoder = Encoder::new(tokenizer);
//! let options = DatasetOptions { max_length: Some(2048), ..DatasetOptions::default() };
//! let dataset = Dataset::open("train.jsonl", &encoder, &options)?;
//! println!("{}", dataset.report());
//!
//! let mut sampler = Sampler::shuffled(dataset.len(), 8, 42)?;
//! let batch = Batch::from_samples(&dataset.select(&sampler.next_batch()));
//! # let _ = batch;
//! # Ok(())
//! # }
//! ```
//!
//! | step | type |
//! |---|---|
//! | files of any format, here or on the hub | [`Source`], [`FileFormat`] |
//! | a row, read as one of eight shapes | [`Record`], [`Row`], [`RowShape`], [`Records`] |
//! | rows renamed, varied, joined, mixed, split | [`ColumnTemplate`], [`Augmentation`], [`EvalSplit`], [`DataPlan`] |
//! | a row as ids and loss weights | [`Encoder`], [`TrainOn`], [`Sample`] |
//! | a file, checked and counted | [`Dataset`], [`DatasetOptions`], [`DatasetReport`] |
//! | which samples come next, by rows or by tokens | [`Sampler`], [`SamplerState`], [`Packing`] |
//! | what training would see of whole files | [`check`] |
//! | some samples, shifted for next-token prediction | [`Batch`] |
//!
//! Nothing is silent: a row that is damaged, too long, or without a trained token is an error, or is skipped
//! and counted when the options say so.

mod augmentation;
mod batch;
mod bounded_json;
pub mod check;
mod column_template;
mod convert;
mod data_plan;
mod dataset;
mod encoder;
mod error;
mod eval_split;
mod file_format;
mod glob;
mod hub_files;
mod keyed_hash;
mod packing;
mod pieces;
mod pipeline;
mod position;
mod reader;
mod records;
mod report;
mod responses;
mod row;
mod row_reader;
mod row_shape;
mod sample;
mod sampler;
mod shape_vote;
mod source;
mod token_store;
mod turn_joiner;
mod turns;

pub use augmentation::{Augmentation, JoinTurns, SystemPrompts, repeats_for_shares};
pub use batch::Batch;
pub use column_template::{ColumnTemplate, ColumnTemplateError};
pub use convert::{Converted, convert};
pub use data_plan::{DataPlan, Mixing};
pub use dataset::{Dataset, DatasetOptions, OnBadRow, OnLong};
pub use encoder::{Encoded, Encoder, Remarks, TrainOn};
pub use error::{Error, RowProblem};
pub use eval_split::EvalSplit;
pub use file_format::FileFormat;
pub use packing::Packing;
pub use pieces::{Piece, pieces, visible};
pub use position::{Location, Position, Unit};
pub use reader::{TextSplit, panic_is_caught};
pub use records::Records;
pub use report::{DatasetReport, SkippedRow};
pub use row::{Preference, Prompt, Record, Row};
pub use row_shape::RowShape;
pub use sample::Sample;
pub use sampler::{Sampler, SamplerState};
pub use source::{Source, SourceFile, Sources};

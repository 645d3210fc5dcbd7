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
//! let dataset = Dataset::from_jsonl("train.jsonl", &encoder, &options)?;
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
//! | a line of JSON, read as one of three shapes | [`Row`], [`RowShape`] |
//! | a row as ids and loss weights | [`Encoder`], [`TrainOn`], [`Sample`] |
//! | a file, checked and counted | [`Dataset`], [`DatasetOptions`], [`DatasetReport`] |
//! | which samples come next, by rows or by tokens | [`Sampler`], [`SamplerState`], [`Packing`] |
//! | what training would see of whole files | [`check`] |
//! | some samples, shifted for next-token prediction | [`Batch`] |
//!
//! Nothing is silent: a row that is damaged, too long, or without a trained token is an error, or is skipped
//! and counted when the options say so.

mod batch;
pub mod check;
mod dataset;
mod encoder;
mod error;
mod jsonl;
mod packing;
mod pieces;
mod report;
mod responses;
mod row;
mod sample;
mod sampler;

pub use batch::Batch;
pub use dataset::{Dataset, DatasetOptions, OnBadRow, OnLong};
pub use encoder::{Encoded, Encoder, Remarks, TrainOn};
pub use error::{Error, RowProblem};
pub use packing::Packing;
pub use pieces::{Piece, pieces, visible};
pub use report::{DatasetReport, SkippedRow};
pub use row::{Row, RowShape};
pub use sample::Sample;
pub use sampler::{Sampler, SamplerState};

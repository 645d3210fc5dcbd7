//! A small training engine, supervised fine-tuning, checkpoints and metrics.
//!
//! | what | where |
//! |---|---|
//! | the TOML of a run, checked | [`config`] |
//! | the loop: accumulate, clip, update, evaluate, save | [`Engine`], [`EngineOptions`] |
//! | what is minimized | [`Objective`], [`Loss`], [`SupervisedFineTuning`] |
//! | what a model must offer | [`Trainable`] |
//! | reinforcement from rewards | [`grpo`] |
//! | learning rates | [`schedule`] |
//! | gradients in f16 | [`LossScaling`] |
//! | files of a run | [`RunDirectory`], [`checkpoint`], [`metrics`], [`samples`], [`report`] |
//! | who is told | [`Observer`], [`ProgressDisplay`] |
//! | Ctrl-C, SIGTERM | [`Interrupt`] |
//!
//! The library prints nothing by itself, and touches no file unless it is given a [`RunDirectory`].

pub mod checkpoint;
pub mod config;
mod engine;
mod error;
mod gradients;
pub mod grpo;
mod interrupt;
mod loss;
mod loss_scale;
mod memory;
pub mod metrics;
mod objective;
mod observer;
mod optimizer;
mod progress;
pub mod report;
mod run_directory;
pub mod samples;
pub mod schedule;
mod sft;
mod step_memory;
mod trainable;

pub use engine::{Engine, EngineOptions};
pub use error::TrainError;
pub use interrupt::Interrupt;
pub use loss::{Loss, Tape};
pub use loss_scale::{LossScale, LossScaling};
pub use memory::peak_memory_mb;
pub use objective::{BatchSize, Evaluation, Objective, StepReport};
pub use observer::{Observer, RunStart, Summary, on_step};
pub use optimizer::{AdamWOptions, MomentStorage};
pub use progress::ProgressDisplay;
pub use qlora_models::Checkpointing;
pub use run_directory::RunDirectory;
pub use sft::{SupervisedFineTuning, evaluate};
pub use trainable::Trainable;

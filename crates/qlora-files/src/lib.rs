//! Files written whole or not at all, and safetensors checkpoints read with strict bounds.
//!
//! * [`atomic`]: a file, or a whole directory, appears under its name complete and on disk, or not at all.
//! * [`safetensors`]: one memory-mapped file ([`SafetensorsFile`](safetensors::SafetensorsFile)), a model
//!   directory of one or many of them ([`Checkpoint`](safetensors::Checkpoint)), and streaming writers of both.
//! * [`require_space`]: too little disk is found before writing.
//!
//! Nothing here knows about models or tensors of a framework: names, shapes and bytes only.

pub mod atomic;
mod error;
pub mod safetensors;
mod space;

pub use error::Error;
pub use space::require_space;

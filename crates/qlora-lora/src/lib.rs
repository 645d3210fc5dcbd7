//! Adapted linear layers: a frozen base, dense or NF4, and a low-rank update.
//!
//! An [`AdaptedLinear`] is `y = x Wᵀ + b`, and with a [`LoraAdapter`] `+ s · (dropout(x) Aᵀ) Bᵀ`
//! (<https://arxiv.org/abs/2106.09685>). Which layers get an adapter, and of what rank and scale, is a
//! [`LoraConfig`]; its names and defaults are those of PEFT.

mod adapter;
mod config;
mod dropout;
mod error;
mod input_squares;
mod layer;
mod pass;
mod targets;

pub use adapter::{AdapterFactors, LoraAdapter};
pub use config::LoraConfig;
pub use error::LoraError;
pub use input_squares::InputSquares;
pub use layer::AdaptedLinear;
pub use pass::{DropoutKey, Pass};
pub use targets::Targets;

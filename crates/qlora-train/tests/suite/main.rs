//! One binary for all integration tests: linking burn takes longer than running them.
#![cfg(feature = "flex")]

mod checkpoint;
mod config;
mod engine;
mod metrics;
mod resume;
mod schedule;
mod tiny_run;

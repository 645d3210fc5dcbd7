//! One binary for all integration tests: linking burn takes longer than running them.
#![cfg(feature = "flex")]

mod checkpoint;
mod checkpointing;
mod config;
mod engine;
mod grpo;
mod grpo_config;
mod grpo_prompts;
mod grpo_resume;
mod loss_scaling;
mod metrics;
mod packing;
mod resume;
mod schedule;
mod tiny_run;

//! The program as a person runs it: exit codes, messages, files.

mod bad_configuration;
mod bad_data;
mod bad_files;
mod chatting;
mod data;
mod exporting;
mod gemma3;
mod generating;
mod inspecting;
mod program;
mod real_model;
mod reinforcement;
mod sources;
mod templates;
mod tiny_gguf;
mod tiny_model;
mod training;
mod usage;
#[cfg(feature = "wgpu")]
mod vulkan;

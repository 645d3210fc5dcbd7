//! The crate as its users see it: files made here, damaged in every way, and a real one.

mod dequantize;
mod file_types;
mod hostile;
mod importance;
mod metadata;
mod model;
mod quantize;
mod writer;
mod writing;

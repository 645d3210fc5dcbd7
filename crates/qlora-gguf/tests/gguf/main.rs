//! The crate as its users see it: files made here, damaged in every way, and a real one.

mod dequantize;
mod hostile;
mod metadata;
mod model;
mod writer;
mod writing;

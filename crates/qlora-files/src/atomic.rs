//! Files and directories that appear under their name complete, or not at all.
//!
//! Everything is first written beside the target under a hidden temporary name (`.name.tmp-PID-N`), flushed to
//! the disk, and renamed. A reader sees the old content or the new one. A crash leaves at most a hidden
//! temporary, which [`recover`] removes.

mod directory;
mod file;
mod temporary;

pub use directory::{recover, write_directory};
pub use file::{read_json, write_bytes, write_file, write_json};

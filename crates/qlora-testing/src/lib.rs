//! Where the goldens and the test model are found.
//!
//! Goldens (numbers made by the peers): `$QLORA_GOLDEN`, else `../shared/golden` beside the workspace.
//! The test model: `$QLORA_TEST_MODEL`, else `$HOME/.cache/qlora/models/smollm2-135m/*.gguf`, where
//! `qlora fetch smollm2-135m` puts it. A test that finds neither says so and passes, unless
//! `QLORA_REQUIRE_GOLDEN=1`, which the CI sets, turns that into a failure.

mod byte_tokenizer;
pub mod mutations;
mod random_llama;
mod small_model;

use std::path::{Path, PathBuf};

pub use byte_tokenizer::byte_tokenizer;
pub use random_llama::RandomLlama;
pub use small_model::write_small_model;

/// A file or folder below the golden folder, or `None` (said on stderr) when it is absent.
///
/// # Panics
/// When it is absent and `QLORA_REQUIRE_GOLDEN=1`.
#[must_use]
pub fn golden(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("QLORA_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden"), PathBuf::from);
    found(root.join(path), "QLORA_GOLDEN")
}

/// The golden chat templates, which are a part of the workspace.
#[must_use]
pub fn chat_templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qlora-text/tests/golden/chat_templates")
}

/// The SmolLM2-135M-Instruct GGUF of the goldens, or `None` (said on stderr) when it is absent.
///
/// # Panics
/// When it is absent and `QLORA_REQUIRE_GOLDEN=1`.
#[must_use]
pub fn model() -> Option<PathBuf> {
    let path = std::env::var_os("QLORA_TEST_MODEL").map_or_else(
        || {
            let home = std::env::var_os("HOME").map_or_else(PathBuf::new, PathBuf::from);
            home.join(".cache/qlora/models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    found(path, "QLORA_TEST_MODEL")
}

fn found(path: PathBuf, variable: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("QLORA_REQUIRE_GOLDEN").is_none_or(|v| v != "1"),
        "{} is absent; set {variable}",
        path.display()
    );
    eprintln!("SKIPPED: {} is absent; set {variable} to run this test", path.display());
    None
}

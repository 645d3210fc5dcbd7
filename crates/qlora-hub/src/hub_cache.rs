//! Models that Hugging Face's Python library has already downloaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::HubId;

/// The folder of Hugging Face's programs: `HF_HOME`, else `XDG_CACHE_HOME/huggingface`, else
/// `HOME/.cache/huggingface`.
pub(crate) fn hugging_face_home(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("HF_HOME")
        .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface")))
}

/// The cache's folder: `HF_HUB_CACHE`, else `hub` in [Hugging Face's](hugging_face_home).
pub(crate) fn root(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let given = variable("HF_HUB_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
    given.or_else(|| Some(hugging_face_home(variable)?.join("hub")))
}

/// The snapshot of the id's revision, when it holds a configuration and every shard of its weights.
pub(crate) fn snapshot(root: &Path, id: &HubId) -> Option<PathBuf> {
    let repository = root.join(format!("models--{}--{}", id.organisation(), id.name()));
    let revision = id.revision_or_main();
    let commit = match std::fs::read_to_string(repository.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        // A revision may be a commit itself.
        Err(_) => revision.to_owned(),
    };
    if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let snapshot = repository.join("snapshots").join(commit);
    (snapshot.join("config.json").is_file() && has_weights(&snapshot)).then_some(snapshot)
}

fn has_weights(snapshot: &Path) -> bool {
    if snapshot.join("model.safetensors").is_file() {
        return true;
    }
    let Ok(text) = std::fs::read(snapshot.join("model.safetensors.index.json")) else { return false };
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&text) else { return false };
    let Some(shards) = index.get("weight_map").and_then(serde_json::Value::as_object) else { return false };
    shards.values().all(|shard| shard.as_str().is_some_and(|name| snapshot.join(name).is_file()))
}

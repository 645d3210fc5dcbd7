//! What reads the configuration of a model.

use qlora_models::Checkpoint;
use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// A checkpoint directory: `config.json`, and behind 0xff an index, and behind another the shard that it names.
/// Without an index the shard is `model.safetensors`.
pub fn model_config(data: &[u8]) {
    let folder = FOLDER.path();
    let mut parts = data.splitn(3, |&byte| byte == 0xff);
    let config = parts.next().unwrap_or_default();
    let (index, shard) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("it can be written");
    write("config.json", config);
    if index.is_empty() {
        let _ = std::fs::remove_file(folder.join("model.safetensors.index.json"));
        write("model.safetensors", shard);
    } else {
        let _ = std::fs::remove_file(folder.join("model.safetensors"));
        write("model.safetensors.index.json", index);
        write("a.safetensors", shard);
    }
    let Ok(checkpoint) = Checkpoint::open(folder) else { return };
    let _ = checkpoint.config_json();
    let _ = checkpoint.config().parameter_count();
    let _ = checkpoint.is_nf4();
    let _ = checkpoint.check_tensors();
    let name = "model.embed_tokens.weight";
    let _ = checkpoint.tensor(name, &[8, 4]);
    let _ = checkpoint.nf4_tensor(name, &[8, 4]);
}

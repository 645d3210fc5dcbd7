//! A checkpoint directory. The first byte says what follows: a `model.safetensors`, or an index of that length
//! in 16 bytes, and the shard that it names.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let folder = FOLDER.path();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("it can be written");
    if first == 0 {
        let _ = std::fs::remove_file(folder.join("model.safetensors.index.json"));
        write("model.safetensors", rest);
    } else {
        let _ = std::fs::remove_file(folder.join("model.safetensors"));
        let (index, shard) = rest.split_at(rest.len().min(usize::from(first) * 16));
        write("model.safetensors.index.json", index);
        write("a.safetensors", shard);
    }
    read(folder);
});

fn read(folder: &Path) {
    let Ok(checkpoint) = qlora_files::safetensors::Checkpoint::open(folder) else { return };
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    for name in names {
        let _ = checkpoint.to_f32(&name);
    }
}

//! A model directory: one file, or shards and their index.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::mapped_file::not_found;
use super::{SafetensorsFile, Tensor};
use crate::{Error, atomic};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a checkpoint by name, whichever file each lies in.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Which of `files` holds a tensor.
    holders: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors` in a directory, or the shards that `model.safetensors.index.json` names, or,
    /// given a file, that file.
    ///
    /// The index is checked against the shards: each shard is a file in the same directory, each tensor is in the
    /// shard that the index names and in no other.
    ///
    /// # Errors
    /// Nothing of this kind is there, a file is damaged, or index and shards contradict each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let metadata = path.metadata().map_err(Error::io("open", path))?;
        let single = path.join(SINGLE);
        let index = path.join(INDEX);
        let files = if metadata.is_file() {
            vec![SafetensorsFile::open(path)?]
        } else if single.exists() {
            vec![SafetensorsFile::open(&single)?]
        } else if index.exists() {
            return Self::open_sharded(path, &index);
        } else {
            return Err(Error::NoCheckpoint { path: path.to_path_buf() });
        };
        let holders = files[0].names().map(|name| (name.to_string(), 0)).collect();
        Ok(Self { path: path.to_path_buf(), files, holders })
    }

    fn open_sharded(directory: &Path, index_path: &Path) -> Result<Self, Error> {
        let invalid = |reason| Error::InvalidIndex { path: index_path.to_path_buf(), reason };
        let index: Index = atomic::read_json(index_path)?;
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        let mut files = Vec::new();
        for shard in index.weight_map.values() {
            if shards.contains_key(shard.as_str()) {
                continue;
            }
            let mut components = Path::new(shard).components();
            let plain_name =
                matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
                    && !shard.contains(['/', '\\']);
            if !plain_name {
                return Err(invalid(format!("shard `{shard}` is not a plain file name in this directory")));
            }
            let path = directory.join(shard);
            if !path.exists() {
                return Err(invalid(format!("shard `{shard}` is missing; fetch the checkpoint again")));
            }
            shards.insert(shard, files.len());
            files.push(SafetensorsFile::open(path)?);
        }

        let mut holders = BTreeMap::new();
        for (shard, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = holders.insert(name.to_string(), shard) {
                    let (first, second) = (files[other].path().display(), file.path().display());
                    return Err(invalid(format!("tensor `{name}` is in two shards, {first} and {second}")));
                }
            }
        }
        for (name, shard) in &index.weight_map {
            if holders.get(name) != shards.get(shard.as_str()) {
                return Err(invalid(format!(
                    "tensor `{name}` is not in shard `{shard}`, where the index has it"
                )));
            }
        }
        Ok(Self { path: directory.to_path_buf(), files, holders })
    }

    /// The directory or file as it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their first tensor in the index.
    #[must_use]
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// All tensors' names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.holders.keys().map(String::as_str)
    }

    /// Whether any file has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.holders.contains_key(name)
    }

    /// One tensor by name.
    ///
    /// # Errors
    /// No file has a tensor of this name; names that end alike are suggested.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        match self.holders.get(name) {
            Some(&file) => self.files[file].tensor(name),
            None => Err(not_found(&self.path, name, self.names())),
        }
    }

    /// As [`SafetensorsFile::release`], of the file that has the tensor.
    pub fn release(&self, name: &str) {
        if let Some(&file) = self.holders.get(name) {
            self.files[file].release(name);
        }
    }

    /// Reads one F32, F16 or BF16 tensor whole.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor) and [`Tensor::to_f32`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.tensor(name)?.to_f32()
    }
}

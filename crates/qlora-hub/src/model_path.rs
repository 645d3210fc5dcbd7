//! Where a model lies on disk, and in which of the two forms.

use std::path::{Path, PathBuf};

use crate::HubError;

/// A model on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPath {
    /// One GGUF file: weights, tokenizer and chat template.
    Gguf(PathBuf),
    /// A folder in Hugging Face's layout: `config.json`, safetensors, tokenizer files.
    Directory(PathBuf),
}

impl ModelPath {
    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Gguf(path) | Self::Directory(path) => path,
        }
    }

    /// What an existing path holds: a `.gguf` file, a folder with `config.json`, or a folder with
    /// exactly one `.gguf` file. The GGUF file wins when a folder holds both.
    ///
    /// # Errors
    /// [`HubError::NotAModel`] otherwise; [`HubError::Io`] when the folder can't be listed.
    pub fn of_existing(path: &Path) -> Result<Self, HubError> {
        let refuse =
            |problem: &str| HubError::NotAModel { path: path.to_owned(), problem: problem.to_owned() };
        if path.is_file() {
            if has_gguf_extension(path) {
                return Ok(Self::Gguf(path.to_owned()));
            }
            return Err(refuse("a file that is not named *.gguf; for safetensors name the folder"));
        }
        match gguf_files(path)?.as_slice() {
            [] if path.join("config.json").is_file() => Ok(Self::Directory(path.to_owned())),
            [] => Err(refuse("a folder with neither config.json nor a .gguf file")),
            [one] => Ok(Self::Gguf(one.clone())),
            [..] => Err(refuse("a folder with several .gguf files; name one of them")),
        }
    }
}

fn has_gguf_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, HubError> {
    let io = |source| HubError::Io { action: "list the folder", path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if has_gguf_extension(&path) && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

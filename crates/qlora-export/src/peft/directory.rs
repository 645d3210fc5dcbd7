//! Reading and writing the directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use qlora_files::atomic::{read_json, write_bytes, write_directory};
use qlora_files::safetensors::{SafetensorsFile, TensorBytes, write_safetensors};
use qlora_text::Tokenizer;
use serde_json::{Map, Value};

use super::model_card::model_card;
use super::{AdapterTensor, InvalidAdapter, PeftAdapter, PeftConfig, PeftError};
use crate::ExportError;
use crate::target::prepare_directory;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// The new tensors while the old ones are still in place.
const STAGED: &str = ".adapter_model.safetensors.new";
const PICKLE: &str = "adapter_model.bin";
const MODEL_CARD: &str = "README.md";

impl PeftAdapter {
    /// Reads an adapter directory. Tensors may be F32, F16 or BF16.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the adapter is one that is not supported; the error names the
    /// file and the key or tensor.
    pub fn read(directory: impl AsRef<Path>) -> Result<Self, PeftError> {
        let directory = directory.as_ref();
        let (config_path, tensors_path) = (directory.join(CONFIG), directory.join(TENSORS));
        let invalid = |path: &Path| {
            let path = path.to_path_buf();
            move |source| PeftError::Invalid { path, source }
        };
        let keys: Map<String, Value> = read_json(&config_path)?;
        let config = PeftConfig::from_json(&keys).map_err(invalid(&config_path))?;

        let pickle = directory.join(PICKLE);
        if !tensors_path.exists() && pickle.exists() {
            return Err(PeftError::Pickle { path: pickle });
        }
        let file = SafetensorsFile::open(&tensors_path)?;
        let mut tensors = BTreeMap::new();
        for tensor in file.tensors() {
            let values = tensor.to_f32()?;
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                let (tensor, value) = (tensor.name().to_owned(), values[index].to_string());
                return Err(invalid(&tensors_path)(InvalidAdapter::NonFinite { tensor, index, value }));
            }
            let shape = tensor.shape().to_vec();
            tensors.insert(tensor.name().to_owned(), AdapterTensor { shape, values });
        }
        Self::new(config, tensors).map_err(invalid(&tensors_path))
    }

    /// Writes an adapter directory that PEFT loads: `adapter_config.json`, `adapter_model.safetensors` in
    /// f32, and a model card, unless there is a `README.md` already. Other files in the directory are left
    /// alone. Further training may write into the same directory again and again.
    ///
    /// Each file is written to a temporary name, flushed and renamed, the configuration last, so that a directory
    /// does not load before it is complete. An adapter that is there already stays whole until the new one is on
    /// the disk; one of another configuration loses its own in between, for new tensors under it would compute
    /// something else.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, directory: impl AsRef<Path>) -> Result<(), PeftError> {
        let directory = directory.as_ref();
        let config_path = directory.join(CONFIG);
        // PEFT writes no final newline.
        let config = serde_json::to_vec_pretty(&self.config().to_json())
            .map_err(|source| qlora_files::Error::ToJson { path: config_path.clone(), source })?;
        fs::create_dir_all(directory).map_err(qlora_files::Error::io("create", directory))?;
        let card_path = directory.join(MODEL_CARD);
        if !card_path.exists() {
            write_bytes(card_path, model_card(self.config()))?;
        }
        let (staged, tensors_path) = (directory.join(STAGED), directory.join(TENSORS));
        let tensors = self
            .tensors()
            .iter()
            .map(|(name, tensor)| TensorBytes::f32(name, tensor.shape.as_slice(), &tensor.values));
        write_safetensors(&staged, tensors, &[("format", "pt")])?;
        if fs::read(&config_path).is_ok_and(|old| old != config) {
            fs::remove_file(&config_path).map_err(qlora_files::Error::io("replace", &config_path))?;
        }
        fs::rename(&staged, &tensors_path).map_err(qlora_files::Error::io("replace", &tensors_path))?;
        Ok(write_bytes(config_path, config)?)
    }

    /// As [`write`](Self::write), with the files of a tokenizer, its chat template among them: what a server needs
    /// beside the base model's weights. The tokenizer is the base model's, with the template that the adapter was
    /// trained with.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_complete(
        &self,
        directory: impl AsRef<Path>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(), PeftError> {
        let directory = directory.as_ref();
        if let Some(tokenizer) = tokenizer {
            fs::create_dir_all(directory).map_err(qlora_files::Error::io("create", directory))?;
            tokenizer.save(directory)?;
        }
        self.write(directory)
    }
}

/// Writes an adapter as a new directory, [complete](PeftAdapter::write_complete), which appears whole or not at all;
/// folders above it are created.
///
/// # Errors
/// When the directory exists and is not empty, the disk is too small, or a file cannot be written.
pub fn export_peft(
    adapter: &PeftAdapter,
    tokenizer: Option<&Tokenizer>,
    directory: impl AsRef<Path>,
) -> Result<(), ExportError> {
    let directory = directory.as_ref();
    let elements: usize = adapter.tensors().values().map(|tensor| tensor.values.len()).sum();
    prepare_directory(directory, elements as u64 * 4)?;
    write_directory(directory, |folder| Ok::<_, ExportError>(adapter.write_complete(folder, tokenizer)?))
}

//! A checkpoint on disk, in either format, seen through Hugging Face names.

mod added_tokens;
mod gguf;
mod safetensors;

use std::ops::Range;
use std::path::{Path, PathBuf};

use qlora_quant::{Nf4Options, Nf4Tensor};
use qlora_text::{ChatTemplates, Tokenizer};
use serde_json::{Map, Value};

use self::added_tokens::AddedTokens;
use crate::error::TensorProblems;
use crate::{DecoderConfig, Family, ModelError};

/// Files of which a directory with a tokenizer has at least one.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"];

/// An open checkpoint: a GGUF file, or a directory with `config.json` and safetensors.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: DecoderConfig,
    format: Format,
    added: Option<AddedTokens>,
    /// In place of those that come with the weights.
    templates: Option<ChatTemplates>,
}

#[derive(Debug)]
enum Format {
    Gguf(qlora_gguf::Gguf),
    Safetensors(safetensors::Tensors),
}

impl Checkpoint {
    /// Opens a `.gguf` file or a checkpoint directory and reads its configuration; tensors stay on disk.
    ///
    /// # Errors
    /// When the path is neither, a file is damaged, or the architecture is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let not_a_checkpoint =
            |problem: &str| ModelError::NotACheckpoint { path: path.to_owned(), problem: problem.to_owned() };
        if path.is_dir() {
            if !path.join("config.json").is_file() {
                return Err(not_a_checkpoint("the directory has no config.json"));
            }
            let (config, files) = safetensors::open(path)?;
            let format = Format::Safetensors(files);
            return Ok(Self { path: path.to_owned(), config, format, added: None, templates: None });
        }
        if !path.exists() {
            return Err(not_a_checkpoint("there is no such file or directory"));
        }
        let (config, file) = gguf::open(path)?;
        let format = Format::Gguf(file);
        Ok(Self { path: path.to_owned(), config, format, added: None, templates: None })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model computes.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The file, when it is a GGUF file.
    #[must_use]
    pub fn gguf(&self) -> Option<&qlora_gguf::Gguf> {
        match &self.format {
            Format::Gguf(file) => Some(file),
            Format::Safetensors(_) => None,
        }
    }

    /// The `config.json` that `transformers` loads the model with. Of a directory it is its own, unknown keys
    /// included; of a GGUF file it lacks `bos_token_id` and `eos_token_id`, which the tokenizer knows.
    ///
    /// # Errors
    /// When a part of the configuration has no key there: the `rope_freqs` of some GGUF files.
    pub fn config_json(&self) -> Result<Map<String, Value>, ModelError> {
        let mut keys = match &self.format {
            Format::Gguf(_) => Map::new(),
            Format::Safetensors(_) => {
                let whole: Value = qlora_files::atomic::read_json(self.path.join("config.json"))?;
                let mut keys = Family::text_config(&whole).as_object().cloned().unwrap_or_default();
                // Of what is read from here, nothing is quantized.
                keys.remove("quantization_config");
                keys
            }
        };
        keys.extend(self.config.family.config_to_json(&self.path, &self.config)?);
        Ok(keys)
    }

    /// Whether anything of a tokenizer comes with the weights, be it supported or not.
    #[must_use]
    pub fn has_tokenizer(&self) -> bool {
        match &self.format {
            // llama.cpp's name for none.
            Format::Gguf(file) => file
                .metadata()
                .get("tokenizer.ggml.model")
                .is_some_and(|model| *model != qlora_gguf::Value::from("no_vocab")),
            Format::Safetensors(_) => TOKENIZER_FILES.iter().any(|name| self.path.join(name).exists()),
        }
    }

    /// The tokenizer that comes with the weights. It holds their chat template too, or [the one given in its
    /// place](Self::with_chat_templates).
    ///
    /// # Errors
    /// When there is none, it is damaged, or of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let mut tokenizer = self.grown_tokenizer()?;
        if let Some(templates) = &self.templates {
            tokenizer.set_chat_templates(templates.clone())?;
        }
        Ok(tokenizer)
    }

    fn stored_tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Ok(match &self.format {
            Format::Gguf(file) => Tokenizer::from_gguf(file.metadata())?,
            Format::Safetensors(_) => Tokenizer::from_directory(&self.path)?,
        })
    }

    /// With other chat templates than its own: those that an adapter was trained with. Its tokenizer has them, and
    /// with it all that is generated, trained and exported. Templates equal to its own change nothing.
    ///
    /// # Errors
    /// As [`tokenizer`](Self::tokenizer), and when there is no template for conversations, or it is no valid Jinja.
    pub fn with_chat_templates(self, templates: ChatTemplates) -> Result<Self, ModelError> {
        let mut tokenizer = self.grown_tokenizer()?;
        let templates = (tokenizer.chat_templates() != &templates).then_some(templates);
        if let Some(templates) = &templates {
            tokenizer.set_chat_templates(templates.clone())?;
        }
        Ok(Self { templates, ..self })
    }

    /// The chat templates that were given in place of its own.
    #[must_use]
    pub fn given_chat_templates(&self) -> Option<&ChatTemplates> {
        self.templates.as_ref()
    }

    /// A tensor by its Hugging Face name, as f32, row-major, of exactly this shape.
    ///
    /// # Errors
    /// When it is absent, damaged, or of another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        if self.added.is_some() && TABLES.contains(&name) {
            check_shape(&self.path, name, &[self.config.vocab_size, self.config.hidden_size], shape)?;
            return self.grown_rows(name, 0..shape[0]);
        }
        match &self.format {
            Format::Gguf(file) => gguf::tensor(&self.path, file, &self.config, name, shape),
            Format::Safetensors(files) => files.tensor(&self.path, name, shape),
        }
    }

    /// A weight that the checkpoint stores in NF4, as bitsandbytes does; `None` where it is in floats.
    ///
    /// # Errors
    /// When it is damaged, or of another shape.
    pub fn nf4_tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Nf4Tensor>, ModelError> {
        match &self.format {
            Format::Gguf(_) => Ok(None),
            Format::Safetensors(files) => files.nf4(&self.path, name, shape),
        }
    }

    /// A weight in NF4, quantized as it is read where the format allows it, so that it is never whole in f32.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and when the weight holds a number that cannot be quantized.
    pub fn quantize(
        &self,
        name: &str,
        shape: &[usize],
        options: Nf4Options,
    ) -> Result<Nf4Tensor, ModelError> {
        if let Format::Safetensors(files) = &self.format
            && !TABLES.contains(&name)
            && !files.has_in_nf4(name)
        {
            return files.quantize(&self.path, name, shape, options);
        }
        Nf4Tensor::quantize(&self.tensor(name, shape)?, shape, options)
            .map_err(|source| ModelError::Quantize { path: self.path.clone(), name: name.to_owned(), source })
    }

    /// Whether this weight is stored in NF4.
    #[must_use]
    pub fn has_in_nf4(&self, name: &str) -> bool {
        matches!(&self.format, Format::Safetensors(files) if files.has_in_nf4(name))
    }

    /// Whether linear layers are stored in NF4. Those that are in floats were left out on purpose
    /// (`llm_int8_skip_modules`).
    #[must_use]
    pub fn is_nf4(&self) -> bool {
        matches!(&self.format, Format::Safetensors(files) if files.is_quantized())
    }

    /// Compares the tensors with those of the model, before any is read.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], with all that are missing, of another shape, or not used.
    pub fn check_tensors(&self) -> Result<(), ModelError> {
        let mut expected = self.config.tensors();
        for (_, shape) in expected.iter_mut().filter(|(name, _)| TABLES.contains(&name.as_str())) {
            shape[0] = self.stored_rows();
        }
        let problems: TensorProblems = match &self.format {
            Format::Gguf(file) => gguf::problems(file, &self.config, &expected),
            Format::Safetensors(files) => files.problems(&expected)?,
        };
        match problems.is_empty() {
            true => Ok(()),
            false => Err(ModelError::Tensors { path: self.path.clone(), problems: Box::new(problems) }),
        }
    }

    /// Some rows of the embedding or of the head, as f32: of tables `[vocabulary, hidden]` that are too large to be
    /// in memory whole. `None` for any other tensor.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    ///
    /// # Panics
    /// When the rows are outside of the table.
    pub fn table_rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Vec<f32>>, ModelError> {
        match TABLES.contains(&name) {
            true => self.grown_rows(name, rows).map(Some),
            false => Ok(None),
        }
    }

    /// All rows of the embedding or of the head in order, as f32, in pieces of about so many elements; `None` for any
    /// other tensor.
    pub fn table_pieces(
        &self,
        name: &str,
        elements: usize,
    ) -> Option<impl Iterator<Item = Result<Vec<f32>, ModelError>>> {
        let table = TABLES.into_iter().find(|table| *table == name)?;
        let rows = self.config.vocab_size;
        let piece = elements.div_ceil(self.config.hidden_size.max(1)).max(1);
        let starts = (0..rows).step_by(piece);
        Some(starts.map(move |start| self.grown_rows(table, start..rows.min(start + piece))))
    }

    /// Rows of a table as the files have it.
    fn stored_table(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let shape = [self.stored_rows(), self.config.hidden_size];
        match &self.format {
            Format::Gguf(file) => gguf::rows(&self.path, file, &self.config, name, shape, rows),
            Format::Safetensors(files) => files.rows(&self.path, name, shape, rows),
        }
    }
}

/// Tables with a row for each token: the largest tensors of a model, in the same order of rows in all formats.
const TABLES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// Refuses a shape that is not the expected one, before anything is read.
fn check_shape(path: &Path, name: &str, found: &[usize], expected: &[usize]) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::TensorShape {
        path: path.to_owned(),
        name: name.to_owned(),
        found: found.to_vec(),
        expected: expected.to_vec(),
    })
}

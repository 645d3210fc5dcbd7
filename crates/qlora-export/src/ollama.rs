//! A folder that `ollama create` makes a model from: `model.gguf` and a `Modelfile`.

mod chat_format;
mod derivation;
mod go_template;

use std::path::Path;

use qlora_files::atomic::{write_bytes, write_directory};
use qlora_models::LoadProgress;
use qlora_text::Tokenizer;

use self::chat_format::ChatFormat;
use crate::target::prepare_directory;
use crate::{ExportError, ExportSource, ExportedGguf, GgufOptions, export_gguf};

const MODEL: &str = "model.gguf";
const MODELFILE: &str = "Modelfile";

/// The Modelfile of a model, and what its template came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modelfile {
    /// The text of the file.
    pub text: String,
    /// Where Ollama has the chat template from.
    pub template: ModelfileTemplate,
}

/// Where Ollama has the chat template from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelfileTemplate {
    /// A `TEMPLATE` that renders the probes as the model's own template does.
    Derived {
        /// Whether the model's own template writes the day's date. The `TEMPLATE` always has the same one.
        dated: bool,
    },
    /// Nowhere: what the model's own template does cannot be said in turns. Ollama does not run it. It takes one of
    /// its built-in templates if that was made for nearly the same text, and else joins messages without roles.
    Lost,
    /// The model has none: the prompt is completed as it is.
    None,
}

impl Modelfile {
    /// The Modelfile for a GGUF file of this name beside it.
    ///
    /// The model's chat template is rendered on a conversation whose contents are recognised in the text, which gives
    /// what stands before and after the messages of each role. If a few other conversations made of that are what the
    /// template renders, it is written as `TEMPLATE` in Go's template language, and a default system message as
    /// `SYSTEM`. Stop tokens become `PARAMETER stop`.
    ///
    /// # Errors
    /// When the chat template is no valid Jinja.
    pub fn new(tokenizer: Option<&Tokenizer>, gguf: &str) -> Result<Self, ExportError> {
        let mut text = format!("FROM ./{gguf}\n");
        let Some((tokenizer, source)) =
            tokenizer.and_then(|tokenizer| Some((tokenizer, tokenizer.chat_template_source()?)))
        else {
            text.push_str("\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n");
            text.push_str(&stops(tokenizer, None));
            return Ok(Self { text, template: ModelfileTemplate::None });
        };
        let mut format = ChatFormat::of(tokenizer)?;
        if let Some(format) = &mut format {
            let system = format.take_default_system();
            text.push_str(&format!("\nTEMPLATE \"\"\"{}\"\"\"\n", go_template::go_template(format)));
            if let Some(system) = system {
                text.push_str(&format!("\nSYSTEM \"\"\"{system}\"\"\"\n"));
            }
        }
        text.push_str(&stops(Some(tokenizer), format.as_ref()));
        let dated = source.contains("strftime_now");
        let template = format.map_or(ModelfileTemplate::Lost, |_| ModelfileTemplate::Derived { dated });
        Ok(Self { text, template })
    }
}

/// `PARAMETER stop` for each stop token, and for the end of an answer that is no token.
fn stops(tokenizer: Option<&Tokenizer>, format: Option<&ChatFormat>) -> String {
    let mut stops: Vec<String> = tokenizer
        .map(|tokenizer| tokenizer.eos().iter().filter_map(|id| tokenizer.token(*id)).collect())
        .unwrap_or_default();
    let end = format.and_then(ChatFormat::answer_end).map(str::to_owned);
    stops.extend(end.filter(|end| !stops.contains(end)));
    let mut lines: String = stops.iter().map(|stop| format!("\nPARAMETER stop {stop:?}")).collect();
    if !lines.is_empty() {
        lines.push('\n');
    }
    lines
}

/// Writes `model.gguf` and `Modelfile` into a directory, which appears whole or not at all.
///
/// # Errors
/// As [`export_gguf`], and when the directory exists and is not empty.
pub fn export_ollama<'a>(
    source: ExportSource<'_>,
    options: impl Into<GgufOptions<'a>>,
    directory: impl AsRef<Path>,
    progress: LoadProgress<'_>,
) -> Result<(ExportedGguf, Modelfile), ExportError> {
    let options: GgufOptions<'a> = options.into();
    let directory = directory.as_ref();
    prepare_directory(directory, 0)?;
    let checkpoint = source.checkpoint();
    let tokenizer = checkpoint.has_tokenizer().then(|| checkpoint.tokenizer()).transpose()?;
    let modelfile = Modelfile::new(tokenizer.as_ref(), MODEL)?;
    let mut exported = None;
    write_directory(directory, |folder| {
        exported = Some(export_gguf(source, options, folder.join(MODEL), progress)?);
        Ok::<_, ExportError>(write_bytes(folder.join(MODELFILE), &modelfile.text)?)
    })?;
    let exported = exported.unwrap_or_else(|| unreachable!("it was written"));
    Ok((exported, modelfile))
}

#[cfg(test)]
mod tests;

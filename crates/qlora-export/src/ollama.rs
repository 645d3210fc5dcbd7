//! A folder that `ollama create` makes a model from: `model.gguf` and a `Modelfile`.

mod chat_format;
mod go_template;

use std::path::Path;

use qlora_files::atomic::{write_bytes, write_directory};
use qlora_models::LoadProgress;
use qlora_text::{Message, RenderInput, Tokenizer};

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
    /// A `TEMPLATE` of this format, which renders the probes as the model's own template does.
    Format(&'static str),
    /// `tokenizer.chat_template` of the GGUF file: the model's own template, of no known format.
    Gguf,
    /// The model has none: the prompt is completed as it is.
    None,
}

impl Modelfile {
    /// The Modelfile for a GGUF file of this name beside it.
    ///
    /// The model's chat template is rendered on a few conversations; when one of the known formats (ChatML, Llama 3,
    /// Gemma, Phi-3…) gives the same text, that format is written in Go's template language. Otherwise there is no
    /// `TEMPLATE`, and Ollama reads the template of the GGUF file. Stop tokens become `PARAMETER stop`.
    ///
    /// # Errors
    /// When the chat template is no valid Jinja.
    pub fn new(tokenizer: Option<&Tokenizer>, gguf: &str) -> Result<Self, ExportError> {
        let mut text = format!("FROM ./{gguf}\n");
        let Some(tokenizer) = tokenizer else {
            text.push_str("\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n");
            return Ok(Self { text, template: ModelfileTemplate::None });
        };
        let template = match tokenizer.chat_template_source() {
            None => {
                text.push_str("\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n");
                ModelfileTemplate::None
            }
            Some(_) => match Recognised::of(tokenizer)? {
                Some(Recognised { format, default_system }) => {
                    text.push_str(&format!("\nTEMPLATE \"\"\"{}\"\"\"\n", go_template::go_template(format)));
                    if let Some(system) = default_system.filter(|system| !system.contains("\"\"\"")) {
                        text.push_str(&format!("\nSYSTEM \"\"\"{system}\"\"\"\n"));
                    }
                    ModelfileTemplate::Format(format.name)
                }
                None => ModelfileTemplate::Gguf,
            },
        };
        for id in tokenizer.eos() {
            if let Some(token) = tokenizer.token(*id) {
                text.push_str(&format!("\nPARAMETER stop {token:?}"));
            }
        }
        if !tokenizer.eos().is_empty() {
            text.push('\n');
        }
        Ok(Self { text, template })
    }
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

struct Recognised {
    format: &'static ChatFormat,
    /// What the template says as the system when a conversation does not.
    default_system: Option<String>,
}

impl Recognised {
    /// The format that renders all probes as the template does.
    fn of(tokenizer: &Tokenizer) -> Result<Option<Self>, ExportError> {
        let template = tokenizer.chat_template()?;
        let bos = tokenizer.bos().and_then(|bos| tokenizer.token(bos)).unwrap_or_default();
        let with_bos = |messages: &[Message]| {
            let input = RenderInput { messages, add_generation_prompt: true, ..RenderInput::default() };
            Some(template.render(&input).ok()?.text)
        };
        // llama.cpp puts the beginning token in front itself; where it is that of a turn it belongs to the format.
        let render = |messages: &[Message], keep_bos: bool| {
            let text = with_bos(messages)?;
            let stripped = text.strip_prefix(bos.as_str()).filter(|_| !keep_bos).map(str::to_owned);
            Some(stripped.unwrap_or(text))
        };
        let turns = |turns: &[(&str, &str)]| -> Vec<Message> {
            turns.iter().map(|(role, text)| Message::new(*role, *text)).collect()
        };
        let plain = [("user", "Question?"), ("assistant", "An answer."), ("user", "Another?")];
        let with_system = [&[("system", "Be short.")], &plain[..]].concat();
        let one = [("user", "Only one")];
        let candidates = ChatFormat::ALL.iter().flat_map(|format| [(format, false), (format, true)]);
        let recognised = candidates.into_iter().find_map(|(format, keep_bos)| {
            let render = |messages: &[Message]| render(messages, keep_bos);
            let same = |messages: &[(&str, &str)], system: Option<&str>| {
                render(&turns(messages)).is_some_and(|text| text == format.render(system, messages))
            };
            // A template may refuse a system message; then only that may differ.
            let takes_system = render(&turns(&with_system)).is_some();
            if takes_system && !same(&with_system, None) {
                return None;
            }
            let default_system = match same(&one, None) {
                true => None,
                false => Some(format.system_of(&render(&turns(&one))?, &one)?),
            };
            let system = default_system.as_deref();
            (same(&plain, system) && same(&one, system)).then_some(Self { format, default_system })
        });
        Ok(recognised)
    }
}

#[cfg(test)]
mod tests;

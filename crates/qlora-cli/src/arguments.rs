//! The command line, as typed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use qlora_core::data::{OnLong, TrainOn};
use qlora_core::export::GgufType;

/// Fine-tune large language models with LoRA and QLoRA.
#[derive(Debug, Parser)]
#[command(name = "qlora", version = crate::backend::version(), max_term_width = 110)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or a configuration with mistakes.\n\
    Models are kept in $QLORA_HOME/models, or ~/.cache/qlora/models. Nothing but `fetch` uses a network.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalOptions,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct GlobalOptions {
    /// Where to compute [default: cpu]. `train` takes it from the configuration unless it is given here
    #[arg(long, global = true, value_enum, value_name = "BACKEND")]
    pub(crate) backend: Option<BackendKind>,
    /// Which of several GPUs, from 0 [default: the backend's own choice]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) device: Option<usize>,
    /// Type of matrix products; auto: the best of the device. `train` takes it from the configuration unless it is
    /// given here
    #[arg(long, global = true, value_enum, value_name = "TYPE")]
    pub(crate) dtype: Option<ComputeKind>,
    /// Seed of sampling and training; `train` takes it from the configuration unless it is given here
    #[arg(long, global = true, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// CPU threads [default: one per core]. Results do not depend on it
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Print results as JSON on stdout
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a model onto this machine, by short name or hub id
    Fetch(FetchArguments),
    /// Fine-tune a model as a TOML file says
    Train(TrainArguments),
    /// Let a model answer, printing tokens as they come
    Generate(GenerateArguments),
    /// Look at training data: checks, rows as the model sees them, chat templates
    Data {
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Write the logits of given token ids to a safetensors file
    Logits(LogitsArguments),
    /// Write a model, an adapter merged into its weights or not, in another form
    Export(ExportArguments),
    /// Say what a GGUF file, safetensors file, model, adapter or checkpoint holds
    Inspect(InspectArguments),
}

#[derive(Debug, Args)]
pub(crate) struct FetchArguments {
    /// A short name (smollm2-135m) or a hub id (organisation/name, organisation/name@revision)
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArguments {
    /// The configuration, a TOML file
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    /// Replace a value of the configuration, as in --set train.steps=10; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Continue from the last checkpoint in the output directory
    #[arg(long)]
    pub(crate) resume: bool,
}

/// Which model, in what form.
#[derive(Debug, Args)]
pub(crate) struct ModelArguments {
    /// A name, hub id, directory, or .gguf file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// An adapter directory in PEFT's format; `generate --chat` takes several
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,
    /// How the frozen weights are held
    #[arg(long, value_enum, default_value_t = QuantKind::None, value_name = "QUANT")]
    pub(crate) quant: QuantKind,
    /// Keep the scales of NF4 in f32, as training with `double_quant = false` does
    #[arg(long)]
    pub(crate) no_double_quant: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Answer this text, as one user turn in the model's chat template
    #[arg(long, value_name = "TEXT", required_unless_present = "chat", conflicts_with = "chat")]
    pub(crate) prompt: Option<String>,
    /// Talk: each line of stdin is a turn; /help tells what else there is
    #[arg(long)]
    pub(crate) chat: bool,
    /// A system message before the first turn
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Continue the prompt as it is, without a chat template
    #[arg(long, conflicts_with = "chat")]
    pub(crate) raw: bool,
    /// A chat template by name (chatml, llama-3, alpaca, ..) or a Jinja file [default: the adapter's, else the model's]
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "raw")]
    pub(crate) template: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArguments {
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse_positive)]
    pub(crate) max_tokens: usize,
    /// Take the most likely token each time
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff",
        "eta_cutoff", "min_tokens_to_keep"])]
    pub(crate) greedy: bool,
    /// Divide logits by this; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub(crate) temperature: f64,
    /// Sample among the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Sample among the most likely tokens that together reach probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f64,
    /// Drop tokens less likely than P times the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f64,
    /// Sample among the tokens of typical surprise that together reach probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) typical_p: f64,
    /// Sample among the most likely tokens that have at most this share of the entropy; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) top_h: f64,
    /// Drop tokens less likely than P; 0 for none
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) epsilon_cutoff: f64,
    /// Drop tokens less likely than P, fewer where the entropy is high; 0 for none
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) eta_cutoff: f64,
    /// Tokens that --top-p, --min-p, --typical-p and the cutoffs leave at least
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) min_tokens_to_keep: usize,
    /// End the answer before this text; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Make tokens that were seen less likely; 1 for off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f64,
}

#[derive(Debug, Args)]
pub(crate) struct LogitsArguments {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// A JSON file {"input_ids": [[1, 2], [3, 4]]}; all rows of one length
    #[arg(long, value_name = "FILE.json")]
    pub(crate) ids: PathBuf,
    /// The file to write: tensor "logits", f32 [rows, tokens, vocabulary]
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Forms:\n  \
    peft           the adapter as PEFT has it, with the model's tokenizer and chat template\n  \
    safetensors    a checkpoint directory for transformers, the adapter merged\n  \
    bnb-4bit       the same in NF4, for transformers with bitsandbytes\n  \
    gguf:TYPE      a GGUF file for llama.cpp, the adapter merged\n  \
    gguf-lora      the adapter as a GGUF file, for llama.cpp's --lora\n  \
    ollama[:TYPE]  a folder with model.gguf and a Modelfile, for `ollama create`\n\
    --dtype is the type of weights that are not quantized: auto and bf16 write bfloat16.\n\
    What was written is opened again and compared with the model before success is reported.")]
pub(crate) struct ExportArguments {
    /// A name, hub id, directory, or .gguf file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// An adapter directory in PEFT's format, to be merged into the weights
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// A chat template by name (chatml, llama-3, alpaca, ..) or a Jinja file, to be written in place of the adapter's and
    /// the model's
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) template: Option<String>,
    /// The form to write: peft, safetensors, bnb-4bit, gguf:TYPE, gguf-lora, ollama or ollama:TYPE
    #[arg(long, value_name = "FORM")]
    pub(crate) to: ExportForm,
    /// The directory or file to write; it must be new, a directory may be empty
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Give the model a special token that it has not, such as '<|im_end|>': a row of the embedding and of the head near
    /// the mean of all rows, for training on what is written; may be repeated
    #[arg(long = "add-special-token", value_name = "TOKEN")]
    pub(crate) special_tokens: Vec<String>,
    /// What the adapter is added to: the model's weights, or what NF4 made of them in training. Given, both are compared
    /// with the adapter as it was trained
    #[arg(long, value_enum, value_name = "BASE", requires = "adapter")]
    pub(crate) merge_base: Option<MergeBaseKind>,
    /// Keep the scales of NF4 in f32, as training with `double_quant = false` does
    #[arg(long)]
    pub(crate) no_double_quant: bool,
    /// Most gigabytes of tensors in a .safetensors file
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    pub(crate) shard_size: f64,
    /// A text file to compare models on, in place of a few built-in sentences
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Weigh errors of blocks by an importance matrix of llama.cpp's (GGUF or imatrix.dat)
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix_from")]
    pub(crate) imatrix: Option<PathBuf>,
    /// The same, computed from what the model makes of a calibration text
    #[arg(long, value_name = "TEXT")]
    pub(crate) imatrix_from: Option<PathBuf>,
    /// Keep the computed importance matrix as a file
    #[arg(long, value_name = "FILE", requires = "imatrix_from")]
    pub(crate) imatrix_out: Option<PathBuf>,
    /// Do not open and compare what was written, nor the bases of --merge-base unless there is a --text
    #[arg(long)]
    pub(crate) no_verify: bool,
}

/// Forms of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExportForm {
    Peft,
    Safetensors,
    Bnb4Bit,
    Gguf(GgufType),
    GgufLora,
    Ollama(GgufType),
}

impl ExportForm {
    /// What a folder for Ollama holds unless said otherwise.
    const OLLAMA: GgufType = GgufType::F16;
}

impl std::str::FromStr for ExportForm {
    type Err = String;

    fn from_str(form: &str) -> Result<Self, String> {
        let (form, kind) = match form.split_once(':') {
            Some((form, kind)) => (form, Some(kind.parse::<GgufType>().map_err(|error| error.to_string())?)),
            None => (form, None),
        };
        match (form, kind) {
            ("peft", None) => Ok(Self::Peft),
            ("safetensors", None) => Ok(Self::Safetensors),
            ("bnb-4bit", None) => Ok(Self::Bnb4Bit),
            ("gguf", Some(kind)) => Ok(Self::Gguf(kind)),
            ("gguf", None) => Err("which type? as in gguf:F16".to_owned()),
            ("gguf-lora", None) => Ok(Self::GgufLora),
            ("ollama", kind) => Ok(Self::Ollama(kind.unwrap_or(Self::OLLAMA))),
            _ => {
                Err("expected peft, safetensors, bnb-4bit, gguf:TYPE, gguf-lora or ollama[:TYPE]".to_owned())
            }
        }
    }
}

/// What an adapter is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MergeBaseKind {
    /// The weights of the model
    Original,
    /// The weights as NF4 holds them
    Dequantized,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// A file or directory, or the name of a fetched model
    pub(crate) path: String,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// What to do with data.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Report on whole files: lengths, what is cut or not trained, duplicates, leakage, odd text
    Check(CheckArguments),
    /// Print rows as the model will see them, with trained tokens told apart
    Show(ShowArguments),
    /// Print conversations as a chat template writes them, as JSON
    Render(RenderArguments),
    /// Write rows of any file and shape as JSONL of messages
    Convert(ConvertArguments),
}

/// What to convert.
#[derive(Debug, Args)]
pub(crate) struct ConvertArguments {
    /// Files, folders, patterns, or hf://datasets/organisation/name/PATTERN: JSONL, JSON, CSV, TSV, text, Markdown
    #[arg(value_name = "SOURCE", required = true)]
    pub(crate) sources: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "OUT.jsonl")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) rows: RowArguments,
    /// Leave rows out that cannot be used, and count them
    #[arg(long)]
    pub(crate) skip_bad_rows: bool,
}

/// How rows are read, where nothing but names of files is given.
#[derive(Debug, Clone, Args)]
pub(crate) struct RowArguments {
    /// The shape of all rows: messages, sharegpt, alpaca, prompt-completion, preference, prompt, text or tokens
    /// [default: what most rows of a file have]
    #[arg(long, value_name = "SHAPE")]
    pub(crate) shape: Option<String>,
    /// The column that holds a key of the shape, as in --column prompt=question; may be repeated
    #[arg(long = "column", value_name = "KEY=COLUMN")]
    pub(crate) columns: Vec<String>,
    /// Cut text and Markdown into rows of at most so many characters, at headings and paragraphs
    #[arg(long, value_name = "CHARS", value_parser = parse_positive)]
    pub(crate) split: Option<usize>,
}

impl RowArguments {
    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let options = [
            (self.shape.is_some(), "--shape"),
            (!self.columns.is_empty(), "--column"),
            (self.split.is_some(), "--split"),
        ];
        options.into_iter().find_map(|(given, option)| given.then_some(option))
    }
}

/// How rows become tokens.
#[derive(Debug, Clone, Args)]
pub(crate) struct EncoderArguments {
    /// Another chat template than the model's: a name (chatml, llama-3, alpaca, ..) or a Jinja file
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) template: Option<String>,
    /// Which tokens the loss counts [default: assistant]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) train_on: Option<TrainOnKind>,
}

/// Which tokens the loss counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrainOnKind {
    /// Every turn of the assistant
    Assistant,
    /// The assistant's last turn
    Last,
    /// All that follows the prompt
    Completions,
    /// Everything
    All,
}

impl From<TrainOn> for TrainOnKind {
    fn from(train_on: TrainOn) -> Self {
        match train_on {
            TrainOn::Assistant => Self::Assistant,
            TrainOn::Last => Self::Last,
            TrainOn::Completions => Self::Completions,
            TrainOn::All => Self::All,
        }
    }
}

impl From<TrainOnKind> for TrainOn {
    fn from(kind: TrainOnKind) -> Self {
        match kind {
            TrainOnKind::Assistant => Self::Assistant,
            TrainOnKind::Last => Self::Last,
            TrainOnKind::Completions => Self::Completions,
            TrainOnKind::All => Self::All,
        }
    }
}

/// What becomes of a row that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLongKind {
    /// Training stops
    Error,
    /// It is cut
    Truncate,
    /// It is left out
    Skip,
}

impl From<OnLongKind> for OnLong {
    fn from(kind: OnLongKind) -> Self {
        match kind {
            OnLongKind::Error => Self::Error,
            OnLongKind::Truncate => Self::Truncate,
            OnLongKind::Skip => Self::Skip,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 1 when there are errors: rows that training would stop at or learn nothing from."
)]
pub(crate) struct CheckArguments {
    /// The rows to train on: files, folders, patterns, hf://datasets/..; or the configuration of a run, RUN.toml, whose
    /// sources, split, template and lengths are taken unless options say otherwise
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<String>,
    /// The model that is to be trained; without it only what needs no tokens is checked
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) rows: RowArguments,
    #[command(flatten)]
    pub(crate) encoder: EncoderArguments,
    /// The longest row that training will take, in tokens [default: 2048, and never more than the model's context]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) max_length: Option<usize>,
    /// What training will do with longer rows [default: error]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_long: Option<OnLongKind>,
    /// A file with held-out rows, which must not be among those to train on; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) eval: Vec<String>,
    /// Rows of an optimizer step, for the estimate of steps [default: 8]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) batch_size: Option<usize>,
    /// Times that every row is seen, for the estimate of steps [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_epochs)]
    pub(crate) epochs: Option<f64>,
    /// Tokens that training takes in a second, as measured, for the estimate of time [default: the median of
    /// metrics.jsonl in the directory of the run, where there is one]
    #[arg(long, value_name = "N", value_parser = parse_epochs)]
    pub(crate) tokens_per_second: Option<f64>,
    /// Write the report as a web page too, with tokens coloured by weight
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "White space is made visible. Trained tokens are green, or stand in \u{27e6}..\u{27e7} where there \
    are no colours."
)]
pub(crate) struct ShowArguments {
    /// Where the rows are: files, folders, patterns, hf://datasets/..; or the configuration of a run, RUN.toml, whose
    /// sources, model and template are taken
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<String>,
    /// The model that is to be trained; a configuration names its own
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) rows_as: RowArguments,
    #[command(flatten)]
    pub(crate) encoder: EncoderArguments,
    /// Which rows of all files together, from 0: 0,5..8 is 0, 5, 6 and 7
    #[arg(long, value_name = "ROWS", default_value = "0..3", value_delimiter = ',', value_parser = parse_rows)]
    pub(crate) rows: Vec<RowRange>,
}

/// Some rows in sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowRange(pub(crate) std::ops::Range<usize>);

#[derive(Debug, Args)]
pub(crate) struct RenderArguments {
    /// A Jinja file, or the name of a chat template (chatml, llama-3, alpaca, ..)
    #[arg(long, value_name = "T.jinja")]
    pub(crate) template: String,
    /// A JSON list of {"messages", "tools", "add_generation_prompt", "variables"}
    #[arg(long, value_name = "FILE.json")]
    pub(crate) messages: PathBuf,
}

/// Where to compute.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// The processor
    #[default]
    Cpu,
    /// NVIDIA GPUs
    Cuda,
    /// GPUs through Vulkan
    Vulkan,
    /// GPUs through WebGPU
    Webgpu,
    /// Apple GPUs
    Metal,
}

impl BackendKind {
    /// Its name on the command line and in a configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Webgpu => "webgpu",
            Self::Metal => "metal",
        }
    }
}

/// The type of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComputeKind {
    /// The best of the device
    Auto,
    /// bfloat16 operands, f32 sums
    Bf16,
    /// IEEE half operands, f32 sums
    F16,
    /// 32-bit floats
    F32,
}

/// How frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantKind {
    /// As floats
    None,
    /// As 4-bit NormalFloat with quantized scales
    Nf4,
}

fn parse_epochs(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&epochs: &f64| epochs > 0.0 && epochs.is_finite())
        .ok_or("must be above 0".to_owned())
}

/// `5`, or `5..8` without the 8.
fn parse_rows(text: &str) -> Result<RowRange, String> {
    /// More than anybody reads, and few enough to be kept.
    const MOST: usize = 100_000;
    let number = |text: &str| {
        let wrong = |_| format!("{text:?} is no row; write rows as 0,5..8");
        text.trim().parse::<usize>().map_err(wrong)
    };
    let rows = match text.split_once("..") {
        Some((first, end)) => number(first)?..number(end)?,
        None => {
            let row = number(text)?;
            row..row.checked_add(1).ok_or("too large a number")?
        }
    };
    match rows.len() {
        0 => Err(format!("{text} has no rows; the end is not one of them")),
        1..=MOST => Ok(RowRange(rows)),
        _ => Err(format!("at most {MOST} rows")),
    }
}

fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("must be a whole number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Arguments, parse_rows};

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn rows_are_numbers_and_ranges() {
        assert_eq!(parse_rows("5").unwrap().0, 5..6);
        assert_eq!(parse_rows("5..8").unwrap().0, 5..8);
        for wrong in ["", "a", "5..", "8..5", "5..5", "-1", "0..18446744073709551615", "18446744073709551615"]
        {
            assert!(parse_rows(wrong).is_err(), "{wrong}");
        }
    }
}

//! `qlora data check`: a report on whole files.

use std::io::Write as _;
use std::path::Path;

use qlora_core::data::check::{CheckOptions, Severity, check};
use qlora_core::data::{FileFormat, Source, Sources};
use qlora_core::files::atomic;
use qlora_core::hub::ProgressBars;
use qlora_core::train::config::{ConfigError, RunConfig, RunLength};

use crate::arguments::{CheckArguments, EncoderArguments, GlobalOptions};
use crate::failure::Failure;

/// What is checked, and how.
struct Checked {
    train: Sources,
    eval: Option<Sources>,
    model: Option<String>,
    encoder: EncoderArguments,
    options: CheckOptions,
    /// What training does to rows that a check does not.
    left_out: Vec<&'static str>,
}

impl Checked {
    fn of(arguments: &CheckArguments) -> Result<Self, Failure> {
        let given = Self {
            train: sources(&arguments.files),
            eval: (!arguments.eval.is_empty()).then(|| sources(&arguments.eval)),
            model: arguments.model.clone(),
            encoder: arguments.encoder.clone(),
            options: CheckOptions {
                max_length: arguments.max_length,
                rows_per_step: arguments.batch_size.unwrap_or(8),
                epochs: arguments.epochs.unwrap_or(1.0),
                ..CheckOptions::default()
            },
            left_out: Vec::new(),
        };
        match &arguments.files[..] {
            [path] if path.ends_with(".toml") => given.of_run(arguments, Path::new(path)),
            _ => Ok(given),
        }
    }

    /// With what a configuration says wherever an option does not.
    fn of_run(self, arguments: &CheckArguments, path: &Path) -> Result<Self, Failure> {
        let config = RunConfig::from_file(path, &[] as &[&str]).map_err(|error| match error {
            ConfigError::Unreadable { .. } => Failure::from(error),
            mistakes => Failure::Usage(Box::new(mistakes)),
        })?;
        if config.grpo.is_some() {
            let message = "the prompts of a [grpo] run are not rows to imitate, which is what is checked";
            return Err(Failure::usage(format!("{}: {message}", path.display())));
        }
        let (data, train) = (config.data, config.train);
        let repeats = data.train.0.iter().any(|source| source.repeat != 1.0 || source.weight.is_some());
        let left_out = [(data.augmentation.is_some(), "augmentation"), (repeats, "repetition")];
        let max_length = self.options.max_length.or(Some(data.max_length));
        Ok(Self {
            train: data.train,
            options: CheckOptions {
                split: data.eval_split.filter(|_| self.eval.is_none()),
                max_length,
                rows_per_step: arguments.batch_size.unwrap_or(train.batch_size * train.accumulate),
                epochs: arguments.epochs.unwrap_or(match train.length {
                    RunLength::Epochs(epochs) => epochs,
                    RunLength::Steps(_) => 1.0,
                }),
                ..self.options
            },
            eval: self.eval.or(data.eval),
            model: self.model.or(Some(config.model.path)),
            encoder: EncoderArguments {
                template: self.encoder.template.or(data.template),
                train_on: self.encoder.train_on.or(Some(data.train_on.into())),
            },
            left_out: left_out.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect(),
        })
    }
}

/// Files as they were named; a name that tells no format is one of JSONL.
fn sources(names: &[String]) -> Sources {
    let source = |name: &String| {
        let path = Path::new(name);
        let jsonl = path.is_file() && FileFormat::of_name(path).is_none();
        Source { format: jsonl.then_some(FileFormat::Jsonl), ..Source::new(name) }
    };
    Sources(names.iter().map(source).collect())
}

pub(super) fn run(global: &GlobalOptions, arguments: &CheckArguments) -> Result<(), Failure> {
    let Checked { train, eval, model, encoder, options, left_out } = Checked::of(arguments)?;
    let encoder = model.map(|model| super::encoder(&model, &encoder)).transpose()?;
    let report = check(&train, eval.as_ref(), encoder.as_ref(), &options, &mut ProgressBars::new())?;
    for what in left_out {
        eprintln!("{what} of sources is left out: rows are checked once, as they stand");
    }
    if let Some(path) = &arguments.html {
        atomic::write_bytes(path, report.to_html().as_bytes())?;
    }
    let mut out = std::io::stdout().lock();
    if global.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
        if encoder.is_none() {
            writeln!(out, "\ntokens were not looked at: name a model by --model")?;
        }
    }
    let errors: Vec<String> = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| format!("{} {}", finding.rows, finding.summary))
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::message(errors.join("; "))) }
}

//! `qlora data check`: a report on whole files.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use qlora_core::data::check::{CheckOptions, PlannedBatch, PlannedLength, RunPlan, Severity, check};
use qlora_core::data::{OnLong, Sources};
use qlora_core::files::atomic;
use qlora_core::hub::ProgressBars;
use qlora_core::train::config::{PackingKind, RunConfig, RunLength};
use serde_json::Value;

use super::sources::{run_config, sources};
use crate::arguments::{CheckArguments, EncoderArguments, GlobalOptions};
use crate::failure::Failure;

/// The longest row of a run whose configuration does not say.
const MAX_LENGTH: usize = 2048;

/// What is checked, and how.
struct Checked {
    train: Sources,
    eval: Option<Sources>,
    model: Option<String>,
    encoder: EncoderArguments,
    /// That training goes on from.
    adapter: Option<PathBuf>,
    options: CheckOptions,
}

impl Checked {
    fn of(arguments: &CheckArguments) -> Result<Self, Failure> {
        let eval =
            if arguments.eval.is_empty() { None } else { Some(sources(&arguments.eval, &arguments.rows)?) };
        match run_config(&arguments.files, &arguments.rows)? {
            Some(config) => Ok(Self::of_run(arguments, config, eval)),
            None => Ok(Self {
                train: sources(&arguments.files, &arguments.rows)?,
                eval,
                model: arguments.model.clone(),
                encoder: arguments.encoder.clone(),
                adapter: None,
                options: CheckOptions {
                    max_length: arguments.max_length,
                    on_long: arguments.on_long.map_or_else(OnLong::default, OnLong::from),
                    run: planned(arguments, RunPlan::default()),
                    ..CheckOptions::default()
                },
            }),
        }
    }

    /// With what a configuration says wherever an option does not.
    fn of_run(arguments: &CheckArguments, config: RunConfig, eval: Option<Sources>) -> Self {
        let run = planned(arguments, run_plan(&config));
        let data = config.data;
        Self {
            encoder: super::encoder_of_run(&arguments.encoder, &data),
            adapter: config.lora.directory().map(Path::to_owned),
            model: arguments.model.clone().or(Some(config.model.path)),
            options: CheckOptions {
                split: data.eval_split.filter(|_| eval.is_none()),
                max_length: arguments.max_length.or(Some(data.max_length)),
                on_long: arguments.on_long.map_or(data.on_long, OnLong::from),
                on_bad_row: data.on_bad_row,
                mixing: data.mixing.unwrap_or_default(),
                run,
                ..CheckOptions::default()
            },
            train: data.train,
            eval: eval.or(data.eval),
        }
    }

    /// As in training, no row is longer than the model's context.
    fn limit_to(&mut self, context: usize) {
        let wanted = self.options.max_length.unwrap_or(MAX_LENGTH);
        if self.options.max_length.is_some() && wanted > context {
            eprintln!("max_length is {wanted}: lowered to the model's context of {context}");
        }
        self.options.max_length = Some(wanted.min(context));
    }
}

/// What a configuration makes of its rows.
fn run_plan(config: &RunConfig) -> RunPlan {
    let (data, train) = (&config.data, &config.train);
    RunPlan {
        batch: match (train.tokens_per_batch, data.packing.unwrap_or_default()) {
            (None, _) => PlannedBatch::Rows(train.batch_size),
            (Some(tokens), PackingKind::BestFit) => PlannedBatch::BestFit(tokens),
            (Some(tokens), PackingKind::ByLength) => PlannedBatch::ByLength(tokens),
        },
        accumulate: train.accumulate,
        length: match train.length {
            RunLength::Epochs(epochs) => PlannedLength::Epochs(epochs),
            RunLength::Steps(steps) => PlannedLength::Steps(steps),
        },
        tokens_per_second: recorded_speed(&config.output.dir.join("metrics.jsonl")),
    }
}

/// What the options say wherever they do.
fn planned(arguments: &CheckArguments, plan: RunPlan) -> RunPlan {
    let (batch, accumulate) = match arguments.batch_size {
        Some(rows) => (PlannedBatch::Rows(rows), 1),
        None => (plan.batch, plan.accumulate),
    };
    RunPlan {
        batch,
        accumulate,
        length: arguments.epochs.map_or(plan.length, PlannedLength::Epochs),
        tokens_per_second: arguments.tokens_per_second.or(plan.tokens_per_second),
    }
}

/// The median of the steps of an earlier run in the same directory.
fn recorded_speed(metrics: &Path) -> Option<f64> {
    let lines = std::fs::read_to_string(metrics).ok()?;
    let speed = |line| serde_json::from_str::<Value>(line).ok()?.get("tokens_per_s")?.as_f64();
    let mut speeds: Vec<f64> = lines.lines().filter_map(speed).filter(|speed| *speed > 0.0).collect();
    speeds.sort_unstable_by(f64::total_cmp);
    speeds.get(speeds.len() / 2).copied()
}

pub(super) fn run(global: &GlobalOptions, arguments: &CheckArguments) -> Result<(), Failure> {
    let mut checked = Checked::of(arguments)?;
    let encoder = match &checked.model {
        None => None,
        Some(model) => {
            let (encoder, context) = super::encoder(model, &checked.encoder, checked.adapter.as_deref())?;
            checked.limit_to(context);
            Some(encoder)
        }
    };
    let Checked { train, eval, options, .. } = checked;
    let report = check(&train, eval.as_ref(), encoder.as_ref(), &options, &mut ProgressBars::new())?;
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

//! Where a run keeps its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use qlora_files::{Error as FileError, atomic};

use crate::TrainError;
use crate::checkpoint::{CheckpointFolder, FoundCheckpoint};
use crate::config::RunConfig;
use crate::metrics::{MetricsFile, read_metrics};
use crate::report::write_report;
use crate::samples::read_samples;

/// The directory of a run: `config.toml`, `metrics.jsonl`, `report.html` and `checkpoints/`.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
    config: Option<String>,
    settings: BTreeMap<String, String>,
    keep_checkpoints: usize,
    resume: bool,
}

impl RunDirectory {
    /// The directory that a configuration names. With `resume` the run in it goes on, see
    /// [`resuming`](Self::resuming).
    #[must_use]
    pub fn new(config: &RunConfig, resume: bool) -> Self {
        Self {
            config: Some(config.to_toml()),
            settings: config.settings(),
            keep_checkpoints: config.train.keep_checkpoints,
            resume,
            ..Self::without_config(&config.output.dir)
        }
    }

    /// A directory for a new run without a configuration file, of which the newest two checkpoints are kept.
    #[must_use]
    pub fn without_config(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            config: None,
            settings: BTreeMap::new(),
            keep_checkpoints: 2,
            resume: false,
        }
    }

    /// The run in the directory goes on from its newest checkpoint, or starts if it has none. Without this the
    /// directory must not hold a run.
    #[must_use]
    pub fn resuming(self) -> Self {
        Self { resume: true, ..self }
    }

    /// Keeps so many checkpoints, at least 1.
    #[must_use]
    pub fn keeping(self, checkpoints: usize) -> Self {
        Self { keep_checkpoints: checkpoints, ..self }
    }

    /// What decides how training goes, by key: a run is not resumed when any of it has changed.
    #[must_use]
    pub fn with_settings(self, settings: BTreeMap<String, String>) -> Self {
        Self { settings, ..self }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`: the configuration with all defaults written out, where the run has one.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `metrics.jsonl`.
    #[must_use]
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `samples.jsonl`: completions with their rewards, of objectives that have such.
    #[must_use]
    pub fn samples_path(&self) -> PathBuf {
        self.path.join("samples.jsonl")
    }

    /// `report.html`.
    #[must_use]
    pub fn report_path(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// `checkpoints/`.
    #[must_use]
    pub fn checkpoints(&self) -> CheckpointFolder {
        CheckpointFolder::new(self.path.join("checkpoints"), self.keep_checkpoints)
    }

    /// The settings that a checkpoint must share with this run.
    #[must_use]
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// Makes sure that the directory can hold this run, before time is spent on loading a model.
    ///
    /// # Errors
    /// It holds a run already, and this one does not resume it.
    pub fn check(&self) -> Result<(), TrainError> {
        let used = self.metrics_path().exists() || !self.checkpoints().steps()?.is_empty();
        if used && !self.resume { Err(TrainError::OutputExists { path: self.path.clone() }) } else { Ok(()) }
    }

    /// What there is to resume; nothing for a new run.
    pub(crate) fn latest(&self) -> Result<FoundCheckpoint, TrainError> {
        self.check()?;
        if !self.resume {
            return Ok(FoundCheckpoint::default());
        }
        self.checkpoints().recover()?;
        self.checkpoints().latest()
    }

    /// Creates the directory with its configuration, and opens the metrics after `step`.
    pub(crate) fn open(&self, step: u64) -> Result<MetricsFile, TrainError> {
        fs::create_dir_all(&self.path).map_err(FileError::io("create", &self.path))?;
        for path in [self.config_path(), self.metrics_path(), self.samples_path(), self.report_path()] {
            atomic::recover(path)?;
        }
        if let Some(config) = &self.config {
            atomic::write_bytes(self.config_path(), config)?;
        }
        MetricsFile::resume(self.metrics_path(), step)
    }

    pub(crate) fn write_report(&self) -> Result<(), TrainError> {
        let records = read_metrics(self.metrics_path())?;
        let samples = read_samples(self.samples_path())?;
        let (title, config) = (self.path.display().to_string(), self.config.as_deref().unwrap_or_default());
        write_report(self.report_path(), &title, config, &records, &samples)
    }
}

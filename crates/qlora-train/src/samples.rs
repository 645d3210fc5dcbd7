//! `samples.jsonl`: completions with their rewards, one JSON object each.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use qlora_files::{Error as FileError, atomic};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// A completion and what it was worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The optimizer step, from 1.
    pub step: u64,
    /// The prompt, as the model got it.
    pub prompt: String,
    /// What the model wrote.
    pub completion: String,
    /// What each reward gave; `null` where it gave nothing or failed.
    pub rewards: BTreeMap<String, Option<f64>>,
    /// The advantage over its group.
    pub advantage: f64,
    /// Whether the loss leaves it out.
    pub masked: bool,
}

/// The file of samples, created with the first.
#[derive(Debug)]
pub(crate) struct SamplesFile {
    path: PathBuf,
    file: Option<File>,
}

impl SamplesFile {
    /// Goes on after `step`: samples of later steps, which the resumed run makes again, are dropped.
    pub(crate) fn resume(path: PathBuf, step: u64) -> Result<Self, TrainError> {
        let samples = read_samples(&path)?;
        if !samples.is_empty() {
            let kept = samples.iter().filter(|sample| sample.step <= step);
            let text = kept.map(|sample| line(&path, sample)).collect::<Result<String, _>>()?;
            atomic::write_bytes(&path, text)?;
        }
        Ok(Self { path, file: None })
    }

    pub(crate) fn record(&mut self, step: u64, samples: &[SampleRecord]) -> Result<(), TrainError> {
        if samples.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&self.path);
            self.file = Some(file.map_err(FileError::io("open", &self.path))?);
        }
        let lines = samples.iter().map(|sample| line(&self.path, &SampleRecord { step, ..sample.clone() }));
        let text = lines.collect::<Result<String, TrainError>>()?;
        if let Some(file) = &mut self.file {
            file.write_all(text.as_bytes()).map_err(FileError::io("append to", &self.path))?;
        }
        Ok(())
    }
}

/// All samples of a file. An unfinished last line, left by a kill, is dropped; a missing file has none.
///
/// # Errors
/// A finished line is damaged, or the file can't be read.
pub fn read_samples(path: impl AsRef<Path>) -> Result<Vec<SampleRecord>, TrainError> {
    let path = path.as_ref();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(FileError::io("read", path)(source).into()),
    };
    let lines = text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let parsed = lines.enumerate().map(|(index, line)| {
        serde_json::from_slice(line).map_err(|source| TrainError::BadMetrics {
            path: path.to_path_buf(),
            line: index + 1,
            source,
        })
    });
    parsed.collect()
}

fn line(path: &Path, sample: &SampleRecord) -> Result<String, TrainError> {
    let mut line = serde_json::to_string(sample)
        .map_err(|source| FileError::ToJson { path: path.to_path_buf(), source })?;
    line.push('\n');
    Ok(line)
}

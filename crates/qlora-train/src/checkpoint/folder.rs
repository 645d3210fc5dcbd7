//! The checkpoints of a run on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use qlora_files::safetensors::SafetensorsFile;
use qlora_files::{Error as FileError, atomic};
use serde::{Deserialize, Serialize};

use super::moment::NamedMoment;
use super::tensors::{self, NamedTensor};
use super::{Checkpoint, FORMAT, RunState};
use crate::TrainError;

const PREFIX: &str = "step-";
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const OBJECTIVE: &str = "objective.json";
const FIRST: &str = ".exp_avg";
const SECOND: &str = ".exp_avg_sq";

/// A folder of checkpoints, of which the newest few are kept.
#[derive(Clone, Debug)]
pub struct CheckpointFolder {
    path: PathBuf,
    keep: usize,
}

/// The newest checkpoint that can be used, and those that can't.
#[derive(Debug, Default)]
pub struct FoundCheckpoint {
    /// The checkpoint and its directory; `None` if there is none that can be used.
    pub checkpoint: Option<(PathBuf, Checkpoint)>,
    /// Newer checkpoints that were passed over, and why: worth a warning.
    pub passed_over: Vec<TrainError>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    format: u32,
    state: RunState,
    /// SHA-256 of the other files by name.
    files: BTreeMap<String, String>,
}

impl CheckpointFolder {
    /// The checkpoints in a folder, which is created when the first is saved. The newest `keep` stay, at least 1.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, keep: usize) -> Self {
        Self { path: path.into(), keep: keep.max(1) }
    }

    /// Writes a checkpoint, whole or not at all, and then removes the oldest beyond the number to keep. One of the
    /// same step is replaced.
    ///
    /// # Errors
    /// A file or folder can't be written or removed.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf, TrainError> {
        fs::create_dir_all(&self.path).map_err(FileError::io("create", &self.path))?;
        let path = self.path.join(format!("{PREFIX}{}", checkpoint.state.step));
        atomic::write_directory(&path, |folder| {
            let adapter = checkpoint.parameters.iter().map(NamedTensor::entry);
            let first = checkpoint.first_moments.iter().flat_map(|moment| moment.entries(FIRST));
            let second = checkpoint.second_moments.iter().flat_map(|moment| moment.entries(SECOND));
            let mut files = BTreeMap::from([
                (ADAPTER.to_string(), tensors::write(&folder.join(ADAPTER), adapter)?),
                (OPTIMIZER.to_string(), tensors::write(&folder.join(OPTIMIZER), first.chain(second))?),
            ]);
            if let Some(objective) = &checkpoint.objective {
                let path = folder.join(OBJECTIVE);
                atomic::write_bytes(&path, objective)?;
                files.insert(OBJECTIVE.to_string(), tensors::digest(&path)?);
            }
            let state = StateFile { format: FORMAT, state: checkpoint.state.clone(), files };
            Ok::<(), TrainError>(atomic::write_json(folder.join(STATE), &state)?)
        })?;
        self.prune()?;
        Ok(path)
    }

    /// The newest checkpoint that is whole. Damaged ones are passed over, and reported.
    ///
    /// # Errors
    /// The folder can't be listed. A missing folder has no checkpoints.
    pub fn latest(&self) -> Result<FoundCheckpoint, TrainError> {
        let mut found = FoundCheckpoint::default();
        for (_, path) in self.steps()?.into_iter().rev() {
            match load(&path) {
                Ok(checkpoint) => {
                    found.checkpoint = Some((path, checkpoint));
                    break;
                }
                Err(error) => found.passed_over.push(error),
            }
        }
        Ok(found)
    }

    /// The steps of which there are checkpoints, whole or not, and their directories, oldest first.
    ///
    /// # Errors
    /// The folder can't be listed. A missing folder has no checkpoints.
    pub fn steps(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(FileError::io("list", &self.path)(source).into()),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(FileError::io("list", &self.path))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(str::parse);
            if let Some(Ok(step)) = number {
                steps.push((step, entry.path()));
            }
        }
        steps.sort();
        Ok(steps)
    }

    /// Removes the temporaries that a killed process left in the folder.
    ///
    /// # Errors
    /// One can't be removed.
    pub fn recover(&self) -> Result<(), TrainError> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Ok(()) };
        for entry in entries {
            let entry = entry.map_err(FileError::io("list", &self.path))?;
            let name = entry.file_name();
            // `.step-7.tmp-..` and `.step-7.old-..` belong to `step-7`.
            let target =
                name.to_str().and_then(|name| name.strip_prefix('.')).and_then(|name| name.split('.').next());
            if let Some(target) = target.filter(|target| target.starts_with(PREFIX)) {
                atomic::recover(self.path.join(target))?;
            }
        }
        Ok(())
    }

    fn prune(&self) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let surplus = steps.len().saturating_sub(self.keep);
        for (_, path) in &steps[..surplus] {
            fs::remove_dir_all(path).map_err(FileError::io("remove the old checkpoint", path))?;
        }
        Ok(())
    }
}

/// Reads a checkpoint directory and checks it against itself.
fn load(path: &Path) -> Result<Checkpoint, TrainError> {
    let bad = |reason: String| TrainError::BadCheckpoint { path: path.to_path_buf(), reason };
    let read = |result: Result<(), TrainError>| result.map_err(|error| bad(error.to_string()));
    let state: StateFile = atomic::read_json(path.join(STATE)).map_err(|error| bad(error.to_string()))?;
    if state.format != FORMAT {
        return Err(bad(format!("its format is {}, this version reads {FORMAT}", state.format)));
    }
    let objective = state.files.contains_key(OBJECTIVE);
    for name in [ADAPTER, OPTIMIZER].into_iter().chain(objective.then_some(OBJECTIVE)) {
        let mut digest = String::new();
        read(tensors::digest(&path.join(name)).map(|found| digest = found))?;
        if state.files.get(name) != Some(&digest) {
            return Err(bad(format!("{name} is damaged: it differs from what was written")));
        }
    }
    let open = |name: &str| SafetensorsFile::open(path.join(name)).map_err(|error| bad(error.to_string()));
    let optimizer = open(OPTIMIZER)?;
    let moments = |suffix| {
        NamedMoment::read_all(&optimizer, suffix).map_err(|reason| bad(format!("{OPTIMIZER}: {reason}")))
    };
    let checkpoint = Checkpoint {
        state: state.state,
        parameters: NamedTensor::read_all(&open(ADAPTER)?)
            .map_err(|reason| bad(format!("{ADAPTER}: {reason}")))?,
        first_moments: moments(FIRST)?,
        second_moments: moments(SECOND)?,
        objective: match objective {
            true => Some(fs::read_to_string(path.join(OBJECTIVE)).map_err(|error| bad(error.to_string()))?),
            false => None,
        },
    };
    let alike = |moments: &[NamedMoment]| {
        moments.len() == checkpoint.parameters.len()
            && moments.iter().zip(&checkpoint.parameters).all(|(a, b)| a.name == b.name && a.shape == b.shape)
    };
    if !alike(&checkpoint.first_moments) || !alike(&checkpoint.second_moments) {
        return Err(bad(format!("{OPTIMIZER} does not fit {ADAPTER}")));
    }
    Ok(checkpoint)
}

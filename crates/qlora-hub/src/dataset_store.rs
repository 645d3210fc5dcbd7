//! The folder of data sets.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::chain;
use crate::hub::{Hub, Kind, Listing};
use crate::store::{HubAddress, PATIENCE, create_dir, io};
use crate::{Attempt, FetchProgress, HubError, HubId, ModelStore, Outcome};

/// What the repository held when it was asked, beside the folder of its files.
const LISTING: &str = "listing.json";

/// A folder of data sets from the hub.
///
/// Files lie in `<root>/organisation/name[@revision]/<commit>/`. What is there is used without asking the
/// network; so a data set does not change under a run until its folder is removed.
#[derive(Debug, Clone)]
pub struct DatasetStore {
    root: PathBuf,
    hub: Result<HubAddress, String>,
}

impl DatasetStore {
    /// The store of this user: `datasets/` beside the folder of [`ModelStore::from_env`], with the same hub and
    /// the same switches.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when neither `QLORA_HOME` nor `HOME` is set.
    pub fn from_env() -> Result<Self, HubError> {
        let models = ModelStore::from_env()?;
        Ok(Self { root: models.root().with_file_name("datasets"), hub: models.hub })
    }

    /// A store in `root` on the public hub, blind to the environment.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), hub: ModelStore::new("").hub }
    }

    /// The same store with another hub.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        let token = self.hub.ok().and_then(|hub| hub.token);
        self.hub = Ok(HubAddress { endpoint: endpoint.into(), token });
        self
    }

    /// The same store without any access to a network.
    #[must_use]
    pub fn offline(mut self) -> Self {
        self.hub = Err("the store is offline".to_owned());
        self
    }

    /// The paths of all files of a data set: as they were when its folder was made, else as the hub has them now.
    ///
    /// # Errors
    /// [`HubError::NothingWorked`] when there is no folder and the hub can't be asked.
    pub fn file_names(&self, id: &HubId, progress: &mut dyn FetchProgress) -> Result<Vec<String>, HubError> {
        let listing = self.listing(id, progress)?;
        Ok(listing.siblings.into_iter().map(|file| file.rfilename).collect())
    }

    /// The files of a data set whose path in the repository is `wanted`, sorted; those that are not on disk are
    /// downloaded and checked against the announced size and SHA-256.
    ///
    /// # Errors
    /// [`HubError::NothingWorked`] when they are absent and the hub can't be asked; [`HubError::Repository`] when
    /// no file is wanted; the error of the download.
    pub fn fetch(
        &self,
        id: &HubId,
        wanted: &dyn Fn(&str) -> bool,
        progress: &mut dyn FetchProgress,
    ) -> Result<Vec<PathBuf>, HubError> {
        let folder = self.root.join(id.folder());
        if let Some(listing) = stored(&folder)
            && let Some(files) = on_disk(&listing, &folder, wanted)
        {
            tell_left_out(id, &listing, wanted, progress);
            return Ok(files);
        }
        let hub = self.hub(id)?;
        // Further files are those of the commit that is there.
        let listing = self.listing(id, progress)?;
        let _lock = locked(&folder)?;
        tell_left_out(id, &listing, wanted, progress);
        let commit = folder.join(&listing.sha);
        let mut files = Vec::new();
        for file in listing.siblings.iter().filter(|file| is_safe(&file.rfilename) && wanted(&file.rfilename))
        {
            if let Some(parent) = commit.join(&file.rfilename).parent() {
                create_dir(parent)?;
            }
            files.push(hub.download_file(Kind::Dataset, id, &listing, file, &commit, progress)?);
        }
        if files.is_empty() {
            let names: Vec<&str> = listing.siblings.iter().map(|f| f.rfilename.as_str()).take(20).collect();
            return Err(HubError::Repository {
                place: format!("datasets/{id}"),
                problem: format!("no data file fits; the repository has {}", names.join(", ")),
            });
        }
        files.sort_unstable();
        Ok(files)
    }

    /// What the data set held when its folder was made; asked and written down when there is none.
    fn listing(&self, id: &HubId, progress: &mut dyn FetchProgress) -> Result<Listing, HubError> {
        let folder = self.root.join(id.folder());
        if let Some(listing) = stored(&folder) {
            return Ok(listing);
        }
        let hub = self.hub(id)?;
        create_dir(&folder)?;
        let _lock = locked(&folder)?;
        progress.message(&format!("asking the {}", source(id)));
        let listing = hub
            .listing(Kind::Dataset, id)
            .map_err(|error| nothing_worked(id, Outcome::Failed(chain(&error))))?;
        write_listing(&listing, &folder)?;
        Ok(listing)
    }

    fn hub(&self, id: &HubId) -> Result<Hub, HubError> {
        let address =
            self.hub.as_ref().map_err(|reason| nothing_worked(id, Outcome::Skipped(reason.clone())))?;
        Ok(Hub::new(&address.endpoint, address.token.clone(), PATIENCE))
    }
}

fn source(id: &HubId) -> String {
    format!("Hugging Face hub, the data set {id}")
}

fn nothing_worked(id: &HubId, outcome: Outcome) -> HubError {
    HubError::NothingWorked {
        name: format!("datasets/{id}"),
        attempts: vec![Attempt { source: source(id), outcome }],
    }
}

fn stored(folder: &Path) -> Option<Listing> {
    let bytes = std::fs::read(folder.join(LISTING)).ok()?;
    serde_json::from_slice::<Listing>(&bytes).ok().filter(|listing| is_commit(&listing.sha))
}

/// Nobody else fetches while the file lives.
fn locked(folder: &Path) -> Result<File, HubError> {
    let path = folder.join(".lock");
    let lock = File::create(&path).map_err(io("create", &path))?;
    lock.lock().map_err(io("lock", &path))?;
    Ok(lock)
}

fn tell_left_out(
    id: &HubId,
    listing: &Listing,
    wanted: &dyn Fn(&str) -> bool,
    progress: &mut dyn FetchProgress,
) {
    let names = listing.siblings.iter().map(|file| &file.rfilename);
    for name in names.filter(|name| wanted(name) && !is_safe(name)) {
        progress.message(&format!("{id}: {name:?} is left out: no file can have this name"));
    }
}

/// The wanted files, when there are some and none is missing.
fn on_disk(listing: &Listing, folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<Vec<PathBuf>> {
    let commit = folder.join(&listing.sha);
    let names = listing.siblings.iter().map(|file| &file.rfilename);
    let mut files: Vec<PathBuf> =
        names.filter(|name| is_safe(name) && wanted(name)).map(|name| commit.join(name)).collect();
    files.sort_unstable();
    (!files.is_empty() && files.iter().all(|file| file.is_file())).then_some(files)
}

fn write_listing(listing: &Listing, folder: &Path) -> Result<(), HubError> {
    let path = folder.join(LISTING);
    let bytes = serde_json::to_vec(listing).map_err(|error| io("write", &path)(error.into()))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io("create a file in", folder))?;
    std::io::Write::write_all(&mut file, &bytes).map_err(io("write", &path))?;
    file.persist(&path).map_err(|error| io("write", &path)(error.error))?;
    Ok(())
}

fn is_commit(text: &str) -> bool {
    text.len() >= 7 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A path that stays in its folder and that every system can have.
fn is_safe(path: &str) -> bool {
    path.split('/').all(|part| {
        (1..=255).contains(&part.len())
            && !part.starts_with('.')
            && !part.contains(|c: char| c.is_control() || r#"\:*?"<>|"#.contains(c))
    })
}

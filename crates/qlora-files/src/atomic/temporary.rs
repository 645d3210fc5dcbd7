//! Names beside a target that no other writer uses, and their removal when a write fails.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Marks a file or directory that is still being written.
pub(crate) const WRITING: &str = ".tmp-";
/// Marks a directory that is being replaced.
pub(crate) const REPLACED: &str = ".old-";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The folder of a path and the name in it; the folder of a bare name is `.`.
pub(crate) fn split(path: &Path) -> Result<(&Path, &OsStr), Error> {
    let name = path.file_name().ok_or_else(|| Error::NoFileName { path: path.to_path_buf() })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((folder, name))
}

/// The start of every temporary name of `name` with this marker: `.name.tmp-`.
pub(crate) fn prefix(name: &OsStr, marker: &str) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(marker);
    prefix
}

/// A name beside `path`, new in this process.
pub(crate) fn beside(path: &Path, marker: &str) -> Result<PathBuf, Error> {
    let (folder, name) = split(path)?;
    let mut unique = prefix(name, marker);
    unique.push(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(folder.join(unique))
}

/// Removes a temporary file or directory when dropped, unless it was renamed away: also when a panic unwinds.
pub(crate) struct Temporary {
    path: PathBuf,
    in_place: bool,
}

impl Temporary {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, in_place: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the temporary its final name.
    pub(crate) fn rename(mut self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(Error::io("rename the finished copy to", target))?;
        self.in_place = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.in_place {
            // The write has already failed; a temporary that can't be removed either is left to `recover`.
            let _ =
                if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
        }
    }
}

/// Makes renames and new names in a folder survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    // Elsewhere a directory can't be opened as a file, and the rename itself is journalled.
    if cfg!(unix) {
        fs::File::open(folder)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("flush the folder", folder))?;
    }
    Ok(())
}

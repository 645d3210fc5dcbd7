//! A whole directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::temporary::{REPLACED, Temporary, WRITING, beside, prefix, split, sync_folder};
use crate::Error;

/// Builds a directory under a temporary name beside `path`, flushes every file in it, and renames it into place.
///
/// `build` gets the temporary directory, empty, and fills it. When it fails or panics, the temporary is removed
/// and an existing directory is left as it was. An existing directory is replaced as a whole: it is moved aside,
/// the new one gets its name, then the old one is removed; if the second rename fails the old one is put back.
/// A kill between the two renames is repaired by [`recover`].
///
/// # Errors
/// The path has no name or is a file, the folder can't be written, or `build` returns an error.
pub fn write_directory<E: From<Error>>(
    path: impl AsRef<Path>,
    build: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let path = path.as_ref();
    let temporary = create_beside(path)?;
    build(temporary.path())?;
    sync_tree(temporary.path())?;
    Ok(swap(temporary, path)?)
}

/// Puts right what a killed process left of its writes to `path`: removes unfinished temporaries, and gives the
/// replaced directory its name back if the kill fell between the two renames of [`write_directory`].
///
/// Only for a target that no other process is writing at the moment. A missing folder is fine.
///
/// # Errors
/// A leftover can't be removed or renamed.
pub fn recover(path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    let (folder, name) = split(path)?;
    let unfinished = prefix(name, WRITING);
    let replaced = prefix(name, REPLACED);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io("list", folder)(source)),
    };
    for entry in entries {
        let leftover = entry.map_err(Error::io("list", folder))?;
        let leftover_name = leftover.file_name();
        let starts_with = |prefix: &std::ffi::OsStr| {
            leftover_name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
        };
        if starts_with(&replaced) && !path.exists() {
            fs::rename(leftover.path(), path).map_err(Error::io("restore", path))?;
        } else if starts_with(&replaced) || starts_with(&unfinished) {
            remove(&leftover.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        .map_err(Error::io("remove the leftover", path))
}

fn create_beside(path: &Path) -> Result<Temporary, Error> {
    loop {
        let name = beside(path, WRITING)?;
        match fs::create_dir(&name) {
            Ok(()) => return Ok(Temporary::new(name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::io("create a directory beside", path)(source)),
        }
    }
}

/// Flushes all files below a directory, then the directories that name them.
fn sync_tree(directory: &Path) -> Result<(), Error> {
    let mut pending = vec![directory.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(Error::io("inspect", &path))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                // Flushing needs write access on some systems.
                fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.sync_all())
                    .map_err(Error::io("flush to disk", &path))?;
            }
        }
        sync_folder(&folder)?;
    }
    Ok(())
}

fn swap(temporary: Temporary, path: &Path) -> Result<(), Error> {
    let (folder, _) = split(path)?;
    let replaced = set_aside(path)?;
    if let Err(error) = temporary.rename(path) {
        if let Some(replaced) = &replaced {
            fs::rename(replaced, path).map_err(Error::io("put back", path))?;
        }
        return Err(error);
    }
    sync_folder(folder)?;
    match replaced {
        Some(replaced) => {
            fs::remove_dir_all(&replaced).map_err(Error::io("remove the replaced copy", &replaced))
        }
        None => Ok(()),
    }
}

/// Moves an existing target away, so that the rename of the new one can't meet a full directory.
fn set_aside(path: &Path) -> Result<Option<PathBuf>, Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("inspect", path)(source)),
        Ok(metadata) if !metadata.is_dir() => Err(Error::NotADirectory { path: path.to_path_buf() }),
        Ok(_) => {
            let aside = beside(path, REPLACED)?;
            fs::rename(path, &aside).map_err(Error::io("move aside", path))?;
            Ok(Some(aside))
        }
    }
}

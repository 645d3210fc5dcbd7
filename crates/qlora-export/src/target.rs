//! Where an export goes: names that must be free, what a killed export left beside them, folders that must exist,
//! room on the disk.

use std::io::{self, Write};
use std::path::Path;

use qlora_files::atomic::recover;
use qlora_files::require_space;

use crate::ExportError;

/// A directory is replaced as a whole: one with files in it may be the source, or somebody's work.
pub(crate) fn check_directory(directory: &Path, bytes: u64) -> Result<(), ExportError> {
    recover(directory)?;
    let is_full = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => return Err(qlora_files::Error::io("list", directory)(source).into()),
    };
    if is_full {
        return Err(ExportError::NotEmpty { path: directory.to_owned() });
    }
    Ok(require_space(directory, bytes)?)
}

/// Refuses a name that is taken.
pub(crate) fn check_file(path: &Path, bytes: u64) -> Result<(), ExportError> {
    recover(path)?;
    if path.symlink_metadata().is_ok() {
        return Err(ExportError::Exists { path: path.to_owned() });
    }
    Ok(require_space(path, bytes)?)
}

/// As [`check_directory`], and makes the folders above.
pub(crate) fn prepare_directory(directory: &Path, bytes: u64) -> Result<(), ExportError> {
    check_directory(directory, bytes)?;
    create_parent(directory)
}

/// As [`check_file`], and makes the folders above.
pub(crate) fn prepare_file(path: &Path, bytes: u64) -> Result<(), ExportError> {
    check_file(path, bytes)?;
    create_parent(path)
}

fn create_parent(path: &Path) -> Result<(), ExportError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(qlora_files::Error::io("create", parent))?;
    }
    Ok(())
}

/// Lets `write` fail with an error of ours where a writer of files takes only those of the system.
pub(crate) fn write_tensors<R>(
    write: &mut dyn FnMut(usize, &mut dyn Write) -> Result<(), ExportError>,
    write_file: impl FnOnce(
        &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<R, qlora_files::Error>,
) -> Result<R, ExportError> {
    let mut failure = None;
    let written = write_file(&mut |index, file| {
        write(index, file).map_err(|error| {
            failure = Some(error);
            io::Error::other("the tensor was not written")
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

//! One file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::temporary::{Temporary, WRITING, beside, split, sync_folder};
use crate::Error;

const BUFFER: usize = 1 << 20;

/// Writes a file through a temporary name in the same folder: written, flushed to the disk, renamed, the folder
/// flushed. When `write` fails or panics the temporary is removed and an existing file is left as it was.
///
/// The folder must exist. A symbolic link at `path` is replaced, not followed.
///
/// # Errors
/// The path has no file name, the folder can't be written, or `write` returns an error.
pub fn write_file(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Error> {
    let path = path.as_ref();
    let (folder, _) = split(path)?;
    let (file, temporary) = create_beside(path)?;
    let mut writer = BufWriter::with_capacity(BUFFER, file);
    write(&mut writer).and_then(|()| writer.flush()).map_err(Error::io("write", path))?;
    writer.get_ref().sync_all().map_err(Error::io("flush to disk", path))?;
    drop(writer);
    temporary.rename(path)?;
    sync_folder(folder)
}

/// [`write_file`] of a ready buffer.
///
/// # Errors
/// As [`write_file`].
pub fn write_bytes(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    write_file(path, |file| file.write_all(bytes.as_ref()))
}

/// [`write_file`] of a value as indented JSON with a final newline.
///
/// # Errors
/// As [`write_file`], and when the value can't be JSON (a map with non-string keys).
pub fn write_json(path: impl AsRef<Path>, value: &impl Serialize) -> Result<(), Error> {
    let path = path.as_ref();
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| Error::ToJson { path: path.to_path_buf(), source })?;
    text.push(b'\n');
    write_bytes(path, text)
}

/// Reads a JSON file into a type.
///
/// # Errors
/// The file can't be read, is no JSON, or does not fit the type; the message has the line and column.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, Error> {
    let path = path.as_ref();
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|source| Error::FromJson { path: path.to_path_buf(), source })
}

/// A new file under a temporary name. A stale temporary of an earlier process with the same id is stepped over.
fn create_beside(path: &Path) -> Result<(File, Temporary), Error> {
    loop {
        let name = beside(path, WRITING)?;
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Ok(file) => return Ok((file, Temporary::new(name))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(Error::Io {
                    operation: "create a file beside",
                    path: path.to_path_buf(),
                    source,
                });
            }
        }
    }
}

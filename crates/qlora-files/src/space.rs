//! Room on the disk, asked before gigabytes are written.

use std::path::Path;

use crate::Error;

/// Fails when the file system of `path` has not `bytes` free. `path` need not exist yet: the nearest folder above
/// it that does is asked.
///
/// # Errors
/// [`Error::NoSpace`], or when the file system cannot be asked.
pub fn require_space(path: impl AsRef<Path>, bytes: u64) -> Result<(), Error> {
    let path = path.as_ref();
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let available =
        fs4::available_space(existing).map_err(Error::io("ask for the free space of", existing))?;
    if available < bytes {
        return Err(Error::NoSpace { path: path.to_path_buf(), needed: bytes, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_disk_holds_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/model.gguf");
        require_space(&path, 1).unwrap();
        let error = require_space(&path, u64::MAX).unwrap_err();
        let Error::NoSpace { needed: u64::MAX, available, .. } = error else { panic!("{error}") };
        assert!(available > 0);
        let message = error.to_string();
        assert!(message.contains("model.gguf needs 18446744073.7 GB"), "{message}");
        assert!(!path.exists());
    }
}

//! Whole or not at all: what is under a name after success, failure, panic and an unlucky kill.

use std::fs;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use qlora_files::Error;
use qlora_files::atomic::{recover, write_bytes, write_directory, write_file, write_json};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_created_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    write_json(&path, &vec![1, 2]).unwrap();
    write_json(&path, &vec![3]).unwrap();
    assert_eq!(qlora_files::atomic::read_json::<Vec<u8>>(&path).unwrap(), [3]);
    assert_eq!(names(folder.path()), ["state.json"]);
}

#[test]
fn a_failed_or_panicking_write_leaves_the_old_file_and_no_temporary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write_bytes(&path, "old").unwrap();
    let error = write_file(&path, |file| {
        file.write_all(b"half")?;
        Err(io::Error::other("disk on fire"))
    })
    .unwrap_err();
    assert_eq!(error.to_string(), format!("cannot write {}: disk on fire", path.display()));
    let panicked = catch_unwind(AssertUnwindSafe(|| write_file(&path, |_| panic!("unwinds"))));
    assert!(panicked.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["f"]);
}

#[test]
fn errors_name_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent/f");
    let error = write_bytes(&absent, "").unwrap_err();
    assert!(error.to_string().contains("absent/f"), "{error}");
    assert!(matches!(write_bytes("/", "").unwrap_err(), Error::NoFileName { .. }));
    let file = folder.path().join("file");
    write_bytes(&file, "x").unwrap();
    let error = write_directory(&file, |_| Ok::<(), Error>(())).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }));
    assert_eq!(fs::read(&file).unwrap(), b"x");
    assert_eq!(names(folder.path()), ["file"]);
}

fn fill(path: &Path, content: &str) -> Result<(), Error> {
    write_directory(path, |folder| {
        fs::create_dir(folder.join("inner")).map_err(Error::io("create", folder))?;
        write_bytes(folder.join("inner/file"), content)
    })
}

#[test]
fn a_directory_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-1");
    fill(&path, "old").unwrap();
    write_bytes(path.join("only in the old one"), "").unwrap();
    fill(&path, "new").unwrap();
    assert_eq!(fs::read(path.join("inner/file")).unwrap(), b"new");
    assert_eq!(names(&path), ["inner"]);
    assert_eq!(names(folder.path()), ["step-1"]);
}

#[test]
fn a_failed_or_panicking_build_leaves_the_old_directory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-1");
    fill(&path, "old").unwrap();
    let error = write_directory(&path, |folder| {
        write_bytes(folder.join("half"), "x")?;
        Err(Error::io("build", folder)(io::Error::other("stop")))
    });
    assert!(error.is_err());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        write_directory(&path, |folder| {
            write_bytes(folder.join("half"), "x").unwrap();
            if folder.exists() {
                panic!("unwinds");
            }
            Ok::<(), Error>(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(fs::read(path.join("inner/file")).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["step-1"]);
}

#[test]
fn what_a_kill_leaves_is_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    // Killed between the two renames: the old directory is aside, the new one still temporary.
    fill(&folder.path().join(".adapter.old-7-1"), "old").unwrap();
    fill(&folder.path().join(".adapter.tmp-7-0"), "new").unwrap();
    // Another target's temporary is none of our business.
    fill(&folder.path().join(".adapter2.tmp-7-2"), "other").unwrap();
    recover(&path).unwrap();
    assert_eq!(fs::read(path.join("inner/file")).unwrap(), b"old");
    assert_eq!(names(folder.path()), [".adapter2.tmp-7-2", "adapter"]);

    // Killed before the removal of the replaced one: the new one stays.
    fill(&folder.path().join(".adapter.old-7-3"), "older").unwrap();
    recover(&path).unwrap();
    assert_eq!(fs::read(path.join("inner/file")).unwrap(), b"old");
    assert_eq!(names(folder.path()), [".adapter2.tmp-7-2", "adapter"]);

    recover(folder.path().join("no/such/folder")).unwrap();
}

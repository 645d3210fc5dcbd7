//! Which files of a data set of the hub are meant.

use crate::{FileFormat, glob};
use qlora_hub::HubId;
use std::collections::BTreeSet;
use std::path::Path;

/// `organisation/name[@revision][/PATTERN]`. A revision ends at the next slash, but for the hub's own, `refs/pr/N` and
/// `refs/convert/NAME`; in others slashes are written `%2F`.
pub(crate) fn parse(text: &str) -> Option<(HubId, &str)> {
    let (organisation, rest) = text.split_once('/')?;
    let (name, rest) = rest.split_at(rest.find(['/', '@']).unwrap_or(rest.len()));
    let (revision, pattern) = match rest.strip_prefix('@') {
        None => (String::new(), rest),
        Some(rest) => {
            let is_ref = ["refs/convert/", "refs/pr/"].iter().any(|start| rest.starts_with(start));
            let end =
                rest.match_indices('/').nth(if is_ref { 2 } else { 0 }).map_or(rest.len(), |(at, _)| at);
            (format!("@{}", rest[..end].replace("%2F", "/")), &rest[end..])
        }
    };
    let id = HubId::parse(&format!("{organisation}/{name}{revision}"))?;
    Some((id, pattern.strip_prefix('/').unwrap_or("")))
}

/// Whether a pattern names a folder: the whole data set, or a part of it.
pub(crate) fn is_folder(pattern: &str) -> bool {
    !glob::is_pattern(pattern) && FileFormat::of_name(Path::new(pattern)).is_none()
}

/// The files that a pattern means, and of a folder those to train on.
///
/// # Errors
/// What is wrong, when a folder has several configurations, or nothing to train on.
pub(crate) fn choose<'a>(
    names: &'a [String],
    pattern: &str,
    format: Option<FileFormat>,
) -> Result<Vec<&'a str>, String> {
    let named = |name: &&str| *name == pattern || glob::is_pattern(pattern) && glob::matches(pattern, name);
    let found: Vec<&str> = names.iter().map(String::as_str).filter(named).collect();
    if !found.is_empty() || glob::is_pattern(pattern) {
        return Ok(found);
    }
    let folder = pattern.trim_end_matches('/');
    let below = |name: &&str| {
        folder.is_empty() || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    let is_data = |name: &&str| {
        let told = FileFormat::of_name(Path::new(name));
        match format {
            Some(format) => told == Some(format),
            None => told.is_some_and(|told| !told.is_document()),
        }
    };
    to_train_on(names.iter().map(String::as_str).filter(below).filter(is_data).collect(), folder)
}

/// What the names of data sets call their splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Split {
    Train,
    Validation,
    Test,
}

/// The split that a name tells, by a word of it, and the folders before that word: a configuration.
fn split_of(name: &str) -> Option<(Split, String)> {
    let parts: Vec<&str> = name.split('/').collect();
    let (index, split) = parts.iter().enumerate().rev().find_map(|(index, part)| {
        let mut words = part.split(|c: char| !c.is_ascii_alphabetic());
        Some((index, words.find_map(split_word)?))
    })?;
    let folders: Vec<&str> = parts[..index].iter().copied().filter(|part| *part != "data").collect();
    Some((split, folders.join("/")))
}

fn split_word(word: &str) -> Option<Split> {
    match word.to_ascii_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "validation" | "valid" | "val" | "dev" => Some(Split::Validation),
        "test" | "testing" | "eval" | "evaluation" => Some(Split::Test),
        _ => None,
    }
}

fn to_train_on<'a>(files: Vec<&'a str>, folder: &str) -> Result<Vec<&'a str>, String> {
    let splits: Vec<Option<(Split, String)>> = files.iter().map(|name| split_of(name)).collect();
    let told: BTreeSet<Split> = splits.iter().flatten().map(|(split, _)| *split).collect();
    let is_untold = splits.iter().any(Option::is_none);
    // Files for training, else those that are for nothing else, else those of the only split that there is.
    let wanted = match told.first() {
        Some(Split::Train) => Some(Split::Train),
        Some(_) if is_untold => None,
        Some(split) if told.len() == 1 => Some(*split),
        Some(_) => {
            return Err(
                "no file is for training, and there are some for validation and for testing; name the files \
                        by a pattern"
                    .to_owned(),
            );
        }
        None => None,
    };
    let is_wanted = |split: &Option<(Split, String)>| split.as_ref().map(|(split, _)| *split) == wanted;
    let chosen = || splits.iter().zip(&files).filter(|(split, _)| is_wanted(split));
    let configurations: BTreeSet<&str> =
        chosen().filter_map(|(split, _)| split.as_ref()).map(|(_, folders)| folders.as_str()).collect();
    if configurations.len() > 1 {
        let names: Vec<&str> =
            configurations.into_iter().map(|name| if name.is_empty() { folder } else { name }).collect();
        return Err(format!(
            "there are several configurations: {}; name the folder of one of them, or files by a pattern",
            names.join(", ")
        ));
    }
    Ok(chosen().map(|(_, name)| *name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_may_have_slashes() {
        for (text, id, pattern) in [
            ("o/n", "o/n", ""),
            ("o/n/data/*.csv", "o/n", "data/*.csv"),
            ("o/n@v1/data", "o/n@v1", "data"),
            (
                "o/n@refs/convert/parquet/default/train/0000.parquet",
                "o/n@refs/convert/parquet",
                "default/train/0000.parquet",
            ),
            ("o/n@refs/pr/3", "o/n@refs/pr/3", ""),
            ("o/n@a%2Fb/x@y.csv", "o/n@a/b", "x@y.csv"),
            ("o/n/x@y.csv", "o/n", "x@y.csv"),
        ] {
            let (found, rest) = parse(text).unwrap();
            assert_eq!((found.to_string().as_str(), rest), (id, pattern), "{text}");
        }
        assert!(parse("squad").is_none() && parse("o/n@../x").is_none());
    }

    fn chosen(names: &[&str], pattern: &str) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        choose(&names, pattern, None).map(|found| found.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn of_a_whole_data_set_the_train_split_is_meant() {
        let shards = ["README.md", "data/train-0-of-1.parquet", "data/test-0-of-1.parquet"];
        assert_eq!(chosen(&shards, "").unwrap(), [shards[1]]);
        assert_eq!(chosen(&shards, "data").unwrap(), [shards[1]]);
        assert_eq!(chosen(&shards, "data/test-*").unwrap(), [shards[2]]);
        assert_eq!(chosen(&shards, "README.md").unwrap(), [shards[0]]);
        assert_eq!(chosen(&["train.jsonl", "valid.jsonl"], "").unwrap(), ["train.jsonl"]);
        assert_eq!(chosen(&["train/a/1.csv", "train/b/1.csv", "dev/1.csv"], "").unwrap().len(), 2);
        // Names that tell nothing, and those beside what is for testing.
        assert_eq!(chosen(&["a.jsonl", "b/c.jsonl"], "").unwrap().len(), 2);
        assert_eq!(chosen(&["contest.jsonl", "test.jsonl"], "").unwrap(), ["contest.jsonl"]);
        assert_eq!(chosen(&["x_test.jsonl"], "").unwrap(), ["x_test.jsonl"]);
        assert!(chosen(&["val.csv", "test.csv"], "").unwrap_err().contains("no file is for training"));
        assert!(chosen(&["README.md"], "").unwrap().is_empty());
    }

    #[test]
    fn several_configurations_are_told() {
        let names = ["main/train-0.parquet", "main/test-0.parquet", "socratic/train-0.parquet"];
        let problem = chosen(&names, "").unwrap_err();
        assert!(problem.starts_with("there are several configurations: main, socratic; name"), "{problem}");
        assert_eq!(chosen(&names, "main").unwrap(), [names[0]]);
        assert_eq!(chosen(&names, "**/train-*").unwrap(), [names[0], names[2]]);
        let converted = ["default/train/0000.parquet", "default/test/0000.parquet"];
        assert_eq!(chosen(&converted, "").unwrap(), [converted[0]]);
    }
}

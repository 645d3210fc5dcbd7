//! Where rows come from, and the files that this means.

use crate::{ColumnTemplate, Error, FileFormat, RowShape, TextSplit, glob, hub_files};
use qlora_hub::{DatasetStore, FetchProgress};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that hold rows of one kind, and how they are read.
///
/// In a configuration a source is a path, or a table:
///
/// ```toml
/// train = ["data/a.jsonl", { path = "hf://datasets/openai/gsm8k/main/train-*.parquet",
///                            columns = { prompt = "question", completion = "answer" } }]
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A file, a folder (with all files below it), a pattern with `*`, `?` and `**`, or
    /// `hf://datasets/organisation/name[@revision]/PATTERN`. Of a data set of the hub, or a folder of it, the files of
    /// the train split are meant, where names tell splits.
    pub path: String,
    /// How the files hold their rows; by default what their names end in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// The shape of all rows; by default found out, and a file that mixes shapes is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<RowShape>,
    /// The key of a shape, and the column that holds it: `{prompt = "question"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// The key of a shape, and the text that makes it from columns: `{prompt = "Title: {title}[[\n{body}]]"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub template: BTreeMap<String, ColumnTemplate>,
    /// How documents (text, Markdown) are cut into rows; by default a file is a row. Refused for other formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<TextSplit>,
    /// How many times the rows stand in an epoch. Of a fraction, that share of the rows is chosen by the seed.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub repeat: f64,
    /// Instead of `repeat`: how many of an epoch's rows come from here, in relation to the weights of the other
    /// sources, which all have one then; see [`Mixing`](crate::Mixing).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

fn once() -> f64 {
    1.0
}

fn is_once(repeat: &f64) -> bool {
    *repeat == 1.0
}

impl Source {
    /// With everything found out from the files.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            format: None,
            shape: None,
            columns: BTreeMap::new(),
            template: BTreeMap::new(),
            split: None,
            repeat: 1.0,
            weight: None,
        }
    }

    /// Whether everything but the path is found out from the files.
    fn is_plain(&self) -> bool {
        *self == Self::new(&*self.path)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Option`] for the first that means nothing.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |option, found: String, expected| Err(Error::Option { option, found, expected });
        let positive = |number: f64| number > 0.0 && number.is_finite();
        if self.path.is_empty() {
            return wrong("path", "empty".into(), "a file, a folder, a pattern or hf://datasets/..");
        }
        if !positive(self.repeat) {
            return wrong("repeat", self.repeat.to_string(), "a number above 0");
        }
        match self.weight {
            Some(weight) if !positive(weight) => wrong("weight", weight.to_string(), "a number above 0"),
            Some(weight) if !is_once(&self.repeat) => {
                wrong("weight", weight.to_string(), "nothing beside `repeat`: remove one of the two")
            }
            _ if self.split.is_some_and(|split| split.max_chars == 0) => {
                wrong("split.max_chars", "0".into(), "at least 1")
            }
            _ if self.split.is_some() && self.format.is_some_and(|format| !format.is_document()) => wrong(
                "split",
                format!("given for {} files", self.format.map_or(String::new(), |format| format.to_string())),
                "it for text or markdown only: rows of other formats stay whole",
            ),
            _ => Ok(()),
        }
    }
}

/// One or several sources: in a configuration a path, a table, or a list of these. Prints as the paths.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "AsTyped")]
pub struct Sources(pub Vec<Source>);

impl Sources {
    /// Checks the settings of each, and that they go together.
    ///
    /// # Errors
    /// [`Error::Option`] for the first that means nothing.
    pub fn check(&self) -> Result<(), Error> {
        if self.0.is_empty() {
            return Err(Error::Option { option: "sources", found: "empty".into(), expected: "a source" });
        }
        self.0.iter().try_for_each(Source::check)?;
        let weighted = self.0.iter().filter(|source| source.weight.is_some()).count();
        if weighted != 0 && weighted != self.0.len() {
            return Err(Error::Option {
                option: "weight",
                found: format!("given for {weighted} of {} sources", self.0.len()),
                expected: "a weight for each source, or for none",
            });
        }
        Ok(())
    }

    /// The path, if there is one source and nothing but a path is known of it.
    #[must_use]
    pub fn plain_path(&self) -> Option<&str> {
        match &self.0[..] {
            [source] if source.is_plain() => Some(&source.path),
            _ => None,
        }
    }
}

/// As short as it was typed: a source of which only the path was given is its path.
impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(path) = self.plain_path() {
            return serializer.serialize_str(path);
        }
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for source in &self.0 {
            if source.is_plain() {
                list.serialize_element(&source.path)?;
            } else {
                list.serialize_element(source)?;
            }
        }
        list.end()
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<&str> = self.0.iter().map(|source| &*source.path).collect();
        f.write_str(&paths.join(", "))
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path, a table with `path`, or a list of these")]
enum AsTyped {
    One(PathOrSource),
    Many(Vec<PathOrSource>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path, or a table with `path` and no unknown keys")]
enum PathOrSource {
    Path(String),
    Source(Source),
}

impl From<AsTyped> for Sources {
    fn from(typed: AsTyped) -> Self {
        let source = |typed| match typed {
            PathOrSource::Path(path) => Source::new(path),
            PathOrSource::Source(source) => source,
        };
        Self(match typed {
            AsTyped::One(one) => vec![source(one)],
            AsTyped::Many(many) => many.into_iter().map(source).collect(),
        })
    }
}

impl From<&str> for Sources {
    fn from(path: &str) -> Self {
        Self(vec![Source::new(path)])
    }
}

impl From<String> for Sources {
    fn from(path: String) -> Self {
        Self(vec![Source::new(path)])
    }
}

impl From<Source> for Sources {
    fn from(source: Source) -> Self {
        Self(vec![source])
    }
}

/// One file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// The file, on this machine.
    pub path: PathBuf,
    /// How it holds its rows.
    pub format: FileFormat,
}

const HUB: &str = "hf://datasets/";
/// Folders in folders: more is a link to itself.
const MAX_DEPTH: usize = 32;

impl Source {
    /// The files, sorted by name; those of the hub are fetched unless they are there.
    ///
    /// # Errors
    /// [`Error::Source`] when there is none, or a format can't be told; [`Error::Hub`].
    pub fn files(&self, progress: &mut dyn FetchProgress) -> Result<Vec<SourceFile>, Error> {
        let (found, whole_folder) = if let Some(rest) = self.path.strip_prefix(HUB) {
            self.hub_files(rest, progress)?
        } else if self.path.contains("://") {
            return Err(self.wrong("only paths and hf://datasets/.. are read; download the file first"));
        } else {
            self.local_files()?
        };
        let mut files = Vec::new();
        for path in found {
            match (FileFormat::of_name(&path), self.format) {
                // In a folder a named format chooses; a file that is named is what the format says.
                (told, Some(format)) if !whole_folder || told == Some(format) => {
                    files.push(SourceFile { path, format });
                }
                (Some(format), None) => files.push(SourceFile { path, format }),
                (None, None) if !whole_folder => {
                    return Err(self.wrong(format!(
                        "the name of {} does not tell its format; set `format` to jsonl, json, csv, tsv, parquet, text \
                         or markdown",
                        path.display()
                    )));
                }
                _ => {}
            }
        }
        if files.is_empty() {
            return Err(self.wrong("there are no data files"));
        }
        let formats: BTreeSet<FileFormat> = files.iter().map(|file| file.format).collect();
        if whole_folder && formats.len() > 1 {
            let formats: Vec<String> = formats.iter().map(FileFormat::to_string).collect();
            return Err(self.wrong(format!(
                "the folder has files of the formats {}; set `format`, or name files by a pattern",
                formats.join(", ")
            )));
        }
        if self.split.is_some()
            && let Some(SourceFile { path, format }) = files.iter().find(|file| !file.format.is_document())
        {
            return Err(self.wrong(format!(
                "`split` cuts text and Markdown, and {} is {format}, whose rows stay whole; remove `split`, or write \
                 the documents as files of their own",
                path.display()
            )));
        }
        Ok(files)
    }

    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Source { source_path: self.path.clone(), problem: problem.into() }
    }

    /// The paths, and whether they are all that a folder has.
    fn local_files(&self) -> Result<(Vec<PathBuf>, bool), Error> {
        let path = Path::new(&self.path);
        if path.is_dir() {
            let mut files = Vec::new();
            walk(path, 0, &mut files)?;
            files.sort_unstable();
            return Ok((files, true));
        }
        if path.exists() || !glob::is_pattern(&self.path) {
            // A missing file is reported where it is opened, with the system's words.
            return Ok((vec![path.to_owned()], false));
        }
        let fixed = self.path.split('/').take_while(|part| !glob::is_pattern(part)).collect::<Vec<_>>();
        let root = match fixed.join("/") {
            root if root.is_empty() && self.path.starts_with('/') => "/".to_owned(),
            root if root.is_empty() => ".".to_owned(),
            root => root,
        };
        let mut files = Vec::new();
        if Path::new(&root).is_dir() {
            walk(Path::new(&root), 0, &mut files)?;
        }
        let pattern = if fixed.is_empty() { format!("./{}", self.path) } else { self.path.clone() };
        files.retain(|file| file.to_str().is_some_and(|file| glob::matches(&pattern, file)));
        files.sort_unstable();
        if files.is_empty() {
            return Err(self.wrong("no file matches the pattern"));
        }
        Ok((files, false))
    }

    fn hub_files(&self, rest: &str, progress: &mut dyn FetchProgress) -> Result<(Vec<PathBuf>, bool), Error> {
        let hub = |source| Error::Hub { source: Box::new(source) };
        let (id, pattern) = hub_files::parse(rest).ok_or_else(|| {
            self.wrong("expected hf://datasets/organisation/name[@revision]/file, folder or pattern")
        })?;
        let store = DatasetStore::from_env().map_err(hub)?;
        let names = store.file_names(&id, progress).map_err(hub)?;
        let chosen =
            hub_files::choose(&names, pattern, self.format).map_err(|problem| self.wrong(problem))?;
        let whole_folder = hub_files::is_folder(pattern);
        if whole_folder && !chosen.is_empty() {
            let first: Vec<&str> = chosen.iter().copied().take(5).collect();
            let more = match chosen.len() - first.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            progress.message(&format!("{}: read is {}{more}", self.path, first.join(", ")));
        }
        let wanted: HashSet<&str> = chosen.into_iter().collect();
        let files = store.fetch(&id, &|name| wanted.contains(name), progress).map_err(hub)?;
        Ok((files, whole_folder))
    }
}

fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let error = |source| Error::Read { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            if depth < MAX_DEPTH {
                walk(&path, depth + 1, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

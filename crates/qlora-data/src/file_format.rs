use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// How a file holds its rows. A name may end in `.gz` besides, for all but Parquet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// One JSON object per line: `.jsonl`, `.ndjson`.
    Jsonl,
    /// A list of objects, or `{"data": [..]}`: `.json`.
    Json,
    /// Comma separated, the first line naming the columns: `.csv`.
    Csv,
    /// The same, separated by tabs: `.tsv`.
    Tsv,
    /// Apache Parquet: `.parquet`.
    Parquet,
    /// A document: `.txt`.
    Text,
    /// A document with headings: `.md`, `.markdown`.
    Markdown,
}

impl FileFormat {
    /// The format that a name tells by its ending.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (name, packed) = match name.strip_suffix(".gz") {
            Some(name) => (name, true),
            None => (name.as_str(), false),
        };
        Some(match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Self::Jsonl,
            "json" => Self::Json,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "parquet" if !packed => Self::Parquet,
            "txt" | "text" => Self::Text,
            "md" | "markdown" => Self::Markdown,
            _ => return None,
        })
    }
}

impl FileFormat {
    /// Whether a file is a document, not a list of rows.
    pub(crate) fn is_document(self) -> bool {
        matches!(self, Self::Text | Self::Markdown)
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Parquet => "parquet",
            Self::Text => "text",
            Self::Markdown => "markdown",
        })
    }
}

//! Takes keys out of a TOML text one by one and collects what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::DeTable;

use super::problem::{ConfigError, Place, Problem};

/// The keys of a file and its overrides that were not asked for yet, and the problems so far.
pub(super) struct Reader {
    path: PathBuf,
    entries: BTreeMap<(String, String), Entry>,
    /// Keys that some option reads, by section: what an unknown key is compared with.
    known: BTreeMap<&'static str, BTreeSet<&'static str>>,
    /// Where keys that were asked for were given.
    taken: BTreeMap<(&'static str, &'static str), Place>,
    problems: Vec<Problem>,
}

/// A value and where it was given.
pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) place: Place,
}

impl Reader {
    pub(super) fn new(path: &Path, text: &str, overrides: &[impl AsRef<str>]) -> Result<Self, ConfigError> {
        let mut reader = Self {
            path: path.to_path_buf(),
            entries: BTreeMap::new(),
            known: BTreeMap::new(),
            taken: BTreeMap::new(),
            problems: Vec::new(),
        };
        reader.read_text(text)?;
        for assignment in overrides {
            reader.read_override(assignment.as_ref());
        }
        Ok(reader)
    }

    fn read_text(&mut self, text: &str) -> Result<(), ConfigError> {
        let line_of = |offset: usize| text[..offset].matches('\n').count() + 1;
        let not_toml = |error: toml::de::Error| ConfigError::NotToml {
            path: self.path.clone(),
            line: error.span().map(|span| line_of(span.start)),
            reason: error.message().to_string(),
        };
        // Parsed twice: the spanned tree knows the lines, the plain one is easy to take apart.
        let places = DeTable::parse(text).map_err(not_toml)?;
        let table: toml::Table = text.parse().map_err(not_toml)?;
        for (section, places) in places.get_ref() {
            let name: &str = section.get_ref();
            let section_place = Place::Line(line_of(section.span().start));
            let (Some(places), Some(values)) =
                (places.get_ref().as_table(), table.get(name).and_then(Value::as_table))
            else {
                self.problem(section_place, name, "expected a section: write `[".to_string() + name + "]`");
                continue;
            };
            if values.is_empty() {
                self.entries.insert(
                    (name.to_string(), String::new()),
                    Entry { value: Value::Boolean(true), place: section_place },
                );
            }
            for (key, _) in places {
                let place = Place::Line(line_of(key.span().start));
                let key: &str = key.get_ref();
                let value = values[key].clone();
                self.entries.insert((name.to_string(), key.to_string()), Entry { value, place });
            }
        }
        Ok(())
    }

    fn read_override(&mut self, assignment: &str) {
        let Some((key, text)) = assignment.split_once('=') else {
            self.problem(Place::Override, assignment, "expected section.key=value".into());
            return;
        };
        let (key, text) = (key.trim(), text.trim());
        let Some((section, name)) = key.split_once('.') else {
            self.problem(Place::Override, key, "expected section.key=value, as in train.steps=100".into());
            return;
        };
        if section.is_empty() || name.split('.').any(str::is_empty) {
            self.problem(Place::Override, key, "expected section.key=value, as in train.steps=100".into());
            return;
        }
        let mut path = name.split('.');
        let name = path.next().unwrap_or_default();
        let path: Vec<&str> = path.collect();
        let value = format!("value = {text}")
            .parse::<toml::Table>()
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_string()));
        let entry = self
            .entries
            .entry((section.to_string(), name.to_string()))
            .or_insert_with(|| Entry { value: Value::Table(toml::Table::new()), place: Place::Override });
        entry.place = Place::Override;
        if !set(&mut entry.value, &path, value) {
            let message = format!("{section}.{name} is no section that has keys");
            self.problem(Place::Override, key, message);
        }
    }

    pub(super) fn problem(&mut self, place: Place, key: &str, message: String) {
        self.problems.push(Problem { place, key: key.to_string(), message });
    }

    /// Whether a section was given, with keys or without. It is known from now on.
    pub(super) fn has_section(&mut self, section: &'static str) -> bool {
        self.known.entry(section).or_default();
        self.entries.keys().any(|(name, _)| name == section)
    }

    /// Where the keys of a section that were not asked for yet were given.
    pub(super) fn places(&self, section: &str) -> BTreeMap<String, Place> {
        let of_section = self.entries.iter().filter(|((name, _), _)| name == section);
        of_section.map(|((_, key), entry)| (key.clone(), entry.place)).collect()
    }

    /// Where a key that was not asked for yet was given; `None` where it was not.
    pub(super) fn place(&self, section: &str, key: &str) -> Option<Place> {
        self.entries.get(&(section.to_string(), key.to_string())).map(|entry| entry.place)
    }

    /// The raw value of a key, which from now on is known.
    pub(super) fn take(&mut self, section: &'static str, key: &'static str) -> Option<Entry> {
        self.known.entry(section).or_default().insert(key);
        let entry = self.entries.remove(&(section.to_string(), key.to_string()))?;
        self.taken.insert((section, key), entry.place);
        Some(entry)
    }

    /// Where a key that was asked for was given.
    pub(super) fn taken_from(&self, section: &'static str, key: &'static str) -> Place {
        self.taken.get(&(section, key)).copied().unwrap_or(Place::Absent)
    }

    /// A key that `convert` understands, or `None` with a problem that says what was `expected`.
    pub(super) fn optional<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let Entry { value, place } = self.take(section, key)?;
        let converted = convert(&value);
        if converted.is_none() {
            self.problem(place, &format!("{section}.{key}"), format!("{value} given, expected {expected}"));
        }
        converted
    }

    /// As [`optional`](Self::optional), and missing is a problem as well.
    pub(super) fn required<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        if !self.entries.contains_key(&(section.to_string(), key.to_string())) {
            self.problem(
                Place::Absent,
                &format!("{section}.{key}"),
                format!("missing; set it to {expected}"),
            );
        }
        self.optional(section, key, expected, convert)
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &'static str,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let expected = format!("one of {}", words.join(", "));
        let word = |value: &Value| {
            let word = value.as_str()?;
            choices.iter().find(|(choice, _)| *choice == word).map(|&(_, meaning)| meaning)
        };
        self.optional(section, key, &expected, word).unwrap_or(default)
    }

    /// Refuses a key of the peers that has another name here.
    pub(super) fn unsupported(&mut self, section: &'static str, key: &'static str, instead: &str) {
        if let Some(Entry { value, place }) = self.take(section, key)
            && value != Value::Boolean(false)
        {
            self.problem(place, &format!("{section}.{key}"), format!("not supported; {instead}"));
        }
    }

    /// The checked configuration, if nothing was wrong and nothing is left over.
    pub(super) fn finish<T>(mut self, config: Option<T>) -> Result<T, ConfigError> {
        let left = std::mem::take(&mut self.entries);
        for ((section, key), entry) in left {
            let message = match self.known.get(section.as_str()) {
                None => {
                    let sections: Vec<String> = self.known.keys().map(|name| format!("[{name}]")).collect();
                    format!("unknown section; there are {}", sections.join(", "))
                }
                Some(_) if key.is_empty() => continue,
                Some(known) => match nearest(&key, known) {
                    Some(near) => format!("unknown key; did you mean `{near}`?"),
                    None => {
                        let known: Vec<&str> = known.iter().copied().collect();
                        format!("unknown key; [{section}] has {}", known.join(", "))
                    }
                },
            };
            let name = if key.is_empty() { section } else { format!("{section}.{key}") };
            self.problem(entry.place, &name, message);
        }
        match config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => {
                // In the order of the file; then what is missing, then the command line.
                self.problems.sort_by_key(|problem| match problem.place {
                    Place::Line(line) => (0, line),
                    Place::Absent => (1, 0),
                    Place::Override => (2, 0),
                });
                Err(ConfigError::Invalid { path: self.path, problems: self.problems })
            }
        }
    }
}

/// Sets what a path of keys leads to, within sections of sections; whether there is such a place.
fn set(within: &mut Value, path: &[&str], value: Value) -> bool {
    match path {
        [] => *within = value,
        [key, rest @ ..] => {
            let Some(table) = within.as_table_mut() else { return false };
            let next = table.entry(*key).or_insert_with(|| Value::Table(toml::Table::new()));
            return set(next, rest, value);
        }
    }
    true
}

/// The known key that the fewest edits turn into, if they are few.
fn nearest<'a>(key: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    let (distance, near) = known.iter().map(|name| (edit_distance(key, name), *name)).min()?;
    (distance <= key.len().max(near.len()) / 3 + 1).then_some(near)
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

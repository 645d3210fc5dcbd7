use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{Array, GgufError, Value};

/// The key-value part of a file, in file order, with typed access.
///
/// Every typed getter has two forms: `string(key)` and the like fail when the key is missing,
/// `opt_string(key)` gives `None`; both fail when the value has another type, so that a wrong file is never
/// taken for one that leaves the default.
///
/// ```
/// use qlora_gguf::Metadata;
///
/// let mut metadata = Metadata::new();
/// metadata.insert("general.architecture", "llama");
/// metadata.insert("llama.block_count", 30_u32);
/// assert_eq!(metadata.string("general.architecture")?, "llama");
/// assert_eq!(metadata.usize("llama.block_count")?, 30);
/// assert_eq!(metadata.opt_f32("llama.rope.freq_base")?, None);
/// # Ok::<(), qlora_gguf::GgufError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self::of_file(Path::new("<memory>"))
    }
}

/// Equal when the entries are, in order: where they came from does not count.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// No entries. Errors name `<memory>` as the file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// No entries yet; errors name `path`.
    pub(crate) fn of_file(path: &Path) -> Self {
        Self { path: path.to_owned(), entries: Vec::new(), index: HashMap::new() }
    }

    /// Sets `key`, at its old place or at the end, and returns what it was before.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&at) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// The value of `key`, of whatever type.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Whether `key` is there.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The integer at `key`, when present, in the type asked for.
    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = value.integer().ok_or_else(|| self.wrong_type(key, value, expected))?;
        T::try_from(found).map(Some).map_err(|_| GgufError::ValueOutOfRange {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found,
        })
    }

    fn wrong_type(&self, key: &str, value: &Value, expected: &'static str) -> GgufError {
        GgufError::WrongValueType {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found: value.describe(),
        }
    }

    fn required<T>(&self, key: &str, expected: &'static str, value: Option<T>) -> Result<T, GgufError> {
        value.ok_or_else(|| GgufError::MissingKey { path: self.path.clone(), key: key.to_owned(), expected })
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut metadata = Self::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        metadata
    }
}

macro_rules! getters {
    ($($what:literal, $expected:literal: $required:ident, $optional:ident -> $result:ty { $($pattern:pat => $value:expr),+ })*) => {
        impl Metadata {
            $(
                #[doc = concat!("The ", $what, " at `key`.")]
                ///
                /// # Errors
                /// [`MissingKey`](GgufError::MissingKey), or
                #[doc = concat!("[`WrongValueType`](GgufError::WrongValueType) when it is not ", $expected, ".")]
                pub fn $required(&self, key: &str) -> Result<$result, GgufError> {
                    self.required(key, $expected, self.$optional(key)?)
                }

                #[doc = concat!("The ", $what, " at `key`, or `None` when the key is absent.")]
                ///
                /// # Errors
                #[doc = concat!("[`WrongValueType`](GgufError::WrongValueType) when it is not ", $expected, ".")]
                pub fn $optional(&self, key: &str) -> Result<Option<$result>, GgufError> {
                    match self.get(key) {
                        None => Ok(None),
                        $(Some($pattern) => Ok(Some($value)),)+
                        Some(other) => Err(self.wrong_type(key, other, $expected)),
                    }
                }
            )*
        }
    };
}

getters! {
    "text", "a string": string, opt_string -> &str { Value::String(text) => text.as_str() }
    "truth value", "a bool": bool, opt_bool -> bool { Value::Bool(truth) => *truth }
    "number (an f64 is rounded)", "an f32 or f64": f32, opt_f32 -> f32 {
        Value::F32(number) => *number,
        Value::F64(number) => *number as f32
    }
    "texts", "an array of string": strings, opt_strings -> &[String] {
        Value::Array(Array::String(texts)) => texts.as_slice()
    }
    "numbers", "an array of f32": f32s, opt_f32s -> &[f32] {
        Value::Array(Array::F32(numbers)) => numbers.as_slice()
    }
    "integers", "an array of i32": i32s, opt_i32s -> &[i32] {
        Value::Array(Array::I32(numbers)) => numbers.as_slice()
    }
    "truth values", "an array of bool": bools, opt_bools -> &[bool] {
        Value::Array(Array::Bool(truths)) => truths.as_slice()
    }
}

macro_rules! integer_getters {
    ($($native:ty, $expected:literal: $required:ident, $optional:ident;)*) => {
        impl Metadata {
            $(
                /// The integer at `key`, of whatever width and sign it is stored in.
                ///
                /// # Errors
                /// [`MissingKey`](GgufError::MissingKey), [`WrongValueType`](GgufError::WrongValueType) when it is
                /// no integer, or [`ValueOutOfRange`](GgufError::ValueOutOfRange).
                pub fn $required(&self, key: &str) -> Result<$native, GgufError> {
                    self.required(key, $expected, self.$optional(key)?)
                }

                /// The integer at `key`, of whatever width and sign it is stored in, or `None` when the key is
                /// absent.
                ///
                /// # Errors
                /// [`WrongValueType`](GgufError::WrongValueType) when it is no integer, or
                /// [`ValueOutOfRange`](GgufError::ValueOutOfRange).
                pub fn $optional(&self, key: &str) -> Result<Option<$native>, GgufError> {
                    self.integer(key, $expected)
                }
            )*
        }
    };
}

integer_getters! {
    u64, "an unsigned integer": u64, opt_u64;
    u32, "an unsigned integer of at most 32 bits": u32, opt_u32;
    usize, "an unsigned integer": usize, opt_usize;
}

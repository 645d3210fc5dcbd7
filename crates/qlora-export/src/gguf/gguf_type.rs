//! Types of files: which format each tensor gets.

use std::fmt;
use std::str::FromStr;

use qlora_gguf::GgmlType;

/// The type of a file, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufType {
    /// 32-bit floats.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

/// A name that is no type of files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no GGUF type; supported are {}", GgufType::ALL.map(GgufType::name).join(", "))]
pub struct UnknownGgufType {
    /// The name.
    pub name: String,
}

impl GgufType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// llama.cpp's number, `general.file_type`.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
        }
    }

    /// The format of a tensor. Norms, biases and other vectors are f32, as llama.cpp needs them.
    pub(super) fn tensor_type(self, _name: &str, shape: &[usize]) -> GgmlType {
        match self {
            _ if shape.len() < 2 => GgmlType::F32,
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::Bf16,
        }
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GgufType {
    type Err = UnknownGgufType;

    /// By name, in capitals or not: `q4_k_m`.
    fn from_str(name: &str) -> Result<Self, UnknownGgufType> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownGgufType { name: name.to_owned() })
    }
}

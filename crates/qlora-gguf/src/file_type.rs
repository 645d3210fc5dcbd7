use std::fmt;
use std::str::FromStr;

use crate::GgmlType;

mod mix;

/// The type of a file: the format of most of its tensors, and the rules for the others, by llama.cpp's names.
///
/// `S`, `M` and `L` are mixes: they give more bits to the tensors that feel it most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE half precision.
    F16,
    /// 16 bits, the upper half of an f32.
    Bf16,
    /// About 8.5 bits.
    Q8_0,
    /// About 4.5 bits.
    Q4_0,
    /// About 5 bits.
    Q4_1,
    /// About 5.5 bits.
    Q5_0,
    /// About 6 bits.
    Q5_1,
    /// About 3 bits.
    Q2K,
    /// About 3.4 bits.
    Q3KS,
    /// About 3.9 bits.
    Q3KM,
    /// About 4.2 bits.
    Q3KL,
    /// About 4.6 bits.
    Q4KS,
    /// About 4.8 bits.
    Q4KM,
    /// About 5.5 bits.
    Q5KS,
    /// About 5.7 bits.
    Q5KM,
    /// About 6.6 bits.
    Q6K,
    /// About 4.5 bits.
    Iq4Nl,
    /// About 4.3 bits.
    Iq4Xs,
}

/// A name that is no type of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no type of GGUF files; take one of {}", FileType::ALL.map(FileType::name).join(", "))]
pub struct UnknownFileType {
    /// The name.
    pub name: String,
}

impl FileType {
    /// The version of the block formats: the value of `general.quantization_version`.
    pub const QUANTIZATION_VERSION: u32 = 2;

    /// All types.
    pub const ALL: [Self; 19] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3KS,
        Self::Q3KM,
        Self::Q3KL,
        Self::Q4KS,
        Self::Q4KM,
        Self::Q5KS,
        Self::Q5KM,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// llama.cpp's name, such as `Q4_K_M`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// llama.cpp's number: the value of `general.file_type`.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.facts().1
    }

    /// The format of the tensors that no rule is about.
    #[must_use]
    pub const fn default_type(self) -> GgmlType {
        self.facts().2
    }

    const fn facts(self) -> (&'static str, u32, GgmlType) {
        match self {
            Self::F32 => ("F32", 0, GgmlType::F32),
            Self::F16 => ("F16", 1, GgmlType::F16),
            Self::Bf16 => ("BF16", 32, GgmlType::Bf16),
            Self::Q8_0 => ("Q8_0", 7, GgmlType::Q8_0),
            Self::Q4_0 => ("Q4_0", 2, GgmlType::Q4_0),
            Self::Q4_1 => ("Q4_1", 3, GgmlType::Q4_1),
            Self::Q5_0 => ("Q5_0", 8, GgmlType::Q5_0),
            Self::Q5_1 => ("Q5_1", 9, GgmlType::Q5_1),
            Self::Q2K => ("Q2_K", 10, GgmlType::Q2K),
            Self::Q3KS => ("Q3_K_S", 11, GgmlType::Q3K),
            Self::Q3KM => ("Q3_K_M", 12, GgmlType::Q3K),
            Self::Q3KL => ("Q3_K_L", 13, GgmlType::Q3K),
            Self::Q4KS => ("Q4_K_S", 14, GgmlType::Q4K),
            Self::Q4KM => ("Q4_K_M", 15, GgmlType::Q4K),
            Self::Q5KS => ("Q5_K_S", 16, GgmlType::Q5K),
            Self::Q5KM => ("Q5_K_M", 17, GgmlType::Q5K),
            Self::Q6K => ("Q6_K", 18, GgmlType::Q6K),
            Self::Iq4Nl => ("IQ4_NL", 25, GgmlType::Iq4Nl),
            Self::Iq4Xs => ("IQ4_XS", 30, GgmlType::Iq4Xs),
        }
    }

    /// The format of every tensor, in the order of `tensors`, which are names and shapes, outermost dimension
    /// first, of *all* tensors of the model: some rules count. `None` is for those that are never quantized, such
    /// as norms and biases; llama.cpp has them in F32.
    ///
    /// The rules are llama.cpp's. A tensor whose rows are not whole blocks gets a format of smaller blocks, or F16.
    #[must_use]
    pub fn tensor_types(
        self,
        model: &ModelFacts<'_>,
        has_importance: bool,
        tensors: &[(&str, &[usize])],
    ) -> Vec<Option<GgmlType>> {
        mix::tensor_types(self, model, has_importance, tensors)
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FileType {
    type Err = UnknownFileType;

    /// By name, in capitals or not: `q4_k_m`. `Q3_K`, `Q4_K` and `Q5_K` are the `M` mixes.
    fn from_str(name: &str) -> Result<Self, UnknownFileType> {
        let upper = name.to_ascii_uppercase();
        let full = match upper.as_str() {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{upper}_M"),
            _ => upper,
        };
        let found = Self::ALL.into_iter().find(|file_type| file_type.name() == full);
        found.ok_or_else(|| UnknownFileType { name: name.to_owned() })
    }
}

/// What the choice of formats looks at, of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts<'a> {
    /// `general.architecture`, such as `llama`.
    pub architecture: &'a str,
    /// The number of layers.
    pub layers: usize,
    /// The number of attention heads.
    pub heads: usize,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// The number of experts; 0 in a dense model.
    pub experts: usize,
}

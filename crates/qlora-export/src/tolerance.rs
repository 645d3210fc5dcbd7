//! How far an artefact of a type may be from its source.

use qlora_gguf::{FileType, GgmlType};

use crate::{FloatType, Tolerance};

/// [`Tolerance::logits`] of NF4, as of other formats of four bits.
pub(crate) const NF4_LOGITS: f64 = 0.6;

impl FloatType {
    /// Twice what rounding can do to a tensor, and several times what it was measured to do to logits.
    #[must_use]
    pub fn tolerance(self) -> Tolerance {
        match self {
            Self::F32 => Tolerance { tensor: 1e-6, logits: 1e-3 },
            Self::F16 => Tolerance { tensor: 1e-3, logits: 1e-2 },
            Self::Bf16 => Tolerance { tensor: 8e-3, logits: 5e-2 },
        }
    }
}

impl Tolerance {
    /// For a file of this type: for blocks twice the error of normally distributed weights, and logits that still
    /// tell a model from one with wrong weights, whose difference is above 1.
    #[must_use]
    pub fn of_gguf(file_type: FileType) -> Self {
        let (tensor, logits) = match file_type.default_type() {
            GgmlType::F32 => return FloatType::F32.tolerance(),
            GgmlType::F16 => return FloatType::F16.tolerance(),
            GgmlType::Bf16 => return FloatType::Bf16.tolerance(),
            GgmlType::Q8_0 => (0.02, 0.1),
            GgmlType::Q6K => (0.05, 0.2),
            GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q5K => (0.1, 0.3),
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q4K | GgmlType::Iq4Nl | GgmlType::Iq4Xs => (0.2, 0.6),
            GgmlType::Q3K => (0.35, 0.8),
            _ => (0.7, 1.0),
        };
        Self { tensor, logits }
    }
}

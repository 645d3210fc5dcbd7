//! How far an artefact of a type may be from its source.

use crate::{FloatType, GgufType, Tolerance};

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

impl GgufType {
    /// As [`FloatType::tolerance`].
    #[must_use]
    pub fn tolerance(self) -> Tolerance {
        match self {
            Self::F32 => FloatType::F32.tolerance(),
            Self::F16 => FloatType::F16.tolerance(),
            Self::Bf16 => FloatType::Bf16.tolerance(),
        }
    }
}

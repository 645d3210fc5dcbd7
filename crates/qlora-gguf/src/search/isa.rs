use super::{Lanes, Rows};

/// Encodes rows into blocks of one format.
pub(crate) trait Encoder {
    /// Writes the blocks of `rows` to `out`, which holds exactly them. Inlined, with all it calls in its loops,
    /// into the functions of [`Isa`] that enable an instruction set.
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]);
}

/// An instruction set that encoders are compiled for. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What every processor has, one value at a time.
    Scalar,
    /// Eight values at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Sixteen values at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// All, slowest first.
    const ALL: &'static [Self] = &[
        Self::Scalar,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    /// Those that this processor has, slowest first.
    pub(crate) fn available() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.iter().copied().filter(|isa| match isa {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
        })
    }

    /// The last of the available ones.
    pub(crate) fn fastest() -> Self {
        Self::available().next_back().expect("scalar code runs everywhere")
    }

    /// Runs an encoder compiled for this instruction set.
    ///
    /// # Panics
    /// When the processor does not have it.
    pub(crate) fn encode<E: Encoder>(self, rows: Rows<'_>, out: &mut [u8]) {
        match self {
            Self::Scalar => E::encode::<f32>(rows, out),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                assert!(std::arch::is_x86_feature_detected!("avx2"));
                // SAFETY: the processor has what the function enables, as just asked.
                unsafe { avx2::<E>(rows, out) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                assert!(Self::available().any(|isa| isa == Self::Avx512));
                // SAFETY: the processor has what the function enables, as just asked.
                unsafe { avx512::<E>(rows, out) }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<E: Encoder>(rows: Rows<'_>, out: &mut [u8]) {
    E::encode::<super::x86::F32x8>(rows, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<E: Encoder>(rows: Rows<'_>, out: &mut [u8]) {
    E::encode::<super::x86::F32x16>(rows, out);
}

//! Which vector instructions the kernels may use, found once at run time.

use std::sync::OnceLock;

/// A family of vector instructions, from plain Rust to the fastest.
///
/// `QLORA_CPU_ISA=scalar|avx2|avx512|avx512bf16|neon` lowers the choice, for tests and benches;
/// asking for more than the processor has changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// 128-bit vectors of AArch64.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// [`Isa::Avx512`] and the bf16 dot product.
    Avx512Bf16,
}

impl Isa {
    /// What this processor has, lowered by `QLORA_CPU_ISA`. Read once.
    #[must_use]
    pub fn detect() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            let best = Self::best();
            let asked = std::env::var("QLORA_CPU_ISA").ok().and_then(|name| Self::parse(&name));
            asked.map_or(best, |asked| if Self::available().contains(&asked) { asked } else { best })
        })
    }

    /// Every family that runs here, slowest first: what a test goes through.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let all = [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16];
        let best = Self::best();
        all.into_iter()
            .filter(|isa| {
                *isa <= best && (*isa == Self::Scalar || (*isa == Self::Neon) == (best == Self::Neon))
            })
            .collect()
    }

    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "scalar" => Self::Scalar,
            "neon" => Self::Neon,
            "avx2" => Self::Avx2,
            "avx512" => Self::Avx512,
            "avx512bf16" => Self::Avx512Bf16,
            _ => return None,
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        match () {
            () if avx512 && has!("avx512bf16") => Self::Avx512Bf16,
            () if avx512 => Self::Avx512,
            () if has!("avx2") && has!("fma") => Self::Avx2,
            () => Self::Scalar,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn best() -> Self {
        Self::Neon
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn best() -> Self {
        Self::Scalar
    }
}

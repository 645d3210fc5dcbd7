use std::fmt;

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $block:literal, $bytes:literal, $decodable:literal;)*) => {
        /// The format of a tensor's elements: ggml's type numbers, names and block sizes.
        ///
        /// A quantized format stores the innermost dimension in blocks of [`block_len`](Self::block_len) values
        /// and [`block_bytes`](Self::block_bytes) bytes. Formats that are not
        /// [`decodable`](Self::is_decodable) can be listed and copied, but not turned into values.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum GgmlType {
            $($(#[$doc])* $variant,)*
        }

        impl GgmlType {
            /// Every format, in the order of ggml's numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// ggml's number of the format.
            #[must_use]
            pub const fn id(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// The format with ggml's number `id`, or `None` when there is none (any more).
            #[must_use]
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }

            /// ggml's name of the format, such as `Q4_K`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How many values one block holds: 1 for plain numbers.
            #[must_use]
            pub const fn block_len(self) -> usize {
                match self { $(Self::$variant => $block,)* }
            }

            /// How many bytes one block takes.
            #[must_use]
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$variant => $bytes,)* }
            }

            /// Whether this crate can turn the format into `f32`.
            #[must_use]
            pub const fn is_decodable(self) -> bool {
                match self { $(Self::$variant => $decodable,)* }
            }
        }
    };
}

ggml_types! {
    /// IEEE single precision.
    F32 = 0, "F32", 1, 4, true;
    /// IEEE half precision.
    F16 = 1, "F16", 1, 2, true;
    /// 4 bits, one f16 scale for 32 values.
    Q4_0 = 2, "Q4_0", 32, 18, true;
    /// 4 bits, f16 scale and minimum for 32 values.
    Q4_1 = 3, "Q4_1", 32, 20, true;
    /// 5 bits, one f16 scale for 32 values.
    Q5_0 = 6, "Q5_0", 32, 22, true;
    /// 5 bits, f16 scale and minimum for 32 values.
    Q5_1 = 7, "Q5_1", 32, 24, true;
    /// 8 bits, one f16 scale for 32 values.
    Q8_0 = 8, "Q8_0", 32, 34, true;
    /// 2 bits, 4-bit scales and minima for 16 values.
    Q2K = 10, "Q2_K", 256, 84, true;
    /// 3 bits, 6-bit scales for 16 values.
    Q3K = 11, "Q3_K", 256, 110, true;
    /// 4 bits, 6-bit scales and minima for 32 values.
    Q4K = 12, "Q4_K", 256, 144, true;
    /// 5 bits, 6-bit scales and minima for 32 values.
    Q5K = 13, "Q5_K", 256, 176, true;
    /// 6 bits, 8-bit scales for 16 values.
    Q6K = 14, "Q6_K", 256, 210, true;
    /// 8 bits, one f32 scale for 256 values.
    Q8K = 15, "Q8_K", 256, 292, true;
    /// About 2.06 bits, values from a grid.
    Iq2Xxs = 16, "IQ2_XXS", 256, 66, true;
    /// About 2.31 bits, values from a grid.
    Iq2Xs = 17, "IQ2_XS", 256, 74, true;
    /// About 3.06 bits, values from a grid.
    Iq3Xxs = 18, "IQ3_XXS", 256, 98, true;
    /// About 1.56 bits, values from a grid.
    Iq1S = 19, "IQ1_S", 256, 50, true;
    /// 4 bits, codes of a 16-entry codebook, one f16 scale for 32 values.
    Iq4Nl = 20, "IQ4_NL", 32, 18, true;
    /// About 3.44 bits, values from a grid.
    Iq3S = 21, "IQ3_S", 256, 110, true;
    /// About 2.56 bits, values from a grid.
    Iq2S = 22, "IQ2_S", 256, 82, true;
    /// 4 bits, codes of the codebook of `IQ4_NL`, 6-bit scales for 32 values.
    Iq4Xs = 23, "IQ4_XS", 256, 136, true;
    /// 8-bit signed integer.
    I8 = 24, "I8", 1, 1, true;
    /// 16-bit signed integer.
    I16 = 25, "I16", 1, 2, true;
    /// 32-bit signed integer.
    I32 = 26, "I32", 1, 4, true;
    /// 64-bit signed integer.
    I64 = 27, "I64", 1, 8, true;
    /// IEEE double precision.
    F64 = 28, "F64", 1, 8, true;
    /// About 1.75 bits, values from a grid.
    Iq1M = 29, "IQ1_M", 256, 56, true;
    /// The upper half of an f32.
    Bf16 = 30, "BF16", 1, 2, true;
    /// Ternary, five values in a byte.
    Tq1_0 = 34, "TQ1_0", 256, 54, true;
    /// Ternary, four values in a byte.
    Tq2_0 = 35, "TQ2_0", 256, 66, true;
    /// 4-bit floats, one power-of-two scale for 32 values.
    Mxfp4 = 39, "MXFP4", 32, 17, true;
    /// 4-bit floats, one 8-bit float as scale for 16 values.
    Nvfp4 = 40, "NVFP4", 64, 36, false;
    /// Signs, one f16 scale for 128 values.
    Q1_0 = 41, "Q1_0", 128, 18, true;
    /// 2 bits, one f16 scale for 64 values.
    Q2_0 = 42, "Q2_0", 64, 18, true;
}

impl GgmlType {
    /// What a number that [`from_id`](Self::from_id) refuses is or was, for messages.
    pub(crate) const fn unsupported_name(id: u32) -> &'static str {
        match id {
            4 => "Q4_2, removed from ggml",
            5 => "Q4_3, removed from ggml",
            9 => "Q8_1, which ggml uses for activations only",
            31..=33 => "an interleaved Q4_0, removed from ggml",
            36..=38 => "an interleaved IQ4_NL, removed from ggml",
            _ => "unknown",
        }
    }

    /// The bytes that `elements` values take, or `None` when they are not whole blocks or too many.
    #[must_use]
    pub const fn byte_len(self, elements: usize) -> Option<usize> {
        if elements.is_multiple_of(self.block_len()) {
            (elements / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Whether [`quantize`](Self::quantize) writes the format.
    #[must_use]
    pub const fn is_encodable(self) -> bool {
        self.scale_offsets().is_some()
    }

    /// Where the f16 scales of a block are, for the formats that are written.
    pub(crate) const fn scale_offsets(self) -> Option<&'static [usize]> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => &[],
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Iq4Nl | Self::Iq4Xs => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q2K => &[80, 82],
            Self::Q3K => &[108],
            Self::Q6K => &[208],
            _ => return None,
        })
    }

    /// The encodable formats as a list for messages.
    pub(crate) fn encodable_names() -> String {
        let names: Vec<_> = Self::ALL.iter().filter(|t| t.is_encodable()).map(|t| t.name()).collect();
        names.join(", ")
    }

    /// The decodable formats as a list for messages.
    pub(crate) fn decodable_names() -> String {
        let names: Vec<_> = Self::ALL.iter().filter(|t| t.is_decodable()).map(|t| t.name()).collect();
        names.join(", ")
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

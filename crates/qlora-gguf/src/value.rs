use std::fmt;

/// The type of a metadata value, with GGUF's numbers and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// IEEE single precision.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 with its length.
    String,
    /// Values of one type, which may be arrays.
    Array,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    I64,
    /// IEEE double precision.
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// GGUF's number of the type, 0 to 12.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type with GGUF's number `id`, or `None` when there is none.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// A short name: `u8`, `f32`, `string`, `array` and so on.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// The fewest bytes that one value of the type takes in a file.
    pub(crate) const fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

macro_rules! values {
    ($($(#[$doc:meta])* $variant:ident($native:ty);)*) => {
        /// A metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $($(#[$doc])* $variant($native),)*
            /// Values of one type.
            Array(Array),
        }

        /// A metadata array: values of one type, stored as such.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $($(#[$doc])* $variant(Vec<$native>),)*
            /// Arrays, of any types.
            Array(Vec<Array>),
        }

        impl Value {
            /// The type of the value.
            #[must_use]
            pub const fn value_type(&self) -> ValueType {
                match self {
                    $(Self::$variant(_) => ValueType::$variant,)*
                    Self::Array(_) => ValueType::Array,
                }
            }
        }

        impl Array {
            /// The type of the elements.
            #[must_use]
            pub const fn element_type(&self) -> ValueType {
                match self {
                    $(Self::$variant(_) => ValueType::$variant,)*
                    Self::Array(_) => ValueType::Array,
                }
            }

            /// The number of elements.
            #[must_use]
            pub const fn len(&self) -> usize {
                match self {
                    $(Self::$variant(elements) => elements.len(),)*
                    Self::Array(elements) => elements.len(),
                }
            }
        }

        $(
            impl From<$native> for Value {
                fn from(value: $native) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$native>> for Value {
                fn from(elements: Vec<$native>) -> Self {
                    Self::Array(Array::$variant(elements))
                }
            }
        )*
    };
}

values! {
    /// Unsigned 8-bit integer.
    U8(u8);
    /// Signed 8-bit integer.
    I8(i8);
    /// Unsigned 16-bit integer.
    U16(u16);
    /// Signed 16-bit integer.
    I16(i16);
    /// Unsigned 32-bit integer.
    U32(u32);
    /// Signed 32-bit integer.
    I32(i32);
    /// IEEE single precision.
    F32(f32);
    /// True or false.
    Bool(bool);
    /// UTF-8 text.
    String(String);
    /// Unsigned 64-bit integer.
    U64(u64);
    /// Signed 64-bit integer.
    I64(i64);
    /// IEEE double precision.
    F64(f64);
}

impl Value {
    /// What the value is, for messages: `a u32`, `a string`, `an array of 3 f32`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Array(array) => format!("an array of {} {}", array.len(), array.element_type()),
            other => {
                let name = other.value_type().name();
                let article = if name.starts_with(['a', 'e', 'i', 'f']) { "an" } else { "a" };
                format!("{article} {name}")
            }
        }
    }

    /// The value as an integer, when it is one of any width.
    pub(crate) fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => Some(v.into()),
            Self::I64(v) => Some(v.into()),
            _ => None,
        }
    }
}

impl Array {
    /// Whether there are no elements.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

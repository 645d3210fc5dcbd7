use std::path::PathBuf;

use crate::GgmlType;

/// Why a GGUF file, or something in it, cannot be used.
///
/// `path` is the file, or `<memory>` for bytes and metadata that came from no file. `offset` counts bytes from
/// the start of the file. Names taken from the file are shown escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error("{}: cannot open the GGUF file: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The first four bytes are not `GGUF`.
    #[error(
        "{}: not a GGUF file: it starts with \"{}\", expected \"GGUF\" \
         (an incomplete download, or a Git LFS pointer in place of the file?)",
        path.display(),
        found.escape_ascii()
    )]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first four bytes.
        found: [u8; 4],
    },

    /// The file is meant for big-endian machines.
    #[error(
        "{}: a big-endian GGUF file (version {version}): only little-endian files are read; \
         convert it with `gguf_convert_endian.py` of llama.cpp",
        path.display()
    )]
    BigEndian {
        /// The file.
        path: PathBuf,
        /// Its version, in the right byte order.
        version: u32,
    },

    /// The version of the container is not 2 or 3.
    #[error(
        "{}: GGUF version {version}: versions 2 and 3 are read; convert the model again with a current llama.cpp",
        path.display()
    )]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The version it names.
        version: u32,
    },

    /// The file ends before what it announces.
    #[error(
        "{}: the file ends inside {what}: {needed} bytes needed at offset {offset}, {available} left; \
         the file is truncated or damaged, fetch it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
        /// How many bytes it needs.
        needed: u64,
        /// How many bytes there are.
        available: u64,
    },

    /// A count that the rest of the file cannot hold.
    #[error(
        "{}: {what} at offset {offset} is {count}, but the rest of the file holds at most {most}; \
         the file is truncated or damaged, fetch it again",
        path.display()
    )]
    ImpossibleCount {
        /// The file.
        path: PathBuf,
        /// What was counted.
        what: String,
        /// Where the count stands.
        offset: u64,
        /// The count.
        count: u64,
        /// The largest count that would fit.
        most: u64,
    },

    /// A string is not UTF-8.
    #[error("{}: {what} at offset {offset} is not UTF-8: {source}", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where the string starts.
        offset: u64,
        /// What is wrong with it.
        source: std::str::Utf8Error,
    },

    /// A boolean is neither 0 nor 1.
    #[error("{}: {what} at offset {offset} is {found}, expected 0 or 1", path.display())]
    InvalidBool {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where it stands.
        offset: u64,
        /// The byte found.
        found: u8,
    },

    /// A metadata value has a type that GGUF does not define.
    #[error("{}: {what} at offset {offset} is {id}, expected 0 to 12", path.display())]
    UnknownValueType {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where the type stands.
        offset: u64,
        /// The type's number.
        id: u32,
    },

    /// Arrays of arrays of arrays, deeper than any writer makes them.
    #[error("{}: {what} at offset {offset} nests arrays deeper than {limit}", path.display())]
    NestedTooDeep {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where the array that is too deep starts.
        offset: u64,
        /// The depth that is read.
        limit: u32,
    },

    /// Two metadata entries have one key.
    #[error("{}: key {key:?} at offset {offset} appears twice", path.display())]
    DuplicateKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Where it appears again.
        offset: u64,
    },

    /// `general.alignment` is not a power of two.
    #[error("{}: `general.alignment` is {alignment}, expected a power of two below 2^31", path.display())]
    InvalidAlignment {
        /// The file.
        path: PathBuf,
        /// The value found.
        alignment: u64,
    },

    /// Two tensors have one name.
    #[error("{}: tensor {tensor:?} at offset {offset} appears twice", path.display())]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it appears again.
        offset: u64,
    },

    /// A tensor has more than four dimensions.
    #[error("{}: tensor {tensor:?} has {found} dimensions (offset {offset}), at most 4 exist", path.display())]
    TooManyDimensions {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many it claims.
        found: u32,
        /// Where the number stands.
        offset: u64,
    },

    /// A tensor's element or byte count does not fit the machine's integers.
    #[error("{}: tensor {tensor:?} of shape {shape:?} is larger than memory can address", path.display())]
    ShapeOverflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape, outermost first.
        shape: Vec<u64>,
    },

    /// A tensor's innermost dimension is not a whole number of blocks.
    #[error(
        "{}: tensor {tensor:?} is {ggml_type}, whose blocks hold {} values, but its rows hold {row}",
        path.display(),
        ggml_type.block_len()
    )]
    RaggedRow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its format.
        ggml_type: GgmlType,
        /// Its innermost dimension.
        row: u64,
    },

    /// A tensor's format is removed from ggml, or unknown.
    #[error(
        "{}: tensor {tensor:?} has ggml type {id} ({name}), which is not supported; \
         take a file in one of {}",
        path.display(),
        GgmlType::decodable_names()
    )]
    UnknownGgmlType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The number of the format.
        id: u32,
        /// What that number is or was, as far as known.
        name: &'static str,
    },

    /// A tensor's format is known, but cannot be dequantized.
    #[error(
        "{}: tensor {tensor:?} is {ggml_type} (ggml type {}), which cannot be dequantized; \
         take a file in one of {}",
        path.display(),
        ggml_type.id(),
        GgmlType::decodable_names()
    )]
    NotDecodable {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its format.
        ggml_type: GgmlType,
    },

    /// A tensor's data do not start where the alignment says.
    #[error(
        "{}: the data of tensor {tensor:?} start at {offset} of the data section, \
         which is not a multiple of the alignment {alignment}",
        path.display()
    )]
    MisalignedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where its data start, from the start of the data section.
        offset: u64,
        /// The alignment of the file.
        alignment: u64,
    },

    /// A tensor's data reach past the end of the file.
    #[error(
        "{}: the data of tensor {tensor:?} need {length} bytes at offset {offset}, but the file has {file_length}; \
         the file is truncated or damaged, fetch it again",
        path.display()
    )]
    TensorOutOfBounds {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where its data start in the file.
        offset: u64,
        /// How long they are.
        length: u64,
        /// How long the file is.
        file_length: u64,
    },

    /// Two tensors share bytes.
    #[error("{}: the data of tensors {first:?} and {second:?} overlap at offset {offset}", path.display())]
    OverlappingTensors {
        /// The file.
        path: PathBuf,
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside it.
        second: String,
        /// Where the second starts in the file.
        offset: u64,
    },

    /// A tensor that was asked for is absent.
    #[error("{}: no tensor named {tensor:?}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },

    /// A metadata key that was asked for is absent.
    #[error("{}: metadata key {key:?} is missing, expected {expected}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// What its value should be.
        expected: &'static str,
    },

    /// A metadata value has another type than the reader expects.
    #[error("{}: metadata key {key:?} is {found}, expected {expected}", path.display())]
    WrongValueType {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// What its value should be.
        expected: &'static str,
        /// What it is, as [`Value::describe`](crate::Value::describe) says.
        found: String,
    },

    /// A metadata integer does not fit what the reader expects.
    #[error("{}: metadata key {key:?} is {found}, expected {expected}", path.display())]
    ValueOutOfRange {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// What its value should be.
        expected: &'static str,
        /// The value found.
        found: i128,
    },

    /// A GGUF file that holds something else than an importance matrix.
    #[error(
        "{}: `general.type` is {found}, expected \"imatrix\": this is no importance matrix; make one with \
         llama.cpp's `llama-imatrix`, or from a calibration text",
        path.display()
    )]
    NotAnImportanceMatrix {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: String,
    },

    /// An importance matrix of nothing.
    #[error("{}: no matrix in this importance matrix; make it again", path.display())]
    NoImportances {
        /// The file.
        path: PathBuf,
    },

    /// The sums and the counts of an importance matrix do not belong together.
    #[error(
        "{}: the sums of {tensor:?} are {sums:?}, its counts {counts:?}, expected [matrices, columns] and \
         [matrices, 1]",
        path.display()
    )]
    ImportanceShape {
        /// The file.
        path: PathBuf,
        /// The tensor that the importances are for.
        tensor: String,
        /// The shape of the sums, outermost dimension first.
        sums: Vec<usize>,
        /// The shape of the counts, outermost dimension first.
        counts: Vec<usize>,
    },

    /// An importance matrix holds a number that no sum of squares or count can be.
    #[error(
        "{}: the importances of {tensor:?} hold {found}, expected finite numbers, 0 or above; make the matrix again",
        path.display()
    )]
    InvalidImportance {
        /// The file.
        path: PathBuf,
        /// The tensor that the importances are for.
        tensor: String,
        /// The number.
        found: f64,
    },

    /// A file goes on after its end.
    #[error("{}: {length} bytes too many at offset {offset}: this is no importance matrix, or a damaged one", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Where the file should end.
        offset: u64,
        /// How many bytes follow.
        length: u64,
    },
}

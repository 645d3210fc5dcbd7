use proptest::prelude::*;
use qlora_gguf::{GgufError, Importance, ImportanceMatrix};

/// Two dense tensors and one of three experts, the second of which saw nothing.
fn sample() -> ImportanceMatrix {
    let mut matrix = ImportanceMatrix::default();
    matrix.datasets = vec!["a.txt".to_owned(), "b.txt".to_owned()];
    matrix.chunks = 2;
    matrix.chunk_tokens = 4;
    matrix.add("blk.0.attn_q.weight", &[8.0, 2.0], 5);
    matrix.add("blk.0.attn_q.weight", &[2.0, 3.0], 3);
    matrix.add("output.weight", &[1.0, 0.0, 4.0], 8);
    matrix.add_expert("blk.0.ffn_down_exps.weight", (0, 3), &[6.0, 3.0], 3);
    matrix.add_expert("blk.0.ffn_down_exps.weight", (2, 3), &[5.0, 0.0], 5);
    matrix
}

fn written(matrix: &ImportanceMatrix) -> Vec<u8> {
    let mut out = Vec::new();
    matrix.write(&mut out).unwrap();
    out
}

fn written_legacy(matrix: &ImportanceMatrix) -> Vec<u8> {
    let mut out = Vec::new();
    matrix.write_legacy(&mut out).unwrap();
    out
}

#[test]
fn importance_is_the_mean_square() {
    let matrix = sample();
    assert_eq!(matrix.importances("blk.0.attn_q.weight", 1, 2).unwrap(), [1.25, 0.625]);
    let experts = "blk.0.ffn_down_exps.weight";
    assert_eq!(matrix.importances(experts, 3, 2).unwrap(), [2.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    assert_eq!(matrix.importances(experts, 2, 2), None);
    assert_eq!(matrix.importances("output.weight", 2, 3).unwrap(), [0.125, 0.0, 0.5, 0.125, 0.0, 0.5]);
    assert_eq!(matrix.importances("output.weight", 1, 4), None);
    assert_eq!(matrix.importances("absent", 1, 2), None);
}

#[test]
fn files_read_back() {
    let matrix = sample();
    assert_eq!(ImportanceMatrix::from_bytes(written(&matrix)).unwrap(), matrix);

    let legacy = ImportanceMatrix::from_bytes(written_legacy(&matrix)).unwrap();
    assert_eq!((legacy.chunks, &legacy.datasets[..]), (2, &["b.txt".to_owned()][..]));
    for (name, entry) in &matrix.entries {
        let (matrices, columns) = (entry.matrices(), entry.columns());
        let expected = matrix.importances(name, matrices, columns);
        assert_eq!(legacy.importances(name, matrices, columns), expected, "{name}");
    }

    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("new.gguf", written(&matrix)), ("old.dat", written_legacy(&matrix))] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(ImportanceMatrix::open(&path).unwrap().entries.len(), 3, "{name}");
    }
    let absent = ImportanceMatrix::open(folder.path().join("absent"));
    assert!(matches!(absent, Err(GgufError::Open { .. })));
}

/// The first files end after the matrices, and a matrix without calls holds means.
#[test]
fn the_oldest_files() {
    let mut file = 1_u32.to_le_bytes().to_vec();
    file.extend(1_u32.to_le_bytes());
    file.extend(b"x");
    file.extend(0_u32.to_le_bytes());
    file.extend(2_u32.to_le_bytes());
    file.extend([1.5_f32.to_le_bytes(), 2.5_f32.to_le_bytes()].concat());
    let matrix = ImportanceMatrix::from_bytes(file).unwrap();
    assert_eq!(matrix.importances("x", 1, 2).unwrap(), [1.5, 2.5]);
    assert!(matrix.datasets.is_empty());
}

#[test]
fn damaged_files_are_refused() {
    let refused = |bytes: Vec<u8>| ImportanceMatrix::from_bytes(bytes).unwrap_err();
    let legacy = written_legacy(&sample());
    let with = |at: usize, value: u32| {
        let mut bytes = legacy.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    assert!(matches!(refused(with(0, 0)), GgufError::NoImportances { .. }));
    assert!(matches!(refused(with(0, u32::MAX)), GgufError::ImpossibleCount { .. }));
    assert!(matches!(refused(with(4, u32::MAX)), GgufError::Truncated { .. }));
    // "blk.0.attn_q.weight", 19 bytes from 8 on; then calls, columns, values.
    assert!(matches!(refused(with(31, u32::MAX)), GgufError::ImpossibleCount { .. }));
    assert!(matches!(refused(with(31, 0)), GgufError::ImportanceShape { .. }));
    let nan = refused(with(35, f32::NAN.to_bits())).to_string();
    assert_eq!(
        nan,
        "<memory>: the importances of \"blk.0.attn_q.weight\" hold NaN, expected finite numbers, 0 or above; make \
         the matrix again"
    );
    assert!(matches!(refused([&legacy[..], b"more"].concat()), GgufError::TrailingBytes { length: 4, .. }));
    assert!(matches!(refused(Vec::new()), GgufError::Truncated { .. }));

    let text = b"Once upon a time, there was no importance matrix.".to_vec();
    assert!(matches!(refused(text), GgufError::ImpossibleCount { .. }));
    let model = crate::writer::File::sample().bytes();
    let message = refused(model).to_string();
    assert!(message.contains("`general.type` is missing, expected \"imatrix\""), "{message}");
    let mut empty = sample();
    empty.entries.clear();
    assert!(matches!(refused(written(&empty)), GgufError::NoImportances { .. }));
    let mut negative = sample();
    negative.entries.insert("x".to_owned(), Importance::new(1, 1));
    negative.add("x", &[-1.0], 1);
    assert!(matches!(refused(written(&negative)), GgufError::InvalidImportance { found: -1.0, .. }));
}

proptest! {
    /// A byte changed anywhere, or the end cut off, gives a matrix or an error.
    #[test]
    fn any_damage(legacy: bool, at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let mut bytes = if legacy { written_legacy(&sample()) } else { written(&sample()) };
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(matrix) = ImportanceMatrix::from_bytes(bytes) {
            prop_assert!(!matrix.entries.is_empty());
        }
    }
}

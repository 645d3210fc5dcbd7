//! What reads data sets: every row as it stands, then checked and tokenized as training would.

use qlora_data::check::{CheckOptions, check};
use qlora_data::{
    Dataset, DatasetOptions, Encoder, FileFormat, OnBadRow, OnLong, Packing, Records, Source, TextSplit,
    TrainOn,
};
use qlora_gguf::Metadata;
use qlora_text::{NamedTemplate, Tokenizer};
use std::path::Path;
use std::sync::{Arc, LazyLock};

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// Bytes and the special tokens of ChatML: small, and any text can be encoded.
static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    // The characters that byte-level vocabularies write bytes as.
    let shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = 0x100..;
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte| {
            let code = if shown(byte) { u32::from(byte) } else { hidden.next().expect("it has no end") };
            char::from_u32(code).expect("a character").to_string()
        })
        .collect();
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let mut types = vec![1_i32; 256];
    types.extend([3, 3]);
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "qwen2");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new());
    metadata.insert("tokenizer.ggml.eos_token_id", 257_u32);
    let template = NamedTemplate::find("chatml").expect("a template").source.to_owned();
    metadata.insert("tokenizer.chat_template", template);
    Encoder::new(Arc::new(Tokenizer::from_gguf(&metadata).expect("a tokenizer")))
});

/// JSONL or JSON, packed or not.
pub fn json(data: &[u8]) {
    let Some((&options, rest)) = data.split_first() else { return };
    let name = ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"][usize::from(options) % 4];
    read(name, options >> 2, rest);
}

/// A table or a document.
pub fn table(data: &[u8]) {
    let Some((&options, rest)) = data.split_first() else { return };
    let name = ["a.csv", "a.tsv", "a.txt", "a.md"][usize::from(options) % 4];
    read(name, options >> 2, rest);
}

/// Parquet. Panics that the reader catches are its own affair: the hook that would end the process goes.
pub fn parquet(data: &[u8]) {
    static HOOK: LazyLock<()> = LazyLock::new(|| std::panic::set_hook(Box::new(|_| ())));
    LazyLock::force(&HOOK);
    read("a.parquet", 0, data);
}

fn read(name: &str, options: u8, bytes: &[u8]) {
    let path = FOLDER.path().join(name);
    std::fs::write(&path, bytes).expect("it can be written");
    rows(&path, options);
    // The file must not stand in the way of the next name.
    std::fs::remove_file(&path).expect("it was written");
}

fn rows(path: &Path, options: u8) {
    let mut source = Source::new(path.to_str().expect("a name in UTF-8"));
    source.format = FileFormat::of_name(path);
    if options & 1 != 0 {
        source.split = Some(TextSplit { max_chars: 7 });
    }
    let sources = qlora_data::Sources(vec![source.clone()]);
    if let Ok(records) = Records::open(sources, OnBadRow::Skip, &mut qlora_hub::Silent) {
        records.for_each(|record| {
            let _ = record.map_err(|error| error.to_string());
        });
    }
    let checked = qlora_data::Sources::from(path.to_str().expect("a name in UTF-8"));
    let _ = check(&checked, None, Some(&ENCODER), &CheckOptions::default(), &mut qlora_hub::Silent);
    let train_on = [TrainOn::Assistant, TrainOn::Last, TrainOn::Completions, TrainOn::All];
    let encoder = ENCODER.clone().with_train_on(train_on[usize::from(options >> 1) % 4]);
    let fit = DatasetOptions {
        max_length: (options & 8 != 0).then_some(32),
        on_long: if options & 16 != 0 { OnLong::Truncate } else { OnLong::Skip },
        on_bad_row: OnBadRow::Skip,
        ..DatasetOptions::default()
    };
    if let Ok(dataset) = Dataset::open(qlora_data::Sources(vec![source]), &encoder, &fit) {
        let lengths: Vec<usize> = dataset.lengths().collect();
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let packing = Packing::best_fit_decreasing(&lengths, longest).expect("the longest fits");
        assert_eq!(packing.packs().iter().map(Vec::len).sum::<usize>(), dataset.len());
        assert_eq!(dataset.iter().count(), dataset.len());
    }
}

//! Files: what is read, what is refused with which words, and what is counted.

use qlora_data::{
    Batch, Dataset, DatasetOptions, Encoder, Error, OnBadRow, OnLong, RowShape, Sample, Sampler,
};
use qlora_gguf::Gguf;
use qlora_text::Tokenizer;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};

static SMOLLM2: LazyLock<Option<Encoder>> = LazyLock::new(|| {
    let gguf = Gguf::open(qlora_testing::model()?).unwrap();
    Some(Encoder::new(Arc::new(Tokenizer::from_gguf(gguf.metadata()).unwrap())))
});

fn read(text: impl AsRef<[u8]>, encoder: &Encoder, options: DatasetOptions) -> Result<Dataset, Error> {
    Dataset::from_reader(text.as_ref(), "data.jsonl", encoder, &options)
}

/// The error for rows of token ids.
fn refused(text: impl AsRef<[u8]>, options: DatasetOptions) -> String {
    read(text, &Encoder::token_ids_only().with_vocab_size(100), options).unwrap_err().to_string()
}

const STOP: DatasetOptions =
    DatasetOptions { shape: None, max_length: None, on_long: OnLong::Error, on_bad_row: OnBadRow::Stop };
const SKIP: DatasetOptions = DatasetOptions { on_bad_row: OnBadRow::Skip, ..STOP };

#[test]
fn token_rows_keep_their_order_and_labels() {
    let text = "\u{feff}{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3], \"id\": \"a\"}\r\n\n  \n\
                {\"input_ids\": [4, 5], \"attention_mask\": [1, 1], \"id\": \"b\"}";
    let dataset = read(text, &Encoder::token_ids_only(), STOP).unwrap();
    assert_eq!(
        dataset.samples(),
        [Sample::new(vec![1, 2, 3], vec![0.0, 0.0, 1.0], 1), Sample::new(vec![4, 5], vec![0.0, 1.0], 4)]
    );
    let report = dataset.report();
    assert_eq!((report.rows, report.samples, report.tokens, report.trained_tokens), (2, 2, 5, 2));
    assert_eq!((report.min_length, report.max_length, report.p95_length, report.mean_length), (2, 3, 3, 2.5));
    assert_eq!(
        report.to_string(),
        "2 rows of `input_ids`, 2 samples, 5 tokens, 2 of them trained (40 %)\n\
         tokens per sample: 2 to 3, mean 2, 95 % at most 3\n\
         keys that are not used: \"id\" (2 rows)"
    );
}

#[test]
fn order_is_kept_over_many_chunks_and_threads() {
    let Some(encoder) = &*SMOLLM2 else { return };
    // About nine megabytes in rows of very different length: three chunks.
    let padding = "x".repeat(9000);
    let text: String = (0..1000)
        .map(|i| json!({"prompt": format!("{i}"), "completion": " y", "note": padding}).to_string() + "\n")
        .collect();
    let dataset = read(text, encoder, STOP).unwrap();
    assert_eq!(dataset.len(), 1000);
    assert!(dataset.samples().iter().enumerate().all(|(i, sample)| sample.line == i + 1));
    assert_eq!(dataset.report().ignored_keys.get("note"), Some(&1000));
}

#[test]
fn every_bad_row_names_its_line_and_its_fault() {
    let good = "{\"input_ids\": [1, 2]}\n";
    for (row, words) in [
        ("{\"input_ids\": [1, 2", "line 2: not valid JSON: EOF while parsing"),
        ("[{\"input_ids\": [1]}]", "found a list; write a JSON array as one element per line"),
        ("7", "found a number"),
        ("{\"texts\": \"x\"}", "found the keys [\"texts\"]"),
        ("{\"input_ids\": [1, 2], \"messages\": []}", "could be `messages` or `input_ids`; name the shape"),
        ("{\"input_ids\": \"1 2\"}", "`input_ids`: expected a list of token ids, found a string"),
        ("{\"input_ids\": []}", "found an empty list"),
        ("{\"input_ids\": [1, -5]}", "expected token ids: integers from 0, found -5"),
        ("{\"input_ids\": [1, 4294967296]}", "found 4294967296"),
        ("{\"input_ids\": [1, 2.5]}", "found 2.5"),
        ("{\"input_ids\": [1, 100]}", "position 1 holds 100, and the vocabulary has 100 tokens"),
        (
            "{\"input_ids\": [1, 2], \"labels\": [1]}",
            "`labels`: expected as many labels as `input_ids`, found 1 for 2 ids",
        ),
        ("{\"input_ids\": [1, 2], \"labels\": [-100, 3]}", "position 1 holds 3, and `input_ids` holds 2"),
        ("{\"input_ids\": [1, 2], \"labels\": [-100, \"2\"]}", "`labels`: expected integers"),
        ("{\"input_ids\": [1, 2], \"labels\": [1, -100]}", "no trained token: every label is -100"),
        ("{\"input_ids\": [1]}", "no trained token"),
        ("{\"input_ids\": [1, 2], \"attention_mask\": [1, 0]}", "rows are not padded"),
    ] {
        let error = refused(format!("{good}{row}\n{good}"), STOP);
        assert!(error.starts_with("data.jsonl, line 2: ") && error.contains(words), "{row}: {error}");
        let skipped =
            read(format!("{good}{row}\n{good}"), &Encoder::token_ids_only().with_vocab_size(100), SKIP)
                .unwrap();
        let report = skipped.report();
        assert_eq!((report.rows, report.samples, report.skipped()), (3, 2, 1), "{row}");
        assert_eq!(report.skipped_untrained, usize::from(words.contains("no trained token")), "{row}");
        assert_eq!(report.first_skipped.as_ref().unwrap().line, 2);
    }
    let error = refused([good.as_bytes(), b"{\"input_ids\": \"\xff\"}"].concat(), STOP);
    assert!(error.contains("line 2: not valid UTF-8 at byte 15"), "{error}");
}

#[test]
fn rows_for_other_purposes_are_refused() {
    for (row, shape, more) in [
        ("{\"prompt\": \"a\", \"answer\": 3}", "`prompt`", ": `completion` beside `prompt`, or `messages`"),
        ("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}", "`chosen` and `rejected`", ""),
    ] {
        let error = refused(row, STOP);
        let expected = format!(
            "data.jsonl, line 1: rows with {shape} are not for supervised fine-tuning; expected something to \
             imitate{more}"
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn bad_conversations_name_their_fault() {
    let Some(encoder) = &*SMOLLM2 else { return };
    let error = |row: Value| read(row.to_string(), encoder, STOP).unwrap_err().to_string();
    let pair = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    for (row, words) in [
        (json!({"messages": "hi"}), "`messages`: expected a list of messages, found a string"),
        (json!({"messages": []}), "found an empty list"),
        (json!({"messages": [{"content": "a"}]}), "message 0: has no `role`"),
        (json!({"messages": [{"role": "user", "content": "a"}]}), "no message of the role `assistant`"),
        (json!({"messages": [{"role": "user", "content": ["a"]}]}), "unsupported types string and sequence"),
        (json!({"messages": pair, "tools": "f"}), "`tools`: expected a list of tool definitions"),
        (
            json!({"messages": pair, "chat_template_kwargs": 1}),
            "`chat_template_kwargs`: expected an object, found 1",
        ),
        (json!({"prompt": "a", "completion": [1]}), "`completion`: expected a string, or a list"),
        (json!({"prompt": 3, "completion": "b"}), "`prompt`: expected a string, or a list"),
        (json!({"prompt": "a", "completion": ""}), "the completion is empty"),
    ] {
        let error = error(row);
        assert!(error.starts_with("data.jsonl, line 1: ") && error.contains(words), "{error}");
    }
    // A named shape asks for its keys.
    let options = DatasetOptions { shape: Some(RowShape::Messages), ..STOP };
    let error = read("{\"input_ids\": [1]}", encoder, options).unwrap_err().to_string();
    assert!(error.contains("`messages`: expected a list of messages, found nothing"), "{error}");
}

#[test]
fn rows_of_another_shape_than_most_are_bad_rows() {
    let ids = "{\"input_ids\": [1, 2]}\n";
    let text = "{\"text\": \"a\"}\n";
    let Some(encoder) = &*SMOLLM2 else { return };
    // Wherever they stand, the first row included; of equals the first shape is the file's.
    for (rows, place, common) in [
        ([ids, text, ids], "line 2", "2 of the file's 3 rows have `input_ids`"),
        ([text, ids, ids], "line 1", "2 of the file's 3 rows have `input_ids`"),
        ([ids, text, "\n"], "line 2", "1 of the file's 2 rows have `input_ids`"),
        ([text, text, ids], "line 3", "2 of the file's 3 rows have `text`"),
    ] {
        let error = read(rows.concat(), encoder, STOP).unwrap_err().to_string();
        let odd = if common.ends_with("`text`") { "`input_ids`" } else { "`text`" };
        let expected = format!(
            "data.jsonl, {place}: the row has the shape {odd}, and {common}; correct the row, or put the rows of each \
             shape into a file of their own"
        );
        assert_eq!(error, expected);
        let kept = read(rows.concat(), encoder, SKIP).unwrap();
        let report = kept.report();
        assert_eq!((report.samples, report.skipped_bad), (report.rows - 1, 1), "{rows:?}");
        assert_eq!(report.first_skipped.as_ref().unwrap().place, place);
        assert_eq!(report.shape, Some(if odd == "`text`" { RowShape::Tokens } else { RowShape::Text }));
        assert!(
            kept.iter()
                .enumerate()
                .all(|(row, sample)| kept.location(row).unwrap().position.number == sample.line)
        );
    }
}

#[test]
fn a_row_without_its_completion_is_a_bad_row() {
    let Some(encoder) = &*SMOLLM2 else { return };
    let good = "{\"prompt\": \"a\", \"completion\": \" b\"}\n";
    for bad in ["{\"prompt\": \"a\"}\n", "{\"prompt\": \"a\", \"completion\": null}\n"] {
        for (rows, place) in [([bad, good], "line 1"), ([good, bad], "line 2")] {
            let error = read(rows.concat(), encoder, STOP).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("data.jsonl, {place}: rows with `prompt` are not for")),
                "{error}"
            );
            let kept = read(rows.concat(), encoder, SKIP).unwrap();
            assert_eq!((kept.len(), kept.report().skipped_bad), (1, 1));
            assert_eq!(kept.report().first_skipped.as_ref().unwrap().place, place);
        }
        // However many they are: only what can be trained on says what the file is.
        let kept = read([bad, bad, good].concat(), encoder, SKIP).unwrap();
        assert_eq!((kept.len(), kept.report().skipped_bad), (1, 2));
    }
}

#[test]
fn long_rows_are_refused_cut_or_skipped_and_counted() {
    let text = "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 2, 3, 4]}\n\
                {\"input_ids\": [1, 2, 3, 4], \"labels\": [-100, -100, -100, 4]}\n";
    let options = |on_long| DatasetOptions { max_length: Some(3), on_long, ..STOP };
    let error = refused(text, options(OnLong::Error));
    assert_eq!(
        error,
        "data.jsonl, line 2: 4 tokens, and max_length is 3; raise max_length, shorten the row, or set on_long to \
         \"truncate\" or \"skip\""
    );
    // Skipping bad rows does not skip long ones.
    assert!(
        refused(text, DatasetOptions { on_bad_row: OnBadRow::Skip, ..options(OnLong::Error) })
            .contains("line 2")
    );
    let skipped = read(text, &Encoder::token_ids_only(), options(OnLong::Skip)).unwrap();
    assert_eq!((skipped.len(), skipped.report().skipped_long), (1, 2));
    let error = refused(text, options(OnLong::Truncate));
    assert!(error.contains("line 3: no trained token: max_length cuts all trained tokens off"), "{error}");
    let cut = DatasetOptions { on_bad_row: OnBadRow::Skip, ..options(OnLong::Truncate) };
    let cut = read(text, &Encoder::token_ids_only(), cut).unwrap();
    assert_eq!(cut.samples()[1].ids, [1, 2, 3]);
    assert_eq!((cut.report().truncated, cut.report().skipped_untrained), (1, 1));
    let words = cut.report().to_string();
    assert!(
        words.contains("1 samples cut to max_length") && words.contains("first skipped row: line 3"),
        "{words}"
    );
}

#[test]
fn empty_files_and_missing_files_are_errors() {
    for text in ["", "\n \n", "\u{feff}"] {
        assert_eq!(refused(text, SKIP), "data.jsonl: no rows; the file is empty or holds only blank lines");
    }
    let error = refused("\n{}\n[]\n", SKIP);
    assert!(
        error.starts_with("data.jsonl: none of the 2 rows can be used; the first problem, in line 2: "),
        "{error}"
    );
    let missing = Dataset::from_jsonl("no/such.jsonl", &Encoder::token_ids_only(), &STOP).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read no/such.jsonl: "), "{missing}");
    assert!(Dataset::from_samples(Vec::new()).is_err());
}

#[test]
fn the_content_hash_sees_ids_and_weights_only() {
    let hash = |text: &str| read(text, &Encoder::token_ids_only(), STOP).unwrap().content_hash();
    let base = hash("{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5]}");
    assert_eq!(base.len(), 64);
    assert_eq!(
        base,
        hash("\n\n{\"input_ids\": [1, 2, 3], \"x\": 1}\n{\"input_ids\": [4, 5], \"labels\": [-100, 5]}")
    );
    for other in [
        "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 6]}",
        "{\"input_ids\": [4, 5]}\n{\"input_ids\": [1, 2, 3]}",
        "{\"input_ids\": [1, 2, 3, 4, 5]}",
        "{\"input_ids\": [1, 2, 3], \"labels\": [1, -100, 3]}\n{\"input_ids\": [4, 5]}",
    ] {
        assert_ne!(base, hash(other));
    }
}

/// The fixed batch of the training goldens.
#[test]
fn the_golden_batch_is_read_as_it_is() {
    let Some(path) = qlora_testing::golden("sft/sft_golden.json") else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (ids, labels) = (golden["input_ids"].as_array().unwrap(), golden["labels"].as_array().unwrap());
    let rows =
        ids.iter().zip(labels).map(|(ids, labels)| json!({"input_ids": ids, "labels": labels}).to_string());
    let text: Vec<String> = rows.collect();
    let dataset = read(text.join("\n"), &Encoder::token_ids_only().with_vocab_size(49152), STOP).unwrap();
    let mut sampler = Sampler::sequential(dataset.len(), dataset.len()).unwrap();
    let batch = Batch::from_samples(&dataset.select(&sampler.next_batch()));
    let trained =
        labels.iter().flat_map(|row| &row.as_array().unwrap()[1..]).filter(|&label| label != -100).count();
    assert_eq!(batch.trained_tokens(), trained);
    assert_eq!(batch.lengths, ids.iter().map(|row| row.as_array().unwrap().len()).collect::<Vec<_>>());
}

#[test]
fn conversations_of_real_shape() {
    let Some(encoder) = &*SMOLLM2 else { return };
    let rows = [
        json!({"prompt": [{"role": "system", "content": "Answer with the result only."}, {"role": "user", "content": "2+3"}],
               "completion": [{"role": "assistant", "content": "5"}]}),
        json!({"prompt": [{"role": "user", "content": "<|im_end|>"}], "completion": [{"role": "assistant", "content": "-1"}],
               "source": "x"}),
    ];
    let dataset = read(rows.map(|row| row.to_string()).join("\n"), encoder, STOP).unwrap();
    let report = dataset.report();
    // "5", "<|im_end|>"; "-", "1", "<|im_end|>".
    assert_eq!((report.shape, report.trained_tokens), (Some(RowShape::PromptCompletion), 5));
    assert_eq!((report.remarks.special_in_content, report.remarks.unended_responses), (1, 0));
    assert!(report.to_string().contains("\n1 texts that contain a special token of the model\n"));
}

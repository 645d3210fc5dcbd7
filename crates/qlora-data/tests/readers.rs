//! Every file format: what it gives, and what damaged files say. None of them may panic.

use flate2::Compression;
use flate2::write::GzEncoder;
#[cfg(feature = "parquet")]
use parquet::basic::{Compression as Codec, ZstdLevel};
#[cfg(feature = "parquet")]
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
#[cfg(feature = "parquet")]
use parquet::file::properties::WriterProperties;
#[cfg(feature = "parquet")]
use parquet::file::writer::SerializedFileWriter;
#[cfg(feature = "parquet")]
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use qlora_data::{FileFormat, OnBadRow, Record, Records, Row, Source, Sources, TextSplit};
use qlora_hub::Silent;
#[cfg(feature = "parquet")]
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
#[cfg(feature = "parquet")]
use std::sync::Arc;

fn read_source(source: Source) -> Result<Vec<(String, Record)>, String> {
    Records::open(Sources(vec![source]), OnBadRow::Stop, &mut Silent)
        .and_then(|records| {
            records
                .map(|record| record.map(|(location, record)| (location.position.to_string(), record)))
                .collect()
        })
        .map_err(|error| error.to_string())
}

/// A file of this name and content, read.
fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<(String, Record)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    read_source(Source::new(path.to_str().unwrap()))
        .map_err(|error| error.replace(&format!("{}/", folder.path().display()), ""))
}

fn text(prompt: &str, completion: &str) -> Record {
    Record::Row(Row::Text { prompt: prompt.into(), completion: completion.into() })
}

fn pairs(places: [&str; 2]) -> Vec<(String, Record)> {
    vec![(places[0].into(), text("a", "1")), (places[1].into(), text("b\n\"", "2"))]
}

const JSON_ROWS: &str = r#"{"prompt": "a", "completion": "1"}, {"completion": "2", "prompt": "b\n\""}"#;

#[test]
fn all_forms_of_json() {
    let lines = JSON_ROWS.replace("}, ", "}\n");
    assert_eq!(read("d.jsonl", &lines).unwrap(), pairs(["line 1", "line 2"]));
    // Lines under the name of JSON.
    assert_eq!(read("d.json", &lines).unwrap(), pairs(["line 1", "line 2"]));
    for list in [
        format!("[{JSON_ROWS}]"),
        format!("\u{feff} [\n{JSON_ROWS}\n]\n"),
        format!("{{\"version\": \"[1]\", \"data\": [{JSON_ROWS}], \"end\": {{}}}}"),
        format!("{{\n \"n\": {{\"data\": [1]}},\n \"data\": [{JSON_ROWS}]}}"),
    ] {
        assert_eq!(read("d.json", &list).unwrap(), pairs(["row 1", "row 2"]), "{list}");
    }
    assert_eq!(read("d.jsonl.gz", packed(lines.as_bytes())).unwrap(), pairs(["line 1", "line 2"]));
    assert!(read("d.jsonl.gz", lines).unwrap_err().starts_with("cannot read d.jsonl.gz: "));
}

fn packed(content: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

#[test]
fn lines_under_the_name_of_json_are_told_from_a_list() {
    let lines = JSON_ROWS.replace("}, ", "}\n");
    assert_eq!(read("d.json", format!("\n \n{lines}")).unwrap(), pairs(["line 3", "line 4"]));
    let long = "x".repeat(3 << 20);
    let rows = read("d.json", format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"y\"}}\n")).unwrap();
    assert_eq!(rows, [("line 1".into(), text("", &long)), ("line 2".into(), text("", "y"))]);
    // A list under `data` is one of rows only when nothing follows.
    let row = "{\"text\": \"t\", \"data\": [1, 2]}";
    let rows = read("d.json", format!("{row}\n\n{row}\n")).unwrap();
    assert_eq!(rows, [("line 1".into(), text("", "t")), ("line 3".into(), text("", "t"))]);
    assert_eq!(
        read("d.json", "{\"data\": [{\"text\": \"t\"}]}\n\n").unwrap(),
        [("row 1".into(), text("", "t"))]
    );
}

#[test]
fn a_row_of_many_values_does_not_fill_the_memory() {
    // Packed it has some kilobytes, and as values it would have more than a gigabyte.
    let row = format!("{{\"input_ids\": [{}0]}}\n", "0,".repeat(30 << 20));
    let error = read("d.jsonl.gz", packed(row.as_bytes())).unwrap_err();
    assert!(error.contains("d.jsonl.gz, line 1: more than 4194304 values"), "{error}");
    let cell = format!("input_ids\n\"[{}0]\"\n", "0,".repeat(8 << 20));
    let error = read("d.csv", cell).unwrap_err();
    assert!(error.contains("d.csv, line 2: more than 4194304 values"), "{error}");
    let row = format!("{{\"input_ids\": [{}0]}}\n", "0,".repeat(1 << 20));
    assert_eq!(read("d.jsonl", row).unwrap().len(), 1);
}

#[test]
fn damaged_json_says_where() {
    for (content, words) in [
        (
            "[{\"prompt\": \"a\", \"completion\": \"1\"}]\n[{\"prompt\": \"b\", \"completion\": \"2\"}]",
            "not valid JSON after row 1: expected the end of the file after the list, found `[`; remove it, put all",
        ),
        (
            "[{\"prompt\": \"a\", \"completion\": \"1\"}] \0",
            "expected the end of the file after the list, found `\\x00`",
        ),
        (
            "{\n\"data\": [{\"prompt\": \"a\", \"completion\": \"1\"}]",
            "expected `}`, found the end of the file",
        ),
        (
            "{\n\"data\": [{\"prompt\": \"a\", \"completion\": \"1\"}], \"n\": 1} x",
            "after the list, found `x`",
        ),
        (
            "{\n\"data\": [{\"prompt\": \"a\", \"completion\": \"1\"}], \"data\": []}",
            "`data` stands there twice",
        ),
        (
            "[{\"prompt\": \"a\", \"completion\": \"1\"}, {\"prom",
            "not valid JSON after row 1: the file ends within a value",
        ),
        (
            "[{\"prompt\": \"a\", \"completion\": \"1\"} {}]",
            "not valid JSON after row 1: expected `,`, found `{`",
        ),
        ("[{\"prompt\": \"a\", \"completion\": \"1\"}", "expected `,`, found the end of the file"),
        ("[{\"prompt\" \"a\"}]", "d.json, row 1: not valid JSON: expected `:`"),
        ("[1]", "d.json, row 1: expected one JSON object per line (JSONL), found a number"),
        ("[,]", "not valid JSON: expected a value"),
        ("{\"rows\": [1]\n}", "an object without a list under `data`"),
        ("{\"rows\": [1],\n", "the file ends within a value"),
        ("7", "expected a list of rows, or {\"data\": [rows]}"),
        ("{x: 1,\n}", "expected a key in quotes"),
    ] {
        let error = read("d.json", content).unwrap_err();
        assert!(error.contains(words), "{content}: {error}");
    }
    assert_eq!(read("d.json", "").unwrap(), []);
}

#[test]
fn tables() {
    let table = "\u{feff}prompt,completion\na,1\n\"b\n\"\"\",2\n";
    assert_eq!(read("d.csv", table).unwrap(), pairs(["line 2", "line 3"]));
    assert_eq!(
        read("d.tsv", "prompt\tcompletion\na\t1\n\"b\n\"\"\"\t2").unwrap(),
        pairs(["line 2", "line 3"])
    );
    for (content, words) in [
        (&b"prompt,completion\na,1\nb\n"[..], "d.csv, line 3: expected 2 cells, as many as columns, found 1"),
        (b"prompt,completion\na,1,2\n", "line 2: expected 2 cells"),
        (b"prompt,prompt\na,1\n", "two columns have the name \"prompt\"; rename one"),
        (b"prompt,\xff\na,1\n", "the first line is not valid UTF-8"),
        (b"prompt,completion\na,\xff\n", "d.csv, line 2: not valid UTF-8"),
        (
            b"prompt,completion\na,1\nb,\"2\nc,3\nd,4\n",
            "d.csv: the file ends within a cell; the quote that opens in line 3 is not closed: close it, or write quotes",
        ),
        (b"prompt,\"completion\na,1\n", "the quote that opens in line 1 is not closed"),
        (b"a,b\n1,2\n", "found the keys [\"a\", \"b\"]; map others by `columns`"),
    ] {
        let error = read("d.csv", content).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(read("d.csv", "").unwrap(), []);
    // Quotes within a cell that has none at its beginning mean themselves; a quote may end the file.
    assert_eq!(
        read("d.csv", "prompt,completion\na\"b,\"\"\"1\"").unwrap(),
        [("line 2".into(), text("a\"b", "\"1"))]
    );
    // So many columns that comparing each with each would take minutes.
    let names: Vec<String> = (0..200_000).map(|n| format!("c{n}")).collect();
    let error = read("d.csv", format!("{0}\n{0}\n", names.join(","))).unwrap_err();
    assert!(error.contains("line 2: expected `messages`"), "{}", &error[..200]);
}

#[test]
fn a_line_or_a_quote_without_end_does_not_fill_the_memory() {
    // Buffers may hold a little more than the limit.
    let large = vec![b'x'; 65 << 20];
    let error = read("d.jsonl", &large).unwrap_err();
    assert!(
        error.contains("line 1: larger than 67108864 bytes; is a line end or a bracket missing?"),
        "{error}"
    );
    let error = read("d.csv", [b"prompt,completion\na,\"", &large[..]].concat()).unwrap_err();
    assert!(
        error.contains("a row is larger than 67108864 bytes; the quote that opens in line 2 is not"),
        "{error}"
    );
    let error = read("d.json", [b"[\"", &large[..]].concat()).unwrap_err();
    assert!(error.contains("larger than 67108864 bytes"), "{error}");
    let error = read("d.txt", &large).unwrap_err();
    assert!(
        error.contains(
            "d.txt: larger than 67108864 bytes, the most of a row; cut it by `split = { max_chars = N }`"
        ),
        "{error}"
    );
}

/// `prompt`, `completion`, a number, and a list of numbers.
#[cfg(feature = "parquet")]
fn parquet_file(codec: Codec) -> Vec<u8> {
    let schema =
        "message rows { required binary prompt (UTF8); optional binary completion (UTF8); required int64 n;
        optional group ids (LIST) { repeated group list { optional int64 element; } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = |texts: &[&str]| texts.iter().map(|&text| ByteArray::from(text)).collect::<Vec<_>>();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts(&["a", "b\n\""]), None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts(&["1"]), Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[7, 8], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, 2, 3], Some(&[3, 3, 3]), Some(&[0, 1, 0])).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    file
}

#[test]
#[cfg(not(feature = "parquet"))]
fn parquet_is_a_feature() {
    let error = read("d.parquet", "PAR1").unwrap_err();
    assert!(error.contains("build with `--features parquet`"), "{error}");
}

#[test]
#[cfg(feature = "parquet")]
fn parquet() {
    for codec in [
        Codec::UNCOMPRESSED,
        Codec::SNAPPY,
        Codec::ZSTD(ZstdLevel::try_new(1).unwrap()),
        Codec::GZIP(Default::default()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.parquet");
        std::fs::write(&path, parquet_file(codec)).unwrap();
        let mut source = Source::new(path.to_str().unwrap());
        source.shape = Some(qlora_data::RowShape::Prompt);
        let columns: Vec<(String, Value)> = read_source(source)
            .unwrap()
            .into_iter()
            .map(|(place, record)| match record {
                Record::Prompt(prompt) => (place, Value::Object(prompt.columns)),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            columns,
            [
                ("row 1".into(), json!({"completion": "1", "n": 7, "ids": [1, 2]})),
                ("row 2".into(), json!({"n": 8, "ids": [3]}))
            ]
        );
    }
    let error = read("d.parquet", "no Parquet at all").unwrap_err();
    assert!(error.starts_with("d.parquet: not a readable Parquet file: "), "{error}");
    assert!(read("d.parquet", "").unwrap_err().contains("not a readable Parquet file"));
}

#[test]
fn documents() {
    let rows = read("d.md", "\u{feff}# A\n\n text \n").unwrap();
    assert_eq!(rows, [("part 1".to_owned(), text("", "# A\n\n text \n"))]);
    assert_eq!(read("d.txt", " \n").unwrap_err(), "d.txt, part 1: the document is empty");
    assert!(read("d.txt", b"a\xff").unwrap_err().contains("not valid UTF-8 at byte 1"));

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("b")).unwrap();
    std::fs::write(folder.path().join("b/z.md"), "# One\n\n## Two\nx\n").unwrap();
    std::fs::write(folder.path().join("a.md"), "first").unwrap();
    std::fs::write(folder.path().join(".hidden.md"), "no").unwrap();
    let mut source = Source::new(folder.path().to_str().unwrap());
    source.split = Some(TextSplit { max_chars: 9 });
    let parts: Vec<Record> = read_source(source).unwrap().into_iter().map(|(_, record)| record).collect();
    assert_eq!(parts, [text("", "first"), text("", "# One\n\n"), text("", "## Two\nx\n")]);
}

#[test]
fn a_document_larger_than_a_row_is_split_as_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.txt");
    let paragraph = format!("{}\n\n", "word ".repeat(200_000));
    let mut file = std::fs::File::create(&path).unwrap();
    (0..70).for_each(|_| file.write_all(paragraph.as_bytes()).unwrap());
    let mut source = Source::new(path.to_str().unwrap());
    source.split = Some(TextSplit { max_chars: 3_000_100 });
    let parts = read_source(source.clone()).unwrap();
    let lengths: Vec<usize> = parts
        .iter()
        .map(|(_, part)| match part {
            Record::Row(Row::Text { completion, .. }) => completion.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, [[3 * paragraph.len(); 23].as_slice(), &[paragraph.len()]].concat());
    // What is not UTF-8 is told when it is come to.
    file.write_all(b"\xff\n").unwrap();
    let error = read_source(source.clone()).unwrap_err();
    assert!(
        error.ends_with(
            "d.txt, part 23: not valid UTF-8 at byte 70000140 of the line; save the file as UTF-8"
        ),
        "{error}"
    );
    source.split = Some(TextSplit { max_chars: 100_000_000 });
    let error = read_source(source).unwrap_err();
    assert!(error.contains("a part is larger than 67108864 bytes; lower `split.max_chars`"), "{error}");
}

#[test]
fn a_split_of_what_is_no_document_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    std::fs::write(&path, "{\"text\": \"a long document\"}\n").unwrap();
    let mut source = Source::new(path.to_str().unwrap());
    source.split = Some(TextSplit { max_chars: 4 });
    let error = read_source(source.clone()).unwrap_err();
    assert!(
        error.contains("`split` cuts text and Markdown, and ") && error.contains("d.jsonl is jsonl"),
        "{error}"
    );
    source.format = Some(FileFormat::Jsonl);
    let error = source.check().unwrap_err().to_string();
    assert_eq!(
        error,
        "split is given for jsonl files: expected it for text or markdown only: rows of other formats stay whole"
    );
    source.format = Some(FileFormat::Text);
    assert_eq!(read_source(source).unwrap().len(), 7);
}

#[test]
fn sources_without_files_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("{}/{name}", folder.path().display());
    for name in ["a.jsonl", "b.csv", "c.bin", "one/x.jsonl", "one/y.jsonl", "one/z.bin"] {
        std::fs::create_dir_all(Path::new(&path(name)).parent().unwrap()).unwrap();
        std::fs::write(path(name), "{\"text\": \"t\"}\n").unwrap();
    }
    let open = |source: Source| {
        source
            .files(&mut Silent)
            .map(|files| files.len())
            .map_err(|error| error.to_string().replace(&path(""), ""))
    };
    assert_eq!(open(Source::new(path("one"))), Ok(2));
    assert_eq!(open(Source::new(path("*.jsonl"))), Ok(1));
    assert_eq!(open(Source::new(path("**/*.jsonl"))), Ok(3));
    let mut csv = Source::new(folder.path().to_str().unwrap());
    csv.format = Some(FileFormat::Csv);
    assert_eq!(open(csv), Ok(1));
    std::fs::create_dir(path("empty")).unwrap();
    for (source, words) in [
        (path("empty"), "there are no data files"),
        (
            folder.path().to_str().unwrap().to_owned(),
            "the folder has files of the formats jsonl, csv; set `format`",
        ),
        (path("c.bin"), "the name of c.bin does not tell its format; set `format` to jsonl, json"),
        (path("*.parquet"), "no file matches the pattern"),
        ("https://x.org/a.jsonl".into(), "only paths and hf://datasets/.. are read"),
        ("hf://datasets/squad".into(), "expected hf://datasets/organisation/name[@revision]/"),
    ] {
        let error = open(Source::new(source)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let missing = read_source(Source::new(path("no.jsonl"))).unwrap_err();
    assert!(missing.starts_with("cannot read ") && missing.contains("no.jsonl: "), "{missing}");
}

/// Reads damaged content in every way; only errors may come of it.
fn survives(name: &str, content: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    for on_bad_row in [OnBadRow::Stop, OnBadRow::Skip] {
        if let Ok(records) = Records::open(path.to_str().unwrap(), on_bad_row, &mut Silent) {
            records.take(1000).for_each(drop);
        }
    }
}

fn damaged(mut content: Vec<u8>, changes: &[(usize, u8)], cut: usize) -> Vec<u8> {
    let length = content.len();
    changes.iter().for_each(|&(at, byte)| content[at % length] = byte);
    content.truncate(length - cut % 8 * (length / 8));
    content
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_text_formats_never_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), cut: usize) {
        let lines = JSON_ROWS.replace("}, ", "}\n");
        survives("d.jsonl", &damaged(lines.into_bytes(), &changes, cut));
        survives("d.json", &damaged(format!("{{\"a\": 1, \"data\": [{JSON_ROWS}]}}").into_bytes(), &changes, cut));
        survives("d.json", &damaged(format!("[{JSON_ROWS}]").into_bytes(), &changes, cut));
        survives("d.csv", &damaged(b"prompt,completion\na,1\n\"b\n\"\"\",2\n".to_vec(), &changes, cut));
        survives("d.md", &damaged(b"# A\n\ntext\n".to_vec(), &changes, cut));
    }

    #[test]
    #[cfg(feature = "parquet")]
    fn damaged_parquet_never_panics(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut: usize, packed: bool) {
        let codec = if packed { Codec::SNAPPY } else { Codec::UNCOMPRESSED };
        survives("d.parquet", &damaged(parquet_file(codec), &changes, if packed { 0 } else { cut % 3 }));
    }
}

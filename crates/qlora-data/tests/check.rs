//! Whole-set checks.

use qlora_data::check::{CheckOptions, CheckReport, FindingKind, Severity, check, pick};
use qlora_data::{Encoder, EvalSplit, Mixing, OnBadRow, OnLong, Sources};
use qlora_hub::Silent;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn write(folder: &Path, name: &str, lines: impl IntoIterator<Item = String>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, lines.into_iter().map(|line| line + "\n").collect::<String>()).unwrap();
    path
}

fn ids(from: u32, count: u32) -> String {
    let ids: Vec<u32> = (0..count).map(|i| (from * 37 + i * i) % 1000).collect();
    format!("{{\"input_ids\": {ids:?}}}")
}

fn sources(path: &Path) -> Sources {
    path.to_str().unwrap().into()
}

fn count(report: &CheckReport, kind: FindingKind) -> usize {
    report.findings.iter().find(|finding| finding.kind == kind).map_or(0, |finding| finding.rows)
}

#[test]
fn rows_of_tokens_are_counted_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let almost = ids(3, 200).replace("]}", ", 7]}");
    let train =
        write(folder.path(), "train.jsonl", (0..40).map(|row| ids(row, 200)).chain([almost, ids(5, 200)]));
    let eval = write(folder.path(), "eval.jsonl", [ids(8, 200), ids(9, 201), ids(100, 20)]);
    let encoder = Encoder::token_ids_only().with_vocab_size(1000);
    let options =
        CheckOptions { max_length: Some(150), on_long: OnLong::Truncate, ..CheckOptions::default() };
    let run = |options: &CheckOptions| {
        check(&sources(&train), Some(&sources(&eval)), Some(&encoder), options, &mut Silent).unwrap()
    };
    let report = run(&options);
    assert_eq!((report.train.rows, report.train.samples, report.train.tokens), (42, 42, 42 * 200 + 1));
    assert_eq!(
        (report.train.min_length, report.train.median_length, report.train.max_length),
        (200, 200, 201)
    );
    assert_eq!((report.train.cut.rows, report.train.cut.tokens), (42, 42 * 50 + 1));
    let estimate = report.train.run.unwrap();
    assert_eq!((estimate.steps, estimate.tokens, estimate.seconds), (6, 42 * 150, None));
    assert!(report.eval.as_ref().unwrap().run.is_none());
    let packed = report.train.packed.unwrap();
    assert_eq!((packed.budget, packed.packs, packed.efficiency), (150, 42, 1.0));
    for (kind, rows) in [
        (FindingKind::TooLong, 44),
        (FindingKind::NearDuplicate, 1),
        (FindingKind::Duplicate, 1),
        (FindingKind::Leaked, 1),
        (FindingKind::NearLeaked, 1),
    ] {
        assert_eq!(count(&report, kind), rows, "{kind:?}");
    }
    assert!(!report.has_errors());
    assert!(report.findings.is_sorted_by_key(|finding| finding.severity));

    // Training would stop at long rows, or leave them out: then nothing is left, which is an error too.
    let severity = |report: &CheckReport| {
        report.findings.iter().find(|finding| finding.kind == FindingKind::TooLong).unwrap().severity
    };
    assert_eq!(severity(&report), Severity::Warning);
    assert_eq!(severity(&run(&CheckOptions { on_long: OnLong::Error, ..options.clone() })), Severity::Error);
    let skipping = run(&CheckOptions { on_long: OnLong::Skip, ..options.clone() });
    assert_eq!((severity(&skipping), skipping.train.run), (Severity::Error, None));
    let skipping = run(&CheckOptions { on_long: OnLong::Skip, max_length: Some(200), ..options });
    assert_eq!(severity(&skipping), Severity::Warning);
    assert_eq!(skipping.train.run.unwrap().tokens, 41 * 200);
}

#[test]
fn rows_whose_trained_tokens_are_cut_are_bad_rows() {
    let folder = tempfile::tempdir().unwrap();
    let cut = json!({"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]}).to_string();
    let train = write(folder.path(), "t.jsonl", [json!({"input_ids": [1, 2]}).to_string(), cut]);
    for (on_long, on_bad_row, severity) in [
        (OnLong::Error, OnBadRow::Skip, Severity::Error),
        (OnLong::Truncate, OnBadRow::Stop, Severity::Error),
        (OnLong::Truncate, OnBadRow::Skip, Severity::Warning),
        (OnLong::Skip, OnBadRow::Stop, Severity::Warning),
    ] {
        let options = CheckOptions { max_length: Some(3), on_long, on_bad_row, ..CheckOptions::default() };
        let encoder = Encoder::token_ids_only();
        let report = check(&sources(&train), None, Some(&encoder), &options, &mut Silent).unwrap();
        let finding = report.findings.iter().find(|one| one.kind == FindingKind::CutUntrained).unwrap();
        assert_eq!((finding.rows, finding.severity), (1, severity), "{on_long:?} {on_bad_row:?}");
    }
}

#[test]
fn rows_of_another_shape_than_most_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let train = write(
        folder.path(),
        "t.jsonl",
        [r#"{"text": "t"}"#, "{", r#"{"input_ids": [1, 2]}"#, "{", r#"{"input_ids": [3, 4]}"#]
            .map(str::to_owned),
    );
    let report = check(&sources(&train), None, None, &CheckOptions::default(), &mut Silent).unwrap();
    let mixed = report.findings.iter().find(|one| one.kind == FindingKind::MixedShapes).unwrap();
    assert_eq!((mixed.rows, mixed.places[0].position.number), (1, 1));
    assert!(mixed.places[0].detail.contains("2 of the file's 3 rows have `input_ids`"), "{mixed:?}");
    assert_eq!(count(&report, FindingKind::Unreadable), 2);
}

#[test]
fn sources_are_repeated_in_the_estimate() {
    let folder = tempfile::tempdir().unwrap();
    let a = write(folder.path(), "a.jsonl", (0..10).map(|row| ids(row, 4)));
    let b = write(folder.path(), "b.jsonl", (10..50).map(|row| ids(row, 6)));
    let encoder = Encoder::token_ids_only();
    let tokens = |sources, mixing| {
        let sources: Sources = serde_json::from_value(sources).unwrap();
        let options = CheckOptions { mixing, ..CheckOptions::default() };
        let report = check(&sources, None, Some(&encoder), &options, &mut Silent).unwrap();
        assert_eq!((report.train.rows, report.train.tokens), (50, 280));
        (report.train.run.unwrap().steps, report.train.run.unwrap().tokens)
    };
    let weighted = json!([{"path": a, "weight": 1}, {"path": b, "weight": 1}]);
    assert_eq!(tokens(weighted.clone(), Mixing::Oversample), (10, 40 * 4 + 40 * 6));
    assert_eq!(tokens(weighted, Mixing::Undersample), (3, 10 * 4 + 10 * 6));
    let repeated = json!([{"path": a, "repeat": 2.5}, b]);
    assert_eq!(tokens(repeated, Mixing::default()), (9, 25 * 4 + 40 * 6));
}

#[test]
fn a_split_without_rows_on_one_side_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let train = write(folder.path(), "t.jsonl", [ids(1, 4)]);
    let split = Some(EvalSplit { fraction: 0.999, group: None, seed: 0 });
    let options = CheckOptions { split, ..CheckOptions::default() };
    let error = check(&sources(&train), None, None, &options, &mut Silent).unwrap_err().to_string();
    assert!(
        error.starts_with("the split leaves no row to train on: fraction 0.999 of 1 rows, seed 0; lower"),
        "{error}"
    );
}

#[test]
fn the_report_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let rows = (0..3000).map(|row| match row % 50 {
        0 => "{".to_owned(),
        1 => ids(row - 1, 3 + row % 90) + " ",
        _ => ids(row / 3, 3 + row % 90),
    });
    let train = sources(&write(folder.path(), "train.jsonl", rows));
    let encoder = Encoder::token_ids_only();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| check(&train, None, Some(&encoder), &CheckOptions::default(), &mut Silent).unwrap())
    };
    let report = run(1);
    assert_eq!(report, run(4));
    assert_eq!(report.to_html(), run(3).to_html());
    assert_eq!(count(&report, FindingKind::Unreadable), 60);
    assert_eq!((report.has_errors(), report.findings[0].severity), (true, Severity::Error));
    assert_eq!(report.train.samples, 2940);
    assert_eq!(report.train.histogram.iter().map(|bar| bar.rows).sum::<usize>(), 2940);
}

#[test]
fn rows_are_picked_by_their_position() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "t.jsonl", [ids(1, 4), String::new(), "{".to_owned(), ids(2, 5)]);
    let rows: BTreeSet<usize> = [1, 2, 7].into();
    let picked = pick(&sources(&path), &rows, &Encoder::token_ids_only(), &mut Silent).unwrap();
    let places: Vec<_> = picked.iter().map(|row| (row.row, row.location.position.to_string())).collect();
    assert_eq!(places, [(1, "line 3".to_owned()), (2, "line 4".to_owned())]);
    assert!(picked[0].sample.is_err());
    assert_eq!(picked[1].sample.as_ref().unwrap().len(), 5);
}

#[test]
fn sources_are_read_as_training_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |from: usize| {
        (from..from + 30)
            .map(|n| format!("{{\"q\": \"What is {n}?\", \"a\": \"{n} it is\", \"set\": {}}}", n / 3))
    };
    let asked = write(folder.path(), "asked.jsonl", rows(0));
    let pages = folder.path().join("pages");
    std::fs::create_dir(&pages).unwrap();
    std::fs::write(pages.join("one.md"), "# One\n\nA page.\n\n# Two\n\nAnother page.\n").unwrap();
    let train: Sources = serde_json::from_value(json!([
        {"path": asked, "columns": {"prompt": "q", "completion": "a"}},
        {"path": pages, "split": {"max_chars": 22}},
    ]))
    .unwrap();
    let run = |options: &CheckOptions| check(&train, None, None, options, &mut Silent).unwrap();
    // Files of several shapes are no mixture within a file.
    let whole = run(&CheckOptions::default());
    assert_eq!((whole.train.rows, count(&whole, FindingKind::MixedShapes)), (32, 0));
    assert!(whole.eval.is_none());
    assert_eq!(count(&whole, FindingKind::IgnoredKeys), 30);

    let split = |group: Option<&str>| CheckOptions {
        split: Some(EvalSplit { fraction: 0.3, group: group.map(str::to_owned), seed: 1 }),
        ..CheckOptions::default()
    };
    let report = run(&split(None));
    let eval = report.eval.clone().unwrap();
    assert_eq!(report.train.rows + eval.rows, 32);
    assert!((3..=17).contains(&eval.rows), "{}", eval.rows);
    assert_eq!(report, run(&split(None)));
    // Pages have no column to group by: told once, among what is trained on.
    let grouped = run(&split(Some("set")));
    assert_eq!(grouped.train.rows + grouped.eval.clone().unwrap().rows, 32);
    let problem = grouped.findings.iter().find(|finding| finding.severity == Severity::Error).unwrap();
    assert!(
        problem.rows == 2 && problem.places[0].detail.contains("the column \"set\" is missing"),
        "{problem:?}"
    );
}

//! Whole-set checks.

use qlora_data::check::{CheckOptions, CheckReport, FindingKind, Severity, check, pick};
use qlora_data::{Encoder, EvalSplit, Sources};
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
    let options = CheckOptions { max_length: Some(150), ..CheckOptions::default() };
    let report =
        check(&sources(&train), Some(&sources(&eval)), Some(&encoder), &options, &mut Silent).unwrap();
    assert_eq!((report.train.rows, report.train.samples, report.train.tokens), (42, 42, 42 * 200 + 1));
    assert_eq!(
        (report.train.min_length, report.train.median_length, report.train.max_length),
        (200, 200, 201)
    );
    assert_eq!((report.train.cut.rows, report.train.cut.tokens), (42, 42 * 50 + 1));
    assert_eq!((report.train.steps, report.train.run_tokens), (6, 42 * 150));
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
    let picked = pick(&path, &rows, &Encoder::token_ids_only(), None).unwrap();
    assert_eq!(picked.iter().map(|row| (row.row, row.line)).collect::<Vec<_>>(), [(1, 3), (2, 4)]);
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

//! The metrics file survives kills, and the report is made of it.

use std::fs;

use qlora_train::TrainError;
use qlora_train::metrics::{EvalMetrics, MetricsFile, Record, StepMetrics, read_metrics};
use qlora_train::report::write_report;
use qlora_train::samples::SampleRecord;

fn step(step: u64) -> Record {
    Record::Step(StepMetrics {
        step,
        epoch: step as f64 / 3.0,
        loss: 2.0 / step as f64,
        grad_norm: 0.1 + 0.2,
        lr: 6.666666666666667e-5,
        tokens: 100 * step,
        trained_tokens: 10,
        tokens_per_s: 812.5,
        memory: (step > 1).then_some(512.0),
        loss_scale: (step > 1).then_some(65536.0),
        skipped_steps: (step > 1).then_some(1),
        objective: match step {
            1 => [].into(),
            _ => [("reward".to_string(), 0.1 * step as f64), ("kl".to_string(), 1e-3)].into(),
        },
    })
}

fn evaluation(step: u64) -> Record {
    Record::Evaluation(EvalMetrics {
        step,
        epoch: 0.5,
        eval_loss: 1.25,
        eval_perplexity: 1.25_f64.exp(),
        eval_accuracy: 0.5,
        eval_tokens: 77,
    })
}

#[test]
fn lines_round_trip_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut file = MetricsFile::create(&path).unwrap();
    let records = [evaluation(0), step(1), step(2), evaluation(2)];
    for record in &records {
        file.record(record).unwrap();
    }
    assert_eq!(read_metrics(&path).unwrap(), records);
    let text = fs::read_to_string(&path).unwrap();
    let second = text.lines().nth(1).unwrap();
    assert!(second.starts_with(r#"{"step":1,"epoch":0.333"#) && !second.contains("memory"), "{second}");
}

#[test]
fn resuming_drops_later_steps_and_an_unfinished_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut file = MetricsFile::create(&path).unwrap();
    for record in [step(1), step(2), evaluation(2), step(3), step(4)] {
        file.record(&record).unwrap();
    }
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"step\":5,\"epo");
    fs::write(&path, &text).unwrap();

    let mut resumed = MetricsFile::resume(&path, 2).unwrap();
    assert_eq!(read_metrics(&path).unwrap(), [step(1), step(2), evaluation(2)]);
    resumed.record(&step(3)).unwrap();
    assert_eq!(read_metrics(&path).unwrap().last(), Some(&step(3)));

    let absent = folder.path().join("absent.jsonl");
    MetricsFile::resume(&absent, 7).unwrap().record(&step(8)).unwrap();
    assert_eq!(read_metrics(&absent).unwrap(), [step(8)]);
}

#[test]
fn a_damaged_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    MetricsFile::create(&path).unwrap().record(&step(1)).unwrap();
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"step\":2}\n");
    fs::write(&path, text).unwrap();
    let error = read_metrics(&path).unwrap_err();
    assert!(matches!(error, TrainError::BadMetrics { line: 2, .. }), "{error}");
}

#[test]
fn a_report_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let records: Vec<Record> = (1..=2000).map(step).chain([evaluation(1000), evaluation(2000)]).collect();
    let samples = [SampleRecord {
        completion: "<b>4</b>".to_string(),
        rewards: [("correct".to_string(), Some(0.5)), ("form".to_string(), None)].into(),
        ..SampleRecord::default()
    }];
    write_report(&path, "runs/<first> & \"co\"", "path = \"<a>\"", &records, &samples).unwrap();
    let html = fs::read_to_string(&path).unwrap();
    for expected in [
        "<h1>runs/&lt;first&gt; &amp; &quot;co&quot;</h1>",
        "path = &quot;&lt;a&gt;&quot;",
        "2.0000 to 0.0010",
        "step 1000: 1.25",
        "<th>correct</th><th>form</th>",
        "&lt;b&gt;4&lt;/b&gt;</td><td>0.500</td><td>none</td>",
    ] {
        assert!(html.contains(expected), "{expected} is not in the report");
    }
    assert_eq!(html.matches("<svg").count(), 7);
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    for outside in ["<script", "http", "src=", "NaN"] {
        assert!(!html.contains(outside), "{outside} is in the report");
    }
    assert!(html.len() < 300_000, "{} bytes", html.len());
    write_report(&path, "empty", "", &[], &[]).unwrap();
    assert!(!fs::read_to_string(&path).unwrap().contains("<svg"));
}

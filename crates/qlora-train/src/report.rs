//! `report.html`: the curves of a run in one file that needs nothing else.

mod chart;
mod table;

use std::fmt::Write as _;
use std::path::Path;

use qlora_files::atomic;

use crate::TrainError;
use crate::metrics::{EvalMetrics, Record, StepMetrics};
use crate::samples::SampleRecord;
use chart::{Chart, Series};

/// Writes the report of the records so far: a summary, curves of loss, learning rate, gradient norm and speed as
/// inline SVG, what the objective tells where it tells something, the newest completions with their rewards, and the
/// configuration unless it is empty. No scripts, no network.
///
/// # Errors
/// The file can't be written.
pub fn write_report(
    path: impl AsRef<Path>,
    title: &str,
    config: &str,
    records: &[Record],
    samples: &[SampleRecord],
) -> Result<(), TrainError> {
    Ok(atomic::write_bytes(path, html(title, config, records, samples))?)
}

fn html(title: &str, config: &str, records: &[Record], samples: &[SampleRecord]) -> String {
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            Record::Step(metrics) => steps.push(metrics.clone()),
            Record::Evaluation(metrics) => evaluations.push(*metrics),
        }
    }
    let curve = |name, value: fn(&StepMetrics) -> f64| {
        // A skipped step has no gradient norm.
        let points = steps.iter().map(|metrics| (metrics.step as f64, value(metrics)));
        Series::line(name, points.filter(|(_, value)| value.is_finite()))
    };
    let evaluated = |name, value: fn(&EvalMetrics) -> f64| {
        Series::dots(name, evaluations.iter().map(|metrics| (metrics.step as f64, value(metrics))))
    };
    let objective = |name: &'static str| {
        let points = steps.iter().filter_map(|m| Some((m.step as f64, *m.objective.get(name)?)));
        Series::line(name, points)
    };
    let mut charts = vec![
        Chart {
            title: "Loss",
            series: vec![curve("training", |m| m.loss), evaluated("evaluation", |m| m.eval_loss)],
        },
        Chart { title: "Token accuracy", series: vec![evaluated("evaluation", |m| m.eval_accuracy)] },
        Chart { title: "Learning rate", series: vec![curve("learning rate", |m| m.lr)] },
        Chart { title: "Gradient norm", series: vec![curve("before clipping", |m| m.grad_norm)] },
        Chart { title: "Tokens per second", series: vec![curve("tokens per second", |m| m.tokens_per_s)] },
    ];
    if steps.iter().any(|metrics| metrics.objective.contains_key("reward")) {
        let chart = |title, names: &[&'static str]| Chart {
            title,
            series: names.iter().map(|name| objective(name)).collect(),
        };
        charts.insert(0, chart("Reward", &["reward", "reward_std"]));
        charts.push(chart("Entropy", &["entropy"]));
        charts.push(chart("Divergence from the reference", &["kl"]));
        charts.push(chart("Tokens of a completion", &["completions/mean_length"]));
        charts.push(chart("Sampler against trainer", &["sampling/sampling_logp_difference/mean"]));
    }

    let title = escape(title);
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<table>\n"
    );
    for (name, value) in summary(&steps, &evaluations) {
        let _ = writeln!(html, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    html.push_str("</table>\n");
    for chart in charts {
        html.push_str(&chart.svg());
    }
    html.push_str(&table::samples(samples));
    if !config.is_empty() {
        let _ = writeln!(
            html,
            "<details><summary>Configuration</summary><pre>{}</pre></details>",
            escape(config)
        );
    }
    html.push_str("</body>\n</html>\n");
    html
}

fn summary(steps: &[StepMetrics], evaluations: &[EvalMetrics]) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (steps.first(), steps.last()) {
        let tokens: u64 = steps.iter().map(|metrics| metrics.tokens).sum();
        rows.push(("Steps", last.step.to_string()));
        rows.push(("Epochs", format!("{:.2}", last.epoch)));
        rows.push(("Tokens", tokens.to_string()));
        rows.push(("Loss, first to last step", format!("{:.4} to {:.4}", first.loss, last.loss)));
        if let Some(memory) = last.memory {
            rows.push(("Most memory", format!("{memory:.0} MB")));
        }
    }
    let best = evaluations.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss));
    if let Some(best) = best {
        let text = format!(
            "{:.4} (perplexity {:.3}) after step {}",
            best.eval_loss, best.eval_perplexity, best.step
        );
        rows.push(("Lowest evaluation loss", text));
    }
    rows
}

const STYLE: &str = "\
body{font:15px/1.4 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
th{text-align:left;padding-right:1.5em;font-weight:500}svg{width:100%;height:auto;margin:.6em 0}\
svg text{font:12px system-ui,sans-serif;fill:#555}svg .title{font-size:14px;fill:#222}\
svg .grid{stroke:#ddd;stroke-width:1}svg polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}\
td{vertical-align:top;padding:.2em 1em .2em 0}td.text{white-space:pre-wrap;overflow-wrap:anywhere}\
pre{overflow:auto;background:#f5f5f5;padding:1em}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}svg text{fill:#aaa}\
svg .title{fill:#ddd}svg .grid{stroke:#333}pre{background:#222}}";

/// Text that can stand anywhere in HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

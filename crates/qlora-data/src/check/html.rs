//! The report as a page that needs nothing else.

use super::report::{CheckReport, SetReport, ShownRow};
use super::{Finding, Severity};
use crate::{Piece, visible};
use std::fmt::Write as _;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
table{border-collapse:collapse}td{padding:.1em 1em .1em 0;vertical-align:top}\
.bar{display:inline-block;height:.8em;background:#4a7ebb;margin-right:.5em}\
.error{border-left:4px solid #c0392b}.warning{border-left:4px solid #d9a400}.note{border-left:4px solid #888}\
.finding{padding:.2em .8em;margin:.8em 0}.finding p{margin:.2em 0}li{overflow-wrap:anywhere}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f4;padding:.8em;line-height:1.6}\
.token{border-right:1px solid #0001}.trained{background:hsl(140 60% 80%/var(--w))}.special{font-weight:bold;color:#8a3ffc}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#222}\
.trained{background:hsl(140 60% 30%/var(--w))}.special{color:#c39bff}}";

pub(super) fn page(report: &CheckReport) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Data check</title>\
         <style>{STYLE}</style></head><body>\n<h1>Data check</h1>\n"
    );
    set(&mut page, "Training data", &report.train);
    if let Some(eval) = &report.eval {
        set(&mut page, "Held-out data", eval);
    }
    page.push_str("<h2>Findings</h2>\n");
    if report.findings.is_empty() {
        page.push_str("<p>Nothing was found to complain about.</p>\n");
    }
    report.findings.iter().for_each(|one| finding(&mut page, one));
    if !report.shown.is_empty() {
        page.push_str(
            "<h2>Rows as the model sees them</h2>\n<p>Trained tokens are <span class=\"trained\" style=\"--w:1\">green\
             </span>, the paler the less they weigh; special tokens are <span class=\"special\">bold</span>.</p>\n",
        );
        report.shown.iter().for_each(|shown| row(&mut page, shown));
    }
    page.push_str("</body></html>\n");
    page
}

fn set(page: &mut String, name: &str, set: &SetReport) {
    let _ = writeln!(page, "<h2>{name}</h2>\n<table>");
    for (name, value) in set.numbers() {
        let _ = writeln!(page, "<tr><td>{name}<td>{}", escape(&value));
    }
    page.push_str("</table>\n");
    if set.histogram.is_empty() {
        return;
    }
    page.push_str("<h3>Tokens a row</h3>\n<table>\n");
    let most = set.histogram.iter().map(|bar| bar.rows).max().unwrap_or(0).max(1);
    for bar in &set.histogram {
        let width = 30.0 * bar.rows as f64 / most as f64;
        let _ = writeln!(
            page,
            "<tr><td>{}-{}<td><span class=\"bar\" style=\"width:{width:.2}em\"></span>{}",
            bar.from, bar.to, bar.rows
        );
    }
    page.push_str("</table>\n");
}

fn finding(page: &mut String, finding: &Finding) {
    let class = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let _ = writeln!(
        page,
        "<div class=\"finding {class}\"><p><b>{class}: {} {}</b></p><p>{}</p><ul>",
        finding.rows,
        escape(finding.summary),
        escape(finding.advice)
    );
    for place in &finding.places {
        let file = escape(&place.file.display().to_string());
        let _ = writeln!(page, "<li>{file}, {}: {}", place.position, escape(&place.detail));
    }
    page.push_str("</ul></div>\n");
}

fn row(page: &mut String, row: &ShownRow) {
    let file = escape(&row.file.display().to_string());
    let _ = write!(page, "<h3>{file}, {} ({} tokens)</h3>\n<ul>", row.position, row.tokens);
    for reason in &row.reasons {
        let _ = write!(page, "<li>{}", escape(reason));
    }
    page.push_str("</ul>\n<pre>");
    let mut shown = 0;
    for Piece { text, ids, weight, special } in &row.pieces {
        shown += ids.len();
        let trained = if *weight != 0.0 { " trained" } else { "" };
        let special = if *special { " special" } else { "" };
        let opacity = weight.clamp(0.15, 1.0);
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let _ = write!(
            page,
            "<span class=\"token{trained}{special}\" style=\"--w:{opacity}\" title=\"{} weight {weight}\">{}</span>",
            ids.join(" "),
            escape(&visible(text))
        );
    }
    if shown < row.tokens {
        let _ = write!(page, "\n… and {} more tokens", row.tokens - shown);
    }
    page.push_str("</pre>\n");
}

/// Text that means itself in an element and in a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

//! The newest completions as a table.

use std::fmt::Write as _;

use super::escape;
use crate::samples::SampleRecord;

/// Completions shown, at most.
const SHOWN: usize = 24;

pub(super) fn samples(samples: &[SampleRecord]) -> String {
    let newest = &samples[samples.len().saturating_sub(SHOWN)..];
    let Some(last) = newest.last() else { return String::new() };
    let names: Vec<&String> = last.rewards.keys().collect();
    let mut html =
        String::from("<h2>Completions</h2>\n<table>\n<tr><th>step</th><th>prompt</th><th>completion</th>");
    for name in &names {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    html.push_str("<th>advantage</th></tr>\n");
    for sample in newest {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td>",
            sample.step,
            escape(&sample.prompt),
            escape(&sample.completion)
        );
        for name in &names {
            let reward = sample.rewards.get(*name).copied().flatten();
            let _ = write!(
                html,
                "<td>{}</td>",
                reward.map_or("none".to_string(), |reward| format!("{reward:.3}"))
            );
        }
        let _ = writeln!(html, "<td>{:.3}</td></tr>", sample.advantage);
    }
    html.push_str("</table>\n");
    html
}

//! Whether a completion has a form.

use regex::Regex;

use super::{Reward, RewardError, RewardInput};

/// 1 where a regular expression matches the completion from its beginning to its end, else 0. `.` matches newlines.
#[derive(Clone, Debug)]
pub struct PatternFormat {
    name: String,
    pattern: Regex,
}

impl PatternFormat {
    /// A reward by a pattern in the syntax of the `regex` crate.
    ///
    /// # Errors
    /// It is no regular expression.
    pub fn new(name: impl Into<String>, pattern: &str) -> Result<Self, regex::Error> {
        let pattern = Regex::new(&format!("(?s)\\A(?:{pattern})\\z"))?;
        Ok(Self { name: name.into(), pattern })
    }
}

impl Reward for PatternFormat {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some(f64::from(u8::from(self.pattern.is_match(input.completion)))))
    }
}

/// Whether a completion is a row of tags, `<think>…</think><answer>…</answer>`.
///
/// 1 where each tag is opened and closed exactly once in the whole completion, in order, with nothing but space between
/// the sections; with `partial`, else the share of opening and closing tags that are there exactly once, times a half.
#[derive(Clone, Debug)]
pub struct TagFormat {
    /// Name in metrics.
    pub name: String,
    /// The names of the tags, in order.
    pub tags: Vec<String>,
    /// Whether some of the tags are worth something.
    pub partial: bool,
}

impl TagFormat {
    /// The opening and closing tags, in order.
    fn marks(&self) -> impl Iterator<Item = String> {
        self.tags.iter().flat_map(|tag| [format!("<{tag}>"), format!("</{tag}>")])
    }

    /// How many of the tags stand in a text exactly once.
    fn once(&self, text: &str) -> usize {
        self.marks().filter(|mark| text.matches(mark.as_str()).count() == 1).count()
    }

    /// Whether the tags are a row of sections with nothing outside.
    fn is_row(&self, completion: &str) -> bool {
        let mut rest = completion.trim();
        for tag in &self.tags {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            let Some(inside) = rest.trim_start().strip_prefix(open.as_str()) else { return false };
            let Some((_, after)) = inside.split_once(close.as_str()) else { return false };
            rest = after;
        }
        rest.trim().is_empty()
    }
}

impl Reward for TagFormat {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let (once, all) = (self.once(input.completion), 2 * self.tags.len());
        if once == all && self.is_row(input.completion) {
            return Ok(Some(1.0));
        }
        if !self.partial || self.tags.is_empty() {
            return Ok(Some(0.0));
        }
        Ok(Some(0.5 * once as f64 / all as f64))
    }
}

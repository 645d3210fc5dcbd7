//! Texts that end an answer, found in text that comes in pieces.

/// Looks for stop strings in a text as it is made, and holds back what may be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Stops at the first of these; empty ones are ignored.
    #[must_use]
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|stop: &String| !stop.is_empty());
        Self { stops: stops.collect(), held: String::new() }
    }

    /// Adds a piece of text. Gives what is certain to come before any stop string, and whether one was reached: it is
    /// not part of what is given.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let possible = self.stops.iter().map(|stop| beginning_at_end(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - possible);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Ends the text: what was held back is none of the stop strings.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }
}

/// Bytes of the longest beginning of `stop` that `text` ends with.
fn beginning_at_end(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).rev();
    lengths.filter(|length| text.ends_with(&stop[..*length])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_before_a_stop_string_is_given_and_nothing_behind_it() {
        let mut stops = StopStrings::new(["\nUser:", "END"]);
        assert_eq!(stops.push("hello\n"), ("hello".into(), false));
        assert_eq!(stops.push("Us"), (String::new(), false));
        assert_eq!(stops.push("ually"), ("\nUsually".into(), false));
        assert_eq!(stops.push(" E"), (" ".into(), false));
        assert_eq!(stops.push("ND of it"), (String::new(), true));
    }

    #[test]
    fn what_is_held_back_comes_at_the_end() {
        let mut stops = StopStrings::new(["äöü"]);
        assert_eq!(stops.push("x äö"), ("x ".into(), false));
        assert_eq!(stops.finish(), "äö");
        assert_eq!(StopStrings::new([""; 2]).push("all"), ("all".into(), false));
    }

    #[test]
    fn the_earliest_of_several_counts() {
        assert_eq!(StopStrings::new(["c", "b"]).push("abc"), ("a".into(), true));
        assert_eq!(StopStrings::new(["aab"]).push("aaab"), ("a".into(), true));
    }
}

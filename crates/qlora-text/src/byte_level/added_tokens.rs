//! Tokens that are found in a text before it is split.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Finds some tokens: from the left, of those that begin at the same place the longest.
pub(super) struct AddedTokens {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl AddedTokens {
    /// `None` when they are too many for an automaton.
    pub(super) fn new(tokens: &[(String, u32)]) -> Option<Self> {
        let automaton = AhoCorasick::builder()
            // Of a size in proportion to the tokens, which a file may make long; a DFA takes 1 KB for each byte.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(text, _)| text))
            .ok()?;
        Some(Self { automaton, ids: tokens.iter().map(|&(_, id)| id).collect() })
    }

    /// Gives the tokens and what is between them, in the order of the text; nothing empty.
    pub(super) fn split(&self, text: &str, mut found: impl FnMut(Part)) {
        let mut start = 0;
        if !self.ids.is_empty() {
            for hit in self.automaton.find_iter(text) {
                if start < hit.start() {
                    found(Part { id: None, start, end: hit.start() });
                }
                found(Part { id: Some(self.ids[hit.pattern()]), start: hit.start(), end: hit.end() });
                start = hit.end();
            }
        }
        if start < text.len() {
            found(Part { id: None, start, end: text.len() });
        }
    }
}

/// A range of a text: an added token, or what is between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: Option<u32>,
    pub(super) start: usize,
    pub(super) end: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_from_the_left_is_found() {
        let tokens = [("<a>", 1), ("<a><b>", 2), ("b>", 3)].map(|(text, id)| (text.to_owned(), id));
        let added = AddedTokens::new(&tokens).unwrap();
        let parts = |text: &str| {
            let mut parts = Vec::new();
            added.split(text, |part| parts.push((part.id, text[part.start..part.end].to_owned())));
            parts
        };
        let owned = |list: &[(Option<u32>, &str)]| -> Vec<(Option<u32>, String)> {
            list.iter().map(|&(id, text)| (id, text.to_owned())).collect()
        };
        assert_eq!(
            parts("x<a><b>b>é"),
            owned(&[(None, "x"), (Some(2), "<a><b>"), (Some(3), "b>"), (None, "é")])
        );
        assert_eq!(parts("<a><a>"), owned(&[(Some(1), "<a>"), (Some(1), "<a>")]));
        assert_eq!(parts(""), []);
        assert_eq!(AddedTokens::new(&[]).map(|none| none.ids.len()), Some(0));
    }
}

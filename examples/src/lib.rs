//! What several examples share; the examples themselves are the `[[example]]` targets.

/// Whether a text has one of these words or phrases, as whole words, upper and lower case and punctuation aside. What
/// is wanted is written in lower case.
#[must_use]
pub fn mentions(text: &str, wanted: &[&str]) -> bool {
    let words: Vec<String> = text
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let text = format!(" {} ", words.join(" "));
    wanted.iter().any(|wanted| text.contains(&format!(" {wanted} ")))
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn words_are_whole() {
        assert!(mentions("This is the Sel, friend.", &["sel"]));
        assert!(!mentions("Do it yourself.", &["sel"]));
        assert!(mentions("See `otter.key`: two\ncoppers", &["gold", "otter key"]));
        assert!(mentions("See `otter.key`: two\ncoppers", &["two coppers"]));
        assert!(!mentions("", &["a"]));
    }
}

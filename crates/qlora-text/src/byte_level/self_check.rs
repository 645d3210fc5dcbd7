//! A sample on which the fast path must agree with the library before it is used: a definition may hold something that
//! nobody thought of.

use super::ByteLevel;

/// What the rules tell apart: contractions, numbers, runs of white space, line ends, scripts, marks, surrogates in
/// UTF-16, control characters, code.
const SAMPLE: &str = "Hello, world! It's I'LL we'Re 'tis they'd''s don\u{2019}t\n\n\n  indented\t\ttab \r\n\r\n 1234567 1,000.5 \
    3rd \u{bd} x\u{b2} \u{661}\u{662}  na\u{ef}ve Z\u{fc}rich \u{df} \u{130}\u{131} \u{17f}\u{3b1}\u{3b2}\u{3b3} \
    \u{440}\u{443}\u{441}\u{441}\u{43a}\u{438}\u{439} \u{65e5}\u{672c}\u{8a9e}\u{306e}\u{30c6}\u{30ad}\u{30b9}\u{30c8} \
    \u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c}\u{3002} \u{d55c}\u{ad6d}\u{c5b4} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \
    \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{1f44d}\u{1f3fd}\u{1f468}\u{200d}\u{1f469} \u{a0}\u{3000}\u{2028}\u{85} \
    \u{2192}\u{221a}\u{fffd}\u{10ffff}\0\u{7f} e\u{301} #include <a.h>\n    for (int i = 0; i < 10; ++i) { a[i] += 1; }\n\
    https://example.org/?q=1&p=2 snake_case camelCase HTTPServer ...---... !!!\n\n- x\n";

/// Whether ids, offsets and text are those of the library.
pub(super) fn agrees(fast: &ByteLevel, inner: &tokenizers::Tokenizer) -> bool {
    let mut samples = vec![SAMPLE.to_owned(), String::new(), " ".to_owned(), "\n".to_owned()];
    // In parts too: what normalization changes, or has no token, would leave all of it to the library.
    samples.extend(SAMPLE.split("e\u{301}").map(str::to_owned));
    samples.extend(SAMPLE.split_whitespace().map(|word| format!("{word} \n  {word}")));
    // With all added tokens, but not if they are a book.
    let added = inner.get_added_tokens_decoder();
    let mut between = String::new();
    for token in added.values().take(256).filter(|token| token.content.len() < 256) {
        between.push_str(&token.content);
        between.push_str(" a ");
    }
    samples.push(between);
    samples.iter().all(|text| {
        let Ok(theirs) = inner.encode(text.as_str(), false) else { return false };
        // A text that is left to the library is no disagreement.
        let Some(ours) = fast.encode_with_offsets(text) else { return true };
        let ids: Vec<u32> = ours.iter().map(|span| span.id).collect();
        let offsets = ours.iter().map(|span| (span.start, span.end));
        ids == theirs.get_ids()
            && offsets.eq(theirs.get_offsets().iter().copied())
            && fast.encode(text).as_deref() == Some(&ids[..])
            && fast
                .decode(&ids)
                .is_none_or(|text| inner.decode(&ids, false).is_ok_and(|theirs| theirs == text))
    })
}

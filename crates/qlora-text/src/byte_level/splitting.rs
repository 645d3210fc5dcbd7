//! Text into pieces, as the patterns of byte-level tokenizers cut it. Every character is in a piece.

use super::character_class::{Class, Classes, DIGIT, LETTER, NEWLINE, NUMBER, SPACE};

/// Patterns that are matched by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// [`GPT2`].
    Gpt2,
    /// Every digit alone, and what is between by [`GPT2`].
    DigitsThenGpt2,
    /// [`LLAMA3`], numbers in threes (Llama 3, SmolLM3, Phi-4).
    NumbersOfThree,
    /// [`QWEN2`], the same with numbers alone (Qwen).
    NumbersOfOne,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One pass of a `pre_tokenizer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pass {
    Digits,
    Pattern(String),
}

impl Pass {
    /// The pass of `ByteLevel` with `use_regex`.
    pub(super) fn byte_level() -> Self {
        Self::Pattern(GPT2.to_owned())
    }
}

impl Rules {
    /// The rules that mean the same as passes, if they are known.
    pub(super) fn of(passes: &[Pass]) -> Option<Self> {
        match passes {
            [Pass::Digits, Pass::Pattern(pattern)] if pattern == GPT2 => Some(Self::DigitsThenGpt2),
            [Pass::Pattern(pattern)] => match pattern.as_str() {
                GPT2 => Some(Self::Gpt2),
                LLAMA3 => Some(Self::NumbersOfThree),
                QWEN2 => Some(Self::NumbersOfOne),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Where the pieces of texts end.
#[derive(Clone, Copy)]
pub(super) struct Splitter {
    rules: Rules,
    classes: Classes,
}

impl Splitter {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, classes: Classes::get() }
    }

    /// The end of the piece that begins at a byte before the end of the text.
    #[inline]
    pub(super) fn piece_end(self, text: &str, at: usize) -> usize {
        match self.rules {
            Rules::Gpt2 => self.gpt2(text, at, 0),
            Rules::DigitsThenGpt2 => self.gpt2(text, at, DIGIT),
            Rules::NumbersOfThree => self.llama3(text, at, 3),
            Rules::NumbersOfOne => self.llama3(text, at, 1),
        }
    }

    /// The end of the characters from `at` on that have none of the classes `not` and, unless it is 0, one of `of`.
    #[inline(always)]
    fn run(self, text: &str, mut at: usize, of: Class, not: Class) -> usize {
        while let Some((class, next)) = self.classes.at(text, at)
            && (of == 0 || class & of != 0)
            && class & not == 0
        {
            at = next;
        }
        at
    }

    /// The pattern [`GPT2`] where a character of the class `stop` stands alone, and before it a text ends.
    #[inline(always)]
    fn gpt2(self, text: &str, at: usize, stop: Class) -> usize {
        const OTHER: Class = SPACE | LETTER | NUMBER;
        let Some((first, next)) = self.classes.at(text, at) else { return at };
        if first & stop != 0 {
            return next;
        }
        let bytes = text.as_bytes();
        if bytes[at] == b'\''
            && let Some(end) = contraction(bytes, next)
        {
            return end;
        }
        let second = if bytes[at] == b' ' { self.classes.at(text, next) } else { None };
        // A space goes with what follows it.
        let (class, begin) = match second {
            Some((class, _)) if class & (SPACE | stop) == 0 => (class, next),
            _ => (first, at),
        };
        if class & LETTER != 0 {
            self.run(text, begin, LETTER, stop)
        } else if class & NUMBER != 0 {
            self.run(text, begin, NUMBER, stop)
        } else if class & SPACE == 0 {
            self.run(text, begin, 0, OTHER | stop)
        } else {
            self.spaces(text, at, stop)
        }
    }

    /// `\s+(?!\S)|\s+`: a run of white space, without its last character when something follows that is none.
    #[inline(always)]
    fn spaces(self, text: &str, at: usize, stop: Class) -> usize {
        let end = self.run(text, at, SPACE, stop);
        match self.classes.at(text, end) {
            Some((class, _)) if class & stop == 0 => {
                let last = text[at..end].char_indices().next_back().map_or(0, |(last, _)| last);
                if last == 0 { end } else { at + last }
            }
            _ => end,
        }
    }

    /// The pattern [`LLAMA3`] with numbers of at most so many characters.
    #[inline(always)]
    fn llama3(self, text: &str, at: usize, most: usize) -> usize {
        let Some((first, next)) = self.classes.at(text, at) else { return at };
        let bytes = text.as_bytes();
        if bytes[at] == b'\''
            && let Some(end) = any_case_contraction(bytes, next)
        {
            return end;
        }
        if first & LETTER != 0 {
            return self.run(text, next, LETTER, 0);
        }
        if first & NUMBER != 0 {
            let mut end = next;
            for _ in 1..most {
                match self.classes.at(text, end) {
                    Some((class, next)) if class & NUMBER != 0 => end = next,
                    _ => break,
                }
            }
            return end;
        }
        let second = self.classes.at(text, next);
        if first & NEWLINE == 0
            && let Some((class, after)) = second
            && class & LETTER != 0
        {
            return self.run(text, after, LETTER, 0);
        }
        let begin = match second {
            Some((class, _)) if bytes[at] == b' ' && class & (SPACE | LETTER | NUMBER) == 0 => Some(next),
            _ if first & SPACE == 0 => Some(at),
            _ => None,
        };
        if let Some(begin) = begin {
            let end = self.run(text, begin, 0, SPACE | LETTER | NUMBER);
            return self.run(text, end, NEWLINE, 0);
        }
        // `\s*[\r\n]+`: up to the last line end of the run.
        let end = self.run(text, at, SPACE, 0);
        match bytes[at..end].iter().rposition(|byte| matches!(byte, b'\r' | b'\n')) {
            Some(last) => at + last + 1,
            None => self.spaces(text, at, 0),
        }
    }
}

/// The end of `s`, `t`, `re`, `ve`, `m`, `ll` or `d` at a byte.
fn contraction(bytes: &[u8], at: usize) -> Option<usize> {
    match (bytes.get(at)?, bytes.get(at + 1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 2),
        _ => None,
    }
}

/// The same in capitals too. U+017F is a small s.
fn any_case_contraction(bytes: &[u8], at: usize) -> Option<usize> {
    let lower = |at: usize| bytes.get(at).map(u8::to_ascii_lowercase);
    match (lower(at)?, lower(at + 1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 2),
        (0xc5, Some(0xbf)) => Some(at + 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    const KINDS: [Rules; 4] =
        [Rules::Gpt2, Rules::DigitsThenGpt2, Rules::NumbersOfThree, Rules::NumbersOfOne];

    fn ours(rules: Rules, text: &str) -> Vec<&str> {
        let splitter = Splitter::new(rules);
        let (mut at, mut pieces) = (0, Vec::new());
        while at < text.len() {
            let end = splitter.piece_end(text, at);
            pieces.push(&text[at..end]);
            at = end;
        }
        pieces
    }

    struct Reference(Option<Digits>, Split);

    impl Reference {
        fn new(rules: Rules) -> Self {
            let pattern = match rules {
                Rules::Gpt2 | Rules::DigitsThenGpt2 => GPT2,
                Rules::NumbersOfThree => LLAMA3,
                Rules::NumbersOfOne => QWEN2,
            };
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
            Self((rules == Rules::DigitsThenGpt2).then(|| Digits::new(true)), split)
        }

        fn pieces(&self, text: &str) -> Vec<String> {
            let mut pieces = PreTokenizedString::from(text);
            if let Some(digits) = &self.0 {
                digits.pre_tokenize(&mut pieces).unwrap();
            }
            self.1.pre_tokenize(&mut pieces).unwrap();
            let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            pieces.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
        }
    }

    fn compare(texts: impl Iterator<Item = String>) {
        let references = KINDS.map(|rules| (rules, Reference::new(rules)));
        for text in texts {
            for (rules, reference) in &references {
                assert_eq!(ours(*rules, &text), reference.pieces(&text), "{rules:?} of {text:?}");
            }
        }
    }

    /// Each of the characters that the rules tell apart, in all orders of five.
    #[test]
    fn all_short_texts_are_cut_as_by_the_patterns() {
        const KINDS: [&str; 10] = ["a", "é", "1", "'", "s", " ", "\n", "\u{a0}", "!", "²"];
        compare((0..100_000_usize).map(|mut number| {
            let mut text = String::new();
            for _ in 0..5 {
                text.push_str(KINDS[number % 10]);
                number /= 10;
            }
            text
        }));
    }

    /// Characters that have cases, which `(?i:` folds; the classes of all others have a test of their own.
    #[test]
    fn characters_are_cut_as_by_the_patterns() {
        let all = (0..0x2500).chain(0xa640..0xa800).chain(0xfb00..0xfb10).chain(0xff00..0xff60);
        let all = all.chain(0x1_0400..0x1_0450).filter_map(char::from_u32);
        // Many characters a text: the engine has a price for each.
        let all: Vec<char> = all.collect();
        compare(all.chunks(64).flat_map(|characters| {
            let joined = |form: fn(&char) -> String| characters.iter().map(form).collect::<String>();
            [joined(|c| format!("'{c}a {c}. {c}1")), joined(|c| format!("{c} \n{c}{c}"))]
        }));
    }

    #[test]
    fn contractions() {
        compare(
            [
                "'s",
                "'S",
                "'LL",
                "'lL",
                "'Re",
                "'vE",
                "'ſ",
                "'K",
                "'\u{212a}",
                "don't",
                "DON'T",
                "'d's",
                "''m",
            ]
            .map(str::to_owned)
            .into_iter(),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn random_texts_are_cut_as_by_the_patterns(
            text in "([a-zA-Z]{1,4}|[0-9²½٣]{1,5}|[ \t\u{a0}]{1,3}|[\r\n]{1,2}|'(s|t|re|VE|ll|x)|[.,!?-]{1,3}|\\PC{1,3}|\u{85}|日本|é){0,12}",
        ) {
            compare(std::iter::once(text));
        }
    }
}

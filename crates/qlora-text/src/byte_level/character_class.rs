//! Of what kind a character is, for splitting.

use super::letters_and_numbers::{LETTERS, NUMBERS};
use std::sync::LazyLock;

/// Bits: a character may be several things, as the parties do not use the same version of Unicode.
pub(super) type Class = u8;
/// `\p{L}` of the regex engine of `tokenizers`.
pub(super) const LETTER: Class = 1;
/// `\p{N}` of it.
pub(super) const NUMBER: Class = 2;
/// `\s`.
pub(super) const SPACE: Class = 4;
/// `[\r\n]`; has [`SPACE`] too.
pub(super) const NEWLINE: Class = 8;
/// What the `Digits` of `tokenizers` takes for a digit: the number of the standard library.
pub(super) const DIGIT: Class = 16;

/// From here on there are no letters, numbers and spaces.
const END: usize = 0x4_0000;

/// The class of each character below [`END`].
static CLASSES: LazyLock<Box<[Class]>> = LazyLock::new(|| {
    let mut classes = vec![0; END].into_boxed_slice();
    for (bounds, class) in [(&LETTERS[..], LETTER), (&NUMBERS[..], NUMBER)] {
        for range in bounds.chunks_exact(2) {
            classes[range[0] as usize..range[1] as usize].iter_mut().for_each(|bits| *bits |= class);
        }
    }
    for (code, bits) in (0..).zip(classes.iter_mut()) {
        let Some(character) = char::from_u32(code) else { continue };
        if character.is_whitespace() {
            *bits |= SPACE;
        }
        if character.is_numeric() {
            *bits |= DIGIT;
        }
        if matches!(character, '\r' | '\n') {
            *bits |= NEWLINE;
        }
    }
    classes
});

/// The classes of characters.
#[derive(Clone, Copy)]
pub(super) struct Classes(&'static [Class]);

impl Classes {
    pub(super) fn get() -> Self {
        Self(&CLASSES)
    }

    /// The class of the character at a byte, and the byte behind it; `None` at the end of the text.
    #[inline(always)]
    pub(super) fn at(self, text: &str, at: usize) -> Option<(Class, usize)> {
        let first = *text.as_bytes().get(at)?;
        if first < 0x80 {
            return Some((self.0[usize::from(first)], at + 1));
        }
        let character = text[at..].chars().next()?;
        let class = self.0.get(character as usize).copied().unwrap_or(0);
        Some((class, at + character.len_utf8()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::utils::SysRegex;

    /// The bounds of the runs of characters that a class of the regex engine matches.
    fn bounds(class: &str) -> Vec<u32> {
        let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        let code = |at: usize| all[at..].chars().next().map_or(0x11_0000, |c| c as u32);
        let regex = SysRegex::new(&format!("{class}+")).unwrap();
        regex.find_iter(&all).flat_map(|(start, end)| [code(start), code(end)]).collect()
    }

    #[test]
    fn letters_and_numbers_are_those_of_the_regex_engine() {
        for (class, ours) in [(r"\p{L}", &LETTERS[..]), (r"\p{N}", &NUMBERS[..])] {
            let theirs = bounds(class);
            assert!(ours == theirs, "the bounds of {class} are now {theirs:#x?}");
            assert!(theirs.last().is_some_and(|&end| (end as usize) < END));
        }
        assert!(
            (END as u32..=0x10_ffff)
                .filter_map(char::from_u32)
                .all(|c| !c.is_whitespace() && !c.is_numeric())
        );
        let spaces: Vec<u32> = bounds(r"\s").chunks(2).flat_map(|range| range[0]..range[1]).collect();
        let ours: Vec<u32> =
            (0..=0x10_ffff).filter(|&code| char::from_u32(code).is_some_and(char::is_whitespace)).collect();
        assert_eq!(spaces, ours);
    }
}

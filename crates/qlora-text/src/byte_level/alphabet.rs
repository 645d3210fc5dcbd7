//! How a byte-level vocabulary writes bytes: the printable ones of Latin-1 as themselves, the others as the characters
//! from U+0100 on, in order (GPT-2).

/// The character of each byte.
pub(super) fn characters() -> [char; 256] {
    let mut hidden = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        shown @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(shown),
        _ => hidden.next().expect("the range has no end"),
    })
}

/// The byte of each character that is one.
pub(super) struct Bytes([Option<u8>; 0x180]);

impl Bytes {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x180];
        for (byte, character) in characters().into_iter().enumerate() {
            bytes[character as usize] = Some(byte as u8);
        }
        Self(bytes)
    }

    /// The bytes that a token of the vocabulary stands for; `None` when a character of it is none.
    pub(super) fn of(&self, token: &str) -> Option<Vec<u8>> {
        token.chars().map(|character| self.0.get(character as usize).copied().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_that_of_the_library() {
        let mut ours: Vec<char> = characters().to_vec();
        let mut theirs: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        assert_eq!((characters()[usize::from(b' ')], characters()[usize::from(b'\n')]), ('Ġ', 'Ċ'));
        assert_eq!(Bytes::new().of("Ġé"), Some(vec![b' ', 0xe9]));
        assert_eq!(Bytes::new().of("a b"), None);
    }
}

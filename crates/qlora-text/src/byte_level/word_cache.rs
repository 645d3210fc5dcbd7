//! The tokens of pieces that were seen lately.

/// Places; a power of two. The table has 4 MiB for each thread.
const PLACES: usize = 1 << 16;
/// The longest piece that is kept.
const LONGEST: usize = 31;
/// The most tokens of a piece that is kept.
const MOST: usize = 7;

/// As large as a line of a cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Entry {
    /// The bytes of the piece, its length in the last; 0 for none.
    key: [u128; 2],
    ids: [u32; MOST],
    count: u32,
}

/// Each piece has one place, which it takes from the piece that was there.
pub(super) struct WordCache(Box<[Entry]>);

/// What stands for a piece: its bytes and its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u128; 2]);

impl Key {
    /// Of the piece `start..end` of a text, unless it is too long.
    #[inline(always)]
    pub(super) fn of(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end - start;
        if length > LONGEST {
            return None;
        }
        // Two loads instead of a copy whose length varies, but at the end of the text.
        let mut copy = [0; 32];
        let bytes: &[u8; 32] = match text.get(start..start + 32).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => bytes,
            None => {
                copy[..length].copy_from_slice(&text[start..end]);
                &copy
            }
        };
        let half = |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"));
        let low_bytes = |count: usize| (1_u128 << (8 * count)) - 1;
        let (low, high) = match length {
            0..16 => (half(0) & low_bytes(length), 0),
            _ => (half(0), half(16) & low_bytes(length - 16)),
        };
        Some(Self([low, high | ((length as u128) << 120)]))
    }

    #[inline(always)]
    fn place(self) -> usize {
        // The product mixes upwards only: fold first, and take the upper bits.
        let fold = |half: u128| half as u64 ^ ((half >> 64) as u64).rotate_left(29);
        let hash = (fold(self.0[0]) ^ fold(self.0[1]).rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - PLACES.ilog2())) as usize
    }
}

impl WordCache {
    pub(super) fn new() -> Self {
        Self(vec![Entry { key: [0; 2], ids: [0; MOST], count: 0 }; PLACES].into_boxed_slice())
    }

    #[inline(always)]
    pub(super) fn get(&self, key: Key) -> Option<&[u32]> {
        let entry = &self.0[key.place()];
        (entry.key == key.0).then(|| &entry.ids[..(entry.count as usize).min(MOST)])
    }

    pub(super) fn put(&mut self, key: Key, ids: &[u32]) {
        if let Some(count @ 1..=MOST) = Some(ids.len()) {
            let entry = &mut self.0[key.place()];
            entry.key = key.0;
            entry.ids[..count].copy_from_slice(ids);
            entry.count = count as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_piece_wherever_it_stands() {
        let text = b"a word and a word\0";
        assert!(Key::of(text, 2, 6) == Key::of(text, 13, 17));
        assert!(Key::of(text, 13, 17) != Key::of(text, 13, 18));
        let text = [b'x'; 64];
        assert!(Key::of(&text, 3, 3 + LONGEST).is_some() && Key::of(&text, 3, 4 + LONGEST).is_none());
        for length in 0..LONGEST {
            assert!(Key::of(&text, 0, length) == Key::of(&text, 64 - length, 64), "{length}");
            assert!(Key::of(&text, 0, length) != Key::of(&text, 0, length + 1), "{length}");
        }
    }

    #[test]
    fn what_is_put_is_found_until_another_takes_its_place() {
        let mut cache = WordCache::new();
        let words: Vec<String> = (0..200_000).map(|n| format!("w{n}")).collect();
        for (n, word) in (0..).zip(&words) {
            let key = Key::of(word.as_bytes(), 0, word.len()).unwrap();
            assert_eq!(cache.get(key), None);
            cache.put(key, &[n, n + 1]);
            assert_eq!(cache.get(key), Some(&[n, n + 1][..]));
        }
        let kept = (0..).zip(&words).filter(|(n, word): &(u32, _)| {
            let found = cache.get(Key::of(word.as_bytes(), 0, word.len()).unwrap());
            assert!(found.is_none_or(|ids| ids == [*n, n + 1]));
            found.is_some()
        });
        assert!(kept.count() > PLACES / 2);
        let key = Key::of(b"x", 0, 1).unwrap();
        cache.put(key, &[0; MOST + 1]);
        assert_eq!(cache.get(key), None);
    }
}

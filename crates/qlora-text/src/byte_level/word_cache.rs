//! The tokens of pieces that were seen lately.

/// Places; a power of two. The table has 1.5 MiB: what the second-level cache of a core holds.
const PLACES: usize = 1 << 15;
/// The longest piece that is kept.
const LONGEST: usize = 15;
/// The most tokens of a piece that is kept.
const MOST: usize = 7;

#[derive(Clone, Copy)]
struct Entry {
    /// The bytes of the piece, its length in the last; 0 for none.
    key: u128,
    ids: [u32; MOST],
    count: u32,
}

/// Each piece has one place, which it takes from the piece that was there.
pub(super) struct WordCache(Box<[Entry]>);

/// What stands for a piece: its bytes and its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(u128);

impl Key {
    /// Of the piece `start..end` of a text, unless it is too long.
    #[inline(always)]
    pub(super) fn of(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end - start;
        if length > LONGEST {
            return None;
        }
        let bytes = match text.get(start..start + 16) {
            // One load instead of a copy whose length varies.
            Some(bytes) => {
                let all = u128::from_le_bytes(bytes.try_into().expect("sixteen bytes"));
                all & ((1 << (8 * length)) - 1)
            }
            None => {
                let mut bytes = [0; 16];
                bytes[..length].copy_from_slice(&text[start..end]);
                u128::from_le_bytes(bytes)
            }
        };
        Some(Self(bytes | ((length as u128) << 120)))
    }

    #[inline(always)]
    fn place(self) -> usize {
        let (low, high) = (self.0 as u64, (self.0 >> 64) as u64);
        let hash = (low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - PLACES.ilog2())) as usize
    }
}

impl WordCache {
    pub(super) fn new() -> Self {
        Self(vec![Entry { key: 0, ids: [0; MOST], count: 0 }; PLACES].into_boxed_slice())
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
        assert!(Key::of(text, 0, 15).is_some() && Key::of(text, 0, 16).is_none());
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

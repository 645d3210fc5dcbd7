//! What a row is about, in a few bytes: MinHash.

/// Hashes of a signature: [`BANDS`] bands of [`ROWS`].
const HASHES: usize = BANDS * ROWS;
/// Rows are compared when one band of theirs is equal: of pairs with similarity `s` a share of
/// `1 - (1 - s^ROWS)^BANDS` is found, 99.8 % at 0.8.
pub(super) const BANDS: usize = 20;
const ROWS: usize = 6;
/// Bytes of a shingle.
const SHINGLE: usize = 8;

/// A MinHash signature (Broder, 1997) by one permutation (Li et al., 2012), empty bins filled from others
/// (Shrivastava, 2017), 16 bits of each minimum: two rows agree in about as many places as their sets of shingles
/// overlap, `|A ∩ B| / |A ∪ B|`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature([u16; HASHES]);

impl Signature {
    /// Of a text: its shingles are all runs of eight bytes of its lower-case form in which white space is one space.
    /// `None` when nothing is left of it.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len());
        for word in text.split_whitespace() {
            if !bytes.is_empty() {
                bytes.push(b' ');
            }
            if word.is_ascii() {
                bytes.extend(word.bytes().map(|byte| byte.to_ascii_lowercase()));
            } else {
                bytes.extend(word.to_lowercase().into_bytes());
            }
        }
        if bytes.is_empty() {
            return None;
        }
        bytes.resize(bytes.len().max(SHINGLE), 0);
        let shingles = bytes.windows(SHINGLE).map(|window| {
            u64::from_le_bytes(window.try_into().expect("a window has the bytes of a shingle"))
        });
        Some(Self::of_shingles(shingles))
    }

    /// Of token ids: its shingles are all pairs of neighbours.
    pub(super) fn of_ids(ids: &[u32]) -> Option<Self> {
        let pair = |a: u32, b: u32| u64::from(a) | (u64::from(b) << 32);
        match ids {
            [] => None,
            [id] => Some(Self::of_shingles(std::iter::once(pair(*id, 0)))),
            _ => Some(Self::of_shingles(ids.windows(2).map(|ids| pair(ids[0], ids[1])))),
        }
    }

    fn of_shingles(shingles: impl Iterator<Item = u64>) -> Self {
        const EMPTY: u32 = u32::MAX;
        let mut least = [EMPTY; HASHES];
        for shingle in shingles {
            let hash = mix(shingle);
            let bin = (((hash >> 32) * HASHES as u64) >> 32) as usize;
            least[bin] = least[bin].min(hash as u32 & !1);
        }
        let mut filled = [0; HASHES];
        for (bin, value) in filled.iter_mut().enumerate() {
            let mut from = bin;
            let mut attempt = 0;
            while least[from] == EMPTY {
                attempt += 1;
                from = (mix(bin as u64 + (attempt << 32)) >> 32) as usize % HASHES;
            }
            *value = (least[from] >> 1) as u16;
        }
        Self(filled)
    }

    /// An estimate of the share of shingles that two rows have in common, with a standard error of 0.04.
    pub(super) fn similarity(&self, other: &Self) -> f64 {
        let equal = self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count();
        equal as f64 / HASHES as f64
    }

    /// A hash of one band.
    pub(super) fn band(&self, band: usize) -> u64 {
        self.0[band * ROWS..(band + 1) * ROWS]
            .iter()
            .fold(band as u64, |hash, &value| mix(hash ^ u64::from(value)).rotate_left(17))
    }
}

/// The finaliser of splitmix64: every bit of the result depends on every bit of the argument.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn words(seed: u64, count: usize) -> Vec<String> {
        (0..count as u64).map(|i| format!("{:x}", mix(seed * 1_000_003 + i) % 65_536)).collect()
    }

    #[test]
    fn the_estimate_is_near_the_truth() {
        for (changed, total) in [(0, 200), (5, 200), (20, 200), (60, 200), (3, 40), (200, 200)] {
            let mut worst: f64 = 0.0;
            for seed in 0..20 {
                let a = words(seed, total);
                let mut b = a.clone();
                b[total - changed..].clone_from_slice(&words(seed + 1000, changed));
                let (a, b) = (a.join(" "), b.join(" "));
                let set = |text: &str| -> HashSet<Vec<u8>> {
                    text.as_bytes().windows(SHINGLE).map(<[u8]>::to_vec).collect()
                };
                let (x, y) = (set(&a), set(&b));
                let truth = x.intersection(&y).count() as f64 / x.union(&y).count() as f64;
                let (a, b) = (Signature::of_text(&a).unwrap(), Signature::of_text(&b).unwrap());
                worst = worst.max((a.similarity(&b) - truth).abs());
            }
            assert!(worst < 0.2, "{changed} of {total}: {worst}");
        }
    }

    #[test]
    fn case_and_white_space_do_not_count() {
        let signature = |text| Signature::of_text(text);
        assert_eq!(signature("  The quick\n\nBROWN fox "), signature("the quick brown fox"));
        assert_ne!(signature("the quick brown fox"), signature("the quick brown fix"));
        assert_eq!(signature(" \n\t"), None);
        assert!(signature("a").is_some() && signature("a") != signature("b"));
        assert_ne!(Signature::of_ids(&[1, 2, 3]), Signature::of_ids(&[3, 2, 1]));
        assert_eq!(Signature::of_ids(&[]), None);
    }
}

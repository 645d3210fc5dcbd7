//! Which rows are almost the same.

use super::signature::{BANDS, Signature};
use rayon::prelude::*;

/// A row that is like an earlier one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Likeness {
    /// The row, by its index.
    pub(super) row: usize,
    /// The row that it is like.
    pub(super) like: usize,
    /// Estimated share of common shingles.
    pub(super) similarity: f64,
}

/// For each row that is like an earlier one, the first of the most similar that were found, in the order of rows.
///
/// Two rows are compared when a band of their signatures is equal (locality-sensitive hashing), each with the first
/// row of its bucket and with the one before it: time and memory are linear in the rows, and the result does not
/// depend on the number of threads. Rows from `eval_from` on are held out: `leaked` has those that are like a
/// row before it, and `near` is about the other rows.
pub(super) struct Similar {
    pub(super) near: Vec<Likeness>,
    pub(super) leaked: Vec<Likeness>,
}

/// A row without signature is like no other.
pub(super) fn similar(signatures: &[Option<Signature>], eval_from: usize, threshold: f64) -> Similar {
    let mut best: Vec<Option<(f64, usize)>> = vec![None; signatures.len()];
    for band in 0..BANDS {
        let mut keys: Vec<(u64, u32)> = signatures
            .par_iter()
            .enumerate()
            .filter_map(|(row, signature)| Some((signature.as_ref()?.band(band), row as u32)))
            .collect();
        keys.par_sort_unstable();
        for bucket in keys.chunk_by(|a, b| a.0 == b.0) {
            let rows = || bucket.iter().map(|&(_, row)| row as usize);
            let last_trained = rows().take_while(|&row| row < eval_from).last();
            for (place, row) in rows().enumerate().skip(1) {
                let before = bucket[place - 1].1 as usize;
                // A held-out row is compared with trained ones only.
                let candidates = match last_trained {
                    Some(last) if row >= eval_from => [bucket[0].1 as usize, last],
                    _ if row >= eval_from => continue,
                    _ => [bucket[0].1 as usize, before],
                };
                for like in candidates {
                    let (Some(a), Some(b)) = (&signatures[row], &signatures[like]) else { continue };
                    let similarity = a.similarity(b);
                    let better =
                        |(most, first): (f64, usize)| similarity > most || similarity == most && like < first;
                    if similarity >= threshold && best[row].is_none_or(better) {
                        best[row] = Some((similarity, like));
                    }
                }
            }
        }
    }
    let found = best.into_iter().enumerate().filter_map(|(row, best)| {
        let (similarity, like) = best?;
        Some(Likeness { row, like, similarity })
    });
    let (near, leaked) = found.partition(|likeness| likeness.row < eval_from);
    Similar { near, leaked }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: usize, words: usize) -> String {
        (0..words).map(|i| format!("word{} ", (seed * 7919 + i * 104_729) % 100_003)).collect()
    }

    #[test]
    fn near_copies_are_found_and_others_are_not() {
        let mut texts: Vec<String> = (0..500).map(|seed| text(seed, 60)).collect();
        // Every tenth again with another last word, ten of them among the held-out rows.
        let copies: Vec<String> = (0..50).map(|i| format!("{} indeed", texts[i * 10])).collect();
        texts.extend(copies);
        let eval_from = 540;
        let signatures: Vec<_> = texts.iter().map(|text| Signature::of_text(text)).collect();
        let found = similar(&signatures, eval_from, 0.8);
        let pairs = |list: &[Likeness]| list.iter().map(|l| (l.row, l.like)).collect::<Vec<_>>();
        let expected = |rows: std::ops::Range<usize>| -> Vec<(usize, usize)> {
            rows.map(|row| (row, (row - 500) * 10)).collect()
        };
        assert_eq!(pairs(&found.near), expected(500..540));
        assert_eq!(pairs(&found.leaked), expected(540..550));
        assert!(found.near.iter().all(|likeness| likeness.similarity >= 0.8));
    }

    #[test]
    fn a_crowd_of_copies_is_compared_in_linear_time() {
        let signature = Signature::of_text(&text(1, 50));
        let signatures = vec![signature; 30_000];
        let start = std::time::Instant::now();
        let found = similar(&signatures, 30_000, 0.8);
        assert_eq!(found.near.len(), 29_999);
        assert!(found.near.iter().all(|likeness| likeness.like == 0));
        assert!(start.elapsed().as_secs() < 10);
    }
}

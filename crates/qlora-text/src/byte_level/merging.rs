//! Byte-pair encoding of one piece.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Which neighbours become one token, and which first.
pub(super) struct Merges {
    /// The token of each byte that has one.
    bytes: [Option<u32>; 256],
    /// Rank and token of a pair.
    pairs: HashMap<u64, (u32, u32), BuildHasherDefault<PairHasher>>,
}

/// Of keys that are two ids.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, value: u64) {
        // Fibonacci hashing; the upper half, which every bit of the key reaches, is folded into the lower.
        let product = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn key(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

/// A token of a piece that is being merged.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    before: u32,
    after: u32,
}

const NONE: u32 = u32::MAX;
/// The id of a symbol that was merged into the one before it.
const GONE: u32 = u32::MAX;

/// Memory that is used again.
#[derive(Default)]
pub(super) struct Workspace {
    symbols: Vec<Symbol>,
    /// Rank and place of pairs, a heap with the least on top.
    queue: std::collections::BinaryHeap<std::cmp::Reverse<u64>>,
}

impl Merges {
    /// `pairs`: the two tokens and what they become, the first to be merged first; of equal pairs the last counts.
    pub(super) fn new(
        bytes: [Option<u32>; 256],
        pairs: impl ExactSizeIterator<Item = (u32, u32, u32)>,
    ) -> Self {
        let mut map = HashMap::with_capacity_and_hasher(pairs.len(), BuildHasherDefault::default());
        for (rank, (left, right, token)) in (0..).zip(pairs) {
            map.insert(key(left, right), (rank, token));
        }
        Self { bytes, pairs: map }
    }

    /// Appends the tokens of a piece: from its bytes on, the pair of the least rank is merged, of equal ones the first,
    /// until there is none. Appends nothing, and says so, when a byte has no token.
    pub(super) fn apply(&self, piece: &[u8], workspace: &mut Workspace, into: &mut Vec<u32>) -> bool {
        let Workspace { symbols, queue } = workspace;
        symbols.clear();
        queue.clear();
        for (at, &byte) in (0_u32..).zip(piece) {
            let Some(id) = self.bytes[usize::from(byte)] else { return false };
            symbols.push(Symbol { id, before: at.wrapping_sub(1), after: at + 1 });
        }
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }
        let entry = |rank: u32, at: u32| std::cmp::Reverse((u64::from(rank) << 32) | u64::from(at));
        let pair = |left: u32, right: u32| self.pairs.get(&key(left, right)).copied();
        for (at, two) in (0..).zip(symbols.windows(2)) {
            if let Some((rank, _)) = pair(two[0].id, two[1].id) {
                queue.push(entry(rank, at));
            }
        }
        while let Some(std::cmp::Reverse(top)) = queue.pop() {
            let (rank, at) = ((top >> 32) as u32, top as u32);
            let left = symbols[at as usize];
            if left.id == GONE || left.after == NONE {
                continue;
            }
            let right = symbols[left.after as usize];
            // One of the two may have been merged with another since.
            let Some((now, token)) = pair(left.id, right.id).filter(|(now, _)| *now == rank) else {
                continue;
            };
            debug_assert_eq!(now, rank);
            symbols[left.after as usize].id = GONE;
            symbols[at as usize] = Symbol { id: token, after: right.after, ..left };
            if right.after != NONE {
                symbols[right.after as usize].before = at;
                if let Some((rank, _)) = pair(token, symbols[right.after as usize].id) {
                    queue.push(entry(rank, at));
                }
            }
            if left.before != NONE
                && let Some((rank, _)) = pair(symbols[left.before as usize].id, token)
            {
                queue.push(entry(rank, left.before));
            }
        }
        into.extend(symbols.iter().map(|symbol| symbol.id).filter(|&id| id != GONE));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Over the alphabet `abc`: all tokens of up to four letters that random pairs make.
    fn merges(seed: &[u8]) -> (Merges, Vec<(u32, u32, u32)>) {
        let mut bytes = [None; 256];
        for (byte, id) in (b'a'..=b'c').zip(1..) {
            bytes[usize::from(byte)] = Some(id);
        }
        let mut tokens: Vec<String> = ["", "a", "b", "c"].map(str::to_owned).to_vec();
        let mut pairs: Vec<(u32, u32, u32)> = Vec::new();
        for two in seed.chunks_exact(2) {
            let left = 1 + usize::from(two[0]) % (tokens.len() - 1);
            let right = 1 + usize::from(two[1]) % (tokens.len() - 1);
            if pairs.iter().any(|&(a, b, _)| (a, b) == (left as u32, right as u32)) {
                continue;
            }
            let text = format!("{}{}", tokens[left], tokens[right]);
            let token = tokens.iter().position(|token| *token == text).unwrap_or_else(|| {
                tokens.push(text);
                tokens.len() - 1
            });
            pairs.push((left as u32, right as u32, token as u32));
        }
        (Merges::new(bytes, pairs.clone().into_iter()), pairs)
    }

    /// The definition, step by step.
    fn reference(piece: &[u8], pairs: &[(u32, u32, u32)]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|byte| u32::from(byte - b'a') + 1).collect();
        loop {
            let best = pairs.iter().find_map(|&(left, right, token)| {
                let at = ids.windows(2).position(|two| two == [left, right])?;
                Some((at, token))
            });
            let Some((at, token)) = best else { return ids };
            ids.splice(at..at + 2, [token]);
        }
    }

    proptest! {
        #[test]
        fn the_least_rank_is_merged_first(seed in prop::collection::vec(any::<u8>(), 0..40), piece in "[abc]{0,30}") {
            let (merges, pairs) = merges(&seed);
            let mut ids = Vec::new();
            prop_assert!(merges.apply(piece.as_bytes(), &mut Workspace::default(), &mut ids));
            prop_assert_eq!(ids, reference(piece.as_bytes(), &pairs));
        }
    }

    #[test]
    fn a_byte_without_a_token_is_told() {
        let (merges, _) = merges(&[]);
        let mut ids = Vec::new();
        assert!(!merges.apply(b"abx", &mut Workspace::default(), &mut ids) && ids.is_empty());
    }

    #[test]
    fn a_long_piece_is_no_hang() {
        let (merges, _) = merges(&[0, 0, 3, 3, 4, 4, 5, 5]);
        let mut ids = Vec::new();
        let start = std::time::Instant::now();
        assert!(merges.apply(&vec![b'a'; 1 << 20], &mut Workspace::default(), &mut ids));
        assert_eq!(ids.len(), 1 << 16);
        assert!(start.elapsed().as_secs() < 20);
    }
}

use crate::Error;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Samples put together so that each pack has at most so many tokens.
///
/// A [`Batch`](crate::Batch) of the samples of a pack *is* the packed sequence: the samples stand one after another,
/// whole and in order, attention stays within each (block-diagonal), and positions begin anew at each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    packs: Vec<Vec<usize>>,
    tokens: usize,
    budget: usize,
}

impl Packing {
    /// Best-fit decreasing: from the longest sample to the shortest, each goes into the pack in which it leaves the
    /// least room, or into a new one. `O(n log n)`; at most 11/9 of the least possible number of packs, and a third
    /// of a pack (Johnson et al., 1974), in practice within a percent of it.
    ///
    /// A pack has its samples in the order of the data, and packs are in the order of their first samples. How many
    /// packs of which lengths come out depends on the lengths alone, not on their order.
    ///
    /// # Errors
    /// [`Error::LongerThanBudget`] for a sample that fits into no pack.
    ///
    /// # Examples
    /// ```
    /// use qlora_data::Packing;
    ///
    /// let packing = Packing::best_fit_decreasing(&[60, 50, 40, 30, 20], 100)?;
    /// assert_eq!(packing.packs(), [vec![0, 2], vec![1, 3, 4]]);
    /// assert_eq!(packing.efficiency(), 1.0);
    /// # Ok::<(), qlora_data::Error>(())
    /// ```
    pub fn best_fit_decreasing(lengths: &[usize], budget: usize) -> Result<Self, Error> {
        refuse_longer(lengths, budget)?;
        let mut packs: Vec<Vec<usize>> = Vec::new();
        // The packs by the room that is left in them.
        let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for sample in longest_first(lengths) {
            let length = lengths[sample];
            let (pack, room) = match by_room.range_mut(length..).next() {
                Some((&room, candidates)) => {
                    let pack = candidates.pop().expect("no list is kept empty");
                    if candidates.is_empty() {
                        by_room.remove(&room);
                    }
                    (pack, room)
                }
                None => {
                    packs.push(Vec::new());
                    (packs.len() - 1, budget)
                }
            };
            packs[pack].push(sample);
            if room > length {
                by_room.entry(room - length).or_default().push(pack);
            }
        }
        packs.iter_mut().for_each(|pack| pack.sort_unstable());
        packs.sort_unstable_by_key(|pack| pack[0]);
        Ok(Self { packs, tokens: lengths.iter().sum(), budget })
    }

    /// Samples of similar length together: from the longest to the shortest, as many as fit each time.
    ///
    /// # Errors
    /// [`Error::LongerThanBudget`] for a sample that fits into no pack.
    pub fn by_length(lengths: &[usize], budget: usize) -> Result<Self, Error> {
        refuse_longer(lengths, budget)?;
        let mut packs: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for sample in longest_first(lengths) {
            let length = lengths[sample];
            match packs.last_mut() {
                Some(pack) if length <= room => {
                    pack.push(sample);
                    room -= length;
                }
                _ => {
                    packs.push(vec![sample]);
                    room = budget - length;
                }
            }
        }
        Ok(Self { packs, tokens: lengths.iter().sum(), budget })
    }

    /// The samples of each pack.
    #[must_use]
    pub fn packs(&self) -> &[Vec<usize>] {
        &self.packs
    }

    /// The samples of each pack.
    #[must_use]
    pub fn into_packs(self) -> Vec<Vec<usize>> {
        self.packs
    }

    /// How full the packs are: tokens divided by what the packs could hold; 1 where there is nothing to pack.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        let room = self.packs.len() as f64 * self.budget as f64;
        if room == 0.0 { 1.0 } else { self.tokens as f64 / room }
    }
}

/// Indices by falling length; among equals, the first comes first.
fn longest_first(lengths: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&sample| Reverse(lengths[sample]));
    order
}

fn refuse_longer(lengths: &[usize], budget: usize) -> Result<(), Error> {
    match lengths.iter().position(|&length| length > budget) {
        Some(sample) => Err(Error::LongerThanBudget { sample, tokens: lengths[sample], budget }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Sample};
    use proptest::prelude::*;

    #[test]
    fn a_sample_above_the_budget_is_an_error() {
        for pack in [Packing::best_fit_decreasing, Packing::by_length] {
            let error = pack(&[3, 9, 10], 8).unwrap_err().to_string();
            assert!(error.contains("sample 1 has 9 tokens") && error.contains("8"), "{error}");
        }
    }

    #[test]
    fn the_best_fit_is_taken() {
        // 3 goes beside 7 and not beside 6, where 4 fits.
        let packing = Packing::best_fit_decreasing(&[6, 7, 4, 3], 10).unwrap();
        assert_eq!(packing.packs(), [vec![0, 2], vec![1, 3]]);
        let grouped = Packing::by_length(&[6, 7, 4, 3], 10).unwrap();
        assert_eq!(grouped.packs(), [vec![1], vec![0, 2], vec![3]]);
        assert!((grouped.efficiency() - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_million_samples_are_packed_at_once() {
        // Lengths as of a chat data set: many short ones, few long ones.
        let mut state = 1_u64;
        let lengths: Vec<usize> = (0..1_000_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let uniform = ((state >> 40) as f64 + 1.0) / f64::from(1 << 24);
                ((-200.0 * uniform.ln()) as usize + 8).min(2048)
            })
            .collect();
        let start = std::time::Instant::now();
        let packing = Packing::best_fit_decreasing(&lengths, 2048).unwrap();
        let elapsed = start.elapsed();
        println!("{elapsed:?} for a million samples, {:.5} full", packing.efficiency());
        assert!(packing.efficiency() > 0.999, "{}", packing.efficiency());
        assert!(elapsed.as_secs() < 20, "{elapsed:?}");
    }

    proptest! {
        #[test]
        fn no_token_is_lost_doubled_or_moved(
            lengths in prop::collection::vec(1usize..40, 0..60), extra in 0usize..60, by_length in any::<bool>(),
        ) {
            let budget = 40 + extra;
            let pack = if by_length { Packing::by_length } else { Packing::best_fit_decreasing };
            let packing = pack(&lengths, budget).unwrap();
            // Every token has a number of its own.
            let mut next = 0;
            let samples: Vec<Sample> = lengths.iter().map(|&length| {
                let ids: Vec<u32> = (next..next + length as u32).collect();
                next += length as u32;
                Sample::new(ids, vec![1.0; length], 0)
            }).collect();
            let mut seen = Vec::new();
            for pack in packing.packs() {
                let batch = Batch::from_samples(&pack.iter().map(|&i| &samples[i]).collect::<Vec<_>>());
                prop_assert!(batch.tokens() <= budget && batch.tokens() > 0);
                let mut start = 0;
                for (&length, &sample) in batch.lengths.iter().zip(pack) {
                    prop_assert_eq!(&batch.ids[start..start + length], &samples[sample].ids[..]);
                    start += length;
                }
                seen.extend(batch.ids);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..next).collect::<Vec<_>>());
            // No two packs of best-fit decreasing could be one.
            if !by_length && packing.packs().len() > 1 {
                let mut tokens: Vec<usize> =
                    packing.packs().iter().map(|pack| pack.iter().map(|&i| lengths[i]).sum()).collect();
                tokens.sort_unstable();
                prop_assert!(tokens[0] + tokens[1] > budget);
            }
        }

        #[test]
        fn the_order_of_the_data_does_not_change_the_shape_of_the_packs(
            lengths in prop::collection::vec(1usize..20, 0..40), rotate in 0usize..40,
        ) {
            let shape = |lengths: &[usize]| {
                let packing = Packing::best_fit_decreasing(lengths, 25).unwrap();
                let mut shapes: Vec<Vec<usize>> = packing.packs().iter().map(|pack| {
                    let mut lengths: Vec<usize> = pack.iter().map(|&i| lengths[i]).collect();
                    lengths.sort_unstable();
                    lengths
                }).collect();
                shapes.sort();
                shapes
            };
            let mut rotated = lengths.clone();
            rotated.rotate_left(rotate % lengths.len().max(1));
            rotated.reverse();
            prop_assert_eq!(shape(&lengths), shape(&rotated));
        }
    }
}

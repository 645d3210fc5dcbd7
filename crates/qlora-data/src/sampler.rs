use crate::{Error, Packing};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// Which samples come next: endless batches of indices, epoch after epoch.
///
/// An epoch visits every sample once, and every epoch has as many batches. In batches of rows the last holds what is
/// left, so it may be smaller. A shuffled epoch is a Fisher-Yates permutation, from the last index down, drawn by
/// rejection from the 64-bit outputs of ChaCha8 whose key is the seed (little endian, then zeros) and whose stream is
/// the epoch; where samples are put together by their lengths, the permuted samples are, and the batches are permuted
/// by what the stream gives next. So any epoch's order follows from the seed and its number, on every machine and in
/// every version.
#[derive(Debug, Clone)]
pub struct Sampler {
    batching: Batching,
    seed: Option<u64>,
    state: SamplerState,
    /// The order of the current epoch.
    order: Vec<usize>,
    /// Where in the order each batch ends.
    ends: Vec<usize>,
}

/// What a batch is made of.
#[derive(Debug, Clone)]
enum Batching {
    Rows { samples: usize, batch_size: usize },
    Tokens { lengths: Vec<usize>, budget: usize, pack: fn(&[usize], usize) -> Result<Packing, Error> },
}

/// Where a [`Sampler`] stands: what a checkpoint keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerState {
    /// Epochs that are complete.
    pub epoch: u64,
    /// Samples already given out in the current epoch.
    pub cursor: usize,
}

impl Sampler {
    /// Batches of so many samples, in a new order every epoch.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when there are no samples, or none to a batch.
    pub fn shuffled(samples: usize, batch_size: usize, seed: u64) -> Result<Self, Error> {
        Self::new(Batching::Rows { samples, batch_size }, Some(seed))
    }

    /// Batches of so many samples, in the order of the data.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when there are no samples, or none to a batch.
    pub fn sequential(samples: usize, batch_size: usize) -> Result<Self, Error> {
        Self::new(Batching::Rows { samples, batch_size }, None)
    }

    /// Batches of at most `budget` tokens, as full as best-fit decreasing makes them
    /// ([`Packing::best_fit_decreasing`]). With a seed, which samples of equal length share a batch and the order of
    /// the batches are new every epoch.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when there are no samples, [`Error::LongerThanBudget`].
    pub fn packed(lengths: Vec<usize>, budget: usize, seed: Option<u64>) -> Result<Self, Error> {
        Self::new(Batching::Tokens { lengths, budget, pack: Packing::best_fit_decreasing }, seed)
    }

    /// Batches of at most `budget` tokens in samples of similar length ([`Packing::by_length`]); seed as in
    /// [`packed`](Self::packed).
    ///
    /// # Errors
    /// As [`packed`](Self::packed).
    pub fn length_grouped(lengths: Vec<usize>, budget: usize, seed: Option<u64>) -> Result<Self, Error> {
        Self::new(Batching::Tokens { lengths, budget, pack: Packing::by_length }, seed)
    }

    fn new(batching: Batching, seed: Option<u64>) -> Result<Self, Error> {
        let (samples, batch_size) = match &batching {
            Batching::Rows { samples, batch_size } => (*samples, *batch_size),
            Batching::Tokens { lengths, budget, .. } => (lengths.len(), *budget),
        };
        if samples == 0 || batch_size == 0 {
            return Err(Error::NothingToSample { samples, batch_size });
        }
        let state = SamplerState::default();
        let mut sampler = Self { batching, seed, state, order: Vec::new(), ends: Vec::new() };
        sampler.arrange(0)?;
        Ok(sampler)
    }

    /// The indices of the next batch, never none.
    pub fn next_batch(&mut self) -> Vec<usize> {
        let next = self.ends.partition_point(|&end| end <= self.state.cursor);
        let end = self.ends[next];
        let batch = self.order[self.state.cursor..end].to_vec();
        self.state.cursor = end;
        if end == self.order.len() {
            self.state = SamplerState { epoch: self.state.epoch + 1, cursor: 0 };
            self.arrange(self.state.epoch).expect("the lengths are those of the first epoch");
        }
        batch
    }

    /// Batches in an epoch, a smaller last one counted.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.ends.len()
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// Continues with a batch of an epoch, both counted from 0.
    ///
    /// # Panics
    /// When an epoch has no such batch.
    pub fn seek(&mut self, epoch: u64, batch: usize) {
        assert!(batch < self.ends.len(), "batch {batch} of {}", self.ends.len());
        if self.state.epoch != epoch {
            self.arrange(epoch).expect("the lengths are those of the first epoch");
        }
        let cursor = batch.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.state = SamplerState { epoch, cursor };
    }

    /// Continues from where another sampler of the same data, batch size and seed stood.
    ///
    /// # Errors
    /// [`Error::Cursor`] when the data has fewer samples than were already given out.
    pub fn restore(&mut self, state: SamplerState) -> Result<(), Error> {
        if state.cursor >= self.order.len() {
            return Err(Error::Cursor { cursor: state.cursor, samples: self.order.len() });
        }
        self.state = state;
        self.arrange(state.epoch)
    }

    /// Makes the batches of an epoch.
    fn arrange(&mut self, epoch: u64) -> Result<(), Error> {
        let mut random = self.seed.map(|seed| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&seed.to_le_bytes());
            let mut random = ChaCha8Rng::from_seed(key);
            random.set_stream(epoch);
            random
        });
        let mut shuffle = |order: &mut Vec<usize>| {
            let Some(random) = &mut random else { return };
            for last in (1..order.len()).rev() {
                order.swap(last, below(random, last as u64 + 1) as usize);
            }
        };
        match &self.batching {
            &Batching::Rows { samples, batch_size } => {
                self.order = (0..samples).collect();
                shuffle(&mut self.order);
                let batches = samples.div_ceil(batch_size);
                self.ends = (1..batches).map(|batch| batch * batch_size).chain([samples]).collect();
            }
            Batching::Tokens { lengths, budget, pack } => {
                let mut order: Vec<usize> = (0..lengths.len()).collect();
                shuffle(&mut order);
                let permuted: Vec<usize> = order.iter().map(|&sample| lengths[sample]).collect();
                let packs = pack(&permuted, *budget).map_err(|error| match error {
                    Error::LongerThanBudget { sample, tokens, budget } => {
                        Error::LongerThanBudget { sample: order[sample], tokens, budget }
                    }
                    other => other,
                })?;
                let packs = packs.into_packs();
                let mut pack_order: Vec<usize> = (0..packs.len()).collect();
                shuffle(&mut pack_order);
                self.order.clear();
                self.ends.clear();
                for pack in pack_order {
                    self.order.extend(packs[pack].iter().map(|&place| order[place]));
                    self.ends.push(self.order.len());
                }
            }
        }
        Ok(())
    }
}

/// A number from 0 to `bound - 1`, each equally likely.
fn below(random: &mut impl RngCore, bound: u64) -> u64 {
    // The largest multiple of `bound` among the 2^64 outputs: what lies beyond would favour small numbers.
    let rest = (u64::MAX % bound + 1) % bound;
    loop {
        let x = random.next_u64();
        if x <= u64::MAX - rest {
            return x % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_of_a_seed_is_fixed() {
        let mut sampler = Sampler::shuffled(8, 8, 42).unwrap();
        let epochs = [sampler.next_batch(), sampler.next_batch()];
        // From an implementation of the documented rule in Python.
        assert_eq!(epochs, [[3, 6, 0, 4, 5, 2, 1, 7], [7, 5, 2, 1, 4, 0, 3, 6]]);
    }

    #[test]
    fn nothing_to_sample_is_an_error() {
        let error = Sampler::shuffled(0, 4, 1).unwrap_err().to_string();
        assert_eq!(error, "cannot sample 0 samples in batches of 4: both must be at least 1");
        let error = Sampler::sequential(4, 0).unwrap_err().to_string();
        assert_eq!(error, "cannot sample 4 samples in batches of 0: both must be at least 1");
        let mut sampler = Sampler::sequential(4, 2).unwrap();
        let error = sampler.restore(SamplerState { epoch: 0, cursor: 4 }).unwrap_err().to_string();
        assert!(error.contains("beyond the 4 samples"), "{error}");
    }

    /// Batches of rows, of packs, and of samples of similar length.
    fn any_sampler(lengths: &[usize], batch_size: usize, seed: Option<u64>) -> [Sampler; 3] {
        let rows = match seed {
            Some(seed) => Sampler::shuffled(lengths.len(), batch_size, seed),
            None => Sampler::sequential(lengths.len(), batch_size),
        };
        [
            rows.unwrap(),
            Sampler::packed(lengths.to_vec(), 12, seed).unwrap(),
            Sampler::length_grouped(lengths.to_vec(), 12, seed).unwrap(),
        ]
    }

    #[test]
    fn a_sample_that_fits_into_no_batch_is_named_by_its_own_index() {
        for seed in [None, Some(1), Some(2)] {
            let error = Sampler::packed(vec![3, 4, 9, 2], 8, seed).unwrap_err();
            assert!(matches!(error, Error::LongerThanBudget { sample: 2, tokens: 9, budget: 8 }), "{error}");
        }
    }

    #[test]
    fn packs_are_mixed_anew_every_epoch() {
        let mut sampler = Sampler::packed(vec![4; 30], 12, Some(5)).unwrap();
        let mut epoch = || -> Vec<Vec<usize>> { (0..10).map(|_| sampler.next_batch()).collect() };
        let (mut first, mut second) = (epoch(), epoch());
        assert_ne!(first, second);
        for packs in [&mut first, &mut second] {
            packs.iter_mut().for_each(|pack| pack.sort_unstable());
            packs.sort();
        }
        assert_ne!(first, second, "the same samples share a batch");
    }

    proptest! {
        #[test]
        fn an_epoch_visits_every_sample_once_and_resumes_exactly(
            lengths in prop::collection::vec(1usize..12, 1..40), batch_size in 1usize..9,
            seed in prop::option::of(any::<u64>()), stop in 0usize..60,
        ) {
            for (kind, mut sampler) in any_sampler(&lengths, batch_size, seed).into_iter().enumerate() {
                let batches: Vec<Vec<usize>> = (0..80).map(|_| sampler.next_batch()).collect();
                let per_epoch = sampler.batches_per_epoch();
                for epoch in batches.chunks_exact(per_epoch) {
                    let mut seen = epoch.concat();
                    if seed.is_none() && kind == 0 {
                        prop_assert!(seen.is_sorted());
                    }
                    seen.sort_unstable();
                    prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
                }
                for batch in &batches {
                    let tokens: usize = batch.iter().map(|&sample| lengths[sample]).sum();
                    let fits = if kind == 0 { batch.len() <= batch_size } else { tokens <= 12 };
                    prop_assert!(fits);
                }
                let [mut first, mut second, mut third] =
                    [(); 3].map(|()| any_sampler(&lengths, batch_size, seed)[kind].clone());
                (0..stop).for_each(|_| drop(first.next_batch()));
                second.restore(first.state()).unwrap();
                third.seek((stop / per_epoch) as u64, stop % per_epoch);
                prop_assert_eq!(third.state(), first.state());
                for batch in &batches[stop..] {
                    prop_assert_eq!(&second.next_batch(), batch);
                    prop_assert_eq!(&third.next_batch(), batch);
                }
            }
        }
    }
}

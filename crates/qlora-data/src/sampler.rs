use crate::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// Which samples come next: endless batches of indices, epoch after epoch.
///
/// An epoch visits every sample once; its last batch holds what is left, so it may be smaller. A shuffled
/// epoch is a Fisher-Yates permutation, from the last index down, drawn by rejection from the 64-bit outputs of
/// ChaCha8 whose key is the seed (little endian, then zeros) and whose stream is the epoch. So any epoch's order
/// follows from the seed and its number, on every machine and in every version.
#[derive(Debug, Clone)]
pub struct Sampler {
    samples: usize,
    batch_size: usize,
    seed: Option<u64>,
    state: SamplerState,
    /// The order of the current epoch.
    order: Vec<usize>,
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
    /// In a new order every epoch.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when there are no samples, or none to a batch.
    pub fn shuffled(samples: usize, batch_size: usize, seed: u64) -> Result<Self, Error> {
        Self::new(samples, batch_size, Some(seed))
    }

    /// In the order of the data.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when there are no samples, or none to a batch.
    pub fn sequential(samples: usize, batch_size: usize) -> Result<Self, Error> {
        Self::new(samples, batch_size, None)
    }

    fn new(samples: usize, batch_size: usize, seed: Option<u64>) -> Result<Self, Error> {
        if samples == 0 || batch_size == 0 {
            return Err(Error::NothingToSample { samples, batch_size });
        }
        let mut sampler =
            Self { samples, batch_size, seed, state: SamplerState::default(), order: Vec::new() };
        sampler.order = sampler.permutation(0);
        Ok(sampler)
    }

    /// The indices of the next batch, at most `batch_size`, never none.
    pub fn next_batch(&mut self) -> Vec<usize> {
        let end = self.samples.min(self.state.cursor.saturating_add(self.batch_size));
        let batch = self.order[self.state.cursor..end].to_vec();
        self.state.cursor = end;
        if end == self.samples {
            self.state = SamplerState { epoch: self.state.epoch + 1, cursor: 0 };
            self.order = self.permutation(self.state.epoch);
        }
        batch
    }

    /// Batches in an epoch, the smaller last one counted.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.samples.div_ceil(self.batch_size)
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// Continues from where another sampler of the same data, batch size and seed stood.
    ///
    /// # Errors
    /// [`Error::Cursor`] when the data has fewer samples than were already given out.
    pub fn restore(&mut self, state: SamplerState) -> Result<(), Error> {
        if state.cursor >= self.samples {
            return Err(Error::Cursor { cursor: state.cursor, samples: self.samples });
        }
        self.state = state;
        self.order = self.permutation(state.epoch);
        Ok(())
    }

    fn permutation(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.samples).collect();
        let Some(seed) = self.seed else { return order };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(key);
        random.set_stream(epoch);
        for last in (1..self.samples).rev() {
            order.swap(last, below(&mut random, last as u64 + 1) as usize);
        }
        order
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
        assert!(Sampler::shuffled(0, 4, 1).is_err());
        assert!(Sampler::sequential(4, 0).is_err());
        let mut sampler = Sampler::sequential(4, 2).unwrap();
        let error = sampler.restore(SamplerState { epoch: 0, cursor: 4 }).unwrap_err().to_string();
        assert!(error.contains("beyond the 4 samples"), "{error}");
    }

    proptest! {
        #[test]
        fn an_epoch_visits_every_sample_once_and_resumes_exactly(
            samples in 1usize..40, batch_size in 1usize..9, seed in prop::option::of(any::<u64>()), stop in 0usize..60,
        ) {
            let mut sampler = Sampler::new(samples, batch_size, seed).unwrap();
            let batches: Vec<Vec<usize>> = (0..80).map(|_| sampler.next_batch()).collect();
            let per_epoch = sampler.batches_per_epoch();
            for epoch in batches.chunks_exact(per_epoch) {
                let mut seen = epoch.concat();
                if seed.is_none() {
                    prop_assert!(seen.is_sorted());
                }
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..samples).collect::<Vec<_>>());
            }
            let mut first = Sampler::new(samples, batch_size, seed).unwrap();
            (0..stop).for_each(|_| drop(first.next_batch()));
            let mut second = Sampler::new(samples, batch_size, seed).unwrap();
            second.restore(first.state()).unwrap();
            for batch in &batches[stop..] {
                prop_assert_eq!(&second.next_batch(), batch);
            }
        }
    }
}

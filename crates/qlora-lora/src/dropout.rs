//! Inverted dropout with a stream of its own for every layer and micro-batch.

use burn::tensor::{Tensor, TensorData};
use qlora_kernels::KernelBackend;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::DropoutKey;

/// Zeroes elements of `x` with probability `p` and divides the others by `1 − p`.
///
/// The mask is drawn on the host from ChaCha8, keyed by the seed of the run and by the layer's `site`,
/// at stream `micro_batch`: it depends neither on the backend nor on the number of threads, and a
/// resumed run draws what an uninterrupted one would.
pub(crate) fn dropout<B: KernelBackend>(x: Tensor<B, 2>, p: f64, site: u64, key: DropoutKey) -> Tensor<B, 2> {
    let [rows, cols] = x.dims();
    let mut rng = ChaCha8Rng::seed_from_u64(key.seed ^ site.rotate_left(32));
    rng.set_stream(key.micro_batch);
    let threshold = (p * f64::from(u32::MAX)) as u32;
    let keep = (1.0 / (1.0 - p)) as f32;
    let mask: Vec<f32> =
        (0..rows * cols).map(|_| if rng.random::<u32>() < threshold { 0.0 } else { keep }).collect();
    let mask = Tensor::from_data(TensorData::new(mask, [rows, cols]), (&x.device(), x.dtype()));
    x * mask
}

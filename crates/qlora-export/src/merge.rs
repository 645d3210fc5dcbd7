//! Adding an update to its weight.

use qlora_lora::AdapterFactors;
use rayon::prelude::*;

/// `W ← W + scale · B A`, with `W` `[out, in]` row-major. Each row is computed by one thread, in one order.
///
/// # Panics
/// When the weight is not as large as the factors say.
pub(crate) fn merge(weight: &mut [f32], factors: &AdapterFactors, scale: f64) {
    let AdapterFactors { a, b, rank, inputs, outputs } = factors;
    assert_eq!(weight.len(), inputs * outputs, "elements of the weight");
    let rows = weight.par_chunks_mut(*inputs).zip(b.par_chunks(*rank));
    rows.for_each_init(
        || vec![0.0; *inputs],
        |update, (row, b)| {
            update.fill(0.0);
            for (b, a) in b.iter().zip(a.chunks(*inputs)) {
                update.iter_mut().zip(a).for_each(|(update, a)| *update += b * a);
            }
            row.iter_mut().zip(update).for_each(|(weight, update)| *weight += scale as f32 * *update);
        },
    );
}

//! Adding an update to its weight.

use qlora_lora::AdapterFactors;
use rayon::prelude::*;

/// `W ← W + scale · B A`, with `W` `[out, in]` row-major; with DoRA each row is then brought to its magnitude. Each row is computed by one thread, in one order.
///
/// # Panics
/// When the weight is not as large as the factors say.
pub(crate) fn merge(weight: &mut [f32], factors: &AdapterFactors, scale: f64) {
    let AdapterFactors { a, b, rank, inputs, outputs, magnitude } = factors;
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
    if let Some(magnitude) = magnitude {
        weight.par_chunks_mut(*inputs).zip(magnitude).for_each(|(row, magnitude)| {
            let norm = row.iter().map(|weight| f64::from(*weight).powi(2)).sum::<f64>().sqrt();
            let gain = f64::from(*magnitude) / norm;
            row.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * gain) as f32);
        });
    }
}

//! Which columns of the weights matter, from a forward pass over a calibration text.

use qlora_gguf::ImportanceMatrix;
use qlora_kernels::KernelBackend;
use qlora_models::Decoder;

use crate::Probe;

/// Runs the rows of `probe` through a model and adds up the squares of what goes into each linear layer: llama.cpp's
/// importance matrix, under the tensors' names in GGUF. As there, embedding and head have none. `dataset` names the
/// text.
#[must_use]
pub fn importance_matrix<B: KernelBackend>(
    model: &mut Decoder<B>,
    probe: &Probe,
    dataset: &str,
) -> ImportanceMatrix {
    let family = model.config().family;
    let experts = model.config().experts.as_ref().map_or(0, |experts| experts.count);
    let statistics = model.input_statistics(probe.rows().iter().map(Vec::as_slice));
    let mut matrix = ImportanceMatrix::default();
    for (path, inputs) in statistics {
        if let Some(name) = family.gguf_name(&format!("{path}.weight")) {
            match name.expert {
                None => matrix.add(&name.tensor, &inputs.squares, inputs.tokens),
                Some(expert) => {
                    matrix.add_expert(&name.tensor, (expert, experts), &inputs.squares, inputs.tokens);
                }
            }
        }
    }
    matrix.datasets.push(dataset.to_owned());
    matrix.chunks = u32::try_from(probe.rows().len()).unwrap_or(u32::MAX);
    let longest = probe.rows().iter().map(Vec::len).max().unwrap_or(0);
    matrix.chunk_tokens = u32::try_from(longest).unwrap_or(u32::MAX);
    matrix
}

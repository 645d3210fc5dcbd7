//! Packed rows do not see each other.

use std::path::Path;

use burn::tensor::Tensor;
use qlora_data::{Batch, Dataset, Packing};
use qlora_kernels::Flex;
use qlora_lora::Pass;
use qlora_models::{Decoder, TokenBatch};

use crate::tiny_run::{config, model, rows};

fn logits(model: &Decoder<Flex>, batch: &Batch) -> Vec<f32> {
    let tokens = TokenBatch { ids: &batch.ids, lengths: &batch.lengths };
    let logits: Tensor<Flex, 2> = model.logits(model.hidden_states(tokens, Pass::default()));
    logits.to_data().iter::<f32>().collect()
}

#[test]
fn a_packed_row_has_the_logits_that_it_has_alone() {
    use burn::module::AutodiffModule as _;
    let Some(config) = config(Path::new("-"), &[]) else { return };
    let model = model(&config).valid();
    let data: Dataset = rows(11);
    let lengths: Vec<usize> = data.iter().map(|sample| sample.len()).collect();
    let packing = Packing::best_fit_decreasing(&lengths, 24).unwrap();
    assert!(packing.packs().iter().any(|pack| pack.len() > 2));
    for pack in packing.packs() {
        let together = logits(&model, &Batch::from_samples(&data.select(pack)));
        let alone: Vec<f32> =
            pack.iter().flat_map(|&row| logits(&model, &Batch::from_samples(&data.select(&[row])))).collect();
        assert_eq!(together.len(), alone.len());
        let difference = together.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-4, "{difference}");
    }
}

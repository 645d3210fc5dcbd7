//! What an adapter is added to, and what the choice changes.
#![cfg(feature = "flex")]

use qlora_export::{
    ExportSource, FloatType, MergeBase, MergeReport, Probe, SafetensorsOptions, export_safetensors, verify,
};
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::AdapterFactors;
use qlora_models::{AdapterSet, Checkpoint};
use qlora_quant::{Nf4Options, Nf4Tensor};

fn tiny() -> Option<(Checkpoint, AdapterSet)> {
    let checkpoint = Checkpoint::open(qlora_testing::golden("tiny/llama")?).unwrap();
    let noise = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) as f32 * 0.61).sin() / 8.0).collect()
    };
    let linears = checkpoint.config().linears().enumerate();
    // Every other layer has no adapter.
    let layers = linears.step_by(2).map(|(index, (path, [outputs, inputs]))| {
        let (a, b) = (noise(2 * inputs, index), noise(outputs * 2, index + 500));
        (path, (AdapterFactors { a, b, rank: 2, inputs, outputs, magnitude: None }, 0.5))
    });
    let set = AdapterSet { layers: layers.collect() };
    Some((checkpoint, set))
}

#[test]
fn a_dequantized_base_is_what_the_live_nf4_model_computes_with() {
    let Some((checkpoint, set)) = tiny() else { return };
    let source = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = SafetensorsOptions { dtype: FloatType::F32, ..SafetensorsOptions::default() };
    for double_quant in [false, true] {
        let nf4 = Nf4Options { double_quant, ..Nf4Options::default() };
        let dequantized = source.with_base(MergeBase::Dequantized(nf4));
        let out = folder.path().join(double_quant.to_string());
        export_safetensors(dequantized, options, &out, &mut |_, _| {}).unwrap();
        let check =
            |source| verify::<Flex>(source, &out, FloatType::F32.tolerance(), &probe, u64::MAX, &FlexDevice);
        // Verification has the adapter attached to NF4 weights.
        let logits = check(dequantized).unwrap().logits.unwrap();
        assert!(logits.relative < 1e-5 && logits.largest < 1e-4, "{logits:?}");
        assert!(check(source).is_err(), "the original weights are others");

        // A layer without an adapter is the quantized one; embedding, head and norms are the originals.
        let (path, shape) = checkpoint.config().linears().nth(1).unwrap();
        let name = format!("{path}.weight");
        let weight = checkpoint.tensor(&name, &shape).unwrap();
        let expected = Nf4Tensor::quantize(&weight, &shape, nf4).unwrap().dequantize();
        assert!(dequantized.tensor(&name, &shape).unwrap() == expected);
        for (name, shape) in checkpoint.config().tensors().iter().filter(|(name, _)| !name.contains("proj")) {
            assert!(dequantized.tensor(name, shape).unwrap() == checkpoint.tensor(name, shape).unwrap());
        }
    }
}

#[test]
fn both_merges_are_measured_against_the_live_adapter_on_nf4() {
    let Some((checkpoint, set)) = tiny() else { return };
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let report = |dtype, memory| {
        let nf4 = Nf4Options::default();
        MergeReport::new::<Flex>(&checkpoint, &set, nf4, dtype, &probe, memory, &FlexDevice).unwrap()
    };
    let exact = report(FloatType::F32, u64::MAX);
    let names: Vec<String> = checkpoint.config().linears().map(|(path, _)| path).collect();
    assert!(exact.layers.iter().map(|layer| &layer.path).eq(&names));
    for layer in &exact.layers {
        assert!(layer.original > 0.01 && layer.original < 0.2, "{layer:?}");
        assert_eq!(layer.dequantized, 0.0, "{layer:?}");
    }
    let logits = exact.logits.unwrap();
    assert!(logits.original.kl > 1e-6 && logits.original.relative > 1e-3, "{logits:?}");
    assert!(logits.dequantized.relative < 1e-5, "{logits:?}");

    let rounded = report(FloatType::Bf16, u64::MAX);
    for (layer, exact) in rounded.layers.iter().zip(&exact.layers) {
        // Half a step of eight bits, and less on average.
        assert!(layer.dequantized > 1e-4 && layer.dequantized < 4e-3, "{layer:?}");
        assert!((layer.original / exact.original - 1.0).abs() < 0.05, "{layer:?}");
    }
    let dequantized = rounded.logits.unwrap().dequantized;
    assert!(dequantized.relative > 1e-5 && dequantized.relative < logits.original.relative / 3.0);
    let worst = rounded.worst(3);
    assert!(worst.len() == 3 && worst.is_sorted_by(|a, b| a.original >= b.original));

    let small = report(FloatType::Bf16, 1000);
    assert_eq!(small.layers, rounded.layers);
    assert!(small.logits.unwrap_err().needed > 1000);
}

//! A DoRA adapter of PEFT: live, merged, and written again. Made by `golden/make_dora.py`.
#![cfg(feature = "flex")]

use std::path::Path;

use qlora_export::{
    ExportError, ExportSource, FloatType, PeftAdapter, SafetensorsOptions, export_gguf_lora,
    export_safetensors,
};
use qlora_kernels::{Compute, Flex, FlexDevice};
use qlora_models::{Checkpoint, Decoder, LoadOptions, Pass, TokenBatch, load};

#[derive(serde::Deserialize)]
struct Golden {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn load_f32(checkpoint: &Checkpoint) -> Decoder<Flex> {
    load(checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap()
}

fn largest_difference(model: &Decoder<Flex>, golden: &Golden) -> f32 {
    let batch = TokenBatch { ids: &golden.ids, lengths: &[golden.ids.len()] };
    let logits = model.logits(model.hidden_states(batch, Pass::default())).into_data();
    let expected = golden.logits.iter().flatten();
    logits.iter::<f32>().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_peft_live_and_merged() {
    let Some(base) = qlora_testing::golden("tiny/llama") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dora");
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("logits.json")).unwrap()).unwrap();
    let adapter = PeftAdapter::read(&folder).unwrap();
    let set = adapter.adapter_set();
    let checkpoint = Checkpoint::open(base).unwrap();
    let mut live = load_f32(&checkpoint);
    assert!(largest_difference(&live, &golden) > 0.01, "the adapter does something");
    live.attach_set(&set, 0.0).unwrap();
    assert!(largest_difference(&live, &golden) < 1e-4, "{}", largest_difference(&live, &golden));
    assert_eq!(live.adapter_set(), set);
    let mut parameters = Vec::new();
    live.visit_parameters(&mut |name, _| parameters.push(name.to_owned()));
    assert_eq!(parameters.len(), adapter.tensors().len());
    assert!(parameters.iter().all(|name| adapter.tensors().contains_key(name)), "{parameters:?}");

    live.merge(Compute::F32);
    assert!(largest_difference(&live, &golden) < 1e-4, "merged in memory");
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("merged");
    let source = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
    let options = SafetensorsOptions { dtype: FloatType::F32, ..SafetensorsOptions::default() };
    export_safetensors(source, options, &directory, &mut |_, _| {}).unwrap();
    let merged = load_f32(&Checkpoint::open(&directory).unwrap());
    assert!(largest_difference(&merged, &golden) < 1e-4, "{}", largest_difference(&merged, &golden));

    let copy = out.path().join("copy");
    adapter.write(&copy).unwrap();
    assert_eq!(PeftAdapter::read(&copy).unwrap(), adapter);
    let error = export_gguf_lora(&set, checkpoint.config(), None, out.path().join("lora")).unwrap_err();
    assert!(matches!(error, ExportError::Inexpressible { .. }), "{error}");
    assert!(error.to_string().contains("merge it into the weights"), "{error}");
}

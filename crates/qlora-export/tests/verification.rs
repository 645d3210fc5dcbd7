//! What verification compares, and what it finds.
#![cfg(feature = "flex")]

use std::fs;
use std::path::Path;

use qlora_export::{
    ExportError, ExportSource, FloatType, GgufType, PeftAdapter, Probe, SafetensorsOptions, Tolerance,
    VerifyError, export_gguf, export_gguf_lora, export_safetensors, verify, verify_gguf_lora, verify_peft,
};
use qlora_gguf::Gguf;
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::{AdapterFactors, LoraConfig};
use qlora_models::{AdapterSet, Checkpoint};
use serde_json::{Value, json};

const TEXT: &str = "The keeper of the light climbed the stairs in the evening, and the ships answered. ";

fn small_model(folder: &Path) -> Checkpoint {
    qlora_testing::write_small_model(folder);
    Checkpoint::open(folder).unwrap()
}

/// Adapters of these ranks by turns, all scaled by `scale(rank)`.
fn adapter(checkpoint: &Checkpoint, ranks: &[usize], scale: impl Fn(usize) -> f64) -> AdapterSet {
    let noise = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) as f32 * 0.61).sin() / 8.0).collect()
    };
    let layers = checkpoint.config().linears().enumerate().map(|(index, (path, [outputs, inputs]))| {
        let rank = ranks[index % ranks.len()];
        let (a, b) = (noise(rank * inputs, index), noise(outputs * rank, index + 500));
        (path, (AdapterFactors { a, b, rank, inputs, outputs, magnitude: None }, scale(rank)))
    });
    AdapterSet { layers: layers.collect() }
}

fn found<T: std::fmt::Debug>(result: Result<T, ExportError>) -> VerifyError {
    match result {
        Err(ExportError::Verify(error)) => *error,
        other => panic!("{other:?}"),
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Two tokens for each other.
fn swap_tokens(tokenizer: &mut Value) {
    tokenizer["model"]["vocab"]["a"] = json!(101);
    tokenizer["model"]["vocab"]["e"] = json!(97);
}

#[test]
fn another_tokenizer_and_another_template_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = small_model(&folder.path().join("model"));
    let (source, out) = (ExportSource::new(&checkpoint), folder.path().join("out"));
    export_safetensors(source, SafetensorsOptions::default(), &out, &mut |_, _| {}).unwrap();
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let check = || verify::<Flex>(source, &out, FloatType::Bf16.tolerance(), &probe, u64::MAX, &FlexDevice);
    let verified = check().unwrap();
    assert!(verified.tokens > 300, "{verified:?}");

    let tokenizer = out.join("tokenizer.json");
    let before = fs::read(&tokenizer).unwrap();
    edit(&tokenizer, swap_tokens);
    let error = found(check());
    let VerifyError::Tokens { text, expected, found: made, .. } = &error else { panic!("{error}") };
    assert!(text.starts_with("The lighthouse") && expected != made, "{error}");
    assert!(expected.contains(&97) || expected.contains(&101), "{error}");

    fs::write(&tokenizer, before).unwrap();
    check().unwrap();
    let template = out.join("chat_template.jinja");
    match template.exists() {
        true => fs::write(&template, "{{ messages[0]['content'] }}").unwrap(),
        false => edit(&out.join("tokenizer_config.json"), |config| {
            config["chat_template"] = json!("{{ messages[0]['content'] }}");
        }),
    }
    let error = found(check());
    assert!(matches!(error, VerifyError::Template { .. }), "{error}");
}

#[test]
fn all_of_a_long_text_is_compared_whatever_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = small_model(&folder.path().join("model"));
    let (source, out) = (ExportSource::new(&checkpoint), folder.path().join("model.gguf"));
    export_gguf(source, GgufType::F16, &out, &mut |_, _| {}).unwrap();
    let text = TEXT.repeat(20);
    let tokens = checkpoint.tokenizer().unwrap().encode(&text).unwrap();
    // The context of 64 is less than the rows that were asked for.
    let probe = Probe::of_text(&checkpoint, &text, 256).unwrap();
    assert_eq!(probe.rows().concat(), tokens);
    assert!(tokens.len() > 1000 && probe.rows().iter().all(|row| row.len() <= 64));
    let ranges = Probe::of_text(&checkpoint, &text, 10).unwrap();
    assert_eq!((ranges.tokens(), ranges.rows()[0].len()), (tokens.len(), 10));

    let tolerance = Tolerance::of_gguf(GgufType::F16);
    let check = |memory| verify::<Flex>(source, &out, tolerance, &probe, memory, &FlexDevice).unwrap().logits;
    let both = check(u64::MAX).unwrap();
    assert_eq!((both.tokens, both.compared), (tokens.len(), tokens.len()));
    let needed = check(0).unwrap_err().needed;
    let one = check(needed).unwrap();
    assert_eq!((one.tokens, one.compared), (tokens.len(), 512));
    assert_eq!(one.perplexity, both.perplexity);
    assert_eq!(one.reference_perplexity, both.reference_perplexity);
    assert!(one.kl > 0.0 && (one.kl / both.kl - 1.0).abs() < 0.5, "{one:?} {both:?}");
    assert_eq!(check(needed - 1).unwrap_err().needed, needed);
    let error = Probe::of_text(&checkpoint, "t", 256).unwrap_err();
    assert!(error.to_string().contains("less than two tokens"), "{error}");
}

#[test]
fn factors_of_a_gguf_adapter_are_compared_with_their_scale() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = small_model(&folder.path().join("model"));
    let config = checkpoint.config();
    let path = folder.path().join("lora.gguf");
    for (ranks, scale) in [
        (&[3][..], (|rank| 6.0 / rank as f64) as fn(usize) -> f64),
        (&[2, 4], |rank| 6.0 / (rank as f64).sqrt()),
        (&[2, 3, 5], |rank| 1.0 / (rank as f64 + 1.0)),
    ] {
        let set = adapter(&checkpoint, ranks, scale);
        let _ = fs::remove_file(&path);
        export_gguf_lora(&set, config, None, &path).unwrap();
        assert_eq!(verify_gguf_lora(&set, config, &path).unwrap(), 2 * set.layers.len());
        let mut other = set.clone();
        other.layers.values_mut().next().unwrap().1 *= 1.001;
        let error = found(verify_gguf_lora(&other, config, &path));
        assert!(error.to_string().contains("the factors of `blk.0.ffn_down.weight`"), "{error}");
        other = set.clone();
        other.layers.pop_last();
        assert!(matches!(found(verify_gguf_lora(&other, config, &path)), VerifyError::Tensors { .. }));
    }
    // One bit of a factor.
    let set = adapter(&checkpoint, &[2], |_| 1.0);
    fs::remove_file(&path).unwrap();
    export_gguf_lora(&set, config, None, &path).unwrap();
    let file = Gguf::open(&path).unwrap();
    let at = file.tensor("blk.1.attn_q.weight.lora_b").unwrap().info().offset as usize + 21;
    drop(file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let error = found(verify_gguf_lora(&set, config, &path));
    assert!(error.to_string().contains("blk.1.attn_q.weight"), "{error}");
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(found(verify_gguf_lora(&set, config, &path)), VerifyError::Unreadable { .. }));
}

#[test]
fn the_tokenizer_beside_an_adapter_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = small_model(&folder.path().join("model"));
    let lora = LoraConfig { rank: 2, alpha: 2.0, ..LoraConfig::default() };
    let set = adapter(&checkpoint, &[2], |_| 1.0);
    let peft = PeftAdapter::from_adapter_set(set, &lora, Some("org/base")).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let out = folder.path().join("adapter");
    peft.write_complete(&out, Some(&tokenizer)).unwrap();
    let check = || verify_peft(&peft, Some(&tokenizer), &out);
    assert!(check().unwrap() > 300);
    edit(&out.join("tokenizer.json"), swap_tokens);
    assert!(matches!(found(check()), VerifyError::Tokens { .. }));
    fs::remove_file(out.join("tokenizer.json")).unwrap();
    assert!(matches!(found(check()), VerifyError::Unreadable { .. }));
    assert_eq!(verify_peft(&peft, None, &out).unwrap(), 0);
    edit(&out.join("adapter_config.json"), |config| config["lora_alpha"] = json!(3.0));
    assert!(matches!(found(check()), VerifyError::Tensors { .. }));
}

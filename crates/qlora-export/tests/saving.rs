//! A model saved in one call.
#![cfg(feature = "flex")]

use std::fs;

use qlora_export::{GgufType, PeftAdapter, SaveAdapter as _, SaveMerged as _};
use qlora_gguf::Gguf;
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::LoraConfig;
use qlora_models::{Checkpoint, LoadOptions, load};
use qlora_text::{ChatTemplates, Tokenizer};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";

/// A tokenizer of one letter and an end.
fn tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let definition = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [{"id": 1, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"a": 0, "</s>": 1}, "merges": []}}"#;
    fs::write(folder.path().join("tokenizer.json"), definition).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
    let mut tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    tokenizer.set_chat_templates(ChatTemplates::new(TEMPLATE)).unwrap();
    tokenizer
}

#[test]
fn each_form_takes_one_call() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let mut model = load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    let config = LoraConfig { rank: 2, ..LoraConfig::default() };
    model.attach(&config, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let layers = checkpoint.config().linears().count();

    model.save_adapter(path("adapter"), &config, Some("org/base")).unwrap();
    let adapter = PeftAdapter::read(path("adapter")).unwrap();
    assert_eq!((adapter.layers().len(), adapter.config().base_model.as_deref()), (layers, Some("org/base")));
    assert!(!path("adapter/tokenizer.json").exists());
    // Again into the same directory, with what a server needs.
    model.save_adapter_with_tokenizer(path("adapter"), &config, Some("org/base"), &tokenizer()).unwrap();
    assert_eq!(PeftAdapter::read(path("adapter")).unwrap(), adapter);
    let saved = Tokenizer::from_directory(path("adapter")).unwrap();
    assert_eq!((saved.chat_template_source(), saved.eos()), (Some(TEMPLATE), &[1][..]));

    adapter.write_complete(path("complete"), Some(&tokenizer())).unwrap();
    for file in
        ["adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "tokenizer.json"]
    {
        let [a, b] = ["adapter", "complete"].map(|name| fs::read(path(name).join(file)).unwrap());
        assert!(a == b, "{file}");
    }

    let exported = model.save_merged(&checkpoint, path("merged")).unwrap();
    assert_eq!((exported.merged, exported.files), (layers, 1));
    let merged = Checkpoint::open(path("merged")).unwrap();
    assert_eq!(merged.config(), checkpoint.config());
    merged.check_tensors().unwrap();
    let exported = model.save_gguf(&checkpoint, path("model.gguf"), GgufType::F16).unwrap();
    assert_eq!(exported.merged, layers);
    Gguf::open(path("model.gguf")).unwrap();
}

#[test]
fn a_name_may_have_points() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("Qwen2.5-0.5B-Instruct");
    fs::create_dir(&directory).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), directory.join(file)).unwrap();
    }
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let path = folder.path().join("model.gguf");
    qlora_export::export_gguf(
        qlora_export::ExportSource::new(&checkpoint),
        GgufType::F16,
        &path,
        &mut |_, _| {},
    )
    .unwrap();
    let name = Gguf::open(&path).unwrap().metadata().string("general.name").map(str::to_owned);
    assert_eq!(name.unwrap(), "Qwen2.5-0.5B-Instruct");
}

//! The program on a Vulkan adapter: the same training as on the processor.

use std::fs;
use std::path::Path;

use crate::program::qlora;
use crate::training::prepare;

fn train(home: &Path, arguments: &[&str]) -> String {
    let all = [&["train", "run.toml"][..], arguments].concat();
    qlora(home, all).succeeded().stderr
}

fn metrics(home: &Path, key: &str) -> Vec<f64> {
    let lines = fs::read_to_string(home.join("out/metrics.jsonl")).unwrap();
    let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[key].as_f64();
    lines.lines().filter_map(value).collect()
}

#[test]
fn vulkan_training_agrees_with_the_processor() {
    let [on_cpu, on_gpu] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for (home, backend) in [(&on_cpu, "cpu"), (&on_gpu, "vulkan")] {
        prepare(home.path());
        let said = train(home.path(), &["--backend", backend, "--dtype", "f32"]);
        assert!(said.contains(&format!("computing on {backend}")), "{said}");
    }
    for key in ["loss", "grad_norm"] {
        let (cpu, gpu) = (metrics(on_cpu.path(), key), metrics(on_gpu.path(), key));
        assert_eq!(cpu.len(), 6);
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            assert!((cpu - gpu).abs() < 1e-3 * cpu.abs(), "{key} {cpu} on the processor, {gpu} on Vulkan");
        }
    }
}

#[test]
fn vulkan_checkpointing_gives_the_same_bits() {
    let adapters = ["none", "layers", "offload"].map(|checkpointing| {
        let home = tempfile::tempdir().unwrap();
        prepare(home.path());
        let set = format!("train.checkpointing={checkpointing:?}");
        train(home.path(), &["--backend", "vulkan", "--dtype", "f32", "--set", &set]);
        fs::read(home.path().join("out/adapter/adapter_model.safetensors")).unwrap()
    });
    assert!(adapters[0] == adapters[1], "layers");
    assert!(adapters[0] == adapters[2], "offload");
}

/// WGSL has no bf16.
#[test]
fn vulkan_refuses_bf16_by_what_it_has() {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    let arguments = ["train", "run.toml", "--backend", "vulkan", "--dtype", "bf16"];
    qlora(home.path(), arguments).failed(2, &["no products in bf16", "choose f32"]);
}

#[test]
fn vulkan_trains_in_f16_with_a_scaled_loss() {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    train(home.path(), &["--backend", "vulkan", "--dtype", "f16", "--set", "train.optimizer=\"adamw8bit\""]);
    let (losses, scales) = (metrics(home.path(), "loss"), metrics(home.path(), "loss_scale"));
    assert!(losses[5] < losses[0], "{losses:?}");
    assert_eq!(scales.len(), 6, "every step says its scale");
    assert!(scales.iter().all(|scale| *scale >= 1.0), "{scales:?}");
}

//! What a forward pass keeps does not change a bit of a gradient.

use std::path::Path;

use burn::tensor::{Shape, Tensor};
use qlora_data::Batch;
use qlora_lora::{DropoutKey, Pass};
use qlora_train::{Checkpointing, Objective};

use crate::tiny_run::{Backend, Model, config, engine, model, objective, parameters, rows};

const MODES: [Checkpointing; 3] = [Checkpointing::None, Checkpointing::Layers, Checkpointing::Offload];

/// Bits of the loss and of every parameter's gradient.
fn gradients(model: &Model, checkpointing: Checkpointing) -> (u32, Vec<Vec<u32>>) {
    let data = rows(3);
    let batch = Batch::from_samples(&data.samples().iter().collect::<Vec<_>>());
    let config = config(Path::new("-"), &[]).unwrap();
    let objective = objective(&config, data).with_checkpointing(checkpointing);
    let pass = Pass::training(DropoutKey { seed: 5, micro_batch: 3 });
    let loss = Objective::<Backend, Model>::loss(&objective, model, &batch, pass);
    let bits =
        |tensor: Tensor<_, 2>| -> Vec<u32> { tensor.into_data().iter::<f32>().map(f32::to_bits).collect() };
    let value = loss.value.clone().inner().into_data().iter::<f32>().next().unwrap().to_bits();
    let mut found: Vec<Vec<u32>> = Vec::new();
    loss.backward(model, 1.0, &mut |mut gradients| {
        let mut index = 0;
        model.visit_parameters(&mut |name, parameter| {
            if found.len() == index {
                found.push(Vec::new());
            }
            if let Some(gradient) = parameter.grad_remove(&mut gradients) {
                assert!(found[index].is_empty(), "{name} has two gradients");
                found[index] = bits(gradient);
            }
            index += 1;
        });
    });
    (value, found)
}

#[test]
fn gradients_are_the_same_to_the_last_bit() {
    for targets in ["lora.targets=all-linear", r"lora.targets=.*layers\.1\.(mlp|self_attn\.q).*"] {
        let overrides = [targets, "lora.dropout=0.4", "train.steps=2"];
        let Some(config) = config(Path::new("-"), &overrides) else { return };
        let (mut model, mut objective) = (model(&config), objective(&config, rows(4)));
        // Two steps make the second factors, and with them the gradients of the first, other than zero.
        engine(&config, &objective).run(&mut model, &mut objective).unwrap();
        let [expected, layers, offload] = MODES.map(|mode| gradients(&model, mode));
        let mut sizes = Vec::new();
        model.visit_parameters(&mut |_, parameter| sizes.push(parameter.shape()));
        let elements: Vec<usize> = sizes.iter().map(Shape::num_elements).collect();
        assert_eq!(expected.1.iter().map(Vec::len).collect::<Vec<_>>(), elements);
        assert!(expected.1.iter().all(|gradient| gradient.iter().any(|bits| *bits << 1 != 0)));
        assert!(layers == expected && offload == expected, "{targets}");
    }
}

#[test]
fn a_run_ends_with_the_same_bits() {
    let run = |mode: &str| {
        let mode = format!("train.checkpointing={mode}");
        let overrides =
            [mode.as_str(), "train.steps=3", "train.accumulate=2", "lora.dropout=0.3", "train.warmup=1"];
        let config = config(Path::new("-"), &overrides)?;
        let (mut model, mut objective) = (model(&config), objective(&config, rows(11)));
        engine(&config, &objective).run(&mut model, &mut objective).unwrap();
        Some(parameters(&model).into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let Some(expected) = run("none") else { return };
    assert!(run("layers").unwrap() == expected);
    assert!(run("offload").unwrap() == expected);
}

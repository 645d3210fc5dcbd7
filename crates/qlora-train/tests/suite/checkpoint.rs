//! Checkpoints: exact, pruned, found after damage, refused when the run changed.

use std::collections::BTreeMap;
use std::fs;

use qlora_train::checkpoint::{
    BestEvaluation, Checkpoint, CheckpointFolder, MomentValues, NamedMoment, NamedTensor, RunState,
};
use qlora_train::config::RunConfig;
use qlora_train::{LossScale, TrainError};

fn tensors(seed: f32) -> Vec<NamedTensor> {
    let tensor = |name: &str, shape: &[usize]| NamedTensor {
        name: format!("base_model.model.model.layers.0.{name}.weight"),
        shape: shape.to_vec(),
        values: (0..shape.iter().product()).map(|i| seed / (i as f32 + 3.0)).collect(),
    };
    vec![tensor("q_proj.lora_A", &[2, 3]), tensor("q_proj.lora_B", &[5, 2])]
}

fn moments(seed: f32) -> Vec<NamedMoment> {
    let moment =
        |NamedTensor { name, shape, values }| NamedMoment { name, shape, values: MomentValues::F32(values) };
    let mut moments: Vec<_> = tensors(seed).into_iter().map(moment).collect();
    moments[1].values =
        MomentValues::EightBit { codes: (0..10).map(|code| 250 - 20 * code).collect(), absmax: vec![seed] };
    moments
}

fn checkpoint(step: u64) -> Checkpoint {
    let state = RunState {
        step,
        epoch: 1.0 / 3.0,
        tokens: 1000,
        trained_tokens: 100,
        empty_steps: 1,
        seconds: 1.5,
        best: Some(BestEvaluation { step: 1, loss: 0.1 + 0.2 }),
        loss_scale: Some(LossScale { scale: 32768.0, good_steps: 3, skipped: 2, skipped_in_a_row: 0 }),
        settings: BTreeMap::from([("train.seed".to_string(), "42".to_string())]),
        data: "abc".to_string(),
    };
    let (parameters, first, second) = (tensors(step as f32), moments(1e-30), moments(-0.0));
    Checkpoint { state, parameters, first_moments: first, second_moments: second, objective: None }
}

#[test]
fn a_checkpoint_reads_back_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointFolder::new(folder.path().join("checkpoints"), 2);
    assert!(store.latest().unwrap().checkpoint.is_none());
    let path = store.save(&checkpoint(7)).unwrap();
    assert!(path.ends_with("checkpoints/step-7"));
    let found = store.latest().unwrap();
    assert_eq!(found.checkpoint, Some((path, checkpoint(7))));
    assert!(found.passed_over.is_empty());
    let MomentValues::F32(values) = &checkpoint(7).second_moments[0].values else { panic!("f32 moments") };
    assert!(values[0].is_sign_negative());
}

#[test]
fn the_newest_by_number_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointFolder::new(folder.path(), 2);
    fs::create_dir(folder.path().join("step-notes")).unwrap();
    for step in [9, 10, 100] {
        store.save(&checkpoint(step)).unwrap();
    }
    let steps: Vec<u64> = store.steps().unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [10, 100]);
    assert_eq!(store.latest().unwrap().checkpoint.unwrap().1.state.step, 100);
    assert!(folder.path().join("step-notes").exists());
}

#[test]
fn damaged_checkpoints_are_passed_over_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointFolder::new(folder.path(), 9);
    for step in 1..=5 {
        store.save(&checkpoint(step)).unwrap();
    }
    let file = |step: u64, name: &str| folder.path().join(format!("step-{step}/{name}"));
    fs::remove_file(file(5, "state.json")).unwrap();
    let mut bytes = fs::read(file(4, "optimizer.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file(4, "optimizer.safetensors"), bytes).unwrap();
    let bytes = fs::read(file(3, "adapter.safetensors")).unwrap();
    fs::write(file(3, "adapter.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let text = fs::read_to_string(file(2, "state.json")).unwrap();
    fs::write(file(2, "state.json"), text.replace("\"format\": 1", "\"format\": 2")).unwrap();

    let found = store.latest().unwrap();
    assert_eq!(found.checkpoint.unwrap().1.state.step, 1);
    let reasons: Vec<String> = found.passed_over.iter().map(ToString::to_string).collect();
    let expected = [
        "cannot read",
        "optimizer.safetensors is damaged",
        "adapter.safetensors is damaged",
        "its format is 2",
    ];
    assert_eq!(reasons.len(), expected.len());
    for (reason, (expected, step)) in reasons.iter().zip(expected.iter().zip([5, 4, 3, 2])) {
        assert!(reason.contains(expected) && reason.contains(&format!("step-{step}")), "{reason}");
    }
}

#[test]
fn leftovers_of_a_kill_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointFolder::new(folder.path(), 2);
    store.save(&checkpoint(1)).unwrap();
    fs::create_dir(folder.path().join(".step-2.tmp-77-0")).unwrap();
    fs::write(folder.path().join(".step-2.tmp-77-0/adapter.safetensors"), "half").unwrap();
    store.recover().unwrap();
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["step-1"]);
    CheckpointFolder::new(folder.path().join("absent"), 2).recover().unwrap();
}

#[test]
fn a_changed_run_is_refused_with_every_difference() {
    let stored = checkpoint(3);
    let shapes = || stored.parameters.iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
    let path = std::path::Path::new("checkpoints/step-3");
    stored.check(path, &stored.state.settings, "abc", shapes()).unwrap();

    let settings = BTreeMap::from([
        ("train.seed".to_string(), "7".to_string()),
        ("train.clip".to_string(), "1.0".to_string()),
    ]);
    let wider = [("base_model.model.model.layers.0.q_proj.lora_A.weight", &[4_usize, 3][..])];
    let error = stored.check(path, &settings, "abd", wider).unwrap_err();
    let TrainError::Changed { changes, .. } = &error else { panic!("{error}") };
    assert_eq!(
        changes[..],
        [
            "train.clip was not set, is 1.0",
            "train.seed was 42, is 7",
            "the training data (its tokens or loss weights) changed",
            "parameter `base_model.model.model.layers.0.q_proj.lora_A.weight` is of shape [2, 3], \
             the model needs shape [4, 3]",
            "parameter `base_model.model.model.layers.0.q_proj.lora_B.weight` is not trained in this model",
        ]
    );
}

#[test]
fn settings_are_what_decides_the_outcome() {
    let settings = |overrides: &[&str]| {
        let text = "model.path = \"m\"\ndata.train = \"t\"\ntrain.steps = 3\noutput.dir = \"o\"";
        RunConfig::from_toml_str("run.toml", text, overrides).unwrap().settings()
    };
    let plain = settings(&[]);
    let free = [
        "device.backend=cuda",
        "device.index=1",
        "data.train=u",
        "data.eval=e",
        "train.checkpointing=layers",
        "train.checkpoint_every=1",
        "train.eval_every=1",
        "output.dir=p",
    ];
    assert_eq!(settings(&free), plain);
    for decisive in
        ["train.steps=4", "lora.rank=8", "train.schedule={kind=\"wsd\"}", "data.seed=1", "model.quant=none"]
    {
        assert_ne!(settings(&[decisive]), plain, "{decisive}");
    }
}

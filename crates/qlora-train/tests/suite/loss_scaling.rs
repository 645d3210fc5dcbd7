//! The loss is scaled for gradients with the range of an f16: steps that overflow are skipped and counted.

use std::path::Path;

use burn::tensor::Tensor;
use qlora_data::Batch;
use qlora_lora::Pass;
use qlora_train::config::RunConfig;
use qlora_train::metrics::{Record, StepMetrics, read_metrics};
use qlora_train::{
    BatchSize, Engine, EngineOptions, Interrupt, Loss, LossScaling, Objective, Observer, RunDirectory,
    SupervisedFineTuning, Tape, TrainError,
};

use crate::engine::Recorder;
use crate::tiny_run::{Backend, Model, TinyEngine, config, model, objective, parameters, rows};

type Gradients = <Backend as burn::tensor::backend::AutodiffBackend>::Gradients;

/// An objective whose gradients become infinite beyond a limit, as those of an f16 do.
struct Narrow {
    objective: SupervisedFineTuning,
    limit: f32,
}

struct Overflow(f32);

impl Tape<Backend, Model> for Overflow {
    fn backward(self: Box<Self>, model: &Model, gradients: &mut Gradients, _: &mut dyn FnMut(Gradients)) {
        model.visit_parameters(&mut |_, parameter| {
            let gradient = parameter.grad_remove(gradients).unwrap();
            let beyond = gradient.clone().abs().greater_elem(self.0);
            parameter.grad_replace(gradients, gradient.mask_fill(beyond, f32::INFINITY));
        });
    }
}

impl Objective<Backend, Model> for Narrow {
    type Batch = Batch;

    fn steps_per_epoch(&self) -> u64 {
        self.objective.steps_per_epoch()
    }

    fn fingerprint(&self) -> String {
        Objective::<Backend, Model>::fingerprint(&self.objective)
    }

    fn micro_batches(&mut self, model: &Model, step: u64) -> Result<Vec<Batch>, TrainError> {
        self.objective.micro_batches(model, step)
    }

    fn size(&self, batch: &Batch) -> BatchSize {
        Objective::<Backend, Model>::size(&self.objective, batch)
    }

    fn loss(&self, model: &Model, batch: &Batch, pass: Pass) -> Loss<Backend, Model> {
        let value: Tensor<Backend, 1> = self.objective.loss(model, batch, pass).value;
        Loss { value, tape: Some(Box::new(Overflow(self.limit))) }
    }
}

fn narrow(config: &RunConfig, limit: f32) -> Narrow {
    Narrow { objective: objective(config, rows(11)), limit }
}

fn scaled(config: &RunConfig, objective: &Narrow, scaling: LossScaling) -> TinyEngine<'static> {
    let options = EngineOptions::new(&config.train, objective.steps_per_epoch());
    Engine::new(EngineOptions { loss_scaling: Some(scaling), ..options })
}

#[test]
fn a_scale_that_fits_changes_no_bit() {
    let Some(config) = config(Path::new("-"), &["train.accumulate=2", "lora.dropout=0.2"]) else { return };
    let mut plain = model(&config);
    let mut objective = narrow(&config, f32::INFINITY);
    let options = EngineOptions::new(&config.train, objective.steps_per_epoch());
    Engine::new(options).run(&mut plain, &mut objective).unwrap();
    let mut model = model(&config);
    let recorder = Recorder::default();
    let scaling = LossScaling { interval: 2, ..LossScaling::default() };
    let mut engine = scaled(&config, &objective, scaling).with_observer(recorder.clone());
    let summary = engine.run(&mut model, &mut objective).unwrap();
    assert_eq!(parameters(&model), parameters(&plain));
    assert_eq!(summary.skipped_steps, Some(0));
    let scales: Vec<_> = recorder.steps.borrow().iter().map(|step| step.loss_scale.unwrap()).collect();
    assert_eq!(scales, [65536.0, 65536.0, 131072.0, 131072.0, 262144.0, 262144.0]);
}

#[test]
fn overflowing_steps_are_skipped_until_the_scale_fits() {
    let folder = tempfile::tempdir().unwrap();
    let Some(config) = config(folder.path(), &["train.steps=20", "train.schedule=constant"]) else { return };
    let mut objective = narrow(&config, 2000.0);
    let mut model = model(&config);
    let start = parameters(&model);
    let recorder = Recorder::default();
    let summary = scaled(&config, &objective, LossScaling::default())
        .with_observer(recorder.clone())
        .with_directory(RunDirectory::new(&config, false))
        .run(&mut model, &mut objective)
        .unwrap();
    let steps = recorder.steps.take();
    let skipped = summary.skipped_steps.unwrap();
    assert!(skipped > 1 && skipped < 15, "{skipped} steps were skipped");
    let first = steps.iter().take_while(|step| step.grad_norm.is_nan()).count();
    assert!(first > 0, "the first scale fits");
    for (index, step) in steps[..=first].iter().enumerate() {
        assert_eq!(step.loss_scale, Some(65536.0 / (1 << index) as f64));
        assert!(step.loss.is_finite());
    }
    assert_eq!(steps[first - 1].skipped_steps, Some(first as u64));
    assert_ne!(parameters(&model), start);
    assert!(parameters(&model).iter().all(|value| value.is_finite()));
    // A skipped step has no norm, also when it is read back.
    let records = read_metrics(folder.path().join("metrics.jsonl")).unwrap();
    let Record::Step(read) = &records[0] else { panic!("the first line is a step") };
    assert!(read.grad_norm.is_nan() && read.skipped_steps == Some(1));
    assert!(
        std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap().contains("\"grad_norm\":null")
    );

    // The first update is the optimizer's first, whatever was skipped: it moves parameters by the whole rate.
    let mut again = crate::tiny_run::model(&config);
    let few = format!("train.steps={}", first + 1);
    let config = crate::tiny_run::config(Path::new("-"), &[&few, "train.schedule=constant"]).unwrap();
    scaled(&config, &objective, LossScaling::default()).run(&mut again, &mut objective).unwrap();
    let moved = parameters(&again).iter().zip(&start).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!((moved - 1e-2).abs() < 1e-4, "{moved}");
}

/// Stops after a step.
struct StopAfter(u64, Interrupt);

impl Observer for StopAfter {
    fn stepped(&mut self, metrics: &StepMetrics) {
        if metrics.step == self.0 {
            self.1.request();
        }
    }
}

#[test]
fn the_scale_is_resumed() {
    let run = |directory: &Path, resume: bool, stop_after: u64| {
        let config = config(directory, &["train.steps=12"])?;
        let (mut model, mut objective) = (model(&config), narrow(&config, 2000.0));
        let interrupt = Interrupt::new();
        let scaling = LossScaling { interval: 3, ..LossScaling::default() };
        scaled(&config, &objective, scaling)
            .with_directory(RunDirectory::new(&config, resume))
            .with_interrupt(interrupt.clone())
            .with_observer(StopAfter(stop_after, interrupt))
            .run(&mut model, &mut objective)
            .unwrap();
        Some(parameters(&model))
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(expected) = run(whole.path(), false, u64::MAX) else { return };
    for (resume, stop_after) in [(false, 2), (true, 8)] {
        run(parts.path(), resume, stop_after).unwrap();
    }
    assert_eq!(run(parts.path(), true, u64::MAX).unwrap(), expected);
    let last = |directory: &Path| {
        let found = RunDirectory::without_config(directory).checkpoints().latest().unwrap();
        found.checkpoint.unwrap().1.state.loss_scale.unwrap()
    };
    assert_eq!(last(parts.path()), last(whole.path()));
    assert!(last(whole.path()).skipped > 0);
}

#[test]
fn gradients_that_always_overflow_stop_the_run() {
    let Some(config) = config(Path::new("-"), &["train.steps=50"]) else { return };
    let mut objective = narrow(&config, -1.0);
    let mut model = model(&config);
    let start = parameters(&model);
    let error =
        scaled(&config, &objective, LossScaling::default()).run(&mut model, &mut objective).unwrap_err();
    assert!(matches!(error, TrainError::LossScale { skipped: 20, step: 20, scale: 1.0, .. }), "{error}");
    assert!(error.to_string().contains("compute in bf16 or f32"), "{error}");
    assert_eq!(parameters(&model), start);

    // Without scaling, one is enough.
    let options = EngineOptions::new(&config.train, objective.steps_per_epoch());
    let error = Engine::new(options).run(&mut model, &mut objective).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { what: "gradient norm", step: 1, .. }), "{error}");
}

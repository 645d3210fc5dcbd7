//! What a step computes, and what stops a run.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use burn::tensor::Tensor;
use qlora_data::{Batch, Dataset, Sample};
use qlora_lora::Pass;
use qlora_models::TokenBatch;
use qlora_train::metrics::{EvalMetrics, Record, StepMetrics, read_metrics};
use qlora_train::{
    EngineOptions, Interrupt, Observer, RunDirectory, RunStart, Summary, TrainError, evaluate,
};

use crate::tiny_run::{Backend, config, engine, engine_on_disk, model, objective, parameters, rows};

/// Keeps what it is told.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    pub(crate) steps: Rc<RefCell<Vec<StepMetrics>>>,
    evaluations: Rc<RefCell<Vec<EvalMetrics>>>,
    pub(crate) events: Rc<RefCell<Vec<String>>>,
}

impl Observer for Recorder {
    fn started(&mut self, start: &RunStart) {
        self.events.borrow_mut().push(format!("started {}/{}", start.done, start.steps));
    }

    fn stepped(&mut self, metrics: &StepMetrics) {
        self.steps.borrow_mut().push(metrics.clone());
        self.events.borrow_mut().push(format!("step {}", metrics.step));
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) {
        self.evaluations.borrow_mut().push(*metrics);
        self.events.borrow_mut().push(format!("evaluation {}", metrics.step));
    }

    fn saved(&mut self, checkpoint: &Path) {
        let name = checkpoint.file_name().unwrap().to_str().unwrap().to_string();
        self.events.borrow_mut().push(format!("saved {name}"));
    }

    fn warned(&mut self, message: &str) {
        self.events.borrow_mut().push(format!("warning {message}"));
    }

    fn finished(&mut self, summary: &Summary) {
        self.events.borrow_mut().push(format!("finished {}", summary.steps));
    }
}

#[test]
fn the_loss_of_a_step_is_the_weighted_mean_over_all_its_tokens() {
    let Some(config) = config(Path::new("-"), &["train.accumulate=3", "data.shuffle=false", "train.steps=1"])
    else {
        return;
    };
    let (mut model, data) = (model(&config), rows(6));
    let (mut sum, mut weight) = (0.0, 0.0);
    for sample in data.samples() {
        let batch = Batch::from_samples(&[sample]);
        let tokens = TokenBatch { ids: &batch.ids, lengths: &batch.lengths };
        let loss: Tensor<Backend, 1> = model.loss(tokens, &batch.targets, &batch.weights, Pass::default());
        sum += f64::from(loss.into_data().iter::<f32>().next().unwrap());
        weight += batch.trained_weight();
    }

    let recorder = Recorder::default();
    let mut objective = objective(&config, data.clone());
    let summary =
        engine(&config, &objective).with_observer(recorder.clone()).run(&mut model, &mut objective).unwrap();
    let step = recorder.steps.borrow()[0].clone();
    assert!((step.loss - sum / weight).abs() < 1e-6, "{} is not {}", step.loss, sum / weight);
    let tokens: usize = data.samples().iter().map(Sample::len).sum();
    let trained: usize = data.samples().iter().map(Sample::trained_tokens).sum();
    assert_eq!((step.tokens, step.trained_tokens), (tokens as u64, trained as u64));
    assert_eq!((step.step, step.epoch, summary.steps), (1, 1.0, 1));
}

#[test]
fn how_rows_are_split_into_micro_batches_makes_no_difference() {
    let run = |overrides: &[&str]| {
        let config = config(Path::new("-"), overrides)?;
        let (mut model, mut objective) = (model(&config), objective(&config, rows(11)));
        let recorder = Recorder::default();
        engine(&config, &objective).with_observer(recorder.clone()).run(&mut model, &mut objective).unwrap();
        Some((recorder.steps.take(), parameters(&model)))
    };
    // 11 rows, 4 a step: the last step of an epoch has 3, and 6 steps are two epochs.
    let Some((whole, whole_end)) = run(&["train.batch_size=4", "train.accumulate=1"]) else { return };
    let (split, split_end) = run(&["train.batch_size=1", "train.accumulate=4"]).unwrap();
    for (a, b) in whole.iter().zip(&split) {
        assert!((a.loss - b.loss).abs() < 1e-5 * a.loss, "step {}: {} and {}", a.step, a.loss, b.loss);
        assert!(
            (a.grad_norm - b.grad_norm).abs() < 1e-4 * a.grad_norm,
            "{} and {}",
            a.grad_norm,
            b.grad_norm
        );
        assert_eq!((a.tokens, a.trained_tokens, a.epoch), (b.tokens, b.trained_tokens, b.epoch));
    }
    let error: f32 = whole_end.iter().zip(&split_end).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-4, "parameters differ by {error}");
    assert!(whole.last().unwrap().loss < 0.9 * whole[0].loss, "nothing was learned");
}

#[test]
fn clipping_takes_the_global_norm_before_it() {
    let first = |overrides: &[&str]| {
        let config = config(Path::new("-"), overrides)?;
        let (mut model, mut objective) = (model(&config), objective(&config, rows(4)));
        let before = parameters(&model);
        let recorder = Recorder::default();
        engine(&config, &objective).with_observer(recorder.clone()).run(&mut model, &mut objective).unwrap();
        let norm = recorder.steps.borrow()[0].grad_norm;
        let moved: f32 =
            parameters(&model).iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        Some((norm, moved))
    };
    let Some(free) = first(&["train.steps=1", "train.clip=0"]) else { return };
    // Adam's first step is lr·g/(|g| + ε): gradients clipped to nothing but ε move parameters far less.
    let clipped = first(&["train.steps=1", "train.clip=1e-12"]).unwrap();
    assert_eq!(free.0, clipped.0);
    assert!((free.1 - 1e-2).abs() < 1e-4, "{}", free.1);
    assert!(clipped.1 < 1e-4, "{}", clipped.1);
}

#[test]
fn evaluation_uses_no_dropout_and_counts_weights() {
    let folder = tempfile::tempdir().unwrap();
    let overrides = ["train.eval_every=2", "train.steps=5", "train.checkpoint_every=4", "lora.dropout=0.5"];
    let Some(config) = config(folder.path(), &overrides) else { return };
    let mut model = model(&config);
    let mut objective = objective(&config, rows(4)).with_evaluation(rows(3));
    let recorder = Recorder::default();
    let mut engine = engine_on_disk(&config, &objective, false).with_observer(recorder.clone());
    let summary = engine.run(&mut model, &mut objective).unwrap();
    assert_eq!(
        recorder.events.borrow()[..],
        [
            "started 0/5",
            "step 1",
            "step 2",
            "evaluation 2",
            "step 3",
            "step 4",
            "evaluation 4",
            "saved step-4",
            "step 5",
            "evaluation 5",
            "saved step-5",
            "finished 5"
        ]
    );
    let last = *recorder.evaluations.borrow().last().unwrap();
    assert_eq!(summary.evaluation, Some(last));

    let by_rows = evaluate(&model, &rows(3), 1).unwrap();
    assert!((by_rows.loss() - last.eval_loss).abs() < 1e-6);
    assert!((last.eval_perplexity - last.eval_loss.exp()).abs() < 1e-9);
    assert_eq!(by_rows.tokens, last.eval_tokens);
    assert_eq!(by_rows.correct as f64 / by_rows.tokens as f64, last.eval_accuracy);
    let lowest = recorder.evaluations.borrow().iter().map(|m| m.eval_loss).fold(f64::INFINITY, f64::min);
    assert_eq!(summary.best.unwrap().loss, lowest);

    let records = read_metrics(folder.path().join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = records.iter().map(Record::step).collect();
    assert_eq!(steps, [1, 2, 2, 3, 4, 4, 5, 5]);
    assert!(folder.path().join("report.html").exists());
    let config_text = std::fs::read_to_string(folder.path().join("config.toml")).unwrap();
    assert_eq!(config_text, config.to_toml());
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_leaves_the_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let overrides = ["train.checkpoint_every=1", "train.learning_rate=1e30", "train.schedule=constant"];
    let Some(config) = config(folder.path(), &overrides) else { return };
    let (mut model, mut objective) = (model(&config), objective(&config, rows(4)));
    let error = engine_on_disk(&config, &objective, false).run(&mut model, &mut objective).unwrap_err();
    let TrainError::NotFinite { step: 2, checkpoint: Some(checkpoint), .. } = &error else {
        panic!("{error}")
    };
    assert!(checkpoint.ends_with("checkpoints/step-1"));
    let message = error.to_string();
    assert!(message.contains("of step 2 is") && message.contains("lower train.learning_rate"), "{message}");
    let saved = RunDirectory::new(&config, true).checkpoints().latest().unwrap().checkpoint.unwrap().1;
    let mut stored: Vec<_> = saved.parameters.iter().map(|tensor| tensor.values.clone()).collect();
    let mut kept = Vec::new();
    model.visit_parameters(&mut |name, p| {
        kept.push((name.to_string(), p.to_data().iter::<f32>().collect::<Vec<_>>()))
    });
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    for (_, values) in kept.into_iter().rev() {
        assert_eq!(stored.pop(), Some(values));
    }
}

#[test]
fn the_first_layer_that_gives_no_number_is_named() {
    let Some(config) = config(Path::new("-"), &["lora.dropout=0.1"]) else { return };
    for (poisoned, expected) in [
        ("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight", "model.layers.1"),
        ("base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight", "model.layers.0"),
    ] {
        let (mut model, mut objective) = (model(&config), objective(&config, rows(4)));
        model.update_parameters(&mut |name, parameter| match name == poisoned {
            true => Tensor::from_inner(parameter.inner() * f32::NAN).require_grad(),
            false => parameter,
        });
        let error = engine(&config, &objective).run(&mut model, &mut objective).unwrap_err();
        let TrainError::NotFinite { step: 1, layer: Some(layer), checkpoint: None, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(layer, expected);
        let message = error.to_string();
        assert!(message.contains(&format!("first in the output of {expected};")), "{message}");
    }
}

#[test]
fn rows_without_a_token_to_learn_stop_the_run() {
    let Some(config) = config(Path::new("-"), &["data.shuffle=false", "train.batch_size=1"]) else { return };
    let samples =
        vec![Sample::new(vec![5, 6], vec![0.0, 1.0], 1), Sample::new(vec![5, 6], vec![0.0, 0.0], 2)];
    let mut objective = objective(&config, Dataset::from_samples(samples).unwrap());
    let error = engine(&config, &objective).run(&mut model(&config), &mut objective).unwrap_err();
    assert!(matches!(error, TrainError::NothingToLearn { step: 2 }), "{error}");
}

#[test]
fn an_interrupt_saves_and_ends() {
    struct InterruptAt(u64, Interrupt);
    impl Observer for InterruptAt {
        fn stepped(&mut self, metrics: &StepMetrics) {
            if metrics.step == self.0 {
                self.1.request();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(config) = config(folder.path(), &[]) else { return };
    let (mut model, mut objective) = (model(&config), objective(&config, rows(4)));
    let interrupt = Interrupt::new();
    let summary = engine_on_disk(&config, &objective, false)
        .with_interrupt(interrupt.clone())
        .with_observer(InterruptAt(3, interrupt))
        .run(&mut model, &mut objective)
        .unwrap();
    assert!(summary.interrupted && summary.steps == 3);
    assert!(summary.checkpoint.unwrap().ends_with("checkpoints/step-3"));
}

#[test]
fn epochs_are_turned_into_steps() {
    let Some(config) = config(Path::new("-"), &[]) else { return };
    for (epochs, rows_, expected) in [(1.0, 11, 6), (2.0, 11, 12), (0.5, 11, 3), (0.01, 11, 1)] {
        let mut train = config.train.clone();
        train.length = qlora_train::config::RunLength::Epochs(epochs);
        let steps_per_epoch = objective(&config, rows(rows_)).steps_per_epoch();
        assert_eq!(EngineOptions::new(&train, steps_per_epoch).steps, expected);
    }
}

//! The training loop.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};
use qlora_kernels::{Compute, KernelBackend, TrainBackend, device};
use qlora_lora::{DropoutKey, Pass};

use crate::checkpoint::{BestEvaluation, Checkpoint, RunState};
use crate::config::{OptimizerKind, RunLength, TrainConfig};
use crate::gradients::{Gradients, clip_coefficient};
use crate::loss_scale::{LossScale, LossScaling};
use crate::metrics::{EvalMetrics, MetricsFile, Record, StepMetrics};
use crate::objective::{BatchSize, Objective};
use crate::observer::{Observer, RunStart, Summary};
use crate::optimizer::{AdamW, AdamWOptions, MomentStorage, read_parameters, write_parameters};
use crate::samples::SamplesFile;
use crate::schedule::{Schedule, ScheduleKind};
use crate::step_memory::StepMemory;
use crate::{Interrupt, RunDirectory, TrainError, Trainable};

/// How a run goes, whatever it minimizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineOptions {
    /// Optimizer steps.
    pub steps: u64,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// The constants of the optimizer.
    pub optimizer: AdamWOptions,
    /// Limit of the global gradient norm; 0 for none.
    pub clip: f64,
    /// Optimizer steps between checkpoints; 0 for none but the last.
    pub checkpoint_every: u64,
    /// Optimizer steps between evaluations; 0 for only after the last.
    pub eval_every: u64,
    /// Seed of dropout.
    pub seed: u64,
    /// How the loss is scaled: for gradients in f16, see [`for_compute`](Self::for_compute).
    pub loss_scaling: Option<LossScaling>,
}

impl EngineOptions {
    /// So many steps of AdamW with a learning rate that falls linearly to 0, gradients clipped to a norm of 1,
    /// no weight decay, and neither checkpoints nor evaluations but after the last step.
    #[must_use]
    pub fn linear(steps: u64, learning_rate: f64) -> Self {
        Self {
            steps,
            schedule: Schedule::new(ScheduleKind::Linear, learning_rate, 0.0, steps),
            optimizer: AdamWOptions::default(),
            clip: 1.0,
            checkpoint_every: 0,
            eval_every: 0,
            seed: 0,
            loss_scaling: None,
        }
    }

    /// The options of a configuration, for data with so many optimizer steps an epoch.
    #[must_use]
    pub fn new(config: &TrainConfig, steps_per_epoch: u64) -> Self {
        let steps = match config.length {
            RunLength::Steps(steps) => steps,
            RunLength::Epochs(epochs) => (epochs * steps_per_epoch as f64).ceil() as u64,
        };
        Self {
            steps,
            schedule: Schedule::new(config.schedule, config.learning_rate, config.warmup, steps),
            optimizer: AdamWOptions {
                weight_decay: config.weight_decay,
                moments: match config.optimizer {
                    OptimizerKind::AdamW => MomentStorage::F32,
                    OptimizerKind::AdamW8Bit => MomentStorage::EightBit,
                },
                ..AdamWOptions::default()
            },
            clip: config.clip,
            checkpoint_every: config.checkpoint_every,
            eval_every: config.eval_every,
            seed: config.seed,
            loss_scaling: None,
        }
    }

    /// Scales the loss if activations, and with them gradients, are f16 when `B` computes products in `compute`.
    #[must_use]
    pub fn for_compute<B: KernelBackend>(self, compute: Compute) -> Self {
        let half = B::activation_dtype(compute) == DType::F16;
        Self { loss_scaling: half.then(LossScaling::default), ..self }
    }
}

/// Trains a model on an objective.
///
/// An optimizer step sums the weighted token losses of all its micro-batches and divides by the sum of all their
/// weights, which is known before the first backward pass: how the rows are split into micro-batches makes no
/// difference. Then the gradients are clipped by one global norm, and AdamW updates the parameters.
///
/// With [`LossScaling`] the backward pass starts from the loss times a factor, which the optimizer takes out again. A
/// step whose gradients overflow changes no parameter, counts as a step of the schedule but not of the optimizer, and
/// is reported.
///
/// With a [`RunDirectory`] every step is recorded, checkpoints are written, and a run can be resumed: on a CPU with
/// the same bits as if it had not been stopped. Without, nothing touches the disk. Nothing is printed; give an
/// [`Observer`] for that, for one [`ProgressDisplay`](crate::ProgressDisplay).
///
/// # Examples
/// ```no_run
/// use qlora_data::Dataset;
/// use qlora_kernels::TrainBackend;
/// use qlora_models::Decoder;
/// use qlora_train::schedule::{Schedule, ScheduleKind};
/// use qlora_train::{AdamWOptions, Engine, EngineOptions, SupervisedFineTuning, TrainError, on_step};
///
/// fn train<B: TrainBackend>(model: &mut Decoder<B>, data: Dataset) -> Result<(), TrainError> {
///     let mut objective = SupervisedFineTuning::new(data, 8, 1, Some(42))?;
///     let options = EngineOptions {
///         steps: 60,
///         schedule: Schedule::new(ScheduleKind::Cosine, 1e-3, 5.0, 60),
///         optimizer: AdamWOptions::default(),
///         clip: 1.0,
///         checkpoint_every: 0,
///         eval_every: 0,
///         seed: 42,
///         loss_scaling: None,
///     };
///     let print = on_step(|metrics| println!("step {} loss {:.4}", metrics.step, metrics.loss));
///     Engine::new(options).with_observer(print).run(model, &mut objective)?;
///     Ok(())
/// }
/// ```
pub struct Engine<'a, B, M> {
    options: EngineOptions,
    directory: Option<RunDirectory>,
    interrupt: Interrupt,
    observers: Vec<Box<dyn Observer + 'a>>,
    types: PhantomData<fn(B, M)>,
}

/// A run in progress.
struct Run<B: TrainBackend> {
    state: RunState,
    optimizer: AdamW<B>,
    memory: StepMemory,
    metrics: Option<MetricsFile>,
    samples: Option<SamplesFile>,
    checkpoint: Option<PathBuf>,
    loss: Option<f64>,
    evaluation: Option<EvalMetrics>,
}

impl<'a, B: TrainBackend, M: AutodiffModule<B> + Trainable<B>> Engine<'a, B, M> {
    /// An engine that keeps no files and tells nobody.
    #[must_use]
    pub fn new(options: EngineOptions) -> Self {
        Self {
            options,
            directory: None,
            interrupt: Interrupt::new(),
            observers: Vec::new(),
            types: PhantomData,
        }
    }

    /// Keeps metrics, checkpoints and a report in a directory, and resumes from it if it says so.
    #[must_use]
    pub fn with_directory(mut self, directory: RunDirectory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Ends the run cleanly, with a checkpoint, when this interrupt is set off.
    #[must_use]
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Tells an observer, or a `&mut` of one, how the run goes. Observers are told in the order in which they
    /// were added.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer + 'a) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Trains the model's parameters, to the end or until the interrupt.
    ///
    /// # Errors
    /// * The directory holds a run that is not to be resumed, or that has other settings, data or parameters.
    /// * A loss or gradient is infinite or not a number: the parameters stay as they were before that step. With
    ///   loss scaling gradients may overflow, but not in too many steps in a row.
    /// * A step's batches hold no token to learn from.
    /// * The objective fails, or a file can't be written.
    pub fn run<O: Objective<B, M>>(
        &mut self,
        model: &mut M,
        objective: &mut O,
    ) -> Result<Summary, TrainError> {
        let steps = self.options.steps;
        let mut run = self.start(model, objective)?;
        let mut interrupted = false;
        while run.state.step < steps && !interrupted {
            self.step(model, objective, &mut run)?;
            let done = run.state.step;
            interrupted = self.interrupt.is_requested() && done < steps;
            if !interrupted && due(done, self.options.eval_every, steps) {
                self.evaluate(model, objective, &mut run)?;
            }
            if interrupted || due(done, self.options.checkpoint_every, steps) {
                self.save(model, objective, &mut run)?;
            }
        }
        let summary = Summary {
            steps: run.state.step,
            epochs: run.state.epoch,
            tokens: run.state.tokens,
            trained_tokens: run.state.trained_tokens,
            seconds: run.state.seconds,
            loss: run.loss,
            evaluation: run.evaluation,
            best: run.state.best,
            checkpoint: run.checkpoint,
            interrupted,
            skipped_steps: run.state.loss_scale.map(|scale| scale.skipped),
            memory: run.memory.peak_mb::<B>(model),
        };
        self.tell(|observer| observer.finished(&summary));
        Ok(summary)
    }

    /// A new run, or the one in the directory from its newest checkpoint on.
    fn start<O: Objective<B, M>>(&mut self, model: &mut M, objective: &mut O) -> Result<Run<B>, TrainError> {
        let memory = StepMemory::start::<B>(model);
        let mut run = Run {
            state: RunState { data: objective.fingerprint(), ..RunState::default() },
            optimizer: AdamW::new(self.options.optimizer, model),
            memory,
            metrics: None,
            samples: None,
            checkpoint: None,
            loss: None,
            evaluation: None,
        };
        if let Some(directory) = self.directory.clone() {
            run.state.settings = directory.settings().clone();
            let found = directory.latest()?;
            for error in found.passed_over {
                self.tell(|observer| observer.warned(&format!("{error}; going on from an older one")));
            }
            if let Some((path, checkpoint)) = found.checkpoint {
                let state = checkpoint.objective.clone();
                self.restore(model, &mut run, checkpoint, &path)?;
                if let Some(state) = state {
                    objective.restore_state(&state)?;
                }
                run.checkpoint = Some(path);
            }
            run.metrics = Some(directory.open(run.state.step)?);
            run.samples = Some(SamplesFile::resume(directory.samples_path(), run.state.step)?);
        }
        if let Some(options) = &self.options.loss_scaling {
            run.state.loss_scale.get_or_insert_with(|| LossScale::new(options));
        }
        let mut parameters = 0;
        model.visit_parameters(&mut |_, parameter| parameters += parameter.shape().num_elements() as u64);
        let start = RunStart {
            steps: self.options.steps,
            done: run.state.step,
            steps_per_epoch: objective.steps_per_epoch(),
            parameters,
        };
        self.tell(|observer| observer.started(&start));
        Ok(run)
    }

    fn restore(
        &self,
        model: &mut M,
        run: &mut Run<B>,
        checkpoint: Checkpoint,
        path: &std::path::Path,
    ) -> Result<(), TrainError> {
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        model.visit_parameters(&mut |name, tensor| shapes.push((name.to_string(), tensor.dims().to_vec())));
        let needed = shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        checkpoint.check(path, &run.state.settings, &run.state.data, needed)?;
        write_parameters(model, &checkpoint.parameters);
        run.optimizer
            .write(model, &checkpoint.first_moments, &checkpoint.second_moments)
            .map_err(|change| TrainError::Changed { path: path.to_path_buf(), changes: vec![change] })?;
        run.state = checkpoint.state;
        Ok(())
    }

    fn step<O: Objective<B, M>>(
        &mut self,
        model: &mut M,
        objective: &mut O,
        run: &mut Run<B>,
    ) -> Result<(), TrainError> {
        let started = Instant::now();
        let index = run.state.step;
        let generates = objective.generates(index);
        if generates {
            device::enter(format!("generation for step {}", index + 1));
            run.memory.give_back::<B>(model);
        }
        let batches = objective.micro_batches(model, index)?;
        if generates {
            run.memory.give_back::<B>(model);
        }
        let size: BatchSize = batches.iter().map(|batch| objective.size(batch)).sum();
        if size.weight.is_nan() || size.weight <= 0.0 {
            return Err(TrainError::NothingToLearn { step: index + 1 });
        }

        let scaling = self.options.loss_scaling.zip(run.state.loss_scale);
        // Momentum and weight decay would move the parameters although there is nothing to learn.
        let (loss, norm) = match size.trained_tokens {
            0 => {
                run.state.empty_steps += 1;
                let step = index + 1;
                self.tell(|to| to.warned(&format!("no token of step {step} counts: it changes nothing")));
                (0.0, f64::NAN)
            }
            _ => self.learn(model, objective, run, &batches, size.weight)?,
        };

        let seconds = started.elapsed().as_secs_f64();
        run.loss = Some(loss);
        run.state.step += 1;
        run.state.epoch = run.state.step as f64 / objective.steps_per_epoch() as f64;
        run.state.tokens += size.tokens;
        run.state.trained_tokens += size.trained_tokens;
        run.state.seconds += seconds;
        let report = objective.finish_step();
        let metrics = StepMetrics {
            step: run.state.step,
            epoch: run.state.epoch,
            loss,
            grad_norm: if norm.is_finite() { norm } else { f64::NAN },
            lr: self.options.schedule.rate(index),
            tokens: size.tokens,
            trained_tokens: size.trained_tokens,
            tokens_per_s: size.tokens as f64 / seconds,
            memory: run.memory.peak_mb::<B>(model),
            loss_scale: scaling.map(|(_, state)| state.scale),
            skipped_steps: scaling.and(run.state.loss_scale).map(|state| state.skipped),
            objective: report.metrics,
        };
        if let Some(file) = &mut run.samples {
            file.record(run.state.step, &report.samples)?;
        }
        if let Some(file) = &mut run.metrics {
            file.record(&Record::Step(metrics.clone()))?;
        }
        for warning in &report.warnings {
            self.tell(|observer| observer.warned(warning));
        }
        self.tell(|observer| observer.stepped(&metrics));
        Ok(())
    }

    /// Loss and gradients of a step's batches, and the optimizer's step: the loss, and the gradients' norm.
    fn learn<O: Objective<B, M>>(
        &mut self,
        model: &mut M,
        objective: &O,
        run: &mut Run<B>,
        batches: &[O::Batch],
        weight: f64,
    ) -> Result<(f64, f64), TrainError> {
        let index = run.state.step;
        let scaling = self.options.loss_scaling.zip(run.state.loss_scale);
        let loss_scale = scaling.map_or(1.0, |(_, state)| state.scale);
        let pass = |number| {
            let key = DropoutKey { seed: self.options.seed, micro_batch: micro_batch_number(index, number) };
            Pass::training(key)
        };
        run.memory.prepare::<B>(model, batches.iter().map(|batch| objective.size(batch).tokens as usize));
        let mut gradients = Gradients::new();
        let mut losses: Vec<Tensor<B::InnerBackend, 1>> = Vec::with_capacity(batches.len());
        for (number, batch) in batches.iter().enumerate() {
            // For the message, should the device run out of memory.
            device::enter(format!("the forward pass of step {}", index + 1));
            let mut loss = objective.loss(model, batch, pass(number));
            loss.value = loss.value * (1.0 / weight);
            losses.push(loss.value.clone().inner());
            device::enter(format!("the backward pass of step {}", index + 1));
            loss.backward(model, loss_scale, &mut |found| gradients.add(model, found));
        }
        // Read back at once, so that a device is waited for once.
        let losses: Vec<f64> = Tensor::cat(losses, 0).into_data().iter::<f64>().collect();
        let loss: f64 = losses.iter().sum();
        if !loss.is_finite() {
            let first = losses.iter().position(|loss| !loss.is_finite()).unwrap_or(0);
            let layer = objective.first_non_finite_layer(&model.valid(), &batches[first], pass(first));
            return Err(self.not_finite("loss", loss, layer, run));
        }
        let (gradients, norm) = gradients.finish(model)?;
        let norm = norm / loss_scale;

        if norm.is_finite() {
            // A step that was skipped is none of the optimizer's.
            let skipped = run.state.loss_scale.map_or(0, |scale| scale.skipped) + run.state.empty_steps;
            let step = index + 1 - skipped;
            let scale = clip_coefficient(norm, self.options.clip) / loss_scale;
            device::enter(format!("the optimizer's step {}", index + 1));
            run.optimizer.step(model, gradients, self.options.schedule.rate(index), step, scale);
        } else if scaling.is_none() {
            return Err(self.not_finite("gradient norm", norm, None, run));
        }
        if let Some((options, state)) = self.options.loss_scaling.zip(run.state.loss_scale.as_mut()) {
            if norm.is_finite() {
                state.succeeded(&options);
            } else {
                state.overflowed(&options);
            }
            if state.skipped_in_a_row >= options.most_skipped {
                return Err(TrainError::LossScale {
                    skipped: state.skipped_in_a_row,
                    step: index + 1,
                    scale: state.scale,
                    checkpoint: run.checkpoint.clone(),
                });
            }
        }
        Ok((loss, norm))
    }

    fn evaluate<O: Objective<B, M>>(
        &mut self,
        model: &M,
        objective: &O,
        run: &mut Run<B>,
    ) -> Result<(), TrainError> {
        let step = run.state.step;
        self.tell(|observer| observer.evaluating(step));
        let Some(evaluation) = objective.evaluate(&model.valid())? else { return Ok(()) };
        let loss = evaluation.loss();
        if !loss.is_finite() {
            return Err(self.not_finite("evaluation loss", loss, None, run));
        }
        let metrics = EvalMetrics {
            step,
            epoch: run.state.epoch,
            eval_loss: loss,
            eval_perplexity: evaluation.perplexity(),
            eval_accuracy: evaluation.accuracy(),
            eval_tokens: evaluation.tokens,
        };
        if run.state.best.is_none_or(|best| loss < best.loss) {
            run.state.best = Some(BestEvaluation { step, loss });
        }
        run.evaluation = Some(metrics);
        if let Some(file) = &mut run.metrics {
            file.record(&Record::Evaluation(metrics))?;
        }
        self.tell(|observer| observer.evaluated(&metrics));
        Ok(())
    }

    fn save<O: Objective<B, M>>(
        &mut self,
        model: &M,
        objective: &O,
        run: &mut Run<B>,
    ) -> Result<(), TrainError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let [first_moments, second_moments] = run.optimizer.read(model);
        let checkpoint = Checkpoint {
            state: run.state.clone(),
            parameters: read_parameters(model),
            first_moments,
            second_moments,
            objective: objective.save_state()?,
        };
        let path = directory.checkpoints().save(&checkpoint)?;
        directory.write_report()?;
        self.tell(|observer| observer.saved(&path));
        run.checkpoint = Some(path);
        Ok(())
    }

    fn not_finite(&self, what: &'static str, value: f64, layer: Option<String>, run: &Run<B>) -> TrainError {
        let step = run.state.step + u64::from(what != "evaluation loss");
        TrainError::NotFinite { what, value, step, layer, checkpoint: run.checkpoint.clone() }
    }

    fn tell(&mut self, event: impl Fn(&mut dyn Observer)) {
        for observer in &mut self.observers {
            event(observer.as_mut());
        }
    }
}

/// Whether something that happens every so many steps, and after the last, happens now.
fn due(done: u64, every: u64, steps: u64) -> bool {
    done == steps || (every > 0 && done.is_multiple_of(every))
}

/// A number for each micro-batch of a run that depends on nothing but its place.
fn micro_batch_number(step: u64, number: usize) -> u64 {
    (step << 20) | number as u64
}

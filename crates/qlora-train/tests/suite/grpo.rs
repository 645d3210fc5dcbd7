//! Reinforcement on a tiny model: gradients, masks, sampler against trainer, and that rewards rise.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Tensor;
use qlora_kernels::Flex;
use qlora_lora::{DropoutKey, Pass};
use qlora_models::Checkpointing;
use qlora_rl::{LossKind, LossOptions, Reward, RewardError, RewardInput, reward_fn};
use qlora_text::Tokenizer;
use qlora_train::grpo::{Grpo, GrpoOptions, Prompt, PromptSet, TextDecoder, text_decoder};
use qlora_train::schedule::{Schedule, ScheduleKind};
use qlora_train::{AdamWOptions, Engine, EngineOptions, Objective, on_step};

use crate::tiny_run::{Backend, Model, config, model, parameters};

pub(crate) fn options() -> GrpoOptions {
    GrpoOptions {
        loss: LossOptions { kind: LossKind::Grpo, max_completion_length: 6, ..LossOptions::default() },
        num_generations: 4,
        batch_size: 8,
        stop_tokens: vec![5],
        seed: 11,
        shuffle: Some(11),
        ..GrpoOptions::default()
    }
}

/// The ids of a completion as its text.
pub(crate) fn decoder() -> TextDecoder {
    Arc::new(|ids| Ok(ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
}

pub(crate) fn prompts() -> PromptSet {
    let prompt = |index: u32| {
        let ids = (0..2 + index % 4).map(|i| 7 + (index * 13 + i * 5) % 80).collect();
        Prompt { ids, text: format!("prompt {index}").into(), columns: Arc::default() }
    };
    PromptSet::new((0..10).map(prompt).collect()).unwrap()
}

/// The share of even ids.
pub(crate) fn even() -> Box<dyn Reward> {
    Box::new(reward_fn("even", |input: &RewardInput<'_>| {
        let even = input.completion_ids.iter().filter(|id| **id % 2 == 0).count();
        Some(even as f64 / input.completion_ids.len() as f64)
    }))
}

fn objective(options: GrpoOptions) -> Grpo {
    Grpo::new(prompts(), vec![(even(), 1.0)], decoder(), options).unwrap()
}

fn tiny_model() -> Option<Model> {
    let folder = tempfile::tempdir().unwrap();
    Some(model(&config(folder.path(), &[])?))
}

fn pass() -> Pass {
    Pass::training(DropoutKey { seed: 0, micro_batch: 0 })
}

/// Gradients of a loss, and its value.
fn gradients(model: &Model, loss: qlora_train::Loss<Backend, Model>) -> (f64, Vec<f32>) {
    let value = loss.value.clone().inner().into_data().iter::<f64>().next().unwrap();
    let mut all = Vec::new();
    loss.backward(model, 1.0, &mut |mut found| {
        model.visit_parameters(&mut |_, parameter| {
            let gradient: Option<Tensor<Flex, 2>> = parameter.grad_remove(&mut found);
            all.extend(gradient.into_iter().flat_map(|g| g.into_data().iter::<f32>().collect::<Vec<_>>()));
        });
    });
    (value, all)
}

#[test]
fn on_the_policy_the_ratio_is_one_and_the_gradient_that_of_reinforce() {
    let Some(model) = tiny_model() else { return };
    let mut objective = objective(options());
    let batches = Objective::<Backend, Model>::micro_batches(&mut objective, &model, 0).unwrap();
    let batch = &batches[0];
    let (value, found) = gradients(&model, objective.loss(&model, batch, pass()));

    // REINFORCE: −Σᵢ Aᵢ/(n·lengthᵢ) Σₜ ln π.
    let lengths = batch.completion_lengths();
    let sequences = lengths.len() as f64;
    let mut weights = vec![0.0; batch.targets().len()];
    let mut places = batch.places().iter();
    for (length, advantage) in lengths.iter().zip(batch.advantages()) {
        for place in places.by_ref().take(*length) {
            weights[*place] = (f64::from(*advantage) / (*length as f64 * sequences)) as f32;
        }
    }
    let hidden = model.hidden_states(batch.tokens(), pass());
    let reinforce = model.policy_loss_of(hidden, batch.targets(), &weights, 1.0);
    let (_, expected) = gradients(&model, reinforce.into());
    assert!(expected.iter().any(|g| *g != 0.0) && found.len() == expected.len());
    let scale = expected.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-6 * scale, "{found} is not {expected}");
    }

    // With a ratio of exactly 1 the loss is −mean A, and nothing is clipped.
    let mean = batch.advantages().iter().map(|a| f64::from(*a)).sum::<f64>() / sequences;
    assert!((value + mean).abs() < 1e-6, "{value} is not {}", -mean);
    let report = Objective::<Backend, Model>::finish_step(&mut objective);
    assert_eq!(report.metrics["clip_ratio/region_mean"], 0.0);
    assert_eq!(report.metrics["num_tokens"], batch.tokens().ids.len() as f64);

    // Kept log-probabilities of the same policy are the same bits: so is everything else.
    let mut twice = self::objective(GrpoOptions { num_iterations: 2, ..options() });
    let batches = Objective::<Backend, Model>::micro_batches(&mut twice, &model, 0).unwrap();
    assert_eq!(gradients(&model, twice.loss(&model, &batches[0], pass())), (value, found.clone()));

    // Checkpointing changes no bit either.
    let checkpointing = Checkpointing::Layers;
    let mut kept = self::objective(GrpoOptions { checkpointing, ..options() });
    let batches = Objective::<Backend, Model>::micro_batches(&mut kept, &model, 0).unwrap();
    let (other, mut gradients) = gradients(&model, kept.loss(&model, &batches[0], pass()));
    // Layers come in another order.
    gradients.sort_by(f32::total_cmp);
    let mut found = found;
    found.sort_by(f32::total_cmp);
    assert_eq!((other, gradients), (value, found));
}

#[test]
fn sampler_and_trainer_agree_at_any_temperature() {
    let Some(model) = tiny_model() else { return };
    for temperature in [0.6, 1.0, 1.7] {
        let mut options = options();
        options.sampling.temperature = temperature;
        let mut objective = objective(options);
        let batches = Objective::<Backend, Model>::micro_batches(&mut objective, &model, 0).unwrap();
        let _ = objective.loss(&model, &batches[0], pass());
        let report = Objective::<Backend, Model>::finish_step(&mut objective);
        let most = report.metrics["sampling/sampling_logp_difference/max"];
        assert!(most < 1e-4, "temperature {temperature}: {most} nats apart");
        assert!(report.metrics["sampling/sampling_logp_difference/mean"] <= most);
    }
}

/// Rewards of the steps of a run, and the parameters after it.
fn train(
    options: GrpoOptions,
    rewards: Vec<(Box<dyn Reward>, f64)>,
    steps: u64,
) -> Option<(Vec<f64>, Model)> {
    let mut model = tiny_model()?;
    let mut objective = Grpo::new(prompts(), rewards, decoder(), options).unwrap();
    let mut curve = Vec::new();
    let record = on_step(|metrics| curve.extend(metrics.objective.get("reward")));
    let options = EngineOptions { checkpoint_every: 0, ..EngineOptions::linear(steps, 3e-2) };
    Engine::new(options).with_observer(record).run(&mut model, &mut objective).unwrap();
    Some((curve, model))
}

#[test]
fn rewards_rise_with_every_loss() {
    for (name, kind) in LossKind::NAMED {
        let mut options = GrpoOptions { batch_size: 16, accumulate: 2, ..options() };
        options.loss.kind = kind;
        if kind == LossKind::Luspo {
            options.loss.importance = qlora_rl::ImportanceLevel::Sequence;
        }
        if kind == LossKind::Cispo {
            options.loss.epsilon_high = 5.0;
        }
        let Some((curve, _)) = train(options, vec![(even(), 1.0)], 30) else { return };
        let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
        let (first, last) = (mean(&curve[..5]), mean(&curve[25..]));
        assert!(last > first + 0.15, "{name}: from {first} to {last}");
    }
}

/// Fails on every completion whose text begins with an even id.
struct Failing;

impl Reward for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        match input.completion_ids[0].is_multiple_of(2) {
            true => Err(RewardError::Other("out of order".into())),
            false => Ok(Some(1.0)),
        }
    }
}

#[test]
fn a_failing_reward_masks_completions_and_the_run_goes_on() {
    let Some(model) = tiny_model() else { return };
    let rewards: Vec<(Box<dyn Reward>, f64)> = vec![(even(), 1.0), (Box::new(Failing), 1.0)];
    let mut objective = Grpo::new(prompts(), rewards, decoder(), options()).unwrap();
    let batches = Objective::<Backend, Model>::micro_batches(&mut objective, &model, 0).unwrap();
    let report = Objective::<Backend, Model>::finish_step(&mut objective);
    let size = Objective::<Backend, Model>::size(&objective, &batches[0]);
    let masked = report.metrics["completions/masked_ratio"];
    assert!(masked > 0.0 && masked < 1.0, "{masked} are masked");
    assert_eq!(report.metrics["rewards/failing/errors"], masked * 8.0);
    assert!(size.trained_tokens < batches[0].places().len() as u64);
    assert!(report.warnings[0].contains("`failing`") && report.warnings[0].contains("out of order"));
    for (sample, masked) in report.samples.iter().map(|sample| (sample, sample.masked)) {
        assert_eq!(sample.rewards["even"].is_none(), masked);
    }
}

/// Fails on all completions but those of some generation batches.
struct Sometimes {
    scored: &'static [usize],
    calls: AtomicUsize,
}

impl Reward for Sometimes {
    fn name(&self) -> &str {
        "sometimes"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let generation = self.calls.fetch_add(1, Ordering::SeqCst) / 8;
        match self.scored.contains(&generation) {
            true => even().score(input),
            false => Err(RewardError::Other("out of order".into())),
        }
    }
}

#[test]
fn a_step_in_which_nothing_was_scored_changes_nothing_and_counts() {
    // Momentum and weight decay move the parameters of a step that the optimizer makes, whatever its gradients.
    let optimizer = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
    let run = |steps: u64, scored: &'static [usize]| {
        let mut model = tiny_model()?;
        let reward = Sometimes { scored, calls: AtomicUsize::new(0) };
        let options = GrpoOptions { reward_threads: 1, ..options() };
        let mut objective = Grpo::new(prompts(), vec![(Box::new(reward), 1.0)], decoder(), options).unwrap();
        let mut metrics = Vec::new();
        let record = on_step(|step| metrics.push(step.clone()));
        let schedule = Schedule::new(ScheduleKind::Constant, 3e-2, 0.0, steps);
        let options = EngineOptions { optimizer, schedule, ..EngineOptions::linear(steps, 3e-2) };
        let summary = Engine::new(options).with_observer(record).run(&mut model, &mut objective).unwrap();
        assert_eq!(summary.steps, steps);
        Some((parameters(&model), metrics))
    };
    let Some((one, _)) = run(1, &[0]) else { return };
    let (two, metrics) = run(2, &[0]).unwrap();
    assert!(two == one, "nothing was scored: nothing was learned");
    assert_eq!((metrics[1].step, metrics[1].trained_tokens, metrics[1].loss), (2, 0, 0.0));
    assert!(metrics[0].grad_norm > 0.0 && metrics[1].grad_norm.is_nan());
    assert_eq!(metrics[1].objective["completions/masked_ratio"], 1.0);
    assert!(run(2, &[0, 1]).unwrap().0 != one);
    assert!(run(3, &[0, 2]).unwrap().0 != one, "the run goes on");
}

/// Of words, with fewer ids than the model's head has rows.
fn tokenizer() -> Tokenizer {
    let words: serde_json::Map<String, serde_json::Value> =
        (0..20).map(|id| (format!("w{id}"), id.into())).collect();
    let definition = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, definition.to_string()).unwrap();
    Tokenizer::from_file(file).unwrap()
}

#[test]
fn a_sampled_id_without_a_token_ends_nothing() {
    let Some(mut model) = tiny_model() else { return };
    let decode = text_decoder(Arc::new(tokenizer()));
    assert_eq!(decode(&[3, 20, 96, 4, 50]).unwrap(), "w3 w4");
    let mut objective = Grpo::new(prompts(), vec![(even(), 1.0)], decode, options()).unwrap();
    let batches = Objective::<Backend, Model>::micro_batches(&mut objective, &model, 0).unwrap();
    let beyond = batches[0].tokens().ids.iter().filter(|id| **id >= 20).count();
    assert!(beyond > 0, "no such id was sampled");
    Engine::new(EngineOptions::linear(2, 1e-2)).run(&mut model, &mut objective).unwrap();
}

#[test]
fn groups_without_spread_are_drawn_anew() {
    let Some(model) = tiny_model() else { return };
    // One prompt in three is worth nothing whatever is written.
    let reward = reward_fn("odd", |input: &RewardInput<'_>| {
        let number: usize = input.prompt.trim_start_matches("prompt ").parse().unwrap();
        Some(if number.is_multiple_of(3) { 0.0 } else { f64::from(input.completion_ids[0]) })
    });
    let options = GrpoOptions { dynamic_sampling: 5, batch_size: 32, ..options() };
    let mut objective = Grpo::new(prompts(), vec![(Box::new(reward), 1.0)], decoder(), options).unwrap();
    let batches = Objective::<Backend, Model>::micro_batches(&mut objective, &model, 0).unwrap();
    let report = Objective::<Backend, Model>::finish_step(&mut objective);
    assert_eq!(report.metrics["frac_reward_zero_std"], 0.0);
    assert!(report.metrics["dynamic_sampling/groups_without_spread"] > 0.0);
    assert_eq!(batches[0].advantages().len(), 32);
    assert!(batches[0].advantages().chunks(4).all(|group| group.iter().any(|a| *a != 0.0)));
}

//! `[grpo]`: defaults, the file that reads back, contradictions.

use qlora_rl::{ImportanceLevel, LossKind, RewardKind, Task};
use qlora_train::config::{GrpoConfig, RunConfig};

fn read(grpo: &str) -> Result<RunConfig, String> {
    let text = format!(
        "model.path = \"m\"\ndata.train = \"p.jsonl\"\ntrain.steps = 5\noutput.dir = \"out\"\n[grpo]\n{grpo}"
    );
    RunConfig::from_toml_str("run.toml", &text, &[] as &[&str]).map_err(|error| error.to_string())
}

const REWARD: &str = "rewards = [{ kind = \"numeric\", column = \"answer\" }]\n";

fn grpo(text: &str) -> GrpoConfig {
    read(&format!("{text}\n{REWARD}")).unwrap().grpo.unwrap()
}

/// The problems of a section.
fn problems(text: &str) -> String {
    read(&format!("{text}\n{REWARD}")).unwrap_err()
}

#[test]
fn defaults_are_trls_and_train_gives_the_sizes() {
    let GrpoConfig { options, rewards, .. } = grpo("");
    assert_eq!(options.loss.kind, LossKind::Dapo);
    assert_eq!((options.num_generations, options.batch_size, options.prompts()), (8, 8, 1));
    assert_eq!((options.loss.epsilon_high, options.loss.max_completion_length), (0.2, 512));
    assert_eq!((rewards[0].name.as_str(), rewards[0].weight), ("numeric", 1.0));
    assert_eq!((options.reward_threads, options.shuffle), (4, Some(42)));
    assert_eq!(grpo("reward_threads = 16").options.reward_threads, 16);
    let none = RunConfig::from_toml_str(
        "run.toml",
        "model.path = \"m\"\ndata.train = \"p\"\ntrain.steps = 5\noutput.dir = \"out\"",
        &[] as &[&str],
    );
    assert_eq!(none.unwrap().grpo, None);
}

#[test]
fn what_is_written_reads_back() {
    for text in [
        "",
        "loss_type = \"sapo\"\nsapo_temperature_pos = 2\nbeta = 0.04\nuse_bias_correction_kl = true",
        "loss_type = \"vespo\"\nvespo_k_neg = 2.5\nsampler_correction = \"token_mask\"\nsampler_correction_min = 0.5",
        "loss_type = \"cispo\"\nepsilon_high = 5\nnum_iterations = 3",
        "loss_type = \"grpo\"\nimportance_sampling_level = \"sequence\"\nepsilon = 3e-4\nepsilon_high = 4e-4\ndelta = 1.5",
        "multi_objective_aggregation = \"normalize_then_sum\"\ntop_p = 0.9\ntop_entropy_quantile = 0.2",
        "updates_per_generation = 2\noff_policy_mask_threshold = 0.5\ndynamic_sampling = 3",
        "reward_threads = 2",
    ] {
        let config = read(&format!("{text}\n{REWARD}")).unwrap();
        let again = RunConfig::from_toml_str("config.toml", &config.to_toml(), &[] as &[&str]);
        assert_eq!(again.map_err(|error| error.to_string()), Ok(config.clone()), "{}", config.to_toml());
        assert!(config.settings().keys().any(|key| key == "grpo.rewards"));
        assert!(!config.settings().contains_key("grpo.reward_threads"), "it changes no result");
    }
    let gspo = grpo("loss_type = \"grpo\"\nimportance_sampling_level = \"sequence\"");
    assert_eq!(gspo.options.loss.importance, ImportanceLevel::Sequence);
}

#[test]
fn rewards_are_tables() {
    let text = "[[grpo.rewards]]\nkind = \"tags\"\nweight = 0.5\n[[grpo.rewards]]\nkind = \"command\"\ncommand = [\"x\"]\n";
    let config = read("").unwrap_err();
    assert!(config.contains("grpo.rewards: missing"), "{config}");
    let whole =
        format!("model.path = \"m\"\ndata.train = \"p\"\ntrain.steps = 5\noutput.dir = \"out\"\n{text}");
    let rewards = RunConfig::from_toml_str("run.toml", &whole, &[] as &[&str]).unwrap().grpo.unwrap().rewards;
    assert_eq!(rewards[0].weight, 0.5);
    assert!(matches!(&rewards[1].kind, RewardKind::Command { command, .. } if command == &["x"]));
    let error = read("rewards = [{ kind = \"tags\", wieght = 2 }, { kind = \"exact\" }, 7]").unwrap_err();
    for expected in
        ["number 1: unknown field `wieght`", "number 2: missing field `column`", "number 3: expected a table"]
    {
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
    let error = read("rewards = [{ kind = \"tags\" }, { kind = \"tags\" }]").unwrap_err();
    assert!(error.contains("a second reward named `tags`"), "{error}");
}

#[test]
fn a_built_in_task_brings_its_verifier() {
    let text = "model.path = \"m\"\ndata.train = \"task:countdown:50\"\ntrain.steps = 5\noutput.dir = \"o\"\n[grpo]\n";
    let config = RunConfig::from_toml_str("run.toml", text, &[] as &[&str]).unwrap();
    assert_eq!(config.data.task(), Some((Task::Countdown, 50)));
    assert!(matches!(config.grpo.unwrap().rewards[0].kind, RewardKind::Task { .. }));

    let config = format!("{text}system = \"Be brief.\"\nprefill = \"It is\"");
    let config = RunConfig::from_toml_str("run.toml", &config, &[] as &[&str]).unwrap();
    let again = RunConfig::from_toml_str("config.toml", &config.to_toml(), &[] as &[&str]).unwrap();
    assert_eq!(again, config);
    let grpo = config.grpo.unwrap();
    assert_eq!((grpo.system.as_deref(), grpo.prefill.as_deref()), (Some("Be brief."), Some("It is")));
    assert!(problems("system = \"Be brief.\"").contains("run.toml:6: grpo.system: is for built-in tasks"));
}

#[test]
fn the_seed_of_the_data_is_that_of_the_order() {
    let with = |data: &str| {
        let text = format!(
            "model.path = \"m\"\ndata.train = \"p\"\n{data}\ntrain.steps = 5\ntrain.seed = 3\noutput.dir = \"o\"\n[grpo]\n{REWARD}"
        );
        let options =
            RunConfig::from_toml_str("run.toml", &text, &[] as &[&str]).unwrap().grpo.unwrap().options;
        (options.seed, options.shuffle)
    };
    assert_eq!(with(""), (3, Some(3)));
    assert_eq!(with("data.seed = 8"), (3, Some(8)));
    assert_eq!(with("data.shuffle = false"), (3, None));
}

#[test]
fn contradictions_are_errors_with_their_lines() {
    let cases = [
        ("loss_type = \"sapo\"\nepsilon = 0.1", "run.toml:7: grpo.epsilon: loss \"sapo\" does not read it"),
        ("loss_type = \"cispo\"", "grpo.epsilon_high: missing"),
        (
            "loss_type = \"vespo\"\nimportance_sampling_level = \"sequence\"",
            "run.toml:7: grpo.importance_sampling_level",
        ),
        ("loss_type = \"luspo\"", "grpo.importance_sampling_level: loss \"luspo\" is a loss of sequences"),
        ("delta = 1.1", "run.toml:6: grpo.delta: 1.1 given, expected more than 1 + epsilon_high"),
        ("use_bias_correction_kl = true", "beta is 0"),
        (
            "entropy_coef = 0.01",
            "run.toml:6: grpo.entropy_coef: the gradient of the entropy is not available",
        ),
        ("num_generations = 3", "3 does not divide the 8 completions"),
        ("num_generations = 1", "a group needs at least 2"),
        ("temperature = 0", "grpo.temperature: 0 given"),
        ("sampler_correction_max = 2.0", "limits nothing without sampler_correction"),
        ("loss_type = \"vespo\"\nsampler_correction = \"sequence_mask\"", "takes ratios of tokens"),
        (
            "multi_objective_aggregation = \"normalize_then_sum\"\nscale_rewards = \"batch\"",
            "scales by the batch",
        ),
        ("off_policy_mask_threshold = 0.1", "it would mask nothing"),
        ("steps_per_generation = 4", "updates_per_generation"),
        ("vespo_k_pos = 1", "does not read it"),
        ("tempature = 1.0", "did you mean `temperature`?"),
        ("reward_threads = 0", "grpo.reward_threads: 0 given"),
        (
            "max_completion_length = 2048",
            "run.toml:6: grpo.max_completion_length: 2048 leaves no room for a prompt within data.max_length = 2048",
        ),
    ];
    for (text, expected) in cases {
        let found = problems(text);
        assert!(found.contains(expected), "{text}: `{expected}` is not in: {found}");
    }
    let error = read(&format!("{REWARD}[data]\n")).err();
    assert!(error.is_some(), "a second [data] is no TOML");
    let eval = RunConfig::from_toml_str(
        "run.toml",
        &format!(
            "model.path = \"m\"\ndata.train = \"p\"\ndata.eval = \"e\"\ntrain.steps = 5\noutput.dir = \"o\"\n[grpo]\n{REWARD}"
        ),
        &[] as &[&str],
    );
    assert!(eval.unwrap_err().to_string().contains("data.eval: GRPO has no evaluation"));
    for (data, problem) in [
        ("data.train = [\"p\", \"q\"]", "data.train: GRPO reads the prompts of one JSONL file, or a task"),
        ("data.train = { path = \"p\", repeat = 2 }", "data.train: GRPO reads the prompts of one JSONL file"),
        (
            "data.train = \"p\"\ndata.eval_split.fraction = 0.1",
            "data.eval_split: GRPO takes prompts as they are",
        ),
        (
            "data.train = \"p\"\ndata.augmentation.seed = 1",
            "data.augmentation: GRPO takes prompts as they are",
        ),
        (
            "data.train = \"p\"\ndata.train_on = \"all\"",
            "run.toml:3: data.train_on: GRPO trains on what the model writes",
        ),
        ("data.train = \"p\"\ntrain.eval_every = 5", "run.toml:3: train.eval_every: GRPO has no evaluation"),
        (
            "data.train = \"p\"\ndata.on_long = \"truncate\"",
            "run.toml:3: data.on_long: a prompt that is cut off",
        ),
        ("data.train = \"task:sums\"", "data.train: task:sums given, expected task:NAME"),
    ] {
        let text =
            format!("model.path = \"m\"\n{data}\ntrain.steps = 5\noutput.dir = \"o\"\n[grpo]\n{REWARD}");
        let error = RunConfig::from_toml_str("run.toml", &text, &[] as &[&str]).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

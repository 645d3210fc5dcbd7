//! `qlora train` with `[grpo]` on SmolLM2-135M-Instruct: two steps, one of whose rewards is a program that fails now
//! and then.

use std::fs;

use serde_json::Value;

use crate::program::qlora;

#[test]
#[cfg(unix)]
fn a_run_by_reward_leaves_metrics_samples_and_an_adapter() {
    let Some(model) = qlora_testing::model() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(
        home.join("prompts.jsonl"),
        "{\"prompt\": \"2 + 3 =\", \"answer\": 5}\n\n\
         {\"prompt\": [{\"role\": \"user\", \"content\": \"What is 1 + 1?\"}], \"prefill\": \"1 + 1 =\", \"answer\": \"2\"}\n"
            .to_string()
            + &format!("{{\"prompt\": \"{}\", \"answer\": 0}}\n", "1 + ".repeat(60)),
    )
    .unwrap();
    // Answers the first request of every process, and ends at the second.
    fs::write(
        home.join("reward.sh"),
        "read -r line; printf '%s\\n' \"$line\" >> asked; echo '{\"id\": 1, \"reward\": 0.5}'; read -r line; exit 1\n",
    )
    .unwrap();
    fs::write(
        home.join("run.toml"),
        format!(
            "[model]\npath = {model:?}\n[lora]\nrank = 4\n[data]\ntrain = 'prompts.jsonl'\nshuffle = false\n\
             max_length = 100\non_long = 'skip'\n[train]\n\
             steps = 2\nbatch_size = 4\n[grpo]\nnum_generations = 2\nmax_completion_length = 4\nbeta = 0.01\n\
             rewards = [{{ kind = 'numeric', column = 'answer', extract = 'first_number' }}, \
             {{ kind = 'command', name = 'program', command = ['sh', 'reward.sh'], weight = 0.5 }}]\n\
             [output]\ndir = 'out'\n"
        ),
    )
    .unwrap();
    // Lines of JSON on standard output keep nothing from standard error.
    let ran = qlora(home, ["train", "run.toml", "--json"]).succeeded();
    assert!(ran.stderr.contains("prompts prompts.jsonl: 2"), "{}", ran.stderr);
    assert!(ran.stderr.contains("line 4 was left out: the prompt has"), "{}", ran.stderr);

    let metrics = fs::read_to_string(home.join("out/metrics.jsonl")).unwrap();
    let metrics: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(metrics.len(), 2);
    for step in &metrics {
        assert_eq!(step["rewards/program/mean"], 0.5);
        assert_eq!(step["completions/masked_ratio"], 0.0, "a program that ended was started again");
        for key in
            ["reward", "kl", "entropy", "clip_ratio/high_mean", "sampling/sampling_logp_difference/max"]
        {
            assert!(step[key].is_number(), "{key} is not in {step}");
        }
    }
    // Every process ends at its second request.
    let restarts: f64 = metrics.iter().filter_map(|step| step["rewards/program/restarts"].as_f64()).sum();
    assert!(restarts > 0.0, "{metrics:?}");
    // Several processes answer side by side, so the order of what they were asked is not fixed.
    let asked = fs::read_to_string(home.join("asked")).unwrap();
    let requests: Vec<Value> = asked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(requests.iter().all(|request| request["completion"].is_string()), "{asked}");
    for answer in [Value::from(5), Value::from("2")] {
        assert!(requests.iter().any(|request| request["columns"]["answer"] == answer), "{answer} in {asked}");
    }

    let samples = fs::read_to_string(home.join("out/samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 8);
    assert!(samples.contains("<|im_start|>assistant\\n1 + 1 ="), "{samples}");
    assert!(fs::read_to_string(home.join("out/report.html")).unwrap().contains("<th>program</th>"));
    assert!(home.join("out/adapter/adapter_model.safetensors").is_file());

    // The resolved configuration reads back: a finished run is resumed without a complaint.
    qlora(home, ["train", "out/config.toml", "--resume"]).succeeded();
}

/// What can be known without the weights is told before they are read.
#[test]
fn mistakes_are_found_before_the_model_is_loaded() {
    let Some(model) = qlora_testing::model() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let run = |grpo: &str, sets: &[&str]| {
        let text = format!(
            "[model]\npath = {model:?}\n[data]\ntrain = 'task:arithmetic:20'\n[train]\nsteps = 1\n[grpo]\n{grpo}\n\
             [output]\ndir = 'out'\n"
        );
        fs::write(home.join("run.toml"), text).unwrap();
        let ran = qlora(home, ["train", "run.toml"].iter().chain(sets));
        assert_ne!(ran.code, Some(0));
        assert!(!ran.stderr.contains("computing on"), "{}", ran.stderr);
        ran.stderr
    };
    let tests = |command: &str| {
        format!("rewards = [{{ kind = 'unit_tests', command = ['{command}', '-'], column = 'tests' }}]")
    };
    let told = run(&tests("/does/not/python3"), &[]);
    assert!(told.contains("can't start `/does/not/python3`"), "{told}");
    let told = run(&tests("pyhton3"), &[]);
    assert!(told.contains("the language that `pyhton3 -` runs is not known"), "{told}");
    let told = run("max_completion_length = 8200", &["--set", "data.max_length=10000"]);
    assert!(
        told.contains("grpo.max_completion_length 8200 leaves no room for a prompt within 8192"),
        "{told}"
    );
    let told = run("max_completion_length = 90", &["--set", "data.max_length=100"]);
    assert!(told.contains("problem 1 of task arithmetic: the prompt has"), "{told}");
}

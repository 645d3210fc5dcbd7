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
         {\"prompt\": [{\"role\": \"user\", \"content\": \"What is 1 + 1?\"}], \"prefill\": \"1 + 1 =\", \"answer\": \"2\"}\n",
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
            "[model]\npath = {model:?}\n[lora]\nrank = 4\n[data]\ntrain = 'prompts.jsonl'\nshuffle = false\n[train]\n\
             steps = 2\nbatch_size = 4\n[grpo]\nnum_generations = 2\nmax_completion_length = 4\nbeta = 0.01\n\
             rewards = [{{ kind = 'numeric', column = 'answer', extract = 'first_number' }}, \
             {{ kind = 'command', name = 'program', command = ['sh', 'reward.sh'], weight = 0.5 }}]\n\
             [output]\ndir = 'out'\n"
        ),
    )
    .unwrap();
    let ran = qlora(home, ["train", "run.toml"]).succeeded();
    assert!(ran.stderr.contains("prompts prompts.jsonl: 2"), "{}", ran.stderr);

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

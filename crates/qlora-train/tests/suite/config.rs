//! Strictness: every problem is reported at once, nothing is ignored, what is written reads back.

use qlora_data::{OnLong, TrainOn};
use qlora_lora::{LoraConfig, Targets};
use qlora_train::config::{AdapterConfig, ConfigError, PackingKind, QuantKind, RunConfig, RunLength};
use qlora_train::schedule::ScheduleKind;

const LEAST: &str = r#"
[model]
path = "smollm2-135m"
[data]
train = "train.jsonl"
[train]
steps = 60
[output]
dir = "runs/first"
"#;

fn read(text: &str, overrides: &[&str]) -> Result<RunConfig, ConfigError> {
    RunConfig::from_toml_str("run.toml", text, overrides)
}

fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    read(text, overrides).unwrap_err().to_string().lines().map(String::from).collect()
}

#[test]
fn the_least_configuration_has_the_documented_defaults() {
    let config = read(LEAST, &[]).unwrap();
    assert_eq!(config.lora, AdapterConfig::Fresh(LoraConfig::default()));
    assert_eq!(config.train.length, RunLength::Steps(60));
    assert_eq!(config.train.schedule, ScheduleKind::Linear);
    assert_eq!((config.data.max_length, config.data.seed, config.data.on_long), (2048, 42, OnLong::Error));
}

#[test]
fn a_written_configuration_reads_back() {
    let overrides: [&[&str]; 4] = [
        &[],
        &[
            "lora.init_from=adapter/",
            "lora.dropout=0.1",
            "data.eval=e.jsonl",
            "train.seed=7",
            "data.on_long=truncate",
        ],
        &["lora.targets=[\"q_proj\", \"v_proj\"]", "lora.rslora=true", "model.quant=none", "model.dtype=f32"],
        &[
            "lora.targets=.*_proj",
            "train.schedule={kind=\"wsd\", decay=0.5}",
            "data.train_on=completions",
            "data.template=chatml",
            "data.packing=by-length",
            "train.tokens_per_batch=4096",
            "train.clip=0",
            "train.optimizer=adamw8bit",
            "model.dtype=f16",
            "device.backend=cuda",
            "device.index=1",
            "train.checkpointing=offload",
        ],
    ];
    for overrides in overrides {
        let config = read(LEAST, overrides).unwrap();
        let text = config.to_toml();
        assert_eq!(read(&text, &[]).unwrap(), config, "{text}");
    }
    for kind in ScheduleKind::ALL {
        let mut config = read(LEAST, &[]).unwrap();
        config.train.schedule = kind;
        let text = config.to_toml();
        assert_eq!(read(&text, &[]).unwrap(), config, "{text}");
    }
}

#[test]
fn overrides_take_toml_or_plain_text() {
    let overrides = [
        "train.learning_rate=1e-3",
        "train.schedule=cosine",
        "data.train = my data.jsonl",
        "model.quant=\"none\"",
        "lora.targets=['q_proj']",
        "data.train_on=all",
    ];
    let config = read(LEAST, &overrides).unwrap();
    assert_eq!(config.train.learning_rate, 1e-3);
    assert_eq!(config.train.schedule, ScheduleKind::Cosine);
    assert_eq!(config.data.train.to_str(), Some("my data.jsonl"));
    assert_eq!((config.model.quant, config.data.train_on), (QuantKind::None, TrainOn::All));
    let AdapterConfig::Fresh(lora) = config.lora else { panic!("init_from was not given") };
    assert_eq!(lora.targets, Targets::Names(vec!["q_proj".into()]));
}

#[test]
fn all_problems_are_reported_with_their_lines() {
    let text = r#"
[model]
path = 3
quant = "int4"
dtype = "f8"
[lora]
rank = 0
alpha = -1
dropout = 1.0
targets = "("
[data]
shufle = true
packing = true
max_length = 1.5
[train]
steps = 0
epochs = 2
optimizer = "sgd"
checkpointing = "all"
schedule = { kind = "linear", cycles = 2 }
clip = nan
[outputs]
dir = "x"
[empty]
"#;
    let found = problems(text, &["train.seed=-1", "train", "train.stepss=3"]);
    let expected = [
        "run.toml:3: model.path: 3 given, expected a model's name",
        "run.toml:4: model.quant: \"int4\" given, expected one of \"nf4\", \"none\"",
        "run.toml:5: model.dtype: \"f8\" given, expected one of \"auto\", \"bf16\", \"f16\", \"f32\"",
        "run.toml:7: lora.rank: 0 given, expected a whole number of at least 1",
        "run.toml:8: lora.alpha: -1 given",
        "run.toml:9: lora.dropout: 1.0 given",
        "run.toml:10: lora.targets: `(` is not a regular expression",
        "run.toml:12: data.shufle: unknown key; did you mean `shuffle`?",
        "run.toml:13: data.packing: fills batches of a fixed number of tokens; set train.tokens_per_batch",
        "run.toml:14: data.max_length: 1.5 given, expected a whole number of at least 2",
        "run.toml:17: train.epochs: given beside train.steps",
        "run.toml:18: train.optimizer: \"sgd\" is not supported; use \"adamw\" or \"adamw8bit\"",
        "run.toml:19: train.checkpointing: \"all\" given, expected one of \"none\", \"layers\", \"offload\"",
        "run.toml:20: train.schedule: \"linear\" has no parameter `cycles`",
        "run.toml:21: train.clip: nan given",
        "run.toml:23: outputs.dir: unknown section; there are [data], [device], [grpo], [lora], [model], [output], [train]",
        "run.toml:24: empty: unknown section",
        "run.toml: data.train: missing; set it to the file with the rows",
        "run.toml: output.dir: missing",
        "--set train.seed: -1 given, expected a whole number",
        "--set train: expected section.key=value",
        "--set train.stepss: unknown key; did you mean `steps`?",
    ];
    let joined = found.join("\n");
    for problem in expected {
        assert!(
            found.iter().any(|line| line.starts_with(problem)),
            "no line starts with `{problem}` in\n{joined}"
        );
    }
    // A multi-line reason (the regular expression) is the only thing that adds lines.
    let headed = found.iter().filter(|line| line.starts_with("run.toml") || line.starts_with("--set"));
    assert_eq!(headed.count(), expected.len(), "{joined}");
}

#[test]
fn an_adapter_to_continue_from_excludes_what_it_brings() {
    let found = problems(LEAST, &["lora.init_from=adapter/", "lora.rank=8", "lora.rslora=false"]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("--set lora.rank: comes from the adapter in lora.init_from"), "{found:?}");
}

#[test]
fn packing_fills_batches_of_tokens() {
    let config = read(LEAST, &["data.packing=false"]).unwrap();
    assert_eq!(config, read(LEAST, &[]).unwrap());
    let packing = |overrides: &[&str]| read(LEAST, overrides).unwrap().data.packing;
    let tokens = "train.tokens_per_batch=64";
    assert_eq!(packing(&[tokens]), Some(PackingKind::BestFit));
    assert_eq!(packing(&[tokens, "data.packing=true"]), Some(PackingKind::BestFit));
    assert_eq!(packing(&[tokens, "data.packing=by-length"]), Some(PackingKind::ByLength));
    for (overrides, problem) in [
        (&[tokens, "data.packing=wrapped"][..], "data.packing: \"wrapped\" given, expected \"best-fit\" or"),
        (&["data.packing=best-fit"], "data.packing: fills batches of a fixed number of tokens"),
        (&["train.tokens_per_batch=1"], "train.tokens_per_batch: 1 given"),
        (&[tokens, "train.batch_size=4"], "train.batch_size: given beside train.tokens_per_batch"),
    ] {
        let found = problems(LEAST, overrides);
        assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
    }
}

#[test]
fn broken_toml_and_missing_files_name_the_place() {
    let error = read("[model]\npath = \n", &[]).unwrap_err().to_string();
    assert!(error.starts_with("run.toml:2: not valid TOML: "), "{error}");
    let error = read("[model\n", &[]).unwrap_err().to_string();
    assert!(error.starts_with("run.toml:1: not valid TOML: "), "{error}");
    let error = read("model = 3\nsteps = 4", &[]).unwrap_err().to_string();
    assert!(error.starts_with("run.toml:1: model: expected a section: write `[model]`"), "{error}");
    let error = RunConfig::from_file("absent.toml", &[] as &[&str]).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration absent.toml: "), "{error}");
}

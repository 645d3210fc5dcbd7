//! Strictness: every problem is reported at once, nothing is ignored, what is written reads back.

use qlora_data::{EvalSplit, Mixing, OnLong, RowShape, Source, TrainOn};
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
    let overrides: [&[&str]; 6] = [
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
        &[
            "data.train=[\"a.jsonl\", {path=\"b/\", format=\"markdown\", split={max_chars=900}, repeat=2}]",
            "data.eval={path=\"e.csv\", shape=\"prompt-completion\", columns={prompt=\"q\", completion=\"a\"}}",
            "data.augmentation.system_prompts={prompts=[\"Be brief.\"], share=0.5}",
            "data.augmentation.paraphrases=[[\"Draw\", \"Sketch\"]]",
            "data.augmentation.join_turns={max_turns=3}",
        ],
        &[
            "data.train=[{path=\"a.jsonl\", weight=3}, {path=\"b.json\", weight=0.5, template={prompt=\"{x}[[ {y}]]\"}}]",
            "data.mixing=undersample",
            "data.eval_split={fraction=0.1, group=\"topic\"}",
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
    assert_eq!(config.data.train.plain_path(), Some("my data.jsonl"));
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

/// `[data]` alone, the rest as in [`LEAST`].
fn with_data(data: &str) -> String {
    format!("model.path = \"m\"\ntrain.steps = 5\noutput.dir = \"out\"\n[data]\n{data}")
}

#[test]
fn sources_are_paths_tables_or_lists_of_these() {
    let text = with_data(
        r#"
        seed = 5
        mixing = "undersample"
        [[data.train]]
        path = "a.jsonl"
        weight = 2
        [[data.train]]
        path = "hf://datasets/some/questions/train-*.parquet"
        shape = "prompt-completion"
        weight = 1.5
        columns = { completion = "answer" }
        template = { prompt = "Topic: {topic}[[\nHint: {hint}]]" }
        [data.augmentation]
        paraphrases = [["Draw", "Sketch"]]
        [data.augmentation.system_prompts]
        prompts = ["Be brief."]
        [data.eval_split]
        fraction = 0.1
        group = "topic"
        seed = 9
        "#,
    );
    let data = read(&text, &[]).unwrap().data;
    let [a, b] = &data.train.0[..] else { panic!("{:?}", data.train) };
    assert_eq!(*a, Source { weight: Some(2.0), ..Source::new("a.jsonl") });
    assert_eq!((b.weight, b.shape), (Some(1.5), Some(RowShape::PromptCompletion)));
    assert_eq!(b.columns["completion"], "answer");
    assert_eq!(b.template["prompt"].columns().collect::<Vec<_>>(), ["topic", "hint"]);
    assert_eq!(data.mixing, Some(Mixing::Undersample));
    // What has no seed of its own has that of the section.
    let augmentation = data.augmentation.unwrap();
    assert_eq!((augmentation.seed, augmentation.system_prompts.unwrap().share), (5, 1.0));
    assert_eq!(data.eval_split, Some(EvalSplit { fraction: 0.1, group: Some("topic".into()), seed: 9 }));

    let plain = read(&with_data("train = \"a.jsonl\"\neval = [\"b.jsonl\", \"c/*.csv\"]"), &[]).unwrap().data;
    assert_eq!((plain.train.plain_path(), plain.mixing), (Some("a.jsonl"), None));
    assert_eq!(plain.eval.unwrap().to_string(), "b.jsonl, c/*.csv");
}

#[test]
fn sources_and_what_is_done_to_rows_are_read_strictly() {
    let one = "train = \"a.jsonl\"\n";
    for (data, problem) in [
        ("train = 3", "data.train: 3 given, expected a path, a table with `path`, or a list of these"),
        ("train = []", "data.train: sources is empty: expected a source"),
        ("train = \"\"", "data.train: path is empty: expected a file"),
        ("train = [\"a\", 4, { pth = \"b\" }]", "data.train: source 2: 4 given, expected a path"),
        ("train = { pth = \"a\" }", "data.train: unknown field `pth`, expected one of `path`, `format`"),
        ("train = { shape = \"text\" }", "data.train: missing field `path`"),
        (
            "train = { path = \"a\", shape = \"chat\" }",
            "data.train: unknown variant `chat`, expected one of `messages`",
        ),
        (
            "train = { path = \"a\", format = \"xml\" }",
            "data.train: unknown variant `xml`, expected one of `jsonl`",
        ),
        ("train = { path = \"a\", weight = \"much\" }", "data.train: invalid type: string \"much\""),
        ("train = { path = \"a\", weight = 0 }", "data.train: weight is 0: expected a number above 0"),
        ("train = { path = \"a\", repeat = -1 }", "data.train: repeat is -1: expected a number above 0"),
        (
            "train = { path = \"a\", weight = 1, repeat = 2 }",
            "data.train: weight is 1: expected nothing beside `repeat`",
        ),
        (
            "train = [{ path = \"a\", weight = 1 }, \"b\"]",
            "data.train: weight is given for 1 of 2 sources: expected a weight for each source, or for none",
        ),
        ("train = { path = \"a\", split = { max_chars = 0 } }", "data.train: split.max_chars is 0"),
        ("train = { path = \"a\", split = { chars = 9 } }", "data.train: unknown field `chars`"),
        (
            "train = { path = \"a\", template = { prompt = \"{x\" } }",
            "data.train: the template \"{x\": `{` without `}` at byte 0",
        ),
        (&format!("{one}eval = {{ path = 1 }}"), "data.eval: invalid type: integer `1`, expected a string"),
        (&format!("{one}mixing = \"oversample\""), "data.mixing: mixes sources that have a `weight`"),
        (
            "mixing = \"both\"\ntrain = { path = \"a\", weight = 1 }",
            "data.mixing: \"both\" given, expected one of \"oversample\", \"undersample\"",
        ),
        (
            &format!("{one}augmentation = true"),
            "data.augmentation: true given, expected a section: write `[data.augmentation]`",
        ),
        (
            &format!("{one}[data.augmentation]\nparaphrase = []"),
            "data.augmentation: unknown field `paraphrase`",
        ),
        (
            &format!("{one}[data.augmentation]\nparaphrases = [[\"a\"], [\"a\"]]"),
            "data.augmentation: paraphrases is \"a\" twice",
        ),
        (
            &format!("{one}[data.augmentation.system_prompts]\nprompts = [\"a\"]\nshare = 2"),
            "data.augmentation: system_prompts.share is 2: expected a number from 0 to 1",
        ),
        (
            &format!("{one}[data.augmentation.join_turns]\nmax_turns = 1"),
            "data.augmentation: join_turns.max_turns is below 2",
        ),
        (
            &format!("{one}[data.eval_split]\nfraction = 1"),
            "data.eval_split: fraction is 1: expected a number above 0 and below 1",
        ),
        (&format!("{one}[data.eval_split]\ngroup = \"a\""), "data.eval_split: missing field `fraction`"),
        (
            &format!("{one}[data.eval_split]\nfraction = 0.1\nshare = 1"),
            "data.eval_split: unknown field `share`",
        ),
        (
            &format!("{one}eval = \"e\"\n[data.eval_split]\nfraction = 0.1"),
            "data.eval_split: given beside data.eval; remove one of the two",
        ),
        (&format!("{one}augment = 1"), "data.augment: unknown key; did you mean"),
    ] {
        let found = problems(&with_data(data), &[]);
        assert!(found.iter().any(|line| line.contains(problem)), "{data}\n{found:?}");
        assert!(found.iter().all(|line| line.starts_with("run.toml:")), "{data}\n{found:?}");
    }
    // Each source of a list tells its own problem.
    assert_eq!(problems(&with_data("train = [\"a\", 4, { pth = \"b\" }]"), &[]).len(), 2);
}

#[test]
fn what_the_documentation_shows_is_read() {
    let page = include_str!("../../../../docs/configuration.md");
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 4);
    for block in blocks {
        let text = format!("model.path = \"m\"\ntrain.steps = 5\noutput.dir = \"out\"\n{block}");
        let train: &[&str] =
            if block.contains("data.train]]") || block.contains("train =") { &[] } else { &["data.train=a"] };
        let config = read(&text, train).unwrap_or_else(|error| panic!("{block}\n{error}"));
        assert_eq!(read(&config.to_toml(), &[]).unwrap(), config);
    }
    // Every key is listed.
    let config =
        read(LEAST, &["data.train=[{path=\"a\", weight=1}]", "data.eval=b", "train.tokens_per_batch=9"])
            .unwrap();
    let table: toml::Table = config.to_toml().parse().unwrap();
    for (section, keys) in &table {
        for key in keys.as_table().unwrap().keys() {
            let listed = [format!("`{key}`"), format!("`{section}.{key}`")];
            assert!(
                listed.iter().any(|key| page.contains(key)),
                "{section}.{key} is not in docs/configuration.md"
            );
        }
    }
}

#[test]
fn overrides_reach_into_sections_of_sections() {
    let text = with_data("train = { path = \"a\" }\n[data.eval_split]\nfraction = 0.1");
    let data =
        read(&text, &["data.eval_split.fraction=0.2", "data.train.path=b", "data.augmentation.seed=3"])
            .unwrap()
            .data;
    assert_eq!(data.eval_split.unwrap().fraction, 0.2);
    assert_eq!((data.train.plain_path(), data.augmentation.unwrap().seed), (Some("b"), 3));
    for (assignment, problem) in [
        ("data.seed.low=1", "--set data.seed.low: data.seed is no section that has keys"),
        ("data.eval_split.fraktion=0.1", "--set data.eval_split: unknown field `fraktion`"),
        ("data..x=1", "--set data..x: expected section.key=value"),
        ("train.=1", "--set train.: expected section.key=value"),
    ] {
        let found = problems(&text, &["data.seed=1", assignment]);
        assert!(found.iter().any(|line| line.starts_with(problem)), "{found:?}");
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

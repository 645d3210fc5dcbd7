//! Several sources, augmentation, splits and conversion: deterministic, and recorded.

use qlora_data::{
    Augmentation, Converted, DataPlan, Dataset, DatasetOptions, Encoder, Error, EvalSplit, JoinTurns, Mixing,
    OnBadRow, Sources, SystemPrompts, convert, repeats_for_shares,
};
use qlora_gguf::Gguf;
use qlora_hub::Silent;
use qlora_text::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn write(folder: &Path, name: &str, rows: impl IntoIterator<Item = Value>) -> PathBuf {
    let path = folder.join(name);
    let lines: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    path
}

fn ids(from: u32, count: u32) -> impl Iterator<Item = Value> {
    (from..from + count).map(|n| json!({"input_ids": [n, n], "group": n / 4}))
}

fn plan(sources: Value) -> DataPlan {
    DataPlan::new(serde_json::from_value::<Sources>(sources).unwrap())
}

fn first_ids(dataset: &Dataset) -> Vec<u32> {
    dataset.iter().map(|sample| sample.ids[0]).collect()
}

fn open(plan: &DataPlan) -> Result<(Dataset, Option<Dataset>), Error> {
    plan.open(&Encoder::token_ids_only(), &DatasetOptions::default(), &mut Silent)
}

#[test]
fn sources_follow_one_another_and_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let a = write(folder.path(), "a.jsonl", ids(0, 3));
    let b = write(folder.path(), "b.jsonl", ids(100, 40));
    let (all, eval) = open(&plan(json!([{"path": a, "repeat": 2.0}, {"path": b, "repeat": 0.5}]))).unwrap();
    assert!(eval.is_none());
    let seen = first_ids(&all);
    assert_eq!(seen[..6], [0, 1, 2, 0, 1, 2]);
    let half = &seen[6..];
    assert!((10..=30).contains(&half.len()) && half.is_sorted(), "{half:?}");
    assert_eq!(all.location(6).unwrap().path.as_path(), b);
    assert_eq!(
        (all.report().rows, all.len(), all.lengths().sum::<usize>()),
        (43, seen.len(), 2 * seen.len())
    );
    for repeat in [0.0, -1.0] {
        let error = open(&plan(json!({"path": a, "repeat": repeat}))).unwrap_err().to_string();
        assert!(error.contains("repeat is") && error.contains("expected a number above 0"), "{error}");
    }
}

#[test]
fn weighted_sources_have_their_shares() {
    let folder = tempfile::tempdir().unwrap();
    let a = write(folder.path(), "a.jsonl", ids(0, 20));
    let b = write(folder.path(), "b.jsonl", ids(100, 80));
    let mut weighted = plan(json!([{"path": a, "weight": 1}, {"path": b, "weight": 1.0}]));
    let counts = |plan: &DataPlan| {
        let (data, _) = open(plan).unwrap();
        let seen = first_ids(&data);
        let from_a = seen.iter().filter(|&&id| id < 100).count();
        (from_a, seen.len() - from_a)
    };
    // Four times 20 are 80; without repeating, a quarter of 80 or so.
    assert_eq!(counts(&weighted), (80, 80));
    weighted.mixing = Mixing::Undersample;
    let (from_a, from_b) = counts(&weighted);
    assert!(from_a == 20 && (10..=30).contains(&from_b), "{from_b}");
    assert_eq!(counts(&weighted), (from_a, from_b));
    // What is recorded is what is done.
    let recorded: DataPlan = serde_json::from_value(serde_json::to_value(&weighted).unwrap()).unwrap();
    assert_eq!(recorded, weighted);

    for (sources, words) in [
        (json!([{"path": a, "weight": 1}, {"path": b}]), "weight is given for 1 of 2 sources"),
        (json!([{"path": a, "weight": -1}]), "weight is -1: expected a number above 0"),
        (json!([{"path": a, "weight": 1, "repeat": 2}]), "expected nothing beside `repeat`"),
        (json!([{"path": ""}]), "path is empty"),
        (json!([]), "sources is empty"),
    ] {
        let error = open(&plan(sources)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn sources_are_written_as_short_as_they_were_typed() {
    for sources in [
        json!("a.jsonl"),
        json!(["a.jsonl", "b/"]),
        json!(["a.jsonl", {"path": "b/", "shape": "text", "split": {"max_chars": 9}, "weight": 2.0}]),
    ] {
        let read: Sources = serde_json::from_value(sources.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), sources);
    }
}

#[test]
fn problems_name_their_file() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.jsonl", ids(0, 3));
    write(folder.path(), "b.jsonl", [json!({"input_ids": [1, 2]}), json!({"input_ids": [-1]})]);
    let path = folder.path().to_str().unwrap();
    let error = Dataset::open(path, &Encoder::token_ids_only(), &DatasetOptions::default()).unwrap_err();
    assert!(error.to_string().contains("b.jsonl, line 2: `input_ids`: expected token ids"), "{error}");
    let skip = DatasetOptions { on_bad_row: OnBadRow::Skip, ..DatasetOptions::default() };
    let dataset = Dataset::open(path, &Encoder::token_ids_only(), &skip).unwrap();
    let skipped = dataset.report().first_skipped.clone().unwrap();
    assert!(skipped.place.ends_with("b.jsonl, line 2"), "{}", skipped.place);
}

#[test]
fn a_split_is_stable_and_keeps_groups_together() {
    let folder = tempfile::tempdir().unwrap();
    let few = write(folder.path(), "few.jsonl", ids(0, 200));
    let many = write(folder.path(), "many.jsonl", ids(0, 400));
    let split = |path: &Path, group: Option<&str>| {
        let mut plan = plan(json!(path));
        plan.split = Some(EvalSplit { fraction: 0.25, group: group.map(str::to_owned), seed: 3 });
        let (train, eval) = open(&plan).unwrap();
        (first_ids(&train), first_ids(&eval.unwrap()))
    };
    for group in [None, Some("group")] {
        let (train, eval) = split(&few, group);
        assert_eq!(train.len() + eval.len(), 200);
        assert!((20..=90).contains(&eval.len()), "{}", eval.len());
        if group.is_some() {
            assert!(eval.iter().all(|n| !train.iter().any(|m| m / 4 == n / 4)));
        }
        // More rows change no row's side.
        let (_, more) = split(&many, group);
        assert_eq!(more.into_iter().filter(|&n| n < 200).collect::<Vec<_>>(), eval);
    }
    let mut bad = plan(json!(few));
    bad.split = Some(EvalSplit { fraction: 0.5, group: Some("topic".into()), seed: 0 });
    let error = open(&bad).unwrap_err().to_string();
    assert!(error.contains("the column \"topic\" is missing or empty"), "{error}");
    bad.split = Some(EvalSplit { fraction: 1.0, group: None, seed: 0 });
    assert!(open(&bad).unwrap_err().to_string().contains("fraction is 1: expected"));
}

#[test]
fn a_split_with_nothing_on_one_side_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "d.jsonl", ids(0, 4));
    let error = |fraction: f64, group: Option<&str>| {
        let mut plan = plan(json!(path));
        plan.split = Some(EvalSplit { fraction, group: group.map(str::to_owned), seed: 0 });
        open(&plan).unwrap_err().to_string()
    };
    assert_eq!(
        error(0.001, Some("group")),
        "the split leaves no row to evaluate on: fraction 0.001 of 4 rows grouped by \"group\", seed 0; raise the \
         fraction, choose another seed, or name the rows to evaluate on by `eval`"
    );
    let words = "the split leaves no row to train on: fraction 0.999 of 4 rows, seed 0; lower the fraction";
    assert!(error(0.999, None).starts_with(words), "{}", error(0.999, None));
}

#[test]
fn the_shape_of_each_file_is_that_of_most_rows_on_both_sides_of_a_split() {
    let folder = tempfile::tempdir().unwrap();
    let odd = [json!({"text": "t"}), json!({"text": "u"})];
    let path = write(folder.path(), "d.jsonl", odd.into_iter().chain(ids(0, 40)));
    let mut plan = plan(json!(path));
    plan.split = Some(EvalSplit { fraction: 0.5, group: None, seed: 1 });
    let gguf = qlora_testing::model().map(|model| Gguf::open(model).unwrap());
    let Some(gguf) = gguf else { return };
    let encoder = Encoder::new(Arc::new(Tokenizer::from_gguf(gguf.metadata()).unwrap()));
    let options = DatasetOptions { on_bad_row: OnBadRow::Skip, ..DatasetOptions::default() };
    let (train, eval) = plan.open(&encoder, &options, &mut Silent).unwrap();
    let eval = eval.unwrap();
    assert_eq!((train.len() + eval.len(), train.report().skipped() + eval.report().skipped()), (40, 2));
    let error = plan.open(&encoder, &DatasetOptions::default(), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("40 of the file's 42 rows have `input_ids`"), "{error}");
}

#[test]
fn shares_become_repeats() {
    assert_eq!(repeats_for_shares(&[0.5, 0.5], &[100, 400], true).unwrap(), [4.0, 1.0]);
    assert_eq!(repeats_for_shares(&[0.5, 0.5], &[100, 400], false).unwrap(), [1.0, 0.25]);
    assert_eq!(repeats_for_shares(&[3.0, 1.0], &[300, 100], true).unwrap(), [1.0, 1.0]);
    for (shares, rows) in [(&[1.0][..], &[1, 2][..]), (&[0.0], &[1]), (&[f64::NAN], &[1]), (&[1.0], &[0])] {
        assert!(repeats_for_shares(shares, rows, true).unwrap_err().to_string().starts_with("shares is "));
    }
}

/// Conversations as texts, tokenized and decoded again.
fn augmented(path: &Path, augmentation: Augmentation) -> Option<Vec<String>> {
    let gguf = Gguf::open(qlora_testing::model()?).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(gguf.metadata()).unwrap());
    let mut plan = plan(json!(path));
    plan.augmentation = augmentation;
    // What is recorded is what is done.
    let plan: DataPlan = serde_json::from_value(serde_json::to_value(&plan).unwrap()).unwrap();
    let encoder = Encoder::new(Arc::clone(&tokenizer));
    let (dataset, _) = plan.open(&encoder, &DatasetOptions::default(), &mut Silent).unwrap();
    Some(dataset.iter().map(|sample| tokenizer.decode(&sample.ids, false).unwrap()).collect())
}

#[test]
fn turns_are_joined_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let rows = (0..60).map(|n| {
        json!({"messages": [{"role": "system", "content": if n % 2 == 0 { "even" } else { "odd" }},
            {"role": "user", "content": format!("q{n}.")}, {"role": "assistant", "content": format!("a{n}.")}]})
    });
    let path = write(folder.path(), "d.jsonl", rows);
    let join = Augmentation {
        seed: 5,
        join_turns: Some(JoinTurns { max_turns: 3, window: 16 }),
        ..Default::default()
    };
    let Some(texts) = augmented(&path, join.clone()) else { return };
    assert_eq!(augmented(&path, join), Some(texts.clone()));
    assert!((20..60).contains(&texts.len()), "{}", texts.len());
    let all = texts.concat();
    for n in 0..60 {
        assert_eq!((all.matches(&format!("q{n}.")).count(), all.matches(&format!("a{n}.")).count()), (1, 1));
        let text = texts.iter().find(|text| text.contains(&format!("q{n}."))).unwrap();
        assert!(text.contains(if n % 2 == 0 { "system\neven<" } else { "system\nodd<" }));
        assert!(text.find(&format!("q{n}.")) < text.find(&format!("a{n}.")));
        assert_eq!(text.matches("system\n").count(), 1);
    }
}

#[test]
fn held_out_turns_are_joined_among_themselves() {
    let Some(model) = qlora_testing::model() else { return };
    let tokenizer = Arc::new(Tokenizer::from_gguf(Gguf::open(model).unwrap().metadata()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let rows = (0..60).map(|n| {
        json!({"messages": [{"role": "user", "content": format!("q{n}.")}, {"role": "assistant", "content": "m"}]})
    });
    let mut plan = plan(json!(write(folder.path(), "d.jsonl", rows)));
    plan.split = Some(EvalSplit { fraction: 0.4, group: None, seed: 3 });
    let encoder = Encoder::new(Arc::clone(&tokenizer));
    let questions = |plan: &DataPlan| {
        let (train, eval) = plan.open(&encoder, &DatasetOptions::default(), &mut Silent).unwrap();
        [train, eval.unwrap()].map(|data| {
            let texts = data.iter().map(|sample| tokenizer.decode(&sample.ids, false).unwrap());
            let text: String = texts.collect();
            (0..60).filter(|n| text.contains(&format!("q{n}."))).collect::<Vec<_>>()
        })
    };
    let apart = questions(&plan);
    assert!(apart.iter().all(|side| side.len() > 10), "{apart:?}");
    plan.augmentation.join_turns = Some(JoinTurns { max_turns: 4, window: 1024 });
    assert_eq!(questions(&plan), apart);
}

#[test]
fn system_messages_and_phrasings_vary() {
    let folder = tempfile::tempdir().unwrap();
    let rows = (0..80).map(|n| {
        json!({"messages": [{"role": "user", "content": format!("Draw a cow {n}")}, {"role": "assistant", "content": "m"}]})
    });
    let path = write(folder.path(), "d.jsonl", rows);
    let vary = Augmentation {
        system_prompts: Some(SystemPrompts { prompts: vec!["Be X.".into(), "Be Y.".into()], share: 0.5 }),
        paraphrases: vec![vec!["Draw a".into(), "Please draw a".into(), "Draw".into()]],
        ..Default::default()
    };
    let Some(texts) = augmented(&path, vary) else { return };
    assert_eq!(texts.len(), 80);
    for (words, from, to) in [
        ("Be X.", 8, 35),
        ("Be Y.", 8, 35),
        ("user\nDraw a cow", 12, 45),
        ("user\nPlease draw a cow", 12, 45),
        ("user\nDraw cow", 12, 45),
    ] {
        let count = texts.iter().filter(|text| text.contains(words)).count();
        assert!((from..=to).contains(&count), "{words}: {count}");
    }
    assert!(texts.iter().enumerate().all(|(n, text)| text.contains(&format!("cow {n}<"))));
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let error = |value: Value| {
        serde_json::from_value::<Augmentation>(value).unwrap().check().unwrap_err().to_string()
    };
    for (value, words) in [
        (json!({"system_prompts": {"prompts": []}}), "system_prompts.prompts is empty"),
        (json!({"system_prompts": {"prompts": ["a"], "share": 2.0}}), "system_prompts.share is 2"),
        (json!({"paraphrases": [["a", " "]]}), "paraphrases is a blank text"),
        (json!({"paraphrases": [["a"], ["b", "a"]]}), "paraphrases is \"a\" twice"),
        (json!({"join_turns": {"max_turns": 1}}), "join_turns.max_turns is below 2"),
        (json!({"join_turns": {"max_turns": 2, "window": 0}}), "join_turns.window is 0"),
    ] {
        let error = error(value);
        assert!(error.contains(words), "{error}");
    }
    assert!(serde_json::from_value::<Augmentation>(json!({"sed": 1})).is_err());
}

#[test]
fn conversion_writes_messages_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [json!({"instruction": "i", "output": "o"}), json!({"instruction": "", "output": 3})];
    let path = write(folder.path(), "d.jsonl", rows);
    let out = folder.path().join("out.jsonl");
    let error = convert(path.to_str().unwrap(), &out, OnBadRow::Stop, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("d.jsonl, line 2: `output`: expected a text, found 3"), "{error}");
    assert!(!out.exists());
    let done = convert(path.to_str().unwrap(), &out, OnBadRow::Skip, &mut Silent).unwrap();
    assert_eq!((done.written, done.skipped), (1, 1));
    let expected =
        json!({"messages": [{"role": "user", "content": "i"}, {"role": "assistant", "content": "o"}]});
    assert_eq!(std::fs::read_to_string(&out).unwrap(), format!("{expected}\n"));
    let error = convert(path.to_str().unwrap(), folder.path(), OnBadRow::Skip, &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error:?}");
    assert!(error.to_string().contains(folder.path().file_name().unwrap().to_str().unwrap()), "{error}");
    let tokens = write(folder.path(), "t.jsonl", ids(0, 1));
    let error = convert(tokens.to_str().unwrap(), &out, OnBadRow::Stop, &mut Silent).unwrap_err();
    assert!(
        error.to_string().contains("rows with `input_ids` have no text and can't be converted"),
        "{error}"
    );
}

/// What becomes of rows, and what is told.
fn converted(
    folder: &Path,
    rows: Vec<Value>,
    on_bad_row: OnBadRow,
) -> Result<(Vec<Value>, Converted), String> {
    let path = write(folder, "d.jsonl", rows);
    let out = folder.join("out.jsonl");
    let done =
        convert(path.to_str().unwrap(), &out, on_bad_row, &mut Silent).map_err(|error| error.to_string())?;
    let text = std::fs::read_to_string(&out).unwrap();
    Ok((text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), done))
}

#[test]
fn conversion_keeps_what_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let says = |role: &str, text: &str| json!({"role": role, "content": text});
    let row = json!({
        "prompt": [says("user", "a"), says("assistant", "b"), says("user", "c")],
        "completion": [says("assistant", "d")], "topic": 7, "system": "s", "text": null,
    });
    let (rows, done) = converted(folder.path(), vec![row.clone()], OnBadRow::Stop).unwrap();
    let mut context = says("assistant", "b");
    context["weight"] = 0.into();
    let messages = [says("user", "a"), context, says("user", "c"), says("assistant", "d")];
    assert_eq!(rows, [json!({"messages": messages, "topic": 7})]);
    assert_eq!(done.left_out, [("system".to_owned(), 1)].into());

    // The same tokens are trained.
    let Some(model) = qlora_testing::model() else { return };
    let tokenizer = Tokenizer::from_gguf(Gguf::open(model).unwrap().metadata()).unwrap();
    let encoder = Encoder::new(Arc::new(tokenizer));
    let samples = [row, rows[0].clone()].map(|row| {
        let path = write(folder.path(), "one.jsonl", [row]);
        Dataset::open(path.to_str().unwrap(), &encoder, &DatasetOptions::default()).unwrap().samples()
    });
    assert_eq!(samples[0], samples[1]);
}

#[test]
fn conversion_keeps_documents_and_refuses_mixtures() {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({"text": "a document", "source": "x"});
    let (rows, done) = converted(folder.path(), vec![document.clone()], OnBadRow::Stop).unwrap();
    assert_eq!((rows, done.left_out.len()), (vec![document.clone()], 0));

    let empty = vec![json!({"prompt": "a", "completion": "b"}), json!({"prompt": "", "completion": "b"})];
    let error = converted(folder.path(), empty.clone(), OnBadRow::Stop).unwrap_err();
    assert!(error.contains("line 2: `prompt`: expected what the user says, found an empty text"), "{error}");
    assert_eq!(converted(folder.path(), empty, OnBadRow::Skip).unwrap().1.skipped, 1);

    // The shape is that of most rows here too.
    let mixed = vec![document, json!({"prompt": "a"}), json!({"text": "b"})];
    let error = converted(folder.path(), mixed.clone(), OnBadRow::Stop).unwrap_err();
    assert!(
        error.contains("line 2: the row has the shape `prompt`, and 2 of the file's 3 rows have `text`"),
        "{error}"
    );
    let (rows, done) = converted(folder.path(), mixed, OnBadRow::Skip).unwrap();
    assert_eq!((rows.len(), done.skipped), (2, 1));

    let a = write(folder.path(), "a.jsonl", [json!({"instruction": "i", "output": "o"})]);
    let b = write(folder.path(), "b.jsonl", [json!({"text": "t"})]);
    let sources: Sources = serde_json::from_value(json!([a, b])).unwrap();
    let out = folder.path().join("mixed.jsonl");
    let error = convert(sources, &out, OnBadRow::Skip, &mut Silent).unwrap_err().to_string();
    assert!(
        error.contains(
            "b.jsonl, line 1: becomes a row with `text`, and the rows before became rows with `messages`"
        ),
        "{error}"
    );
    assert!(!out.exists());
}

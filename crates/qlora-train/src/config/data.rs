//! `[data]`.

use qlora_data::{Augmentation, EvalSplit, Mixing, OnBadRow, OnLong, Source, Sources, TrainOn};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::check::{count, seed, text};
use super::problem::Place;
use super::reader::Reader;
use super::{DataConfig, PackingKind};

const SECTION: &str = "data";

pub(super) fn data(reader: &mut Reader, train_seed: u64, token_budget: bool) -> Option<DataConfig> {
    let given = reader.place(SECTION, "train").is_some();
    let train = sources(reader, "train");
    if !given {
        let message = "missing; set it to the file with the rows to train on".into();
        reader.problem(Place::Absent, "data.train", message);
    }
    let eval = sources(reader, "eval");
    let mixing = mixing(reader, train.as_ref());
    let max_length =
        reader.optional(SECTION, "max_length", "a whole number of at least 2", |value| count(value, 2));
    let template = reader.optional(SECTION, "template", "the name of a chat template, or a Jinja file", text);
    let packing = packing(reader, token_budget);
    let shuffle = reader.optional(SECTION, "shuffle", "true or false", Value::as_bool);
    let seed = reader.optional(SECTION, "seed", "a whole number of at least 0", seed);
    let seed = seed.unwrap_or(train_seed);
    let augmentation = augmentation(reader, seed);
    let eval_split = eval_split(reader, seed, eval.is_some());
    let on_bad_row = reader.choice(
        SECTION,
        "on_bad_row",
        &[("stop", OnBadRow::Stop), ("skip", OnBadRow::Skip)],
        OnBadRow::Stop,
    );
    let on_long = reader.choice(
        SECTION,
        "on_long",
        &[("error", OnLong::Error), ("skip", OnLong::Skip), ("truncate", OnLong::Truncate)],
        OnLong::Error,
    );
    let train_on = reader.choice(
        SECTION,
        "train_on",
        &[
            ("assistant", TrainOn::Assistant),
            ("last", TrainOn::Last),
            ("completions", TrainOn::Completions),
            ("all", TrainOn::All),
        ],
        TrainOn::Assistant,
    );
    Some(DataConfig {
        train: train?,
        eval,
        eval_split,
        mixing,
        augmentation,
        max_length: max_length.unwrap_or(2048),
        shuffle: shuffle.unwrap_or(true),
        seed,
        on_bad_row,
        on_long,
        template,
        packing,
        train_on,
    })
}

/// Where rows come from: a path, a table, or a list of these.
fn sources(reader: &mut Reader, key: &'static str) -> Option<Sources> {
    let entry = reader.take(SECTION, key)?;
    let items = match entry.value {
        Value::Array(items) => items,
        item => vec![item],
    };
    let (mut sources, mut problems) = (Vec::new(), Vec::new());
    let alone = items.len() == 1;
    for (index, item) in items.into_iter().enumerate() {
        match source(item) {
            Ok(source) => sources.push(source),
            Err(problem) if alone => problems.push(problem),
            Err(problem) => problems.push(format!("source {}: {problem}", index + 1)),
        }
    }
    let sources = Sources(sources);
    if problems.is_empty()
        && let Err(error) = sources.check()
    {
        problems.push(error.to_string());
    }
    if problems.is_empty() {
        return Some(sources);
    }
    for problem in problems {
        reader.problem(entry.place, &format!("{SECTION}.{key}"), problem);
    }
    None
}

fn source(value: Value) -> Result<Source, String> {
    let source = match value {
        Value::String(path) => Source::new(path),
        Value::Table(table) => from_table(table)?,
        other => {
            return Err(format!("{other} given, expected a path, a table with `path`, or a list of these"));
        }
    };
    source.check().map_err(|error| error.to_string())?;
    Ok(source)
}

/// What a table says; unknown keys and wrong types are told in serde's words, which name the key.
fn from_table<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    Value::Table(table).try_into().map_err(|error: toml::de::Error| error.message().trim().to_owned())
}

/// A key that holds a table of its own, with the seed of the section unless it has one.
fn seeded_table<T: DeserializeOwned>(
    reader: &mut Reader,
    key: &'static str,
    seed: u64,
    check: impl FnOnce(&T) -> Result<(), qlora_data::Error>,
) -> Option<T> {
    let entry = reader.take(SECTION, key)?;
    let read = match entry.value {
        Value::Table(mut table) => {
            // What no TOML integer holds is kept out by `data.seed` itself.
            let seed = Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX));
            table.entry("seed").or_insert(seed);
            from_table::<T>(table).and_then(|read| match check(&read) {
                Ok(()) => Ok(read),
                Err(error) => Err(error.to_string()),
            })
        }
        other => Err(format!("{other} given, expected a section: write `[{SECTION}.{key}]`")),
    };
    read.map_err(|problem| reader.problem(entry.place, &format!("{SECTION}.{key}"), problem)).ok()
}

fn augmentation(reader: &mut Reader, seed: u64) -> Option<Augmentation> {
    seeded_table(reader, "augmentation", seed, Augmentation::check)
}

fn eval_split(reader: &mut Reader, seed: u64, eval_given: bool) -> Option<EvalSplit> {
    let place = reader.place(SECTION, "eval_split");
    let split = seeded_table(reader, "eval_split", seed, EvalSplit::check);
    match place {
        Some(place) if eval_given => {
            let message = "given beside data.eval; remove one of the two".into();
            reader.problem(place, "data.eval_split", message);
            None
        }
        _ => split,
    }
}

/// How weighted sources are mixed; `None` where none has a weight.
fn mixing(reader: &mut Reader, train: Option<&Sources>) -> Option<Mixing> {
    let weighted = train.is_none_or(|train| train.0.iter().any(|source| source.weight.is_some()));
    let place = reader.place(SECTION, "mixing");
    let choices = [("oversample", Mixing::Oversample), ("undersample", Mixing::Undersample)];
    let mixing = reader.choice(SECTION, "mixing", &choices, Mixing::Oversample);
    match place {
        Some(place) if !weighted => {
            let message = "mixes sources that have a `weight`; give data.train several, each with one".into();
            reader.problem(place, "data.mixing", message);
            None
        }
        _ => weighted.then_some(mixing),
    }
}

/// How rows share batches; `None` where batches are counted in rows.
fn packing(reader: &mut Reader, token_budget: bool) -> Option<PackingKind> {
    const EXPECTED: &str = "\"best-fit\" or \"by-length\"";
    let Some(entry) = reader.take("data", "packing") else {
        return token_budget.then(PackingKind::default);
    };
    let kind = match (&entry.value, entry.value.as_str()) {
        (Value::Boolean(false), _) if !token_budget => return None,
        (Value::Boolean(true), _) | (_, Some("best-fit" | "bfd")) => Some(PackingKind::BestFit),
        (_, Some("by-length")) => Some(PackingKind::ByLength),
        _ => None,
    };
    let message = match kind {
        None => format!("{} given, expected {EXPECTED}", entry.value),
        Some(_) if !token_budget => {
            "fills batches of a fixed number of tokens; set train.tokens_per_batch to it".to_owned()
        }
        Some(_) => return kind,
    };
    reader.problem(entry.place, "data.packing", message);
    None
}

//! `train.schedule`: a name, or a table of a name and its parameters.

use serde::{Serialize as _, Serializer};
use toml::{Table, Value};

use super::check::number;
use crate::schedule::ScheduleKind;

/// A schedule, or what is wrong with the value.
pub(super) fn read(value: &Value) -> Result<ScheduleKind, String> {
    let (name, mut parameters) = match value {
        Value::String(name) => (name.clone(), Table::new()),
        Value::Table(table) => {
            let mut parameters = table.clone();
            match parameters.remove("kind") {
                Some(Value::String(name)) => (name, parameters),
                _ => return Err("a table needs the name of a schedule as `kind`".into()),
            }
        }
        _ => return Err(format!("{value} given, expected the name of a schedule")),
    };
    let Some(default) = ScheduleKind::ALL.into_iter().find(|kind| kind.name() == name) else {
        let names: Vec<String> =
            ScheduleKind::ALL.iter().map(|kind| format!("\"{}\"", kind.name())).collect();
        return Err(format!("\"{name}\" given, expected one of {}", names.join(", ")));
    };
    let mut parameter =
        |key: &str, default: f64, expected: &str, valid: fn(f64) -> bool| match parameters.remove(key) {
            None => Ok(default),
            Some(value) => number(&value)
                .filter(|&number| valid(number))
                .ok_or_else(|| format!("{key} = {value} given, expected {expected}")),
        };
    let share = |number: f64| (0.0..=1.0).contains(&number);
    let kind = match default {
        ScheduleKind::CosineWithRestarts { cycles } => ScheduleKind::CosineWithRestarts {
            cycles: parameter("cycles", cycles, "a number above 0", |cycles| cycles > 0.0)?,
        },
        ScheduleKind::CosineWithMinimum { minimum } => ScheduleKind::CosineWithMinimum {
            minimum: parameter("minimum", minimum, "a share from 0 to 1 of the learning rate", share)?,
        },
        ScheduleKind::Polynomial { power, end } => ScheduleKind::Polynomial {
            power: parameter("power", power, "a number above 0", |power| power > 0.0)?,
            end: parameter("end", end, "a share from 0 to 1 of the learning rate", share)?,
        },
        ScheduleKind::Wsd { decay } => {
            ScheduleKind::Wsd { decay: parameter("decay", decay, "a share from 0 to 1 of all steps", share)? }
        }
        kind => kind,
    };
    match parameters.keys().next() {
        Some(key) => Err(format!("\"{name}\" has no parameter `{key}`")),
        None => Ok(kind),
    }
}

/// The value that [`read`] reads back.
pub(super) fn write<S: Serializer>(kind: &ScheduleKind, serializer: S) -> Result<S::Ok, S::Error> {
    let parameters: &[(&str, f64)] = match *kind {
        ScheduleKind::CosineWithRestarts { cycles } => &[("cycles", cycles)],
        ScheduleKind::CosineWithMinimum { minimum } => &[("minimum", minimum)],
        ScheduleKind::Polynomial { power, end } => &[("power", power), ("end", end)],
        ScheduleKind::Wsd { decay } => &[("decay", decay)],
        ScheduleKind::Constant | ScheduleKind::Linear | ScheduleKind::Cosine | ScheduleKind::InverseSqrt => {
            return kind.name().serialize(serializer);
        }
    };
    let mut table = Table::from_iter([("kind".to_string(), Value::from(kind.name()))]);
    table.extend(parameters.iter().map(|&(key, number)| (key.to_string(), Value::from(number))));
    table.serialize(serializer)
}

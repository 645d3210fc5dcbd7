use crate::keyed_hash::{is_within, keyed_hash};
use crate::{Error, RowProblem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which rows are kept for evaluation.
///
/// A row's side follows from its content and the seed alone: it stays when other rows come or go, and equal
/// rows are on one side. With a group all rows with the same content of that column are on one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSplit {
    /// The share of rows (of groups) for evaluation, above 0 and below 1.
    pub fraction: f64,
    /// The column whose content decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Another seed chooses other rows.
    #[serde(default)]
    pub seed: u64,
}

impl EvalSplit {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Option`] when the fraction is not between 0 and 1.
    pub fn check(&self) -> Result<(), Error> {
        if self.fraction > 0.0 && self.fraction < 1.0 {
            return Ok(());
        }
        Err(Error::Option {
            option: "fraction",
            found: self.fraction.to_string(),
            expected: "a number above 0 and below 1",
        })
    }

    /// That there is no row on one side, if so: with few rows or groups that happens, as a row's side depends on no
    /// other row.
    pub(crate) fn check_sides(&self, train: usize, eval: usize) -> Result<(), Error> {
        let (purpose, advice) = match (train, eval) {
            (1.., 0) => ("evaluate on", "raise the fraction"),
            (0, 1..) => ("train on", "lower the fraction"),
            _ => return Ok(()),
        };
        let grouped = self.group.as_ref().map_or(String::new(), |group| format!(" grouped by {group:?}"));
        let Self { fraction, seed, .. } = *self;
        Err(Error::OneSidedSplit { purpose, fraction, rows: train + eval, grouped, seed, advice })
    }

    /// Whether a row is for evaluation.
    ///
    /// # Errors
    /// [`RowProblem::Column`] when the row has no content for the group.
    pub fn is_eval(&self, row: &Map<String, Value>) -> Result<bool, RowProblem> {
        let key = match &self.group {
            Some(column) => match row.get(column) {
                None | Some(Value::Null) => {
                    return Err(RowProblem::Column {
                        column: column.clone(),
                        keys: row.keys().cloned().collect(),
                    });
                }
                Some(value) => value.to_string(),
            },
            None => serde_json::to_string(row).unwrap_or_default(),
        };
        Ok(is_within(keyed_hash(self.seed, "split", key.as_bytes()), self.fraction))
    }
}

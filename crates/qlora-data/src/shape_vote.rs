//! The shape of a file: that of most of its rows.

use crate::{RowProblem, RowShape};

/// How many rows of a file have which shape, the shape that came first in front.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShapeVote {
    counts: Vec<(RowShape, usize)>,
}

impl ShapeVote {
    pub(crate) fn add(&mut self, shape: RowShape) {
        match self.counts.iter_mut().find(|(other, _)| *other == shape) {
            Some((_, rows)) => *rows += 1,
            None => self.counts.push((shape, 1)),
        }
    }

    /// The commonest shape; of equals the one that came first.
    pub(crate) fn winner(&self) -> Option<RowShape> {
        // `max_by_key` gives the last of equals.
        self.counts.iter().rev().max_by_key(|(_, rows)| *rows).map(|(shape, _)| *shape)
    }

    /// What is wrong with a row of this shape, unless it is that of the file.
    pub(crate) fn problem(&self, shape: RowShape) -> Option<RowProblem> {
        let common = self.winner().filter(|winner| *winner != shape)?;
        let rows = self.counts.iter().find(|(other, _)| *other == common).map_or(0, |(_, rows)| *rows);
        let of = self.counts.iter().map(|(_, rows)| rows).sum();
        Some(RowProblem::OtherShape { shape, common, rows, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_rows_decide_and_the_first_of_equals() {
        let mut vote = ShapeVote::default();
        assert_eq!(vote.winner(), None);
        vote.add(RowShape::Text);
        vote.add(RowShape::Tokens);
        assert_eq!(vote.winner(), Some(RowShape::Text));
        vote.add(RowShape::Tokens);
        assert!(vote.problem(RowShape::Tokens).is_none());
        let problem = vote.problem(RowShape::Text).unwrap().to_string();
        assert!(
            problem
                .starts_with("the row has the shape `text`, and 2 of the file's 3 rows have `input_ids`; ")
        );
    }
}

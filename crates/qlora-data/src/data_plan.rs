use crate::dataset::{Builder, Dataset, DatasetOptions};
use crate::pipeline::Pipeline;
use crate::shape_vote::ShapeVote;
use crate::{Augmentation, Encoder, Error, EvalSplit, Sources, reader, repeats_for_shares};
use qlora_hub::FetchProgress;
use serde::{Deserialize, Serialize};

/// How sources come to the shares of an epoch's rows that their weights ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixing {
    /// Every row stands at least once; sources with too few rows repeat.
    #[default]
    Oversample,
    /// No row stands twice; sources with too many rows lose some, chosen by the seed.
    Undersample,
}

/// Which rows there are and what is done to them: what a run records about its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlan {
    /// Where rows come from.
    pub sources: Sources,
    /// How sources with weights are mixed.
    #[serde(default)]
    pub mixing: Mixing,
    /// What is done to conversations.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// Which rows are kept for evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<EvalSplit>,
}

impl DataPlan {
    /// All rows as they are.
    #[must_use]
    pub fn new(sources: impl Into<Sources>) -> Self {
        Self {
            sources: sources.into(),
            mixing: Mixing::default(),
            augmentation: Augmentation::default(),
            split: None,
        }
    }

    /// Reads and tokenizes everything: the rows to train on, and those of the split.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Source`], [`Error::Hub`] before anything is read; then as
    /// [`Dataset::open`], and [`Error::OneSidedSplit`].
    pub fn open(
        &self,
        encoder: &Encoder,
        options: &DatasetOptions,
        progress: &mut dyn FetchProgress,
    ) -> Result<(Dataset, Option<Dataset>), Error> {
        self.augmentation.check()?;
        self.split.as_ref().map(EvalSplit::check).transpose()?;
        self.sources.check()?;
        let mut files = Vec::new();
        for source in &self.sources.0 {
            files.push(source.files(progress)?);
        }
        let paths: Vec<_> = files.iter().flatten().map(|file| file.path.clone()).collect();
        let mut train = Builder::new(paths.clone(), options);
        let mut eval = self.split.as_ref().map(|_| Builder::new(paths, options));
        let mut index = 0;
        for (source, files) in self.sources.0.iter().zip(&files) {
            train.begin_source();
            for file in files {
                train.begin_file(index);
                if let Some(eval) = &mut eval {
                    eval.begin_file(index);
                }
                let mut rows = reader::open(file, source.split)?;
                let pipeline = Pipeline {
                    source,
                    file: index,
                    encoder,
                    options,
                    augmentation: &self.augmentation,
                    split: self.split.as_ref(),
                };
                let mut vote = ShapeVote::default();
                pipeline.run(&mut *rows, &mut |row| {
                    row.vote(&mut vote);
                    match &mut eval {
                        Some(eval) if row.for_eval => eval.add(row, &vote),
                        _ => train.add(row, &vote),
                    }
                })?;
                train.end_file(&vote)?;
                eval.as_mut().map_or(Ok(()), |eval| eval.end_file(&vote))?;
                index += 1;
            }
        }
        if let (Some(split), Some(eval)) = (&self.split, &eval) {
            split.check_sides(train.rows(), eval.rows())?;
        }
        let repeats = self.sources.repeats(self.mixing, &train.source_sizes())?;
        train.repeat_sources(&repeats, self.augmentation.seed);
        Ok((train.finish()?, eval.map(Builder::finish).transpose()?))
    }
}

impl Sources {
    /// How often each source stands in an epoch, given how many samples it has.
    pub(crate) fn repeats(&self, mixing: Mixing, samples: &[usize]) -> Result<Vec<f64>, Error> {
        let weights: Option<Vec<f64>> = self.0.iter().map(|source| source.weight).collect();
        match weights {
            Some(weights) => repeats_for_shares(&weights, samples, mixing == Mixing::Oversample),
            None => Ok(self.0.iter().map(|source| source.repeat).collect()),
        }
    }
}

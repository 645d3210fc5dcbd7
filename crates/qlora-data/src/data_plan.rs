use crate::dataset::{Builder, Dataset, DatasetOptions};
use crate::pipeline::Pipeline;
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
    /// [`Dataset::open`].
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
                pipeline.run(&mut *rows, &mut |row| match &mut eval {
                    Some(eval) if row.for_eval => eval.add(row),
                    _ => train.add(row),
                })?;
                index += 1;
            }
        }
        train.repeat_sources(&self.repeats(&train.source_sizes())?, self.augmentation.seed);
        Ok((train.finish()?, eval.map(Builder::finish).transpose()?))
    }

    /// How often each source stands in an epoch, given how many samples it has.
    fn repeats(&self, samples: &[usize]) -> Result<Vec<f64>, Error> {
        let weights: Option<Vec<f64>> = self.sources.0.iter().map(|source| source.weight).collect();
        match weights {
            Some(weights) => repeats_for_shares(&weights, samples, self.mixing == Mixing::Oversample),
            None => Ok(self.sources.0.iter().map(|source| source.repeat).collect()),
        }
    }
}

//! Token ids and weights of many samples: in memory up to a size, beyond that in a temporary file.

use crate::{Error, Position, Sample};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

/// 32-bit words kept in memory before they go to the file: 128 MiB.
const SPILL_WORDS: usize = 32 << 20;

/// Where a sample lies: its ids, then runs of equal weights (a count and the bits of the weight).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// The first word.
    start: u64,
    ids: u32,
    runs: u32,
    trained: u32,
    pub(crate) position: Position,
    /// Index of the file among the files of the data set.
    pub(crate) file: u32,
}

impl Record {
    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ids as usize
    }

    /// Number of tokens whose weight is not 0.
    pub(crate) fn trained_tokens(&self) -> usize {
        self.trained as usize
    }
}

/// Samples are only added; reading needs no exclusive access.
#[derive(Debug)]
pub(crate) struct TokenStore {
    spill_words: usize,
    /// Words already in the file.
    spilled: u64,
    file: Option<Mutex<File>>,
    /// The words after those of the file.
    tail: Vec<u32>,
}

impl TokenStore {
    pub(crate) fn new() -> Self {
        Self::with_memory(SPILL_WORDS)
    }

    fn with_memory(spill_words: usize) -> Self {
        Self { spill_words, spilled: 0, file: None, tail: Vec::new() }
    }

    pub(crate) fn push(&mut self, sample: &Sample, position: Position, file: u32) -> Result<Record, Error> {
        let start = self.spilled + self.tail.len() as u64;
        let mut runs = 0;
        self.tail.extend_from_slice(&sample.ids);
        for run in sample.weights.chunk_by(|a, b| a.to_bits() == b.to_bits()) {
            self.tail.extend([run.len() as u32, run[0].to_bits()]);
            runs += 1;
        }
        if self.tail.len() >= self.spill_words {
            self.spill().map_err(|source| Error::Spill { source })?;
        }
        Ok(Record {
            start,
            ids: sample.len() as u32,
            runs,
            trained: sample.trained_tokens() as u32,
            position,
            file,
        })
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Mutex::new(tempfile::tempfile()?)),
        };
        let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::End(0))?;
        let mut bytes = Vec::with_capacity(1 << 20);
        for words in self.tail.chunks(1 << 18) {
            bytes.clear();
            words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            file.write_all(&bytes)?;
        }
        self.spilled += self.tail.len() as u64;
        self.tail.clear();
        Ok(())
    }

    /// # Panics
    /// When the temporary file can't be read: the disk has failed.
    pub(crate) fn get(&self, record: &Record) -> Sample {
        let count = record.len() + 2 * record.runs as usize;
        let words = match record.start.checked_sub(self.spilled) {
            Some(at) => self.tail[at as usize..at as usize + count].to_vec(),
            None => self
                .read(record.start, count)
                .unwrap_or_else(|error| panic!("the temporary file of token ids can't be read: {error}")),
        };
        let (ids, runs) = words.split_at(record.len());
        let mut weights = Vec::with_capacity(ids.len());
        for run in runs.chunks_exact(2) {
            weights.extend(std::iter::repeat_n(f32::from_bits(run[1]), run[0] as usize));
        }
        Sample { ids: ids.to_vec(), weights, line: record.position.number }
    }

    fn read(&self, start: u64, count: usize) -> io::Result<Vec<u32>> {
        let missing = || io::Error::other("it is gone");
        let mut file = self.file.as_ref().ok_or_else(missing)?.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; count * 4];
        file.seek(SeekFrom::Start(start * 4))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        let unwritable = tempfile::NamedTempFile::new().unwrap();
        let mut store = TokenStore::with_memory(8);
        store.file = Some(Mutex::new(File::open(unwritable.path()).unwrap()));
        let sample = Sample::new((0..8).collect(), vec![1.0; 8], 1);
        let error = store.push(&sample, Position::line(1), 0).unwrap_err();
        assert!(matches!(error, Error::Spill { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("cannot write token ids to a temporary file: "), "{message}");
        assert!(message.ends_with("; set TMPDIR to a folder with space"), "{message}");
    }

    #[test]
    fn samples_come_back_from_memory_and_from_the_file() {
        let mut store = TokenStore::with_memory(50);
        let sample = |n: u32| {
            let weights = (0..n).map(|i| if i % 5 < 2 { 0.0 } else { 0.5 }).collect();
            Sample::new((n..2 * n).collect(), weights, n as usize)
        };
        let sizes = || (1..40).chain([1]);
        let records: Vec<Record> =
            sizes().map(|n| store.push(&sample(n), Position::line(n as usize), 0).unwrap()).collect();
        assert!(store.spilled > 0 && !store.tail.is_empty());
        for (record, n) in records.iter().zip(sizes()) {
            assert_eq!(store.get(record), sample(n));
            assert_eq!(record.trained_tokens(), sample(n).trained_tokens());
        }
    }
}

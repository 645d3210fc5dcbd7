//! Rows become numbers and findings.

use super::content::{self, Note};
use super::report::{SetCounts, ShownRow};
use super::signature::Signature;
use super::similar::{Likeness, similar};
use super::{CheckOptions, CheckReport, Finding, FindingKind, Place};
use crate::reader::RawRow;
use crate::row_reader::{self, SupervisedRow};
use crate::{Encoded, Encoder, EvalSplit, Remarks, Row, RowShape, Sample, Source};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Rows of each set that the report shows, whatever is found.
const SHOWN_FIRST: usize = 3;
/// The most rows that the report shows.
const SHOWN: usize = 40;
/// The most tokens of a row that the report shows.
const SHOWN_TOKENS: usize = 2000;

/// What is known of a row once it was looked at.
struct Facts {
    line: usize,
    shape: Option<RowShape>,
    whole: Option<u128>,
    prompt: Option<u128>,
    signature: Option<Signature>,
    notes: Vec<Note>,
    sample: Option<Sample>,
}

/// Where a row stands: the index of its file, and its line.
type Location = (u32, u32);

pub(super) struct Collector<'a> {
    encoder: Option<&'a Encoder>,
    options: &'a CheckOptions,
    files: Vec<PathBuf>,
    /// The training set, then the held-out set.
    sets: Vec<SetCounts>,
    /// The shape of the first row of the current file.
    first_shape: Option<RowShape>,
    findings: BTreeMap<FindingKind, Finding>,
    shown: Vec<ShownRow>,
    locations: Vec<Location>,
    signatures: Vec<Option<Signature>>,
    /// Where each text stands first, by its hash.
    wholes: HashMap<u128, u32>,
    prompts: HashMap<u128, u32>,
    /// Whether held-out rows will follow, which prompts are kept for.
    eval_follows: bool,
    /// The first row of the held-out set.
    eval_from: usize,
}

impl<'a> Collector<'a> {
    pub(super) fn new(encoder: Option<&'a Encoder>, options: &'a CheckOptions, eval_follows: bool) -> Self {
        Self {
            encoder,
            options,
            files: Vec::new(),
            sets: Vec::new(),
            first_shape: None,
            findings: BTreeMap::new(),
            shown: Vec::new(),
            locations: Vec::new(),
            signatures: Vec::new(),
            wholes: HashMap::new(),
            prompts: HashMap::new(),
            eval_follows,
            eval_from: usize::MAX,
        }
    }

    /// What follows is the training set, or the held-out set.
    pub(super) fn begin_set(&mut self, held_out: bool) {
        self.sets.push(SetCounts::default());
        if held_out {
            self.eval_from = self.locations.len();
        }
    }

    /// What follows is from this file. Gives the rows so far.
    pub(super) fn begin_file(&mut self, file: &Path) -> usize {
        self.files.push(file.to_owned());
        self.first_shape = None;
        if let Some(set) = self.sets.last_mut() {
            set.files.push(file.to_owned());
        }
        self.rows()
    }

    /// The rows so far.
    pub(super) fn rows(&self) -> usize {
        self.locations.len()
    }

    /// The next rows of the current file, which is one of the source. Of a split only those of the wanted side count.
    pub(super) fn add(&mut self, rows: Vec<RawRow>, source: &Source, side: Option<(&EvalSplit, bool)>) {
        let (encoder, options) = (self.encoder, self.options);
        let facts: Vec<Option<Facts>> =
            rows.into_par_iter().map(|row| look_at(row, source, side, encoder, options)).collect();
        facts.into_iter().flatten().for_each(|facts| self.count(facts));
    }

    fn count(&mut self, facts: Facts) {
        let Facts { line, shape, whole, prompt, signature, mut notes, sample } = facts;
        let index = self.locations.len();
        let held_out = index >= self.eval_from;
        let file = self.files.len().saturating_sub(1);
        self.locations.push((file as u32, u32::try_from(line).unwrap_or(u32::MAX)));
        if let Some(shape) = shape {
            let first = *self.first_shape.get_or_insert(shape);
            if first != shape {
                notes.push((FindingKind::MixedShapes, format!("{shape}, and the first row is {first}")));
            }
        }
        notes.extend(self.repeated(index, held_out, whole, prompt));
        // What is there twice would be found as similar again.
        let repeated =
            notes.iter().any(|(kind, _)| matches!(kind, FindingKind::Duplicate | FindingKind::Leaked));
        self.signatures.push(signature.filter(|_| !repeated));

        let set = self.sets.last_mut().expect("a set was begun");
        set.rows += 1;
        if let Some(sample) = &sample {
            set.add(sample, self.options.max_length);
        }
        let mut reasons = Vec::new();
        for (kind, detail) in notes {
            if self.find(kind, index, &detail) {
                reasons.push(format!("{}: {detail}", kind.summary()));
            }
        }
        let first = self.sets.last().is_some_and(|set| set.rows <= SHOWN_FIRST);
        if let Some(sample) = sample.filter(|_| (first || !reasons.is_empty()) && self.shown.len() < SHOWN) {
            self.show(file, sample, reasons);
        }
    }

    /// Whether a row, or its prompt, was there before.
    fn repeated(
        &mut self,
        index: usize,
        held_out: bool,
        whole: Option<u128>,
        prompt: Option<u128>,
    ) -> Option<Note> {
        let before = whole.and_then(|whole| match held_out {
            true => self.wholes.get(&whole).copied(),
            false => {
                let first = *self.wholes.entry(whole).or_insert(index as u32);
                (first as usize != index).then_some(first)
            }
        });
        let prompt_before = prompt.filter(|_| self.eval_follows).and_then(|prompt| match held_out {
            true => self.prompts.get(&prompt).copied(),
            false => {
                self.prompts.entry(prompt).or_insert(index as u32);
                None
            }
        });
        match (before, prompt_before) {
            (Some(first), _) if held_out => {
                Some((FindingKind::Leaked, format!("the same as {}", self.place(first as usize))))
            }
            (Some(first), _) => {
                Some((FindingKind::Duplicate, format!("the same as {}", self.place(first as usize))))
            }
            (None, Some(first)) => {
                Some((FindingKind::LeakedPrompt, format!("the prompt of {}", self.place(first as usize))))
            }
            (None, None) => None,
        }
    }

    fn place(&self, index: usize) -> String {
        let (file, line) = self.locations[index];
        format!("{}, line {line}", self.files[file as usize].display())
    }

    /// Counts a finding; whether it is the first of its kind.
    fn find(&mut self, kind: FindingKind, index: usize, detail: &str) -> bool {
        let (file, line) = self.locations[index];
        self.findings.entry(kind).or_insert_with(|| Finding::new(kind)).add(|| Place {
            file: self.files[file as usize].clone(),
            line: line as usize,
            detail: detail.to_owned(),
        })
    }

    fn show(&mut self, file: usize, mut sample: Sample, reasons: Vec<String>) {
        let tokens = sample.len();
        sample.ids.truncate(SHOWN_TOKENS);
        sample.weights.truncate(SHOWN_TOKENS);
        let tokenizer = self.encoder.and_then(Encoder::tokenizer);
        // A row that was encoded can be decoded, but for ids that only the model's embedding has.
        let Ok(pieces) = crate::pieces(&sample, tokenizer) else { return };
        let file = self.files[file].clone();
        self.shown.push(ShownRow { file, line: sample.line, tokens, reasons, pieces });
    }

    pub(super) fn finish(mut self) -> CheckReport {
        let signatures = std::mem::take(&mut self.signatures);
        let found = similar(&signatures, self.eval_from, self.options.similarity);
        for (kind, list) in
            [(FindingKind::NearDuplicate, found.near), (FindingKind::NearLeaked, found.leaked)]
        {
            for Likeness { row, like, similarity } in list {
                let detail = format!("{:.0} % the same as {}", 100.0 * similarity, self.place(like));
                self.find(kind, row, &detail);
            }
        }
        let mut sets = self.sets.into_iter();
        let train = sets.next().unwrap_or_default().finish(self.options);
        let eval = sets.next().filter(|set| set.rows > 0).map(|set| set.finish(self.options));
        CheckReport::new(train, eval, self.findings.into_values().collect(), self.shown, self.options)
    }
}

/// What there is to know of a row; nothing when it is on the other side of a split.
fn look_at(
    raw: RawRow,
    source: &Source,
    side: Option<(&EvalSplit, bool)>,
    encoder: Option<&Encoder>,
    options: &CheckOptions,
) -> Option<Facts> {
    let line = raw.position.number;
    let mut facts = Facts {
        line,
        shape: None,
        whole: None,
        prompt: None,
        signature: None,
        notes: Vec::new(),
        sample: None,
    };
    let mut fields = row_reader::fields_of(raw);
    if let Some((split, held_out)) = side {
        // A row that is on neither side is a problem among those to train on.
        let is_eval = fields.as_ref().ok().map(|fields| split.is_eval(fields));
        match is_eval {
            Some(Ok(is_eval)) if is_eval != held_out => return None,
            Some(Err(_)) | None if held_out => return None,
            Some(Err(problem)) => fields = Err(problem),
            _ => {}
        }
    }
    let parsed = fields.and_then(|fields| row_reader::supervised(fields, source, options.shape));
    let SupervisedRow { row, shape, mut ignored_keys } = match parsed {
        Ok(parsed) => parsed,
        Err(problem) => {
            facts.notes.push((FindingKind::of_problem(&problem), problem.to_string()));
            return Some(facts);
        }
    };
    facts.shape = Some(shape);
    let group = side.and_then(|(split, _)| split.group.as_ref());
    ignored_keys.retain(|key| Some(key) != group);
    if !ignored_keys.is_empty() {
        facts.notes.push((FindingKind::IgnoredKeys, ignored_keys.join(", ")));
    }
    match (&row, content::whole(&row)) {
        (_, Some(text)) => {
            facts.signature = Signature::of_text(&text);
            facts.whole = Some(digest(text.as_bytes()));
        }
        (Row::Tokens { ids, .. }, None) => {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            facts.signature = Signature::of_ids(ids);
            facts.whole = Some(digest(&bytes));
        }
        (_, None) => {}
    }
    facts.prompt = content::prompt(&row).map(|prompt| digest(prompt.as_bytes()));
    facts.notes.extend(content::notes(&row));
    if let Some(encoder) = encoder {
        match encoder.encode_with_text(&row, line) {
            Err(problem) => facts.notes.push((FindingKind::of_problem(&problem), problem.to_string())),
            Ok((Encoded { sample, remarks }, text)) => {
                facts.notes.extend(remarked(remarks));
                if let Some(text) = text {
                    facts.notes.extend(content::trimmed(&row, &text));
                    facts.notes.extend(lossy(encoder, &sample, &text));
                }
                facts.notes.extend(options.max_length.and_then(|limit| too_long(&sample, limit)));
                facts.sample = Some(sample);
            }
        }
    }
    Some(facts)
}

fn digest(bytes: &[u8]) -> u128 {
    let hash = Sha256::digest(bytes);
    u128::from_le_bytes(hash[..16].try_into().expect("SHA-256 has 32 bytes"))
}

fn remarked(remarks: Remarks) -> impl Iterator<Item = Note> {
    let Remarks { split_boundaries, unended_responses, special_in_content } = remarks;
    [
        (unended_responses, FindingKind::UnendedResponse, "responses"),
        (special_in_content, FindingKind::SpecialInContent, "texts"),
        (split_boundaries, FindingKind::SplitBoundary, "places"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, kind, what)| (kind, format!("{count} {what}")))
}

fn lossy(encoder: &Encoder, sample: &Sample, text: &str) -> Option<Note> {
    let decoded = encoder.tokenizer()?.decode(&sample.ids, false).ok()?;
    if decoded == text {
        return None;
    }
    let common = decoded.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| {
        let start = (0..=common.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text[start..].chars().take(12).collect::<String>()
    };
    let detail = format!("at byte {common}: {:?} becomes {:?}", around(text), around(&decoded));
    Some((FindingKind::LossyTokens, detail))
}

fn too_long(sample: &Sample, limit: usize) -> Option<Note> {
    let tokens = sample.len();
    let cut = sample.weights.get(limit..).filter(|cut| !cut.is_empty())?;
    let trained = cut.iter().filter(|&&weight| weight != 0.0).count();
    if trained == sample.trained_tokens() {
        let detail = format!("{tokens} tokens, and the first trained one is beyond {limit}");
        return Some((FindingKind::CutUntrained, detail));
    }
    let beyond = tokens - limit;
    Some((
        FindingKind::TooLong,
        format!("{tokens} tokens: {beyond} beyond {limit}, {trained} of them trained"),
    ))
}

//! Rows become numbers and findings.

use super::content::{self, Note};
use super::report::{SetCounts, ShownRow};
use super::signature::Signature;
use super::similar::{Likeness, similar};
use super::{CheckOptions, CheckReport, Finding, FindingKind, Place};
use crate::reader::RawRow;
use crate::row_reader::{self, SupervisedRow};
use crate::shape_vote::ShapeVote;
use crate::{Encoded, Encoder, EvalSplit, Position, Remarks, Row, RowShape, Sample, Source, Sources, Unit};
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
    position: Position,
    shape: Option<RowShape>,
    whole: Option<u128>,
    prompt: Option<u128>,
    signature: Option<Signature>,
    notes: Vec<Note>,
    sample: Option<Sample>,
}

/// Where a row stands: the index of its file, and its number there.
type Location = (u32, u32);

/// A file, how its rows are counted, and its rows of one shape (`None`: unknown) by the first of each run.
struct CheckedFile {
    path: PathBuf,
    unit: Unit,
    runs: Vec<(usize, Option<RowShape>)>,
    vote: ShapeVote,
}

pub(super) struct Collector<'a> {
    encoder: Option<&'a Encoder>,
    options: &'a CheckOptions,
    files: Vec<CheckedFile>,
    /// The training set, then the held-out set.
    sets: Vec<SetCounts>,
    /// The shapes of files that are read twice, for each side of a split.
    votes: HashMap<PathBuf, ShapeVote>,
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
            votes: HashMap::new(),
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

    /// What follows is from the next source.
    pub(super) fn begin_source(&mut self) {
        if let Some(set) = self.sets.last_mut() {
            set.begin_source();
        }
    }

    /// What follows is from this file. Gives the rows so far.
    pub(super) fn begin_file(&mut self, file: &Path) -> usize {
        self.files.push(CheckedFile {
            path: file.to_owned(),
            unit: Unit::Line,
            runs: Vec::new(),
            vote: ShapeVote::default(),
        });
        if let Some(set) = self.sets.last_mut() {
            set.files.push(file.to_owned());
        }
        self.rows()
    }

    /// The file is over: its shape is known, and which rows have another.
    pub(super) fn end_file(&mut self) {
        let Some(file) = self.files.last_mut() else { return };
        let runs = std::mem::take(&mut file.runs);
        let vote = std::mem::take(&mut file.vote);
        let vote = self.votes.entry(file.path.clone()).or_insert(vote).clone();
        let ends = runs.iter().map(|(start, _)| *start).skip(1).chain([self.rows()]).collect::<Vec<_>>();
        for ((start, shape), end) in runs.into_iter().zip(ends) {
            if let Some(problem) = shape.and_then(|shape| vote.problem(shape)) {
                let detail = problem.to_string();
                for row in start..end {
                    self.find(FindingKind::MixedShapes, row, &detail);
                }
            }
        }
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
        let Facts { position, shape, whole, prompt, signature, mut notes, sample } = facts;
        let index = self.locations.len();
        let held_out = index >= self.eval_from;
        let number = u32::try_from(position.number).unwrap_or(u32::MAX);
        self.locations.push((self.files.len().saturating_sub(1) as u32, number));
        let file = self.files.last_mut().expect("a file was begun");
        file.unit = position.unit;
        if file.runs.last().is_none_or(|(_, last)| *last != shape) {
            file.runs.push((index, shape));
        }
        if let Some(shape) = shape {
            file.vote.add(shape);
        }
        notes.extend(self.repeated(index, held_out, whole, prompt));
        // What is there twice would be found as similar again.
        let repeated =
            notes.iter().any(|(kind, _)| matches!(kind, FindingKind::Duplicate | FindingKind::Leaked));
        self.signatures.push(signature.filter(|_| !repeated));

        let set = self.sets.last_mut().expect("a set was begun");
        set.rows += 1;
        if let Some(sample) = &sample {
            set.add(sample, self.options);
        }
        let mut reasons = Vec::new();
        for (kind, detail) in notes {
            if self.find(kind, index, &detail) {
                reasons.push(format!("{}: {detail}", kind.summary()));
            }
        }
        let first = self.sets.last().is_some_and(|set| set.rows <= SHOWN_FIRST);
        if let Some(sample) = sample.filter(|_| (first || !reasons.is_empty()) && self.shown.len() < SHOWN) {
            self.show(index, sample, reasons);
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

    fn at(&self, index: usize) -> (&PathBuf, Position) {
        let (file, number) = self.locations[index];
        let CheckedFile { path, unit, .. } = &self.files[file as usize];
        (path, Position { unit: *unit, number: number as usize })
    }

    fn place(&self, index: usize) -> String {
        let (path, position) = self.at(index);
        format!("{}, {position}", path.display())
    }

    /// Counts a finding; whether it is the first of its kind.
    fn find(&mut self, kind: FindingKind, index: usize, detail: &str) -> bool {
        let (file, number) = self.locations[index];
        let CheckedFile { path, unit, .. } = &self.files[file as usize];
        let severity = self.options.severity(kind);
        self.findings.entry(kind).or_insert_with(|| Finding::new(kind, severity)).add(|| Place {
            file: path.clone(),
            position: Position { unit: *unit, number: number as usize },
            detail: detail.to_owned(),
        })
    }

    fn show(&mut self, index: usize, mut sample: Sample, reasons: Vec<String>) {
        let tokens = sample.len();
        sample.ids.truncate(SHOWN_TOKENS);
        sample.weights.truncate(SHOWN_TOKENS);
        let tokenizer = self.encoder.and_then(Encoder::tokenizer);
        // A row that was encoded can be decoded, but for ids that only the model's embedding has.
        let Ok(pieces) = crate::pieces(&sample, tokenizer) else { return };
        let (file, position) = self.at(index);
        let file = file.clone();
        self.shown.push(ShownRow { file, position, tokens, reasons, pieces });
    }

    pub(super) fn finish(mut self, trained_on: &Sources) -> CheckReport {
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
        let train = sets.next().unwrap_or_default().finish(self.options, Some(trained_on));
        let eval = sets.next().filter(|set| set.rows > 0).map(|set| set.finish(self.options, None));
        let mut findings: Vec<Finding> = self.findings.into_values().collect();
        // Rows may be passed over, but not all of a set.
        let sets = [Some(&train), eval.as_ref()];
        if self.encoder.is_some() && sets.into_iter().flatten().any(|set| set.packed.is_none()) {
            findings.iter_mut().for_each(|finding| finding.severity = finding.kind.severity());
        }
        CheckReport::new(train, eval, findings, self.shown, self.options)
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
    let position = raw.position;
    let mut facts = Facts {
        position,
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
        match encoder.encode_with_text(&row, position.number) {
            Err(problem) => facts.notes.push((FindingKind::of_problem(&problem), problem.to_string())),
            Ok((Encoded { sample, remarks }, text)) => {
                facts.notes.extend(remarked(remarks));
                if let Some(text) = text {
                    facts.notes.extend(content::trimmed(&row, &text));
                    facts.notes.extend(lossy(encoder, &sample, &text));
                }
                facts.notes.extend(options.max_length.and_then(|limit| too_long(&sample, limit)));
                facts.notes.extend(over_budget(&sample, options));
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

fn over_budget(sample: &Sample, options: &CheckOptions) -> Option<Note> {
    let budget = options.run.batch.budget()?;
    let tokens = options.taken(sample.len()).filter(|tokens| *tokens > budget)?;
    Some((FindingKind::OverBudget, format!("{tokens} tokens, and a batch has at most {budget}")))
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

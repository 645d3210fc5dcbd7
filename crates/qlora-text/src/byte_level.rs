//! Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), many times as fast as the `tokenizers` library and with its ids.
//!
//! Three things make the difference: the patterns that split text are matched by hand, the tokens of frequent pieces
//! are remembered, and nothing is kept for the pieces but ids. What is not known to mean the same ([`ByteLevel::new`]
//! gives `None`) is left to the library, and so is a text that normalization would change, or with bytes that the
//! vocabulary lacks.

mod added_tokens;
mod alphabet;
mod character_class;
mod definition;
mod letters_and_numbers;
mod merging;
mod self_check;
mod splitting;
#[cfg(test)]
mod tests;
mod word_cache;

use crate::TokenSpan;
use added_tokens::AddedTokens;
use definition::{Definition, Normalization};
use merging::{Merges, Workspace};
use splitting::Splitter;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};
use word_cache::{Key, WordCache};

/// The fast path of a tokenizer.
pub(crate) struct ByteLevel {
    normalization: Normalization,
    /// Found first: those that are looked for in the text as it is, then, between these, the others.
    added: [AddedTokens; 2],
    splitter: Splitter,
    merges: Merges,
    /// The tokens by their bytes, where a piece that is one is not split.
    whole: Option<HashMap<Vec<u8>, u32>>,
    /// What each id stands for; empty for ids that are none.
    bytes: TokenBytes,
    decodes: bool,
    /// One for each thread that is encoding.
    #[expect(clippy::vec_box, reason = "a scratch is large, and moves with every text")]
    scratch: Mutex<Vec<Box<Scratch>>>,
}

/// The bytes of all tokens, by id.
struct TokenBytes {
    all: Vec<u8>,
    /// Where those of each id begin; one more than there are ids.
    starts: Vec<u32>,
}

impl TokenBytes {
    fn of(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        self.all.get(*self.starts.get(id)? as usize..*self.starts.get(id + 1)? as usize)
    }
}

/// What one thread needs.
struct Scratch {
    cache: WordCache,
    workspace: Workspace,
    ids: Vec<u32>,
    /// Whether a byte was met that is no token.
    unknown: bool,
}

/// Ids up to here get a place in a table.
const MOST_IDS: usize = 1 << 22;

impl ByteLevel {
    /// The fast path of a definition that `inner` was read from, or `None` where it is not known to be exact.
    pub(crate) fn new(definition: &[u8], inner: &tokenizers::Tokenizer) -> Option<Self> {
        let definition: Definition = serde_json::from_slice(definition).ok()?;
        let (normalization, rules) = (definition.normalization()?, definition.rules()?);
        if !definition.is_plain() {
            return None;
        }
        let model = &definition.model;
        let mut by_id: Vec<Option<&str>> = Vec::new();
        for (token, &id) in &model.vocab {
            let id = usize::try_from(id).ok().filter(|&id| id < MOST_IDS)?;
            by_id.resize(by_id.len().max(id + 1), None);
            // Two tokens of one id: which of them a merge makes is not certain.
            if by_id[id].replace(token).is_some() {
                return None;
            }
        }
        let id = |token: &str| model.vocab.get(token).copied();
        // Not every vocabulary has every byte (SmolLM2's lacks some control characters).
        let bytes = alphabet::characters().map(|character| id(character.encode_utf8(&mut [0; 4])));
        let alphabet = alphabet::Bytes::new();
        let mut joined = String::new();
        let merges: Vec<(u32, u32, u32)> = model
            .merges()?
            .into_iter()
            .map(|(left, right)| {
                joined.clear();
                joined.push_str(left);
                joined.push_str(right);
                Some((id(left)?, id(right)?, id(&joined)?))
            })
            .collect::<Option<_>>()?;
        let whole = model.ignore_merges.unwrap_or(false).then(|| {
            let pieces = model.vocab.iter();
            pieces.filter_map(|(token, &id)| Some((alphabet.of(token)?, id))).collect()
        });
        let added = added_tokens(inner, normalization)?;

        let ids = inner.get_added_tokens_decoder();
        let last = ids.keys().copied().max().map_or(0, |id| id as usize + 1).max(by_id.len());
        if last > MOST_IDS {
            return None;
        }
        let mut all = Vec::new();
        let mut starts = vec![0];
        for id in 0..last {
            let added = ids.get(&(id as u32)).map(|token| token.content.as_str());
            if let Some(token) = added.or_else(|| by_id.get(id).copied().flatten()) {
                // A character that is no byte, as of an added token: the token is what it says.
                all.extend(alphabet.of(token).unwrap_or_else(|| token.as_bytes().to_vec()));
            }
            starts.push(u32::try_from(all.len()).ok()?);
        }
        let fast = Self {
            normalization,
            added,
            splitter: Splitter::new(rules),
            merges: Merges::new(bytes, merges.into_iter()),
            whole,
            bytes: TokenBytes { all, starts },
            decodes: definition.decodes_bytes(),
            scratch: Mutex::new(Vec::new()),
        };
        self_check::agrees(&fast, inner).then_some(fast)
    }

    /// Whether the text is as normalization would leave it.
    fn is_normal(&self, text: &str) -> bool {
        match self.normalization {
            Normalization::None => true,
            // Below U+0300 there is nothing to compose.
            Normalization::Nfc => {
                text.bytes().all(|byte| byte < 0xcc) || is_nfc_quick(text.chars()) == IsNormalized::Yes
            }
        }
    }

    /// Appends the ids of a text; `None` when the library has to do it.
    pub(crate) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        if !self.is_normal(text) {
            return None;
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        let mut scratch = self.take();
        self.sections(text, |start, end, id| match id {
            Some(id) => ids.push(id),
            None => self.section(&text[start..end], &mut scratch, |_, _, piece| ids.extend_from_slice(piece)),
        });
        self.give_back(scratch).then_some(ids)
    }

    /// The ids of a text with the bytes that they stand for, as whole characters; `None` when the library has to do it.
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Option<Vec<TokenSpan>> {
        if !self.is_normal(text) {
            return None;
        }
        let mut spans = Vec::with_capacity(text.len() / 3 + 8);
        let mut scratch = self.take();
        self.sections(text, |start, end, id| match id {
            Some(id) => spans.push(TokenSpan { id, start, end }),
            None => self.section(&text[start..end], &mut scratch, |piece_start, piece_end, piece| {
                let (mut at, end) = (start + piece_start, start + piece_end);
                if let [id] = *piece {
                    spans.push(TokenSpan { id, start: at, end });
                    return;
                }
                for &id in piece {
                    let next = at + self.bytes.of(id).map_or(0, <[u8]>::len);
                    let (start, end) = (text.floor_char_boundary(at), text.ceil_char_boundary(next));
                    spans.push(TokenSpan { id, start, end });
                    at = next;
                }
            }),
        });
        self.give_back(scratch).then_some(spans)
    }

    /// The text of ids, special tokens included; `None` when the library has to do it.
    pub(crate) fn decode(&self, ids: &[u32]) -> Option<String> {
        if !self.decodes {
            return None;
        }
        let mut bytes = Vec::with_capacity(ids.len() * 5);
        for &id in ids {
            bytes.extend_from_slice(self.bytes.of(id)?);
        }
        Some(
            String::from_utf8(bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
        )
    }

    /// Calls `found` with the added tokens and what is between them, in order.
    fn sections(&self, text: &str, mut found: impl FnMut(usize, usize, Option<u32>)) {
        let [first, second] = &self.added;
        first.split(text, |outer| match outer.id {
            Some(_) => found(outer.start, outer.end, outer.id),
            None => second.split(&text[outer.start..outer.end], |inner| {
                found(outer.start + inner.start, outer.start + inner.end, inner.id);
            }),
        });
    }

    /// Calls `found` with the start, the end and the ids of each piece.
    #[inline(always)]
    fn section(&self, text: &str, scratch: &mut Scratch, mut found: impl FnMut(usize, usize, &[u32])) {
        let Scratch { cache, workspace, ids, unknown } = scratch;
        let bytes = text.as_bytes();
        let mut start = 0;
        while start < bytes.len() {
            let end = self.splitter.piece_end(text, start);
            let key = Key::of(bytes, start, end);
            match key.and_then(|key| cache.get(key)) {
                Some(known) => found(start, end, known),
                None => {
                    ids.clear();
                    if !self.piece(&bytes[start..end], workspace, ids) {
                        *unknown = true;
                    } else if let Some(key) = key {
                        cache.put(key, ids);
                    }
                    found(start, end, ids);
                }
            }
            start = end;
        }
    }

    /// Appends the tokens of a piece; whether all its bytes are known.
    #[cold]
    fn piece(&self, piece: &[u8], workspace: &mut Workspace, ids: &mut Vec<u32>) -> bool {
        match self.whole.as_ref().and_then(|whole| whole.get(piece)) {
            Some(&id) => {
                ids.push(id);
                true
            }
            None => self.merges.apply(piece, workspace, ids),
        }
    }

    fn take(&self) -> Box<Scratch> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.pop().unwrap_or_else(|| {
            Box::new(Scratch {
                cache: WordCache::new(),
                workspace: Workspace::default(),
                ids: Vec::new(),
                unknown: false,
            })
        })
    }

    /// Whether everything was known.
    fn give_back(&self, mut used: Box<Scratch>) -> bool {
        let unknown = std::mem::take(&mut used.unknown);
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(used);
        !unknown
    }
}

/// The added tokens that are looked for first, and those that come second; `None` when some have rules of their own.
fn added_tokens(inner: &tokenizers::Tokenizer, normalization: Normalization) -> Option<[AddedTokens; 2]> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for token in inner.get_added_tokens_decoder().into_values() {
        if token.lstrip || token.rstrip || token.single_word || token.content.is_empty() {
            return None;
        }
        let id = inner.token_to_id(&token.content)?;
        if token.normalized {
            if normalization == Normalization::Nfc && is_nfc_quick(token.content.chars()) != IsNormalized::Yes
            {
                return None;
            }
            second.push((token.content, id));
        } else {
            first.push((token.content, id));
        }
    }
    Some([AddedTokens::new(&first)?, AddedTokens::new(&second)?])
}

use crate::byte_level::ByteLevel;
use crate::{ChatTemplate, ChatTemplates, Error};
use aho_corasick::{AhoCorasick, AhoCorasickKind};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The keys under which `tokenizer_config.json` names special tokens, and templates know them.
pub(crate) const SPECIAL_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Tokens that end a turn in the chat formats in use. One of them stops generation when the vocabulary has
/// it and the model's chat template writes it.
const TURN_ENDS: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>"];

/// Special tokens that end a text. They stop generation whatever the files name: `eos_token` is only one token, and in
/// a chat model the end of a turn.
const TEXT_ENDS: [&str; 2] = ["<|endoftext|>", "<|end_of_text|>"];

/// A tokenizer: text to token ids and back.
///
/// Cheap to share behind a reference or an `Arc`: every method takes `&self`, and threads do not wait for each other.
///
/// Byte-level BPE of the kinds in use (GPT-2, Llama 3, Qwen, SmolLM) is done here, the rest by the `tokenizers` library;
/// the ids are the same.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Made when the first text is encoded; `None` inside when the library does everything.
    fast: OnceLock<Option<ByteLevel>>,
    /// `tokenizer.json` as it was read or made, for [`save`](Self::save).
    definition: Arc<[u8]>,
    /// `tokenizer_config.json`, unknown keys included.
    config: Map<String, Value>,
    templates: ChatTemplates,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    adds_bos: bool,
    special: BTreeMap<u32, String>,
    /// Finds the texts of the special tokens; `None` when there are none, or too many.
    special_texts: Option<AhoCorasick>,
    vocab_size: usize,
    origin: String,
}

/// A token and the text it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSpan {
    /// The token.
    pub id: u32,
    /// First byte of its text.
    pub start: usize,
    /// One past the last byte of its text. Tokens that share one character all have that whole character.
    pub end: usize,
}

/// What a tokenizer is made of.
pub(crate) struct Parts {
    pub(crate) definition: Vec<u8>,
    pub(crate) config: Map<String, Value>,
    pub(crate) templates: ChatTemplates,
    pub(crate) bos: Option<u32>,
    /// Stop tokens that the files declare, the tokenizer's own first.
    pub(crate) eos: Vec<u32>,
    pub(crate) pad: Option<u32>,
    pub(crate) adds_bos: Option<bool>,
    pub(crate) origin: String,
}

impl Parts {
    pub(crate) fn new(definition: Vec<u8>, origin: String) -> Self {
        Self {
            definition,
            config: Map::new(),
            templates: ChatTemplates::default(),
            bos: None,
            eos: Vec::new(),
            pad: None,
            adds_bos: None,
            origin,
        }
    }
}

/// Reads a `tokenizer.json`.
pub(crate) fn parse_definition(definition: &[u8], origin: &str) -> Result<tokenizers::Tokenizer, Error> {
    let refused = |reason: String| Error::Definition { origin: origin.to_owned(), reason };
    // The library panics on a syntax error inside a decoder.
    serde_json::from_slice::<serde::de::IgnoredAny>(definition)
        .map_err(|error| refused(error.to_string()))?;
    tokenizers::Tokenizer::from_bytes(definition).map_err(|error| refused(error.to_string()))
}

impl Tokenizer {
    /// Reads one `tokenizer.json`. It knows no beginning and padding tokens, no ends of turns and no chat template: those
    /// stand in other files, which [`from_directory`](Self::from_directory) reads.
    ///
    /// # Errors
    /// When the file cannot be read or is no tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let definition =
            std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let parts = Parts::new(definition, path.display().to_string());
        let inner = parse_definition(&parts.definition, &parts.origin)?;
        Self::from_parts(inner, parts)
    }

    pub(crate) fn definition(&self) -> &[u8] {
        &self.definition
    }

    pub(crate) fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    pub(crate) fn set_config(&mut self, key: &str, value: Value) {
        self.config.insert(key.to_owned(), value);
    }

    /// With the ends of turns that the new ones write as further stop tokens.
    pub(crate) fn replace_templates(&mut self, templates: ChatTemplates) {
        for end in TURN_ENDS.into_iter().filter(|end| templates.mention(end)) {
            if let Some(id) = self.id(end).filter(|id| !self.eos.contains(id)) {
                self.eos.push(id);
            }
        }
        self.templates = templates;
    }

    /// A stop token behind the end of a text: where a format has room for two, those are them.
    pub(crate) fn add_stop(&mut self, id: u32) {
        if self.eos.first() != Some(&id) {
            self.eos.retain(|&other| other != id);
            self.eos.insert(self.eos.len().min(1), id);
        }
    }

    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// What this tokenizer was made of, with another definition and configuration.
    pub(crate) fn parts_with(&self, definition: Vec<u8>, config: Map<String, Value>) -> Parts {
        Parts {
            definition,
            config,
            templates: self.templates.clone(),
            bos: self.bos,
            eos: self.eos.clone(),
            pad: self.pad,
            adds_bos: Some(self.adds_bos),
            origin: self.origin.clone(),
        }
    }

    pub(crate) fn from_parts(mut inner: tokenizers::Tokenizer, parts: Parts) -> Result<Self, Error> {
        let Parts { definition, config, templates, bos, mut eos, pad, adds_bos, origin } = parts;
        let adds_bos = match (adds_bos, bos) {
            (Some(adds_bos), _) => adds_bos,
            (None, Some(bos)) => {
                inner.encode_fast("", true).map_err(Error::tokenizer)?.get_ids().first() == Some(&bos)
            }
            (None, None) => false,
        };
        // These would change ids or offsets without being asked: a template or the caller adds special
        // tokens, and nobody cuts or pads.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(Error::tokenizer)?;

        let special: BTreeMap<u32, String> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some((id, token.content)))
            .collect();
        let special_texts = match special.is_empty() {
            true => None,
            // Of a size in proportion to the tokens: a DFA takes 1 KB for each of their bytes.
            false => {
                AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(special.values()).ok()
            }
        };
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let turn_ends = TURN_ENDS.into_iter().filter(|end| templates.mention(end));
        let turn_ends = turn_ends.filter_map(|end| inner.token_to_id(end));
        let text_ends = TEXT_ENDS.into_iter().filter_map(|end| inner.token_to_id(end));
        for id in turn_ends.chain(text_ends.filter(|id| special.contains_key(id))) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        Ok(Self {
            inner,
            fast: OnceLock::new(),
            definition: definition.into(),
            config,
            templates,
            bos,
            eos,
            pad,
            adds_bos,
            special,
            special_texts,
            vocab_size,
            origin,
        })
    }

    #[cfg(test)]
    pub(crate) fn library(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    pub(crate) fn fast(&self) -> Option<&ByteLevel> {
        self.fast.get_or_init(|| ByteLevel::new(&self.definition, &self.inner)).as_ref()
    }

    /// The ids of a text. Special tokens written in the text are recognised; none are added.
    ///
    /// # Errors
    /// When the tokenizer's own rules fail (a vocabulary without the bytes it needs).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        if let Some(ids) = self.fast().and_then(|fast| fast.encode(text)) {
            return Ok(ids);
        }
        Ok(self.inner.encode_fast(text, false).map_err(Error::tokenizer)?.get_ids().to_vec())
    }

    /// The ids of a plain text, behind the token that the model expects before one
    /// ([`adds_bos`](Self::adds_bos)). A text that begins with it gets no second one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos.filter(|bos| self.adds_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// [`encode`](Self::encode), with the bytes of `text` that each token stands for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<TokenSpan>, Error> {
        if let Some(spans) = self.fast().and_then(|fast| fast.encode_with_offsets(text)) {
            return Ok(spans);
        }
        let encoding = self.inner.encode(text, false).map_err(Error::tokenizer)?;
        let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(spans.map(|(&id, &(start, end))| TokenSpan { id, start, end }).collect())
    }

    /// The text of ids. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        if let Some(&id) = ids.iter().find(|&&id| !self.has_token(id)) {
            return Err(Error::UnknownId { id, vocab_size: self.vocab_size });
        }
        if !skip_special && let Some(text) = self.fast().and_then(|fast| fast.decode(ids)) {
            return Ok(text);
        }
        self.inner.decode(ids, skip_special).map_err(Error::tokenizer)
    }

    /// [`decode`](Self::decode) of ids that a model chose, which may be any row of its head: one without a token, as
    /// those that fill the head up to a round number, gives no text.
    ///
    /// # Errors
    /// When the tokenizer's own rules fail.
    pub fn decode_generated(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        if ids.iter().all(|&id| self.has_token(id)) {
            return self.decode(ids, skip_special);
        }
        let known: Vec<u32> = ids.iter().copied().filter(|&id| self.has_token(id)).collect();
        self.decode(&known, skip_special)
    }

    /// Whether an id is within the vocabulary.
    pub(crate) fn has_token(&self, id: u32) -> bool {
        (id as usize) < self.vocab_size
    }

    /// The token of an id, as it stands in the vocabulary (a byte-level one writes a space as `Ġ`).
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as it stands in the vocabulary.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id. The model's embedding may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether an id is a special (control) token.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains_key(&id)
    }

    /// Whether the text of a special token stands in a text.
    #[must_use]
    pub fn mentions_special(&self, text: &str) -> bool {
        match &self.special_texts {
            Some(texts) => texts.is_match(text),
            None => self.special.values().any(|token| text.contains(token.as_str())),
        }
    }

    /// The special (control) tokens and their texts, by id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.special.iter().map(|(&id, text)| (id, text.as_str()))
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the model expects [`bos`](Self::bos) in front of a plain text. A chat template writes its own.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether the model's own tokenizer puts an end token behind a plain text. Nothing here does.
    #[must_use]
    pub fn adds_eos(&self) -> bool {
        self.config.get("add_eos_token").and_then(Value::as_bool).unwrap_or(false)
    }

    /// All tokens that end generation: the tokenizer's end token first, then those of the generation
    /// configuration, then the end-of-turn tokens that the chat template writes, then special tokens that end a
    /// text (`<|endoftext|>`). May be empty.
    #[must_use]
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The token that fills a batch. Nothing in these crates pads.
    #[must_use]
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The model's chat template, with the special tokens as variables.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] when there is none, [`Error::TemplateSyntax`] when it is no valid Jinja.
    pub fn chat_template(&self) -> Result<ChatTemplate, Error> {
        self.chat_template_of(&self.templates)
    }

    pub(crate) fn chat_template_of(&self, templates: &ChatTemplates) -> Result<ChatTemplate, Error> {
        match templates.chat() {
            Some(source) => self.chat_template_from(source, templates.tool_use()),
            None => Err(Error::NoChatTemplate { origin: self.origin.clone() }),
        }
    }

    /// A chat template that is not the model's own, with this tokenizer's special tokens as variables.
    ///
    /// # Errors
    /// [`Error::TemplateSyntax`] when it is no valid Jinja.
    pub fn chat_template_from(&self, source: &str, tool_use: Option<&str>) -> Result<ChatTemplate, Error> {
        let mut template = ChatTemplate::new(source)?;
        if let Some(tool_use) = tool_use {
            template = template.with_tool_use(tool_use)?;
        }
        for key in SPECIAL_KEYS {
            if let Some(token) = self.config.get(key).and_then(crate::pretrained::token_text) {
                template = template.with_variable(key, token);
            }
        }
        Ok(template)
    }

    /// The sources of all chat templates.
    #[must_use]
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.templates
    }

    /// The source of the model's chat template.
    #[must_use]
    pub fn chat_template_source(&self) -> Option<&str> {
        self.templates.chat()
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, the chat template in it, so that `transformers`
    /// loads them. Each file appears whole or not at all; the directory must exist.
    ///
    /// # Errors
    /// [`Error::Write`] with the file.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<(), Error> {
        let directory = directory.as_ref();
        let write = |source| Error::Write { source };
        qlora_files::atomic::write_bytes(directory.join("tokenizer.json"), &self.definition)
            .map_err(write)?;
        let mut config = self.config.clone();
        self.templates.write_to(&mut config);
        qlora_files::atomic::write_json(directory.join("tokenizer_config.json"), &config).map_err(write)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("origin", &self.origin)
            .field("vocab_size", &self.vocab_size)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("pad", &self.pad)
            .finish_non_exhaustive()
    }
}

use super::pre_tokenizer::PreTokenizer;
use super::{
    ADD_BOS, ADD_EOS, ADD_SPACE_PREFIX, BOS, CHAT_TEMPLATE, CHAT_TEMPLATES, EOM, EOS, EOT, MERGES, MODEL,
    PADDING, PRE, SCORES, TOKENS, TYPES, UNKNOWN,
};
use crate::tokenizer::{Parts, Tokenizer};
use crate::vocabulary::{SpacePrefix, Vocabulary, parse, twice};
use crate::{ChatTemplates, Error};
use qlora_gguf::Metadata;
use serde_json::Value;

const ORIGIN: &str = "GGUF metadata";

impl Tokenizer {
    /// Reads the tokenizer and the chat templates of a GGUF file.
    ///
    /// `gpt2` is byte-level BPE, with the splitting rules that `tokenizer.ggml.pre` names; `llama` is
    /// SentencePiece BPE (Llama 2, Mistral, Phi-3, Gemma). Where `transformers` and llama.cpp split by different
    /// patterns (`tekken`, `gpt-4o`) or only one of them normalizes, the rules are those of `transformers`. The
    /// result can be [saved](Self::save) as a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other tokenizer, by name; [`Error::Gguf`] and [`Error::Metadata`] when a
    /// key is missing or wrong.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, Error> {
        let model = metadata.string(MODEL)?;
        let tokens = metadata.strings(TOKENS)?;
        let id = |key: &'static str| match metadata.opt_u32(key)? {
            Some(id) if id as usize >= tokens.len() => {
                Err(wrong(key, format!("{id} is no token: there are {}", tokens.len())))
            }
            id => Ok(id),
        };
        let (bos, pad, unknown) = (id(BOS)?, id(PADDING)?, id(UNKNOWN)?);
        let types = metadata.opt_i32s(TYPES)?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(wrong(TYPES, format!("{} types for {} tokens", types.len(), tokens.len())));
        }
        let mut eos: Vec<u32> = Vec::new();
        for key in [EOS, EOT, EOM] {
            eos.extend(id(key)?.filter(|id| !eos.contains(id)));
        }
        let vocabulary = Vocabulary { tokens, types, strips_right: is_phi3(metadata)? };
        let add_bos = metadata.opt_bool(ADD_BOS)?;
        let leading = |default: bool| bos.filter(|_| add_bos.unwrap_or(default));
        let (definition, adds_bos) = match model {
            "gpt2" => {
                let pre = find_pre_tokenizer(metadata.opt_string(PRE)?)?;
                let bos = leading(pre.adds_bos);
                (byte_level(metadata, pre, &vocabulary, bos)?, bos.is_some())
            }
            "llama" => {
                let bos = leading(true);
                (sentencepiece(metadata, &vocabulary, unknown, bos)?, bos.is_some())
            }
            other => {
                return Err(Error::Unsupported {
                    key: MODEL,
                    found: other.to_owned(),
                    supported: "gpt2, llama".to_owned(),
                });
            }
        };
        let (bytes, inner) = parse(&definition, ORIGIN)?;

        let mut parts = Parts::new(bytes, ORIGIN.to_owned());
        let named = [
            ("bos_token", bos),
            ("eos_token", eos.first().copied()),
            ("unk_token", unknown),
            ("pad_token", pad),
        ];
        let flags = [
            ("add_bos_token", adds_bos),
            ("add_eos_token", metadata.opt_bool(ADD_EOS)?.unwrap_or(false)),
            ("clean_up_tokenization_spaces", false),
        ];
        parts.config = named
            .into_iter()
            .filter_map(|(key, id)| Some((key.to_owned(), tokens[id? as usize].as_str().into())))
            .chain(flags.map(|(key, flag)| (key.to_owned(), flag.into())))
            .chain([("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into())])
            .collect();
        parts.templates = templates(metadata)?;
        (parts.bos, parts.eos, parts.pad, parts.adds_bos) = (bos, eos, pad, Some(adds_bos));
        Self::from_parts(inner, parts)
    }
}

fn wrong(key: &'static str, reason: String) -> Error {
    Error::Metadata { key, reason }
}

/// Phi-3's special tokens swallow the spaces behind them, which no key says.
fn is_phi3(metadata: &Metadata) -> Result<bool, Error> {
    let name = metadata.opt_string("general.name")?.unwrap_or_default().to_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

fn find_pre_tokenizer(name: Option<&str>) -> Result<&'static PreTokenizer, Error> {
    name.and_then(PreTokenizer::by_name).ok_or_else(|| Error::Unsupported {
        key: PRE,
        found: name.unwrap_or("(absent)").to_owned(),
        supported: PreTokenizer::names(),
    })
}

fn byte_level(
    metadata: &Metadata,
    pre: &PreTokenizer,
    vocabulary: &Vocabulary<'_>,
    bos: Option<u32>,
) -> Result<Value, Error> {
    let ids = vocabulary.ids().map_err(|pair| wrong(TOKENS, twice(&pair)))?;
    let merges = metadata.strings(MERGES)?.iter().enumerate().map(|(at, merge)| {
        split_merge(merge).ok_or_else(|| wrong(MERGES, format!("number {at} is {merge:?}, not two tokens")))
    });
    let merges: Vec<(&str, &str)> = merges.collect::<Result<_, _>>()?;
    let split = (pre.normalizer(), pre.to_json());
    Ok(vocabulary.byte_level(ids, &merges, split, pre.ignore_merges, bos))
}

/// Two tokens with a space between them; the first may itself begin with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge[first..].find(' ')?;
    Some((&merge[..space], &merge[space + 1..]))
}

fn sentencepiece(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    unknown: Option<u32>,
    bos: Option<u32>,
) -> Result<Value, Error> {
    let ids = vocabulary.ids().map_err(|pair| wrong(TOKENS, twice(&pair)))?;
    let scores = metadata.f32s(SCORES)?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(wrong(SCORES, format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len())));
    }
    let prefix = match metadata.opt_bool(ADD_SPACE_PREFIX)?.unwrap_or(true) {
        true => SpacePrefix::Each,
        false => SpacePrefix::Never,
    };
    Ok(vocabulary.sentencepiece(ids, scores, unknown, prefix, bos))
}

fn templates(metadata: &Metadata) -> Result<ChatTemplates, Error> {
    let mut templates = ChatTemplates::default();
    if let Some(source) = metadata.opt_string(CHAT_TEMPLATE)? {
        templates.set("default", source.to_owned());
    }
    for name in metadata.opt_strings(CHAT_TEMPLATES)?.unwrap_or_default() {
        if name != "default" {
            let source = metadata.string(&format!("{CHAT_TEMPLATE}.{name}"))?;
            templates.set(name, source.to_owned());
        }
    }
    Ok(templates)
}

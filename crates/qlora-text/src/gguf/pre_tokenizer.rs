use serde_json::{Value, json};

/// How a byte-level tokenizer splits text before merging, for the values of `tokenizer.ggml.pre` that agree in it.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// The first is the one written when only the rules are known.
    pub(super) names: &'static [&'static str],
    stages: &'static [Stage],
    pub(super) normalize_nfc: bool,
    /// Whether a piece that is a token as a whole is taken without merging.
    pub(super) ignore_merges: bool,
    /// What holds when `tokenizer.ggml.add_bos_token` is absent.
    pub(super) adds_bos: bool,
}

/// One pass over the pieces so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Every digit alone.
    Digits,
    /// GPT-2's pattern.
    Gpt2,
    /// What matches this pattern, and what lies between, are pieces.
    Pattern(&'static str),
}

macro_rules! pattern {
    ($($part:literal),+) => { Stage::Pattern(concat!($($part),+)) };
}

const DIGITS_THEN_GPT2: &[Stage] = &[Stage::Digits, Stage::Gpt2];
const LLAMA3: &[Stage] = &[pattern!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)];
const QWEN2: &[Stage] = &[pattern!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)];
const TEKKEN: &[Stage] = &[pattern!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)];
const GPT_4O: &[Stage] = &[pattern!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)];
const DEEPSEEK_V3: &[Stage] = &[
    Stage::Pattern(r"\p{N}{1,3}"),
    Stage::Pattern("[一-龥぀-ゟ゠-ヿ]+"),
    Stage::Pattern(concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
        "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    )),
];
const DEEPSEEK_CODER: &[Stage] = &[
    Stage::Pattern("[\r\n]"),
    Stage::Pattern(r"\s?\p{L}+"),
    Stage::Pattern(r"\s?\p{P}+"),
    Stage::Pattern("[一-龥ࠀ-一가-\u{d7ff}]+"),
    Stage::Digits,
];
const DEFAULT: &[Stage] = &[
    Stage::Pattern(r"[\p{P}\$\+<=>\^~\|]+"),
    Stage::Gpt2,
    Stage::Pattern(r"\p{N}+"),
    Stage::Pattern("[0-9][0-9][0-9]"),
];
const FALCON: &[Stage] =
    &[Stage::Pattern(r"[\p{P}\$\+<=>\^~\|`]+"), Stage::Gpt2, Stage::Pattern("[0-9][0-9][0-9]")];

const fn kind(names: &'static [&'static str], stages: &'static [Stage]) -> PreTokenizer {
    PreTokenizer { names, stages, normalize_nfc: false, ignore_merges: false, adds_bos: false }
}

/// Where several entries have the same stages, the first that agrees in the rest is written.
static PRE_TOKENIZERS: [PreTokenizer; 14] = [
    kind(&["gpt-2", "phi-2", "mpt", "modern-bert"], &[Stage::Gpt2]),
    PreTokenizer { normalize_nfc: true, ..kind(&["olmo"], &[Stage::Gpt2]) },
    kind(&["smollm", "refact", "starcoder", "codeshell", "exaone", "minerva-7b"], DIGITS_THEN_GPT2),
    PreTokenizer { normalize_nfc: true, ..kind(&["command-r"], DIGITS_THEN_GPT2) },
    PreTokenizer {
        ignore_merges: true,
        adds_bos: true,
        ..kind(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"], LLAMA3)
    },
    kind(&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], LLAMA3),
    PreTokenizer { normalize_nfc: true, ..kind(&["qwen2", "deepseek-r1-qwen", "megrez"], QWEN2) },
    kind(&["stablelm2", "hunyuan"], QWEN2),
    PreTokenizer { ignore_merges: true, adds_bos: true, ..kind(&["tekken"], TEKKEN) },
    kind(&["gpt-4o", "llama4"], GPT_4O),
    kind(&["deepseek-v3", "hunyuan-dense"], DEEPSEEK_V3),
    kind(&["deepseek-coder"], DEEPSEEK_CODER),
    kind(&["default"], DEFAULT),
    kind(&["falcon"], FALCON),
];

impl PreTokenizer {
    /// The rules of a `tokenizer.ggml.pre`.
    pub(super) fn by_name(name: &str) -> Option<&'static Self> {
        PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name))
    }

    /// All names, for messages.
    pub(super) fn names() -> String {
        let names: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        names.join(", ")
    }

    /// The `normalizer` of the `tokenizer.json` that means the same.
    pub(super) fn normalizer(&self) -> Value {
        if self.normalize_nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` of the `tokenizer.json` that means the same.
    pub(super) fn to_json(&self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let (last, before) = self.stages.split_last().expect("every kind has a stage");
        let stage = |stage: &Stage| match stage {
            Stage::Digits => json!({"type": "Digits", "individual_digits": true}),
            Stage::Gpt2 => split(GPT2_PATTERN),
            Stage::Pattern(pattern) => split(pattern),
        };
        let mut stages: Vec<Value> = before.iter().map(stage).collect();
        if *last == Stage::Gpt2 {
            stages.push(byte_level(true));
        } else {
            stages.extend([stage(last), byte_level(false)]);
        }
        if stages.len() == 1 {
            stages.remove(0)
        } else {
            json!({"type": "Sequence", "pretokenizers": stages})
        }
    }

    /// The kind that a `tokenizer.json` describes by its structure, or what is unknown about it.
    pub(super) fn by_structure(definition: &Value) -> Result<&'static Self, String> {
        let nfc = is_nfc(&definition["normalizer"])?;
        let mut found = Vec::new();
        flatten(&definition["pre_tokenizer"], &mut found)?;
        let ignore_merges = definition["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let alike = || PRE_TOKENIZERS.iter().filter(|pre| pre.matches(&found));
        // llama.cpp normalizes nothing and takes whole tokens only where the kind says so: rules come first.
        alike()
            .find(|pre| pre.normalize_nfc == nfc && pre.ignore_merges == ignore_merges)
            .or_else(|| alike().find(|pre| pre.ignore_merges == ignore_merges))
            .or_else(|| alike().next())
            .ok_or_else(|| format!("it splits by {}", found.join(" then ")))
    }

    fn matches(&self, found: &[String]) -> bool {
        self.stages.len() == found.len()
            && self.stages.iter().zip(found).all(|(stage, found)| stage.pattern() == found)
    }
}

/// GPT-2's own pattern, which `ByteLevel` applies with `use_regex`.
const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl Stage {
    fn pattern(self) -> &'static str {
        match self {
            Self::Digits => r"\p{N}",
            Self::Gpt2 => GPT2_PATTERN,
            Self::Pattern(pattern) => pattern,
        }
    }
}

fn is_nfc(normalizer: &Value) -> Result<bool, String> {
    match (normalizer["type"].as_str(), normalizer["normalizers"].as_array()) {
        (None, _) if normalizer.is_null() => Ok(false),
        (Some("NFC"), _) => Ok(true),
        (Some("Sequence"), Some(list)) => match &list[..] {
            [] => Ok(false),
            [one] => is_nfc(one),
            _ => Err("it has several normalizers".to_owned()),
        },
        (kind, _) => Err(format!("its normalizer is {}", kind.unwrap_or("without a type"))),
    }
}

/// The patterns of a byte-level `pre_tokenizer`, in order.
fn flatten(value: &Value, patterns: &mut Vec<String>) -> Result<(), String> {
    let kind = value["type"].as_str().unwrap_or("absent");
    match kind {
        "Sequence" => {
            for stage in value["pretokenizers"].as_array().into_iter().flatten() {
                flatten(stage, patterns)?;
            }
        }
        "ByteLevel" if value["add_prefix_space"] == true => {
            return Err("its `ByteLevel` adds a space in front".to_owned());
        }
        "ByteLevel" => {
            if value["use_regex"] != false {
                patterns.push(GPT2_PATTERN.to_owned());
            }
        }
        "Digits" if value["individual_digits"] == true => patterns.push(r"\p{N}".to_owned()),
        "Split" => {
            let isolated = value["behavior"] == "Isolated" && value["invert"] != true;
            let inverted = value["behavior"] == "Removed" && value["invert"] == true;
            match value["pattern"]["Regex"].as_str() {
                Some(pattern) if isolated || inverted => patterns.push(pattern.to_owned()),
                _ => return Err("it has a `Split` of an unknown form".to_owned()),
            }
        }
        other => return Err(format!("its pre-tokenizer has a part of type {other}")),
    }
    Ok(())
}

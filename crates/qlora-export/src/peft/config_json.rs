//! `adapter_config.json` to and from [`PeftConfig`].

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};

use super::{InvalidAdapter, PeftConfig, TargetModules};

const REMEDY: &str = "merge the adapter into its model with PEFT (merge_and_unload), and load that";

/// Keys that turn on what is not supported, unless they are null, false or empty.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("fan_in_fan_out", "a transposed weight (Conv1D)"),
    ("modules_to_save", "training whole modules beside the adapter"),
    ("layer_replication", "a stack of replicated layers"),
    ("lora_bias", "a bias in the adapter"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("arrow_config", "arrow routing"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "Monte Carlo LoRA"),
    ("target_parameters", "an adapter on bare parameters (experts)"),
    ("trainable_token_indices", "training single tokens of the embedding"),
];

/// Keys that do not change what a trained adapter computes: notes, choices of layers (the tensors tell
/// which have one), initialisations (`init_lora_weights` tells those that matter), and what only works
/// together with an unsupported key.
const IGNORED: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "velora_config",
];

impl PeftConfig {
    /// Reads the keys of `adapter_config.json`.
    ///
    /// # Errors
    /// When a key is missing or has a wrong value, or one that changes the arithmetic is not supported.
    pub fn from_json(keys: &Map<String, Value>) -> Result<Self, InvalidAdapter> {
        for (key, value) in keys {
            refuse_unsupported(key, value)?;
        }
        let config = Self {
            rank: required(keys, "r", RANK, rank)?,
            alpha: required(keys, "lora_alpha", ALPHA, Value::as_f64)?,
            dropout: optional(keys, "lora_dropout", "a number", Value::as_f64)?.unwrap_or(0.0),
            target_modules: required(keys, "target_modules", "names of layers, or a pattern", targets)?,
            use_rslora: optional(keys, "use_rslora", "true or false", Value::as_bool)?.unwrap_or(false),
            use_dora: optional(keys, "use_dora", "true or false", Value::as_bool)?.unwrap_or(false),
            rank_pattern: patterns(keys, "rank_pattern", RANK, rank)?,
            alpha_pattern: patterns(keys, "alpha_pattern", ALPHA, Value::as_f64)?,
            base_model: optional(keys, "base_model_name_or_path", "a name or path", text)?,
            task_type: optional(keys, "task_type", "a text such as CAUSAL_LM", text)?,
            inference_mode: optional(keys, "inference_mode", "true or false", Value::as_bool)?
                .unwrap_or(false),
        };
        required(keys, "peft_type", "\"LORA\"", text)?;
        config.resolver()?;
        Ok(config)
    }

    /// The keys that every release of PEFT understands: newer ones, even at their default, stop an older
    /// release from loading the adapter.
    #[must_use]
    pub fn to_json(&self) -> BTreeMap<&'static str, Value> {
        let target_modules = match &self.target_modules {
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern),
        };
        let mut keys = BTreeMap::from([
            ("base_model_name_or_path", json!(self.base_model)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(self.inference_mode)),
            ("init_lora_weights", json!(true)),
            ("lora_alpha", number(self.alpha)),
            ("lora_dropout", json!(self.dropout)),
            ("modules_to_save", Value::Null),
            ("peft_type", json!("LORA")),
            ("r", json!(self.rank)),
            ("target_modules", target_modules),
            ("task_type", json!(self.task_type)),
            ("use_dora", json!(self.use_dora)),
            ("use_rslora", json!(self.use_rslora)),
        ]);
        // The first pattern that matches counts, so these keep their order.
        if !self.rank_pattern.is_empty() {
            let patterns = self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank)));
            keys.insert("rank_pattern", Value::Object(patterns.collect()));
        }
        if !self.alpha_pattern.is_empty() {
            let patterns = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha)));
            keys.insert("alpha_pattern", Value::Object(patterns.collect()));
        }
        keys
    }
}

const RANK: &str = "a whole number, at least 1";
const ALPHA: &str = "a positive number";

fn refuse_unsupported(key: &str, value: &Value) -> Result<(), InvalidAdapter> {
    let unsupported = |feature| {
        let (key, found) = (key.to_owned(), shortened(value));
        Err(InvalidAdapter::Unsupported { key, found, feature, remedy: REMEDY })
    };
    match (key, value) {
        ("peft_type", Value::String(name)) if name != "LORA" => unsupported("an adapter other than LoRA"),
        ("bias", Value::String(bias)) if bias == "none" => Ok(()),
        // PEFT repeats these on the base model when it loads the adapter, and so changes it.
        ("init_lora_weights", Value::String(name))
            if !["gaussian", "eva", "orthogonal"].contains(&name.to_lowercase().as_str()) =>
        {
            unsupported("an initialisation that changes the base model")
        }
        (
            "r"
            | "lora_alpha"
            | "lora_dropout"
            | "target_modules"
            | "use_rslora"
            | "use_dora"
            | "rank_pattern"
            | "alpha_pattern"
            | "base_model_name_or_path"
            | "task_type"
            | "inference_mode"
            | "peft_type"
            | "init_lora_weights",
            _,
        ) => Ok(()),
        _ if IGNORED.contains(&key) || is_empty(value) => Ok(()),
        ("bias", _) => unsupported("training biases"),
        _ => match UNSUPPORTED.iter().find(|(name, _)| *name == key) {
            Some((_, feature)) => unsupported(feature),
            None => unsupported("this key"),
        },
    }
}

/// Null, false, or nothing in it.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn required<T>(
    keys: &Map<String, Value>,
    key: &'static str,
    expected: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, InvalidAdapter> {
    optional(keys, key, expected, read)?.ok_or(InvalidAdapter::MissingKey { key, expected })
}

/// None when the key is missing or null.
fn optional<T>(
    keys: &Map<String, Value>,
    key: &'static str,
    expected: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, InvalidAdapter> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| wrong(key, value, expected)),
    }
}

fn patterns<T>(
    keys: &Map<String, Value>,
    key: &'static str,
    expected: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>, InvalidAdapter> {
    let patterns = optional(keys, key, "an object of patterns", |value| value.as_object().cloned())?;
    let entry = |(pattern, value): (String, Value)| match read(&value) {
        Some(read) => Ok((pattern, read)),
        None => Err(wrong(&format!("{key}.{pattern}"), &value, expected)),
    };
    patterns.unwrap_or_default().into_iter().map(entry).collect()
}

fn wrong(key: &str, value: &Value, expected: &'static str) -> InvalidAdapter {
    InvalidAdapter::Value { key: key.to_owned(), found: shortened(value), expected }
}

fn rank(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn targets(value: &Value) -> Option<TargetModules> {
    match value {
        Value::String(pattern) => Some(TargetModules::Pattern(pattern.clone())),
        Value::Array(names) => names.iter().map(text).collect::<Option<_>>().map(TargetModules::Names),
        _ => None,
    }
}

/// Whole numbers without a fraction: PEFT declares alpha as an integer.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        Value::from(value as i64)
    } else {
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Map<String, Value> {
        let Value::Object(keys) = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
        }) else {
            unreachable!()
        };
        keys
    }

    fn with(key: &str, value: Value) -> Result<PeftConfig, InvalidAdapter> {
        let mut keys = good();
        keys.insert(key.to_owned(), value);
        PeftConfig::from_json(&keys)
    }

    #[test]
    fn what_changes_the_arithmetic_is_refused_by_name() {
        for (key, value) in [
            ("fan_in_fan_out", json!(true)),
            ("bias", json!("all")),
            ("bias", json!("lora_only")),
            ("modules_to_save", json!(["lm_head"])),
            ("layer_replication", json!([[0, 4], [2, 5]])),
            ("lora_bias", json!(true)),
            ("use_qalora", json!(true)),
            ("use_bdlora", json!({"nblocks": 2})),
            ("alora_invocation_tokens", json!([1, 2])),
            ("target_parameters", json!(["experts.up"])),
            ("peft_type", json!("IA3")),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("loftq")),
            ("invented_in_a_later_release", json!(1)),
        ] {
            let error = with(key, value.clone()).unwrap_err();
            assert!(matches!(&error, InvalidAdapter::Unsupported { key: k, .. } if k == key), "{error}");
            assert!(error.to_string().contains(&value.to_string()), "{error}");
        }
    }

    #[test]
    fn what_does_not_is_ignored() {
        for (key, value) in [
            ("use_dora", json!(false)),
            ("modules_to_save", json!([])),
            ("bias", Value::Null),
            ("invented_in_a_later_release", json!({})),
            ("peft_version", json!("0.99")),
            ("qalora_group_size", json!(16)),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("layers_to_transform", json!([0, 1])),
            ("init_lora_weights", json!("gaussian")),
            ("init_lora_weights", json!(false)),
        ] {
            assert_eq!(with(key, value).unwrap(), PeftConfig::from_json(&good()).unwrap(), "{key}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (key, value) in [
            ("r", json!(0)),
            ("r", json!(-4)),
            ("r", json!(4.5)),
            ("r", json!("4")),
            ("lora_alpha", json!(0)),
            ("lora_alpha", json!("8")),
            ("lora_dropout", json!(1.0)),
            ("lora_dropout", json!(-0.1)),
            ("target_modules", json!(4)),
            ("target_modules", json!(["q_proj", 4])),
            ("use_rslora", json!("yes")),
            ("use_dora", json!(1)),
            ("peft_type", json!(7)),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(matches!(&error, InvalidAdapter::Value { key: k, .. } if k == key), "{error}");
        }
        for pattern in ["rank_pattern", "alpha_pattern"] {
            let error = with(pattern, json!({"q_proj": 0})).unwrap_err();
            let expected = format!("{pattern}.q_proj");
            assert!(matches!(&error, InvalidAdapter::Value { key, .. } if *key == expected), "{error}");
        }
        for missing in ["r", "lora_alpha", "target_modules", "peft_type"] {
            let mut keys = good();
            keys.remove(missing);
            let error = PeftConfig::from_json(&keys).unwrap_err();
            assert!(matches!(&error, InvalidAdapter::MissingKey { key, .. } if *key == missing), "{error}");
        }
    }

    #[test]
    fn a_configuration_reads_back_equal() {
        let config = PeftConfig {
            dropout: 0.05,
            use_rslora: true,
            use_dora: true,
            rank_pattern: vec![("z".into(), 2), ("a".into(), 3)],
            alpha_pattern: vec![("q_proj".into(), 0.5)],
            base_model: Some("org/model".into()),
            task_type: None,
            inference_mode: false,
            ..PeftConfig::new(64, 16.0, TargetModules::Pattern(r".*\.q_proj".into()))
        };
        let json = serde_json::to_vec_pretty(&config.to_json()).unwrap();
        assert_eq!(PeftConfig::from_json(&serde_json::from_slice(&json).unwrap()), Ok(config));
    }
}

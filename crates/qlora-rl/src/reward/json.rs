//! Whether a completion is JSON, and of a schema.

use serde_json::Value;

use super::{Reward, RewardError, RewardInput};

/// 1 where the completion is JSON (within a ```` ```json ```` fence or not) that satisfies the schema, `partial` where
/// it is JSON that does not, else 0.
///
/// Of JSON Schema the keywords `type`, `enum`, `const`, `required`, `properties`, `additionalProperties: false`,
/// `items`, `minItems`, `maxItems`, `minimum`, `maximum` are understood. Others are refused.
#[derive(Clone, Debug)]
pub struct ValidJson {
    name: String,
    schema: Option<Value>,
    partial: f64,
}

const KEYWORDS: [&str; 13] = [
    "type",
    "enum",
    "const",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "title",
    "description",
];

impl ValidJson {
    /// A reward by a schema, or by well-formedness alone.
    ///
    /// # Errors
    /// The schema uses a keyword that is not understood, or one in a way that is not: says which.
    pub fn new(name: impl Into<String>, schema: Option<Value>, partial: f64) -> Result<Self, String> {
        if let Some(schema) = &schema {
            check(schema, "schema")?;
        }
        Ok(Self { name: name.into(), schema, partial })
    }
}

fn check(schema: &Value, place: &str) -> Result<(), String> {
    let Value::Object(keys) = schema else {
        return Err(format!("{place}: expected an object, found {schema}"));
    };
    for (key, value) in keys {
        let place = format!("{place}.{key}");
        let good = match key.as_str() {
            "type" => value.as_str().is_some_and(is_type_name),
            "enum" => value.is_array(),
            "required" => value.as_array().is_some_and(|names| names.iter().all(Value::is_string)),
            "properties" => match value.as_object() {
                Some(properties) => {
                    for (name, schema) in properties {
                        check(schema, &format!("{place}.{name}"))?;
                    }
                    true
                }
                None => false,
            },
            "additionalProperties" => value.is_boolean(),
            "items" => {
                check(value, &place)?;
                true
            }
            "minItems" | "maxItems" => value.is_u64(),
            "minimum" | "maximum" => value.is_number(),
            known => KEYWORDS.contains(&known),
        };
        if !good {
            return Err(format!("{place}: {value} is not understood; known are {}", KEYWORDS.join(", ")));
        }
    }
    Ok(())
}

fn is_type_name(name: &str) -> bool {
    ["object", "array", "string", "number", "integer", "boolean", "null"].contains(&name)
}

fn satisfies(value: &Value, schema: &Value) -> bool {
    let Value::Object(keys) = schema else { return false };
    keys.iter().all(|(key, wanted)| match key.as_str() {
        "type" => match wanted.as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("number") => value.is_number(),
            Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Some("boolean") => value.is_boolean(),
            _ => value.is_null(),
        },
        "enum" => wanted.as_array().is_some_and(|values| values.contains(value)),
        "const" => value == wanted,
        "required" => value.as_object().is_none_or(|object| {
            let names = wanted.as_array().into_iter().flatten().filter_map(Value::as_str);
            names.into_iter().all(|name| object.contains_key(name))
        }),
        "properties" => value.as_object().is_none_or(|object| {
            let properties = wanted.as_object().into_iter().flatten();
            properties.into_iter().all(|(name, schema)| object.get(name).is_none_or(|v| satisfies(v, schema)))
        }),
        "additionalProperties" => {
            let known = keys.get("properties").and_then(Value::as_object);
            wanted.as_bool() == Some(true)
                || value.as_object().is_none_or(|object| {
                    object.keys().all(|name| known.is_some_and(|known| known.contains_key(name)))
                })
        }
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| satisfies(item, wanted))),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= wanted.as_u64().unwrap_or(0)),
        "maxItems" => {
            value.as_array().is_none_or(|items| items.len() as u64 <= wanted.as_u64().unwrap_or(u64::MAX))
        }
        "minimum" => value.as_f64().is_none_or(|number| wanted.as_f64().is_none_or(|least| number >= least)),
        "maximum" => value.as_f64().is_none_or(|number| wanted.as_f64().is_none_or(|most| number <= most)),
        _ => true,
    })
}

impl Reward for ValidJson {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let text = input.completion.trim();
        let text = match text.strip_prefix("```json").or_else(|| text.strip_prefix("```")) {
            Some(fenced) => fenced.trim_end().strip_suffix("```").unwrap_or(fenced),
            None => text,
        };
        let Ok(value) = serde_json::from_str::<Value>(text) else { return Ok(Some(0.0)) };
        Ok(Some(match &self.schema {
            Some(schema) if !satisfies(&value, schema) => self.partial,
            _ => 1.0,
        }))
    }
}

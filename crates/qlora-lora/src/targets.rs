//! Which linear layers get an adapter.

use regex::Regex;

use crate::LoraError;

/// A choice of layers, as PEFT's `target_modules`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer of the decoder layers; never the head. What `"all-linear"` means.
    #[default]
    AllLinear,
    /// Layers whose path is one of these, or ends with `.` and one of these: `q_proj`, `layers.3.mlp.up_proj`.
    Names(Vec<String>),
    /// Layers whose whole path matches this regular expression.
    Pattern(String),
}

impl Targets {
    /// A function that tells whether a layer is chosen, given its path (`model.layers.0.self_attn.q_proj`).
    ///
    /// # Errors
    /// When the pattern is not a regular expression.
    pub fn matcher(&self) -> Result<impl Fn(&str) -> bool + use<>, LoraError> {
        let pattern = match self {
            Self::Pattern(pattern) => Some(
                Regex::new(&format!("^(?:{pattern})$"))
                    .map_err(|e| LoraError::BadPattern { pattern: pattern.clone(), reason: e.to_string() })?,
            ),
            _ => None,
        };
        let names = match self {
            Self::Names(names) => Some(names.clone()),
            _ => None,
        };
        Ok(move |path: &str| match (&pattern, &names) {
            (Some(pattern), _) => pattern.is_match(path),
            (None, Some(names)) => names.iter().any(|name| names_layer(name, path)),
            (None, None) => true,
        })
    }
}

/// Whether `name` is `path`, or its end from a dot on.
fn names_layer(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AllLinear => f.write_str("all-linear"),
            Self::Names(names) => write!(f, "[{}]", names.join(", ")),
            Self::Pattern(pattern) => write!(f, "`{pattern}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_components() {
        let matches = Targets::Names(vec!["q_proj".into(), "layers.3.mlp.up_proj".into()]).matcher().unwrap();
        assert!(matches("model.layers.0.self_attn.q_proj"));
        assert!(matches("model.layers.3.mlp.up_proj"));
        assert!(!matches("model.layers.13.mlp.up_proj".replace("13", "1").as_str()));
        assert!(!matches("model.layers.0.self_attn.xq_proj"));
    }

    #[test]
    fn a_pattern_matches_the_whole_path() {
        let matches = Targets::Pattern(r".*\.(q|v)_proj".into()).matcher().unwrap();
        assert!(matches("model.layers.0.self_attn.v_proj"));
        assert!(!matches("model.layers.0.self_attn.v_proj.extra"));
        assert!(matches!(
            Targets::Pattern("(".into()).matcher().map(|_| ()),
            Err(LoraError::BadPattern { .. })
        ));
    }
}

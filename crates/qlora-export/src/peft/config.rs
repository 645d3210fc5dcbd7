//! What `adapter_config.json` says about an adapter.

use regex::Regex;

use super::InvalidAdapter;

/// Which layers an adapter was made for, as `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Layers whose path is one of these, or ends with `.` and one of these.
    Names(Vec<String>),
    /// Layers whose whole path matches this regular expression; `all-linear` stands for all.
    Pattern(String),
}

/// The configuration of a LoRA adapter, as far as it varies: what PEFT knows beyond this is either refused
/// when it is read, or of no consequence.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// Rank (`r`) of the layers that `rank_pattern` does not name; at least 1.
    pub rank: usize,
    /// Alpha (`lora_alpha`) of the layers that `alpha_pattern` does not name; positive.
    pub alpha: f64,
    /// Probability, in `[0, 1)`, with which an input of the adapter is zeroed in training.
    pub dropout: f64,
    /// Which layers have an adapter.
    pub target_modules: TargetModules,
    /// Scales by alpha / √rank instead of alpha / rank (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// Each row of the adapted weight is brought to a trained norm (DoRA, <https://arxiv.org/abs/2402.09353>).
    pub use_dora: bool,
    /// Ranks of some layers: regular expressions that match the end of a layer's path, from a dot on. The
    /// first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// As `rank_pattern`, for alpha.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Hub id or path of the model that the adapter was trained on.
    pub base_model: Option<String>,
    /// What the model is for: `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Whether PEFT loads the adapter frozen.
    pub inference_mode: bool,
}

impl PeftConfig {
    /// An adapter of a language model, without dropout or exceptions.
    #[must_use]
    pub fn new(rank: usize, alpha: f64, target_modules: TargetModules) -> Self {
        Self {
            rank,
            alpha,
            dropout: 0.0,
            target_modules,
            use_rslora: false,
            use_dora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model: None,
            task_type: Some("CAUSAL_LM".to_owned()),
            inference_mode: true,
        }
    }

    /// Checks every number and compiles the patterns.
    pub(super) fn resolver(&self) -> Result<Resolver<'_>, InvalidAdapter> {
        let value = |key: &str, found: String, expected| {
            Err(InvalidAdapter::Value { key: key.to_owned(), found, expected })
        };
        let positive = |alpha: f64| alpha > 0.0 && alpha.is_finite();
        if self.rank == 0 {
            return value("r", self.rank.to_string(), "at least 1");
        }
        if !positive(self.alpha) {
            return value("lora_alpha", self.alpha.to_string(), "a positive number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return value("lora_dropout", self.dropout.to_string(), "at least 0 and below 1");
        }
        if let Some((key, rank)) = self.rank_pattern.iter().find(|(_, rank)| *rank == 0) {
            return value(&format!("rank_pattern.{key}"), rank.to_string(), "at least 1");
        }
        if let Some((key, alpha)) = self.alpha_pattern.iter().find(|(_, alpha)| !positive(*alpha)) {
            return value(&format!("alpha_pattern.{key}"), alpha.to_string(), "a positive number");
        }
        let targets = match &self.target_modules {
            TargetModules::Names(names) => Targets::Names(names),
            TargetModules::Pattern(pattern) if pattern == "all-linear" => Targets::All,
            TargetModules::Pattern(pattern) => {
                Targets::Matching(compile("target_modules", pattern, &format!("^(?:{pattern})$"))?)
            }
        };
        Ok(Resolver {
            config: self,
            targets,
            ranks: compile_all("rank_pattern", &self.rank_pattern)?,
            alphas: compile_all("alpha_pattern", &self.alpha_pattern)?,
        })
    }
}

/// A checked configuration, with its patterns compiled.
pub(super) struct Resolver<'a> {
    config: &'a PeftConfig,
    targets: Targets<'a>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

enum Targets<'a> {
    All,
    Names(&'a [String]),
    Matching(Regex),
}

impl Resolver<'_> {
    pub(super) fn targets(&self, layer: &str) -> bool {
        match &self.targets {
            Targets::All => true,
            Targets::Names(names) => names.iter().any(|name| {
                layer.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
            Targets::Matching(pattern) => pattern.is_match(layer),
        }
    }

    pub(super) fn rank(&self, layer: &str) -> usize {
        first_match(&self.ranks, layer).unwrap_or(self.config.rank)
    }

    /// What the update of a layer is multiplied with.
    pub(super) fn scale(&self, layer: &str) -> f64 {
        let alpha = first_match(&self.alphas, layer).unwrap_or(self.config.alpha);
        let rank = self.rank(layer) as f64;
        if self.config.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], layer: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(layer)).map(|&(_, value)| value)
}

fn compile_all<T: Copy>(
    key: &'static str,
    patterns: &[(String, T)],
) -> Result<Vec<(Regex, T)>, InvalidAdapter> {
    let compile = |(pattern, value): &(String, T)| {
        Ok((compile(key, pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))?, *value))
    };
    patterns.iter().map(compile).collect()
}

fn compile(key: &'static str, pattern: &str, anchored: &str) -> Result<Regex, InvalidAdapter> {
    // The pattern alone first: `a)(b` compiles when it is put in parentheses.
    Regex::new(pattern).and_then(|_| Regex::new(anchored)).map_err(|error| InvalidAdapter::Pattern {
        key,
        pattern: pattern.to_owned(),
        reason: error.to_string().replace('\n', " "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PeftConfig {
        PeftConfig::new(8, 16.0, TargetModules::Names(vec!["q_proj".into(), "mlp.up_proj".into()]))
    }

    #[test]
    fn patterns_match_the_end_of_a_path() {
        let config = PeftConfig {
            rank_pattern: vec![
                ("layers.0.self_attn.q_proj".into(), 2),
                (r"layers\.[12]\..*".into(), 4),
                ("q_proj".into(), 16),
                ("^model.layers.9.mlp.up_proj".into(), 1),
            ],
            alpha_pattern: vec![("up_proj".into(), 64.0)],
            ..config()
        };
        let resolver = config.resolver().unwrap();
        for (layer, rank, scale) in [
            ("model.layers.0.self_attn.q_proj", 2, 8.0),
            ("model.layers.1.self_attn.q_proj", 4, 4.0),
            ("model.layers.2.mlp.up_proj", 4, 16.0),
            ("model.layers.10.self_attn.q_proj", 16, 1.0),
            ("model.layers.3.self_attn.xq_proj", 8, 2.0),
            ("model.layers.9.mlp.up_proj", 1, 64.0),
            ("model.layers.3.mlp.up_proj", 8, 8.0),
        ] {
            assert_eq!((resolver.rank(layer), resolver.scale(layer)), (rank, scale), "{layer}");
        }
        let rslora = PeftConfig { use_rslora: true, rank_pattern: Vec::new(), ..config };
        let scale = rslora.resolver().unwrap().scale("model.layers.3.mlp.up_proj");
        assert_eq!(scale, 64.0 / 8f64.sqrt());
    }

    #[test]
    fn targets_are_names_or_a_pattern() {
        let names = config();
        let names = names.resolver().unwrap();
        assert!(names.targets("model.layers.0.self_attn.q_proj") && names.targets("q_proj"));
        assert!(!names.targets("model.layers.0.self_attn.xq_proj") && !names.targets("up_proj"));
        let pattern = TargetModules::Pattern(r".*\.layers\.\d\..*proj".into());
        let pattern = PeftConfig { target_modules: pattern, ..config() };
        let pattern = pattern.resolver().unwrap();
        assert!(pattern.targets("model.layers.0.self_attn.q_proj"));
        assert!(!pattern.targets("model.layers.0.self_attn.q_proj.more"));
        let all = PeftConfig { target_modules: TargetModules::Pattern("all-linear".into()), ..config() };
        assert!(all.resolver().unwrap().targets("anything"));
    }

    #[test]
    fn bad_patterns_are_named() {
        for pattern in ["(", "a)(b", "(?=lookahead)q_proj"] {
            let config = PeftConfig { rank_pattern: vec![(pattern.into(), 1)], ..config() };
            let error = config.resolver().err().unwrap();
            assert!(matches!(&error, InvalidAdapter::Pattern { key: "rank_pattern", .. }), "{error}");
        }
    }
}

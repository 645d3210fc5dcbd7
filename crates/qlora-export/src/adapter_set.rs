//! A model's adapters to and from PEFT's.

use std::collections::{BTreeMap, BTreeSet};

use qlora_lora::{AdapterFactors, LoraConfig, Targets};
use qlora_models::AdapterSet;

use crate::{AdapterTensor, Factor, InvalidAdapter, PeftAdapter, PeftConfig, TargetModules};

impl PeftConfig {
    /// The configuration with which further training goes on. Ranks and scales of single layers are not
    /// in it, but in the [`AdapterSet`].
    #[must_use]
    pub fn lora_config(&self) -> LoraConfig {
        let targets = match &self.target_modules {
            TargetModules::Names(names) => Targets::Names(names.clone()),
            TargetModules::Pattern(pattern) if pattern == "all-linear" => Targets::AllLinear,
            TargetModules::Pattern(pattern) => Targets::Pattern(pattern.clone()),
        };
        let Self { rank, alpha, dropout, use_rslora: rslora, .. } = *self;
        LoraConfig { rank, alpha, dropout, rslora, targets }
    }
}

impl PeftAdapter {
    /// The adapters of a model as PEFT has them. `base_model` is the hub id or path that PEFT loads the
    /// base model from.
    ///
    /// Layers whose rank or scale is not that of `config`, as after continuing from an adapter with
    /// patterns, get entries in `rank_pattern` and `alpha_pattern`. Names stand for `all-linear`, which
    /// means other layers in other releases of PEFT.
    ///
    /// # Errors
    /// When the set is empty, its factors do not fit each other, or belong to layers that are no targets.
    pub fn from_adapter_set(
        set: AdapterSet,
        config: &LoraConfig,
        base_model: Option<&str>,
    ) -> Result<Self, InvalidAdapter> {
        let target_modules = match &config.targets {
            Targets::AllLinear => TargetModules::Names(last_names(&set)),
            Targets::Names(names) => TargetModules::Names(names.clone()),
            Targets::Pattern(pattern) => TargetModules::Pattern(pattern.clone()),
        };
        let mut peft = PeftConfig {
            dropout: config.dropout,
            use_rslora: config.rslora,
            base_model: base_model.map(str::to_owned),
            ..PeftConfig::new(config.rank, config.alpha, target_modules)
        };
        let mut tensors = BTreeMap::new();
        for (path, (factors, scale)) in set.layers {
            let AdapterFactors { a, b, rank, inputs, outputs, magnitude } = factors;
            if let Some(values) = magnitude {
                peft.use_dora = true;
                let shape = vec![outputs];
                tensors.insert(Factor::Magnitude.tensor_name(&path), AdapterTensor { shape, values });
            }
            let divisor = if config.rslora { (rank as f64).sqrt() } else { rank as f64 };
            if rank != config.rank {
                peft.rank_pattern.push((path.clone(), rank));
            }
            if scale != config.alpha / divisor {
                peft.alpha_pattern.push((path.clone(), scale * divisor));
            }
            tensors
                .insert(Factor::A.tensor_name(&path), AdapterTensor { shape: vec![rank, inputs], values: a });
            tensors.insert(
                Factor::B.tensor_name(&path),
                AdapterTensor { shape: vec![outputs, rank], values: b },
            );
        }
        Self::new(peft, tensors)
    }

    /// The factors and scale of each layer, to be attached to a model.
    #[must_use]
    pub fn adapter_set(&self) -> AdapterSet {
        let layers = self.layers().into_iter().map(|(path, layer)| {
            let factors = AdapterFactors {
                a: layer.a.to_vec(),
                b: layer.b.to_vec(),
                rank: layer.rank,
                inputs: layer.inputs,
                outputs: layer.outputs,
                magnitude: layer.magnitude.map(<[f32]>::to_vec),
            };
            (path.to_owned(), (factors, layer.scale))
        });
        AdapterSet { layers: layers.collect() }
    }
}

/// The last parts of the layers' paths: `down_proj`, `gate_proj`...
fn last_names(set: &AdapterSet) -> Vec<String> {
    let names: BTreeSet<&str> =
        set.layers.keys().map(|path| path.rsplit('.').next().unwrap_or(path)).collect();
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(rank: usize) -> AdapterFactors {
        let (a, b) = (vec![0.5; rank * 3], vec![-0.25; 5 * rank]);
        AdapterFactors { a, b, rank, inputs: 3, outputs: 5, magnitude: None }
    }

    #[test]
    fn magnitudes_go_with_all_layers_or_none() {
        let layer = |magnitude| (AdapterFactors { magnitude, ..factors(2) }, 1.0);
        let (dora, lora) = (layer(Some(vec![1.5; 5])), layer(None));
        let config = LoraConfig { rank: 2, alpha: 2.0, ..LoraConfig::default() };
        let set = |layers: &[(&str, &(AdapterFactors, f64))]| AdapterSet {
            layers: layers.iter().map(|(path, layer)| ((*path).to_owned(), (*layer).clone())).collect(),
        };
        let all = set(&[("a.up_proj", &dora), ("b.up_proj", &dora)]);
        let adapter = PeftAdapter::from_adapter_set(all.clone(), &config, None).unwrap();
        assert!(adapter.config().use_dora);
        assert_eq!(adapter.adapter_set(), all);
        let some = set(&[("a.up_proj", &dora), ("b.up_proj", &lora)]);
        let error = PeftAdapter::from_adapter_set(some, &config, None).unwrap_err();
        assert!(
            matches!(&error, InvalidAdapter::MissingFactor { missing, .. } if missing.contains("b.up_proj")),
            "{error}"
        );
    }

    #[test]
    fn a_set_comes_back_equal_whatever_its_ranks_and_scales() {
        for rslora in [false, true] {
            let config = LoraConfig { rank: 4, alpha: 6.0, rslora, ..LoraConfig::default() };
            let layers = [
                ("model.layers.0.mlp.up_proj", 4, config.scale()),
                ("model.layers.1.mlp.up_proj", 2, if rslora { 6.0 / 2f64.sqrt() } else { 3.0 }),
                ("model.layers.1.self_attn.q_proj", 4, 0.5),
                ("model.layers.11.self_attn.q_proj", 4, config.scale()),
            ];
            let layers = layers.map(|(path, rank, scale)| (path.to_owned(), (factors(rank), scale)));
            let set = AdapterSet { layers: BTreeMap::from(layers) };
            let adapter = PeftAdapter::from_adapter_set(set.clone(), &config, Some("org/base")).unwrap();
            assert_eq!(adapter.config().rank_pattern, [("model.layers.1.mlp.up_proj".to_owned(), 2)]);
            assert_eq!(adapter.config().alpha_pattern.len(), 1);
            let names = ["q_proj", "up_proj"].map(str::to_owned).to_vec();
            assert_eq!(adapter.config().target_modules, TargetModules::Names(names));
            assert_eq!(adapter.adapter_set(), set);
            let back = adapter.config().lora_config();
            assert_eq!((back.rank, back.alpha, back.rslora), (4, 6.0, rslora));
        }
    }
}

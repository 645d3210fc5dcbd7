//! Every case of TRL's losses and advantages.

use std::collections::BTreeMap;

use qlora_rl::{
    Aggregation, CorrectionMode, ImportanceLevel, LossBatch, LossKind, LossOptions, Normalization,
    RewardScale, RewardTable, SamplerCorrection, VespoOptions, advantages, loss, sampler_ratios,
    sampling_metrics,
};
use serde_json::Value;

fn read(name: &str) -> Option<Value> {
    let path = qlora_testing::golden(name)?;
    Some(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
}

fn f(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// `[8][12]` to what stands at the places of the ragged batch.
fn ragged(value: &Value, lengths: &[usize]) -> Vec<f64> {
    let rows = value.as_array().unwrap().iter().zip(lengths);
    rows.flat_map(|(row, length)| row.as_array().unwrap()[..*length].iter().map(f)).collect()
}

fn ragged32(value: &Value, lengths: &[usize]) -> Vec<f32> {
    ragged(value, lengths).into_iter().map(|x| x as f32).collect()
}

fn options(case: &Value, has_sampler: bool) -> LossOptions {
    let number = |key: &str| case.get(key).filter(|v| !v.is_null()).map(f);
    let default = LossOptions::default();
    let vespo = VespoOptions::default();
    let kind = case["loss_type"].as_str().unwrap();
    LossOptions {
        kind: LossKind::NAMED.iter().find(|(name, _)| *name == kind).unwrap().1,
        importance: match case["importance_sampling_level"].as_str().unwrap() {
            "token" => ImportanceLevel::Token,
            _ => ImportanceLevel::Sequence,
        },
        epsilon: f(&case["epsilon_low"]),
        epsilon_high: f(&case["epsilon_high"]),
        delta: number("delta"),
        beta: f(&case["beta"]),
        bias_correction_kl: case.get("use_bias_correction_kl").is_some_and(|v| v.as_bool().unwrap()),
        entropy_coef: number("entropy_coef").unwrap_or(0.0),
        top_entropy_quantile: number("top_entropy_quantile").unwrap_or(1.0),
        off_policy_mask_threshold: number("off_policy_mask_threshold"),
        sapo_temperature_pos: number("sapo_temperature_pos").unwrap_or(default.sapo_temperature_pos),
        sapo_temperature_neg: number("sapo_temperature_neg").unwrap_or(default.sapo_temperature_neg),
        vespo: VespoOptions {
            k_pos: number("vespo_k_pos").unwrap_or(vespo.k_pos),
            lambda_pos: number("vespo_lambda_pos").unwrap_or(vespo.lambda_pos),
            k_neg: number("vespo_k_neg").unwrap_or(vespo.k_neg),
            lambda_neg: number("vespo_lambda_neg").unwrap_or(vespo.lambda_neg),
        },
        sampler_correction: has_sampler.then(|| {
            let mode = case["vllm_importance_sampling_mode"].as_str().unwrap();
            SamplerCorrection {
                mode: CorrectionMode::NAMED.iter().find(|(name, _)| *name == mode).unwrap().1,
                min: number("vllm_importance_sampling_clip_min"),
                max: f(&case["vllm_importance_sampling_clip_max"]),
            }
        }),
        max_completion_length: case.get("max_completion_length").map_or(12, |v| v.as_u64().unwrap() as usize),
    }
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance
}

/// Gradients: relative to the largest of the case, as f32 rounding of the reference is.
fn gradients_agree(name: &str, found: &[f64], expected: &[f64]) {
    let scale = expected.iter().fold(0.0_f64, |most, g| most.max(g.abs()));
    for (t, (found, expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = 1e-5 * expected.abs() + 1e-6 * scale;
        assert!(close(*found, *expected, tolerance), "{name}: token {t}: gradient {found}, not {expected}");
    }
}

#[test]
fn losses_gradients_and_metrics_are_those_of_trl() {
    let Some(golden) = read("rl/grpo_losses.json") else { return };
    let inputs = &golden["inputs"];
    let lengths: Vec<usize> = inputs["completion_lengths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as usize)
        .collect();
    let [log_probs, old, reference, sampled, entropies] =
        ["logps", "old_logps", "ref_logps", "sampling_logps", "entropies"]
            .map(|name| ragged32(&inputs[name], &lengths));
    let advantages: Vec<f32> = inputs["advantages"].as_array().unwrap().iter().map(|v| f(v) as f32).collect();
    let cases = ["cases", "extra_cases"].map(|key| golden[key].as_array().unwrap());
    let mut checked = 0;
    for case in cases.into_iter().flatten() {
        let name = case["name"].as_str().unwrap();
        let has_sampler = case.get("vllm_importance_sampling_mode").is_some();
        let options = options(case, has_sampler);
        let mut mask = vec![true; log_probs.len()];
        if case["mask_truncated_completions"].as_bool().unwrap() {
            let start: usize = lengths[..3].iter().sum();
            mask[start..start + lengths[3]].fill(false);
        }
        if let Some(tools) = case.get("tool_mask") {
            mask.iter_mut().zip(ragged(tools, &lengths)).for_each(|(m, tool)| *m &= tool != 0.0);
        }
        let on_policy = name.contains("-on-policy");
        let batch = LossBatch {
            lengths: &lengths,
            mask: &mask,
            log_probs: &log_probs,
            old_log_probs: (!on_policy).then_some(old.as_slice()),
            ref_log_probs: Some(&reference),
            sampling_log_probs: has_sampler.then_some(sampled.as_slice()),
            entropies: Some(&entropies),
            advantages: &advantages,
        };
        let is_eval = case.get("mode").is_some_and(|mode| mode == "eval");
        let accumulate = case.get("current_gradient_accumulation_steps").filter(|_| !is_eval).map_or(1.0, f);
        // TRL counts the generation batch, and takes the share of it that an optimizer step has.
        let generations = case.get("steps_per_generation").filter(|_| !is_eval).map_or(accumulate, f);
        let items = f(&case["num_items_in_batch"]) * accumulate / generations;
        let norm = Normalization { accumulate, items };
        let found = loss(&options, &batch, norm);

        let expected = f(&case["loss_f64"]);
        assert!(close(found.loss, expected, 1e-6), "{name}: loss {}, not {expected}", found.loss);
        gradients_agree(name, &found.d_log_probs, &ragged(&case["grad_logps"], &lengths));
        match case.get("grad_entropies") {
            Some(expected) => {
                gradients_agree(name, &found.d_entropies.unwrap(), &ragged(expected, &lengths));
            }
            None => assert_eq!(found.d_entropies, None, "{name}"),
        }
        metrics_agree(name, &found.metrics, &case["metrics"]);
        if has_sampler {
            metrics_agree(name, &sampling_metrics(&options, &batch), &case["sampling_metrics"]);
            let ratios = sampler_ratios(&batch, &options.sampler_correction.unwrap());
            let mut start = 0;
            for (row, length) in case["importance_sampling_ratio"].as_array().unwrap().iter().zip(&lengths) {
                let row = row.as_array().unwrap();
                for t in 0..*length {
                    let expected = f(row.get(t).unwrap_or(&row[0]));
                    assert!(close(ratios[start + t], expected, 1e-6), "{name}: sampler's ratio");
                }
                start += length;
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 384 + 99);
}

fn metrics_agree<K: std::borrow::Borrow<str> + Ord>(name: &str, found: &BTreeMap<K, f64>, expected: &Value) {
    let expected = expected.as_object().unwrap();
    for (key, value) in expected {
        let found = found.get(key.as_str()).copied();
        match value.as_f64() {
            Some(value) => {
                let found = found.unwrap_or_else(|| panic!("{name}: {key} is missing, expected {value}"));
                assert!(
                    close(found, value, 2e-6 * value.abs().max(1.0)),
                    "{name}: {key} {found}, not {value}"
                );
            }
            None => assert_eq!(found, None, "{name}: {key}"),
        }
    }
    let extra: Vec<&str> = found.keys().map(K::borrow).filter(|key| !expected.contains_key(*key)).collect();
    assert!(extra.is_empty(), "{name}: {extra:?} are not TRL's");
}

#[test]
fn advantages_and_metrics_are_those_of_trl() {
    let Some(golden) = read("rl/grpo_advantages.json") else { return };
    let names = ["correct", "formatted", "brevity"].map(String::from);
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        // TRL rounds rewards and weights to f32 first.
        let round = |value: &Value| value.as_f64().map(|x| f64::from(x as f32));
        let rewards: Vec<Vec<Option<f64>>> = golden["rewards"][case["scenario"].as_str().unwrap()]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.as_array().unwrap().iter().map(round).collect())
            .collect();
        let weights: Vec<f64> = match case["reward_weights"].as_array() {
            Some(weights) => weights.iter().map(|w| round(w).unwrap()).collect(),
            None => vec![1.0; 3],
        };
        let scale = match case["scale_rewards"].as_str().unwrap() {
            "group" => RewardScale::Group,
            "batch" => RewardScale::Batch,
            _ => RewardScale::None,
        };
        let aggregation = match case["multi_objective_aggregation"].as_str().unwrap() {
            "sum_then_normalize" => Aggregation::SumThenNormalize,
            _ => Aggregation::NormalizeThenSum,
        };
        let table = RewardTable { names: &names, weights: &weights, rewards: &rewards, group: 4 };
        let found = advantages(table, scale, aggregation);
        let expected: Vec<f64> = case["advantages_f64"].as_array().unwrap().iter().map(f).collect();
        for (i, (found, expected)) in found.values.iter().zip(&expected).enumerate() {
            assert!(close(*found, *expected, 1e-6), "{name}: advantage {i} is {found}, not {expected}");
        }
        let mut metrics = case["metrics"].clone();
        metrics["frac_reward_zero_std"] = case["frac_reward_zero_std_f64"].clone();
        metrics_agree(name, &found.metrics, &metrics);
    }
    assert_eq!(cases.len(), 120);
}

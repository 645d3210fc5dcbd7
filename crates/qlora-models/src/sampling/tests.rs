use qlora_kernels::sampling::{distribution, sample_row};

use super::*;

#[test]
fn the_penalty_counts_a_token_once() {
    let mut logits = [1.0, 3.0, 2.0, 3.0, -1.0, 0.5];
    penalise(&mut logits, &[&[1, 1], &[4]], 2.0);
    assert_eq!(logits, [1.0, 1.5, 2.0, 3.0, -2.0, 0.5]);
}

#[test]
fn draws_follow_the_seed_and_the_stream() {
    let logits = [1.0, 3.0, 2.0, 3.0, -1.0, 0.5];
    let draw = |seed, stream| {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, seed, stream);
        (0..100).map(|_| sample_row(&logits, &sampler.draw()).0).collect::<Vec<_>>()
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(1, 1));
    assert_ne!(draw(1, 0), draw(2, 0));
}

/// With the penalty before the warpers, as transformers has it; the warpers alone are tested where they are.
#[test]
fn golden_penalties() {
    let Some(path) = qlora_testing::golden("rl/sampling.json") else { return };
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let Some(penalty) = case["repetition_penalty"].as_f64() else { continue };
        let or = |key: &str, default: f64| case[key].as_f64().unwrap_or(default);
        let sampling = Sampling {
            temperature: or("temperature", 1.0),
            top_k: or("top_k", 0.0) as usize,
            top_p: or("top_p", 1.0),
            min_p: or("min_p", 0.0),
            typical_p: or("typical_p", 1.0),
            repetition_penalty: penalty,
            ..Sampling::default()
        };
        for (index, row) in golden[case["input"].as_str().unwrap()].as_array().unwrap().iter().enumerate() {
            let mut logits: Vec<f32> = row.as_array().unwrap().iter().map(|z| number(z) as f32).collect();
            let seen: Vec<u32> = golden["input_ids"][index]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            penalise(&mut logits, &[&seen], penalty);
            let mut got = distribution(&logits, &sampling.warpers());
            got.sort_by_key(|(token, _)| *token);
            let kept: Vec<u64> = got.iter().map(|(token, _)| u64::from(*token)).collect();
            let expected: Vec<u64> =
                case["kept"][index].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
            assert_eq!(kept, expected, "{}", case["name"]);
            for ((_, p), e) in got.iter().zip(case["probabilities_of_kept"][index].as_array().unwrap()) {
                assert!((p - number(e)).abs() < 1e-6, "{}", case["name"]);
            }
            checked += 1;
        }
    }
    assert!(checked >= 12, "only {checked} rows were checked");
}

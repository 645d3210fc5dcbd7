use super::*;

const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, 0.5];

fn kept(sampling: Sampling) -> Vec<u32> {
    let mut kept: Vec<u32> = distribution(&LOGITS, &sampling).iter().map(|(token, _)| *token).collect();
    kept.sort_unstable();
    kept
}

fn warm() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    let (token, log_prob) = Sampler::new(Sampling::default(), 0, 0).sample(&mut LOGITS.clone(), &[]);
    assert_eq!(token, 1);
    let sum: f64 = LOGITS.iter().map(|z| f64::from(*z).exp()).sum();
    assert!((f64::from(log_prob) - (3.0 - sum.ln())).abs() < 1e-6);
}

#[test]
fn top_k_keeps_ties_with_the_kth() {
    assert_eq!(kept(Sampling { top_k: 1, ..warm() }), [1, 3]);
    assert_eq!(kept(Sampling { top_k: 3, ..warm() }), [1, 2, 3]);
}

#[test]
fn top_p_and_min_p_keep_the_likeliest() {
    assert_eq!(kept(Sampling { top_p: 0.01, ..warm() }).len(), 1);
    assert_eq!(kept(Sampling { min_p: 0.3, ..warm() }), [1, 2, 3]);
    assert_eq!(kept(Sampling { min_p: 1.0, ..warm() }), [1, 3]);
}

#[test]
fn the_penalty_counts_a_token_once() {
    let mut logits = LOGITS;
    penalise(&mut logits, &[1, 1, 4], 2.0);
    assert_eq!(logits, [1.0, 1.5, 2.0, 3.0, -2.0, 0.5]);
}

#[test]
fn draws_follow_the_distribution_and_the_seed() {
    let draw = |seed, stream| {
        let mut sampler = Sampler::new(warm(), seed, stream);
        (0..4000).map(|_| sampler.sample(&mut LOGITS.clone(), &[]).0).collect::<Vec<_>>()
    };
    let first = draw(1, 0);
    assert_eq!(first, draw(1, 0));
    assert_ne!(first, draw(1, 1));
    for (token, probability) in distribution(&LOGITS, &warm()) {
        let share = first.iter().filter(|t| **t == token).count() as f64 / first.len() as f64;
        // Five standard deviations of a binomial share.
        let bound = 5.0 * (probability * (1.0 - probability) / first.len() as f64).sqrt();
        assert!((share - probability).abs() < bound, "token {token}: {share} against {probability}");
    }
}

/// Kept tokens and probabilities equal those of transformers' logits processors.
#[test]
fn golden_warpers() {
    let Some(path) = qlora_testing::golden("rl/sampling.json") else { return };
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let Some(sampling) = parameters(case) else { continue };
        let rows = golden[case["input"].as_str().unwrap()].as_array().unwrap();
        for (index, row) in rows.iter().enumerate() {
            let mut logits: Vec<f32> =
                row.as_array().unwrap().iter().map(|z| z.as_f64().unwrap() as f32).collect();
            let seen: Vec<u32> = golden["input_ids"][index]
                .as_array()
                .into_iter()
                .flatten()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            penalise(&mut logits, &seen, sampling.repetition_penalty);
            let mut got = distribution(&logits, &sampling);
            got.sort_by_key(|(token, _)| *token);
            let tokens: Vec<u64> = got.iter().map(|(token, _)| u64::from(*token)).collect();
            let expected: Vec<u64> =
                case["kept"][index].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
            assert_eq!(tokens, expected, "{}", case["name"]);
            for ((_, p), e) in got.iter().zip(case["probabilities_of_kept"][index].as_array().unwrap()) {
                assert!((p - e.as_f64().unwrap()).abs() < 1e-6, "{}", case["name"]);
            }
            checked += 1;
        }
    }
    assert!(checked > 80, "only {checked} rows were checked");
}

/// The parameters of a golden case, or `None` where it uses a processor that we do not have.
fn parameters(case: &serde_json::Value) -> Option<Sampling> {
    let mut sampling = warm();
    for (key, value) in case.as_object()? {
        let value = value.as_f64().unwrap_or_default();
        match key.as_str() {
            "name" | "input" | "order" | "kept" | "probabilities_of_kept" | "max_abs_diff_f32_f64" => {}
            "temperature" => sampling.temperature = value,
            "top_k" => sampling.top_k = value as usize,
            "top_p" => sampling.top_p = value,
            "min_p" => sampling.min_p = value,
            "repetition_penalty" => sampling.repetition_penalty = value,
            _ => return None,
        }
    }
    Some(sampling)
}

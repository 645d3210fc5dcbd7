use super::*;

const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, 0.5];

fn kept(warpers: Warpers) -> Vec<u32> {
    let mut kept: Vec<u32> = distribution(&LOGITS, &warpers).iter().map(|(token, _)| *token).collect();
    kept.sort_unstable();
    kept
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    let warpers = Warpers { temperature: 0.0, ..Warpers::default() };
    let (token, log_prob) = sample_row(&LOGITS, &Draw { warpers, uniform: 0.9 });
    assert_eq!(token, 1);
    let sum: f64 = LOGITS.iter().map(|z| f64::from(*z).exp()).sum();
    assert!((f64::from(log_prob) - (3.0 - sum.ln())).abs() < 1e-6);
}

#[test]
fn top_k_keeps_ties_with_the_kth() {
    assert_eq!(kept(Warpers { top_k: 1, ..Warpers::default() }), [1, 3]);
    assert_eq!(kept(Warpers { top_k: 3, ..Warpers::default() }), [1, 2, 3]);
}

#[test]
fn top_p_and_min_p_keep_the_likeliest() {
    assert_eq!(kept(Warpers { top_p: 0.01, ..Warpers::default() }).len(), 1);
    assert_eq!(kept(Warpers { min_p: 0.3, ..Warpers::default() }), [1, 2, 3]);
    assert_eq!(kept(Warpers { min_p: 1.0, ..Warpers::default() }), [1, 3]);
}

/// Uniform numbers at equal distances hit every token as often as its probability says, with and without warpers.
#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 150.0).collect();
    for warpers in [
        Warpers::default(),
        Warpers { temperature: 0.7, ..Warpers::default() },
        Warpers { top_k: 30, top_p: 0.9, ..Warpers::default() },
    ] {
        let count = 200_000;
        let mut hits = vec![0usize; logits.len()];
        for i in 0..count {
            let uniform = (f64::from(i) + 0.5) / f64::from(count);
            let (token, log_prob) = sample_row(&logits, &Draw { warpers, uniform });
            hits[token as usize] += 1;
            if i % 1000 == 0 {
                let kept = distribution(&logits, &warpers);
                let (_, p) = kept.iter().find(|(id, _)| *id == token).unwrap();
                assert!((p.ln() - f64::from(log_prob)).abs() < 1e-4);
            }
        }
        let kept = distribution(&logits, &warpers);
        assert_eq!(hits.iter().filter(|hits| **hits > 0).count(), kept.len());
        for (token, p) in kept {
            let share = hits[token as usize] as f64 / f64::from(count);
            assert!((share - p).abs() < 2.0 / f64::from(count), "{token}: {share} against {p}");
        }
    }
}

/// Kept tokens and probabilities equal those of transformers' logits processors.
#[test]
fn golden_warpers() {
    let Some(path) = qlora_testing::golden("rl/sampling.json") else { return };
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        // The penalty depends on the tokens before: it is tested where the sampler applies it.
        let Some(warpers) = warpers(case) else { continue };
        let rows = golden[case["input"].as_str().unwrap()].as_array().unwrap();
        for (index, row) in rows.iter().enumerate() {
            let logits: Vec<f32> =
                row.as_array().unwrap().iter().map(|z| z.as_f64().unwrap() as f32).collect();
            let mut got = distribution(&logits, &warpers);
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
    assert!(checked > 110, "only {checked} rows were checked");
}

/// The warpers of a golden case, or `None` where it has a penalty.
fn warpers(case: &serde_json::Value) -> Option<Warpers> {
    let mut warpers = Warpers::default();
    for (key, value) in case.as_object()? {
        let value = value.as_f64().unwrap_or_default();
        match key.as_str() {
            "name" | "input" | "order" | "kept" | "probabilities_of_kept" | "max_abs_diff_f32_f64" => {}
            "temperature" => warpers.temperature = value,
            "top_h" => warpers.top_h = value,
            "top_k" => warpers.top_k = value as usize,
            "top_p" => warpers.top_p = value,
            "min_p" => warpers.min_p = value,
            "typical_p" => warpers.typical_p = value,
            "epsilon_cutoff" => warpers.epsilon_cutoff = value,
            "eta_cutoff" => warpers.eta_cutoff = value,
            "min_tokens_to_keep" => warpers.min_tokens_to_keep = value as usize,
            "repetition_penalty" => return None,
            other => panic!("a parameter that no warper has: {other}"),
        }
    }
    Some(warpers)
}

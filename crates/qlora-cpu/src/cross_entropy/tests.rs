use super::*;
use crate::checks::{assert_close, differences, everywhere, noise, to_f64};

struct Expected {
    loss: f64,
    logprob: f64,
    entropy: f64,
}

fn reference(logits: &[f64], target: usize, settings: &CrossEntropy) -> Expected {
    let z: Vec<f64> = (logits.iter())
        .map(|x| x * f64::from(settings.logit_scale))
        .map(|z| settings.softcap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh()))
        .collect();
    let max = z.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    let smoothing = f64::from(settings.label_smoothing);
    let uniform = z.iter().map(|z| lse - z).sum::<f64>() / z.len() as f64;
    Expected {
        loss: (1.0 - smoothing) * (lse - z[target]) + smoothing * uniform,
        logprob: z[target] - lse,
        entropy: z.iter().map(|z| (lse - z) * (z - lse).exp()).sum(),
    }
}

fn settings() -> [CrossEntropy; 4] {
    [
        CrossEntropy::default(),
        CrossEntropy { softcap: Some(3.0), ..CrossEntropy::default() },
        CrossEntropy { logit_scale: 0.25, label_smoothing: 0.1, ..CrossEntropy::default() },
        CrossEntropy { softcap: Some(5.0), logit_scale: 1.5, label_smoothing: 0.2 },
    ]
}

#[test]
fn losses_and_gradients_of_any_shape() {
    for settings in settings() {
        for (rows, vocab) in [(0, 5), (1, 1), (1, 16), (3, 37), (4, 200)] {
            let logits: Vec<f32> = noise(rows * vocab, 1).iter().map(|x| 6.0 * x).collect();
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % vocab) as u32).collect();
            let weights = noise(rows, 2);
            let run = || {
                let mut gradient = logits.clone();
                let mut stats = vec![TokenStats { loss: f32::NAN, ..TokenStats::default() }; rows];
                cross_entropy_rows(&mut gradient, vocab, &targets, &weights, &settings, true, &mut stats);
                let mut scratch = logits.clone();
                let mut plain = vec![TokenStats::default(); rows];
                cross_entropy_rows(&mut scratch, vocab, &targets, &weights, &settings, false, &mut plain);
                assert_eq!(stats, plain, "the gradient changes the loss");
                let flat = stats.iter().flat_map(|s| [s.loss, s.logprob, s.entropy, f32::from(s.correct)]);
                vec![gradient, flat.collect()]
            };
            everywhere(run, |_, results| {
                for (row, logits) in logits.chunks(vocab).enumerate() {
                    let target = targets[row] as usize;
                    let expected = reference(&to_f64(logits), target, &settings);
                    let best = logits.iter().all(|&x| x <= logits[target]);
                    assert_close(
                        "loss, logprob, entropy, correct",
                        &results[1][4 * row..4 * row + 4],
                        &[expected.loss, expected.logprob, expected.entropy, f64::from(u8::from(best))],
                        2e-6,
                    );
                    let weight = f64::from(weights[row]);
                    let gradient =
                        differences(&to_f64(logits), |x| weight * reference(x, target, &settings).loss);
                    assert_close("gradient", &results[0][row * vocab..(row + 1) * vocab], &gradient, 1e-6);
                }
            });
        }
    }
}

#[test]
fn rows_without_weight() {
    let vocab = 21;
    let run = || {
        let mut logits = noise(3 * vocab, 1);
        let mut stats = [TokenStats { loss: f32::NAN, ..TokenStats::default() }; 3];
        let settings = CrossEntropy::default();
        cross_entropy_rows(
            &mut logits,
            vocab,
            &[4, u32::MAX, 9],
            &[0.0, 0.0, 1.0],
            &settings,
            true,
            &mut stats,
        );
        assert!(stats[0].loss > 0.0, "a row without weight has a loss all the same");
        assert_eq!(stats[1], TokenStats::default());
        vec![logits]
    };
    everywhere(run, |_, logits| {
        assert!(logits[0][..2 * vocab].iter().all(|&x| x == 0.0));
        assert!(logits[0][2 * vocab + 9] < 0.0);
        assert!(logits[0][2 * vocab..].iter().sum::<f32>().abs() < 1e-6);
    });
}

#[test]
#[should_panic(expected = "row 1: target 5 of 5 tokens")]
fn a_target_outside_the_vocabulary_is_refused() {
    let mut stats = [TokenStats::default(); 2];
    cross_entropy_rows(&mut [0.0; 10], 5, &[0, 5], &[1.0; 2], &CrossEntropy::default(), false, &mut stats);
}

#[test]
fn the_first_of_equal_tokens_is_the_prediction() {
    let mut stats = [TokenStats::default(); 3];
    let settings = CrossEntropy::default();
    cross_entropy_rows(&mut [2.0; 12], 4, &[0, 1, 3], &[1.0; 3], &settings, false, &mut stats);
    assert_eq!(stats.map(|s| s.correct), [true, false, false]);
    assert!((stats[1].entropy - 4f32.ln()).abs() < 1e-6 && (stats[1].loss - 4f32.ln()).abs() < 1e-6);
}

#[test]
fn extremes_are_finite() {
    for softcap in [None, Some(30.0)] {
        let settings = CrossEntropy { softcap, ..CrossEntropy::default() };
        let run = || {
            let mut logits = vec![-1e4; 3 * 40];
            logits[3] = 1e4;
            logits[40 + 3] = 1e4;
            logits[80..].fill(f32::NEG_INFINITY);
            logits[82] = 5.0;
            let mut stats = [TokenStats::default(); 3];
            cross_entropy_rows(&mut logits, 40, &[3, 0, 2], &[1.0; 3], &settings, true, &mut stats);
            vec![logits, stats.iter().flat_map(|s| [s.loss, s.entropy]).collect()]
        };
        everywhere(run, |isa, results| {
            assert!(results.iter().flatten().all(|x| x.is_finite()), "{isa:?} {softcap:?}");
            let (first, second) = if softcap.is_some() { (0.0, 60.0) } else { (0.0, 2e4) };
            assert_close("losses", &[results[1][0], results[1][2]], &[first, second], 1e-6);
        });
    }
}

#[test]
fn wide_rows_keep_their_precision() {
    let vocab = 50_021;
    let logits: Vec<f32> = noise(vocab, 3).iter().map(|x| 4.0 * x).collect();
    let settings = CrossEntropy { label_smoothing: 0.1, ..CrossEntropy::default() };
    let expected = reference(&to_f64(&logits), 77, &settings);
    let run = || {
        let mut stats = [TokenStats::default()];
        cross_entropy_rows(&mut logits.clone(), vocab, &[77], &[1.0], &settings, false, &mut stats);
        vec![vec![stats[0].loss, stats[0].logprob, stats[0].entropy]]
    };
    everywhere(run, |_, stats| {
        assert_close("stats", &stats[0], &[expected.loss, expected.logprob, expected.entropy], 3e-7);
    });
}

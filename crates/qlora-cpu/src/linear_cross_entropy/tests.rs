use super::*;
use crate::checks::{assert_close, everywhere, noise};
use crate::weight::WeightData;

const TOKENS: usize = 200;
const VOCAB: usize = 301;
const DIM: usize = 40;

/// Loss and gradient of one row, in `f64`.
fn reference(hidden: &[f32], head: &[f32], target: usize, weight: f32, cap: f64) -> (f64, Vec<f64>) {
    let z: Vec<f64> = (head.chunks(DIM))
        .map(|row| row.iter().zip(hidden).map(|(&w, &h)| f64::from(w) * f64::from(h)).sum::<f64>())
        .map(|x| cap * (x / cap).tanh())
        .collect();
    let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
    let mut gradient = vec![0.0; DIM];
    for (j, (&z, row)) in z.iter().zip(head.chunks(DIM)).enumerate() {
        let hit = if j == target { 1.0 } else { 0.0 };
        let slope = f64::from(weight) * ((z - lse).exp() - hit) * (1.0 - (z / cap).powi(2));
        gradient.iter_mut().zip(row).for_each(|(sum, &w)| *sum += slope * f64::from(w));
    }
    (lse - z[target], gradient)
}

#[test]
fn chunks_change_nothing_and_untrained_tokens_are_skipped() {
    let (hidden, head) = (noise(TOKENS * DIM, 1), noise(VOCAB * DIM, 2));
    let settings = CrossEntropy { softcap: Some(6.0), ..CrossEntropy::default() };
    let weights: Vec<f32> =
        noise(TOKENS, 3).iter().enumerate().map(|(i, &w)| if i % 3 == 1 { 0.0 } else { w }).collect();
    let targets: Vec<u32> =
        (0..TOKENS).map(|i| if weights[i] == 0.0 { u32::MAX } else { (i * 11 % VOCAB) as u32 }).collect();
    for (precision, tolerance) in [(Precision::F32, 3e-6), (Precision::Bf16, 3e-2)] {
        let run = || {
            let mut results: Vec<Vec<f32>> = Vec::new();
            for chunk in [64, 70, 100, 256] {
                let matrix = Weight::new(VOCAB, DIM, WeightData::F32(&head));
                let mut stats = vec![TokenStats { loss: f32::NAN, ..TokenStats::default() }; TOKENS];
                let mut dhidden = vec![f32::NAN; TOKENS * DIM];
                in_chunks(
                    chunk,
                    &hidden,
                    TOKENS,
                    &matrix,
                    precision,
                    &targets,
                    &weights,
                    &settings,
                    &mut stats,
                    Some(&mut dhidden),
                );
                let mut plain = vec![TokenStats::default(); TOKENS];
                linear_cross_entropy(
                    &hidden, TOKENS, &matrix, precision, &targets, &weights, &settings, &mut plain, None,
                );
                assert_eq!(stats, plain);
                let stats = stats.iter().flat_map(|s| [s.loss, s.logprob, s.entropy]).collect();
                let cut = [stats, dhidden];
                assert!(results.is_empty() || results == cut, "chunks of {chunk} change the result");
                results = cut.into();
            }
            results
        };
        everywhere(run, |_, results| {
            for token in 0..TOKENS {
                let (stats, dhidden) =
                    (&results[0][3 * token..], &results[1][token * DIM..(token + 1) * DIM]);
                if weights[token] == 0.0 {
                    assert!(stats[..3].iter().chain(dhidden).all(|&x| x == 0.0));
                    continue;
                }
                let row = &hidden[token * DIM..(token + 1) * DIM];
                let (loss, gradient) = reference(row, &head, targets[token] as usize, weights[token], 6.0);
                assert_close("loss", &stats[..1], &[loss], tolerance);
                assert_close("dhidden", dhidden, &gradient, tolerance);
            }
        });
    }
}

#[test]
fn nothing_to_train() {
    let head = noise(VOCAB * DIM, 2);
    let head = Weight::new(VOCAB, DIM, WeightData::F32(&head));
    let settings = CrossEntropy::default();
    linear_cross_entropy(&[], 0, &head, Precision::F32, &[], &[], &settings, &mut [], Some(&mut []));
    let mut stats = [TokenStats { correct: true, ..TokenStats::default() }];
    let mut dhidden = [f32::NAN; DIM];
    let hidden = noise(DIM, 1);
    let d = Some(&mut dhidden[..]);
    linear_cross_entropy(&hidden, 1, &head, Precision::F32, &[0], &[0.0], &settings, &mut stats, d);
    assert_eq!((stats[0], dhidden), (TokenStats::default(), [0.0; DIM]));
}

//! The language-model head and its loss in one: the `[tokens, vocab]` logits never exist whole.

use crate::cross_entropy::{CrossEntropy, TokenStats, cross_entropy_rows};
use crate::dispatch::current_isa;
use crate::linear::{linear_grad_input_with, linear_with};
use crate::scratch::{HIDDEN, LOGITS};
use crate::weight::{Precision, Weight};

#[cfg(test)]
mod tests;

/// Logits of a chunk, 64 MiB of them.
const CHUNK_LOGITS: usize = 16 << 20;

/// Loss of each token under `softmax(hidden · headᵀ)`, and, with `dhidden`, `Σ weights · loss` backwards.
///
/// `hidden` and `dhidden` are `[tokens, head.cols()]`, `targets`, `weights` and `stats` are `[tokens]`. Tokens of
/// weight 0 cost nothing: they get all-zero statistics and a zero gradient, whatever their target. The results do
/// not depend on how the others are cut into chunks.
///
/// # Panics
/// When the lengths of the slices do not agree, or a token of another weight has a target outside the vocabulary.
pub fn linear_cross_entropy(
    hidden: &[f32],
    tokens: usize,
    head: &Weight<'_>,
    precision: Precision,
    targets: &[u32],
    weights: &[f32],
    settings: &CrossEntropy,
    stats: &mut [TokenStats],
    dhidden: Option<&mut [f32]>,
) {
    let chunk = (CHUNK_LOGITS / head.rows().max(1)).clamp(64, 256);
    in_chunks(chunk, hidden, tokens, head, precision, targets, weights, settings, stats, dhidden);
}

fn in_chunks(
    chunk: usize,
    hidden: &[f32],
    tokens: usize,
    head: &Weight<'_>,
    precision: Precision,
    targets: &[u32],
    weights: &[f32],
    settings: &CrossEntropy,
    stats: &mut [TokenStats],
    mut dhidden: Option<&mut [f32]>,
) {
    let (vocab, dim) = (head.rows(), head.cols());
    assert_eq!(hidden.len(), tokens * dim, "hidden is not {tokens} rows of {dim}");
    assert!(
        targets.len() == tokens && weights.len() == tokens && stats.len() == tokens,
        "targets, weights or stats is not of {tokens} tokens"
    );
    assert!(dhidden.as_ref().is_none_or(|d| d.len() == hidden.len()), "dhidden and hidden differ in length");
    let isa = current_isa();
    stats.fill(TokenStats::default());
    if let Some(dhidden) = &mut dhidden {
        dhidden.fill(0.0);
    }
    let trained: Vec<usize> = (0..tokens).filter(|&token| weights[token] != 0.0).collect();
    if trained.is_empty() {
        return;
    }
    // Chunks of nearly the same size: `linear` adds up a few tokens in another order than many.
    let chunks = trained.len().div_ceil(chunk);
    let cut = |index: usize| index * trained.len() / chunks;
    let chunk = trained.len().div_ceil(chunks);
    HIDDEN.with_floats(chunk * dim, |rows| {
        LOGITS.with_floats(chunk * vocab, |logits| {
            for index in 0..chunks {
                let trained = &trained[cut(index)..cut(index + 1)];
                let count = trained.len();
                let (rows, logits) = (&mut rows[..count * dim], &mut logits[..count * vocab]);
                for (row, &token) in rows.chunks_exact_mut(dim).zip(trained) {
                    row.copy_from_slice(&hidden[token * dim..(token + 1) * dim]);
                }
                linear_with(isa, rows, count, head, None, None, precision, logits, None);
                let chunk_targets: Vec<u32> = trained.iter().map(|&token| targets[token]).collect();
                let chunk_weights: Vec<f32> = trained.iter().map(|&token| weights[token]).collect();
                let mut chunk_stats = vec![TokenStats::default(); count];
                let want_grad = dhidden.is_some();
                cross_entropy_rows(
                    logits,
                    vocab,
                    &chunk_targets,
                    &chunk_weights,
                    settings,
                    want_grad,
                    &mut chunk_stats,
                );
                for (&token, &chunk_stats) in trained.iter().zip(&chunk_stats) {
                    stats[token] = chunk_stats;
                }
                if let Some(dhidden) = &mut dhidden {
                    linear_grad_input_with(isa, logits, count, head, None, precision, rows, None);
                    for (row, &token) in rows.chunks_exact(dim).zip(trained) {
                        dhidden[token * dim..(token + 1) * dim].copy_from_slice(row);
                    }
                }
            }
        });
    });
}

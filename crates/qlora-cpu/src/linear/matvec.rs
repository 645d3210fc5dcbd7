//! A few tokens: what generation does. The weight is read once, from its codes, and decoded in
//! registers; packing panels would cost more than multiplying with them.

use crate::gemm::{Kernels, LowRank, Shared, for_each_task};
use crate::scratch;
use crate::weight::Weight;

/// Output features of a task: even 192 of them keep several threads busy.
const ROWS: usize = 32;
/// What decoding costs, in multiplications a weight.
const DECODING: usize = 2;

/// [`super::linear`] for at most [`Kernels::few_tokens`] tokens.
pub(super) fn few_tokens(
    kernels: &Kernels,
    x: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    bias: Option<&[f32]>,
    mut low_rank: Option<LowRank<'_>>,
    y: &mut [f32],
) {
    let (out, k) = (w.rows(), w.cols());
    for y in y.chunks_mut(out.max(1)) {
        match bias {
            Some(bias) => y.copy_from_slice(bias),
            None => y.fill(0.0),
        }
    }
    let (x_words, rank) = (kernels.dot_words(k), low_rank.as_ref().map_or(0, |l| l.rank));
    let inner_words = kernels.dot_words(rank);
    scratch::PACKED.with_words(tokens * (x_words + inner_words), |words| {
        let (x_packed, inner_packed) = words.split_at_mut(tokens * x_words);
        if let Some(l) = &mut low_rank {
            pack(kernels, &l.down, x, x_packed);
            l.inner.fill(0.0);
            // SAFETY: `inner` is `[tokens, rank]`.
            unsafe { kernels.add_dots(&l.down, 0..rank, x_packed, tokens, l.inner.as_mut_ptr(), rank) };
            scratch::SCALED.with_floats(tokens * rank, |scaled| {
                for (scaled, &inner) in scaled.iter_mut().zip(l.inner.iter()) {
                    *scaled = inner * l.scale;
                }
                pack(kernels, &l.up, scaled, inner_packed);
            });
        }
        pack(kernels, w, x, x_packed);
        let low_rank = low_rank.as_ref();
        let y = Shared::new(y);
        for_each_task(out.div_ceil(ROWS), out * k * (DECODING + tokens), |task| {
            let rows = task * ROWS..out.min((task + 1) * ROWS);
            // SAFETY: `y` is `[tokens, out]`, and these rows are this task's.
            unsafe {
                kernels.add_dots(w, rows.clone(), x_packed, tokens, y.at(0), out);
                if let Some(l) = low_rank {
                    kernels.add_dots(&l.up, rows, inner_packed, tokens, y.at(0), out);
                }
            }
        });
    });
}

fn pack(kernels: &Kernels, w: &Weight<'_>, x: &[f32], words: &mut [u32]) {
    let k = w.cols();
    for (row, words) in x.chunks(k.max(1)).zip(words.chunks_mut(kernels.dot_words(k).max(1))) {
        kernels.pack_dot_row(w, row, words);
    }
}

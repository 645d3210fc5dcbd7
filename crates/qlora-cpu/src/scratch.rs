//! Buffers that a thread keeps from call to call: a training step makes thousands of products,
//! and fresh pages cost more than a small one.

use std::cell::Cell;
use std::thread::LocalKey;

/// A cache line, so that buffers are aligned to one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; 16]);

/// One buffer of the current thread.
pub(crate) struct Scratch(&'static LocalKey<Cell<Vec<Line>>>);

macro_rules! scratch {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            pub(crate) static $name: Scratch = {
                thread_local!(static BUFFER: Cell<Vec<Line>> = const { Cell::new(Vec::new()) });
                Scratch(&BUFFER)
            };
        )*
    };
}

scratch! {
    /// Packed token rows.
    PACKED;
    /// Packed panels of the low-rank factor that the token rows meet first.
    DOWN;
    /// The low-rank activations.
    INNER;
    /// The low-rank activations times the scale.
    SCALED;
    /// The panel of the task at hand.
    PANEL;
    /// A decoded row.
    DECODED;
    /// Keys and values laid out for attention.
    KEYS;
    /// What one tile of attention works in.
    TILE;
    /// Gradients of keys and values, head by head.
    HEAD_GRADIENTS;
    /// Rows of hidden states that have a loss.
    HIDDEN;
    /// Logits of a chunk of tokens.
    LOGITS;
    /// Sums of the gradients of a strip.
    SUMS;
}

impl Scratch {
    /// Lends `len` words with whatever was left in them. A call inside `f` on the same thread (a task
    /// that was stolen while waiting) finds the place empty and gets a buffer of its own.
    pub(crate) fn with_words<R>(&self, len: usize, f: impl FnOnce(&mut [u32]) -> R) -> R {
        let mut lines = self.0.take();
        if lines.len() * 16 < len {
            lines.resize(len.div_ceil(16), Line([0; 16]));
        }
        // SAFETY: a `Line` is 16 words without padding, and the vector has at least `len` of them.
        let words = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u32>(), len) };
        let result = f(words);
        self.0.set(lines);
        result
    }

    /// As [`Scratch::with_words`], for floats.
    pub(crate) fn with_floats<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        self.with_words(len, |words| {
            // SAFETY: same size and alignment, any bits are an `f32`.
            f(unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<f32>(), len) })
        })
    }
}

//! How work is cut for the threads: by the sizes alone, never by the number of threads.

use rayon::prelude::*;

/// Elements that one task handles at least, some microseconds of work: below this a thread is not worth waking.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Rows in one task, for rows of `columns` elements that cost `weight` times as much as adding two numbers.
pub(crate) fn rows_per_task(columns: usize, weight: usize) -> usize {
    (TASK_ELEMENTS / weight.max(1)).div_ceil(columns.max(1)).max(1)
}

/// Elements in one task of an element-wise kernel, a multiple of every vector length.
pub(crate) fn elements_per_task(weight: usize) -> usize {
    (TASK_ELEMENTS / weight.max(1)).next_multiple_of(64)
}

/// Runs `f` on each task, in parallel when there is more than one.
pub(crate) fn for_each<T: Send>(tasks: impl ExactSizeIterator<Item = T>, f: impl Fn(T) + Sync + Send) {
    if tasks.len() <= 1 {
        tasks.for_each(f);
    } else {
        tasks.collect::<Vec<_>>().into_par_iter().for_each(f);
    }
}

/// The next chunk of an optional output.
pub(crate) fn next_chunk<'a, T>(chunks: &mut Option<std::slice::ChunksMut<'a, T>>) -> Option<&'a mut [T]> {
    chunks.as_mut().and_then(Iterator::next)
}

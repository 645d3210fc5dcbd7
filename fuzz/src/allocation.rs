//! An allocation that no input of a fuzz target justifies ends the process. libFuzzer's own limit needs a sanitizer.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes. Inputs have some kilobytes, and the largest table that a sound one needs (dequantized tensors, the ids of a
/// vocabulary) has less.
const LARGEST: usize = 32 << 20;

struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(size: usize) {
    if size > LARGEST {
        // Printing would allocate through this allocator; the report of libFuzzer has the stack.
        std::process::abort();
    }
}

// SAFETY: everything is the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

//! The heap: the system's, but no large block is copied inside it.
//!
//! glibc copies a block that it cannot grow in place while it holds the lock of the block's arena,
//! pages that are touched for the first time included. Growing a list of 20,000 objects so took up
//! to eleven milliseconds, in which a writer that shared the arena and held the gate kept all
//! others waiting. See docs/internals/latency.md.

use std::alloc::{GlobalAlloc, Layout, System};

/// What is smaller is copied in less than a tenth of a millisecond, at 5 us for each new page.
const LARGE_BYTES: usize = 64 << 10;

/// The system's allocator, which grows large blocks by allocating, copying and freeing, each by
/// itself. To be declared as `#[global_allocator]`.
pub struct Heap;

// SAFETY: all of it is `System`; a large block is grown by its parts, as the trait itself does.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: handed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < LARGE_BYTES || size <= layout.size() {
            // SAFETY: handed on.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: whoever calls has seen to it that `size`, rounded up to the alignment, is none
        // too large; the new block is another one, and longer than what is copied.
        unsafe {
            let grown = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !grown.is_null() {
                block.copy_to_nonoverlapping(grown, layout.size());
                System.dealloc(block, layout);
            }
            grown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fill a block, change its size, and say whether what both have in common is still there.
    fn keeps(from: usize, to: usize, align: usize) -> bool {
        let layout = Layout::from_size_align(from, align).expect("valid");
        let content = |at: usize| (at % 251).to_le_bytes()[0];
        // SAFETY: sizes are not 0, and each block is freed as what it was made last.
        unsafe {
            let block = Heap.alloc(layout);
            (0..from).for_each(|at| block.add(at).write(content(at)));
            let changed = Heap.realloc(block, layout, to);
            let aligned = changed.addr().is_multiple_of(align);
            let kept = (0..from.min(to)).all(|at| changed.add(at).read() == content(at));
            Heap.dealloc(changed, Layout::from_size_align(to, align).expect("valid"));
            aligned && kept
        }
    }

    #[test]
    fn a_block_that_changes_size_keeps_what_it_holds() {
        let sizes = [1, 100, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES];
        for (from, to) in sizes.iter().flat_map(|from| sizes.map(|to| (*from, to))) {
            for align in [1, 8, 64, 4096] {
                assert!(keeps(from, to, align), "{from} to {to} bytes, aligned to {align}");
            }
        }
    }

    #[test]
    fn what_is_too_much_is_refused_and_the_block_stays() {
        let layout = Layout::from_size_align(LARGE_BYTES, 8).expect("valid");
        // SAFETY: the size is within what a layout may have, and the block is freed as it was made.
        unsafe {
            let block = Heap.alloc_zeroed(layout);
            block.write(7);
            assert!(Heap.realloc(block, layout, isize::MAX as usize - 7).is_null());
            assert_eq!((block.read(), block.add(LARGE_BYTES - 1).read()), (7, 0));
            Heap.dealloc(block, layout);
        }
    }
}

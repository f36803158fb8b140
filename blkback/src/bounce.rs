//! Memory between the guest and a storage that cannot take the guest's own.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use devices::memory::PAGE_SIZE;

/// Memory of our own, aligned to pages.
#[derive(Debug)]
pub(crate) struct BounceBuffer {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory.
unsafe impl Send for BounceBuffer {}

impl BounceBuffer {
    /// Zeroed memory of at least `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE).max(1);
        // Requests are of 1 MiB at most: there always is such a layout.
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE);
        let layout = layout.unwrap_or(Layout::new::<[u8; PAGE_SIZE]>());
        // SAFETY: the layout is not of size 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) });
        let memory = memory.unwrap_or_else(|| handle_alloc_error(layout));
        Self { memory, layout }
    }

    /// Bytes, a multiple of a page.
    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    /// Where it starts.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in new() with the same layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

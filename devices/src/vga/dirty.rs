//! Which pages of video memory were written to, for several who look at different times.

use crate::memory::PAGE_SIZE;

/// A set of pages.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages(Vec<u64>);

impl Pages {
    /// None of `pages` pages.
    pub(super) fn new(pages: usize) -> Self {
        Self(vec![0; pages.div_ceil(64)])
    }

    /// Adds the page of a byte.
    pub(super) fn mark(&mut self, byte: usize) {
        let page = byte / PAGE_SIZE;
        if let Some(word) = self.0.get_mut(page / 64) {
            *word |= 1 << (page % 64);
        }
    }

    /// Adds the pages of `len` bytes from `byte` on.
    pub(super) fn mark_range(&mut self, byte: usize, len: usize) {
        if len > 0 {
            for page in byte / PAGE_SIZE..=byte.saturating_add(len - 1) / PAGE_SIZE {
                if page / 64 >= self.0.len() {
                    return;
                }
                self.mark(page * PAGE_SIZE);
            }
        }
    }

    /// Whether the page of a byte is in it.
    pub(super) fn has(&self, byte: usize) -> bool {
        let page = byte / PAGE_SIZE;
        self.0.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// Whether a page of `len` bytes from `byte` on is in it.
    pub(super) fn has_any(&self, byte: usize, len: usize) -> bool {
        let end = byte.saturating_add(len).min(self.0.len() * 64 * PAGE_SIZE);
        (byte / PAGE_SIZE * PAGE_SIZE..end).step_by(PAGE_SIZE).any(|byte| self.has(byte))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn words(&mut self) -> &mut [u64] {
        &mut self.0
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(n, word)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| n * 64 + bit)
        })
    }
}

/// When each page was last seen written to, in looks: each look at the screen by anybody counts as one.
#[derive(Debug)]
pub(super) struct History {
    looks: u64,
    pages: Vec<u64>,
}

impl History {
    pub(super) fn new(pages: usize) -> Self {
        Self { looks: 0, pages: vec![0; pages] }
    }

    /// Takes all of `dirty`, as written just before this look, and tells who last looked at `since` what was written after
    /// that. `since` becomes this look.
    pub(super) fn look(&mut self, dirty: &mut Pages, since: &mut u64, seen: &mut Pages) {
        if !dirty.is_empty() {
            self.looks += 1;
            for page in dirty.iter() {
                if let Some(look) = self.pages.get_mut(page) {
                    *look = self.looks;
                }
            }
            dirty.0.fill(0);
        }
        seen.0.fill(0);
        if *since < self.looks {
            for (page, look) in self.pages.iter().enumerate() {
                if look > since {
                    seen.mark(page * PAGE_SIZE);
                }
            }
            *since = self.looks;
        }
    }
}

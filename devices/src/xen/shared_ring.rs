//! The ring that every Xen device shares with its frontend (xen/include/public/io/ring.h), from the back.
//!
//! Layout: req_prod u32 @0, req_event @4, rsp_prod @8, rsp_event @12, entries from @64. Requests and
//! responses share the slots. Indexes run free, modulo 2^32. A ring of several pages is several grants that
//! need not be contiguous here; an entry may cross from one page into the next.
//!
//! The frontend is hostile: its producer index is checked against the ring size every time, each request is
//! copied out exactly once, and our own indexes are never read back from the page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use thiserror::Error;

use super::grant_table::{Access, GrantError, GrantTable, PinnedPage};
use super::types::GrantRef;
use crate::memory::PAGE_SIZE;

const HEADER: usize = 64;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Pages of the largest ring (order 4, `max-ring-page-order` of blkback).
pub const MAX_PAGES: usize = 16;

/// Why a ring cannot be used, or cannot be used any longer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// A page of the ring is not granted.
    #[error("the ring cannot be mapped: {0}")]
    Grant(#[from] GrantError),
    /// A ring has 1, 2, 4, 8 or 16 pages.
    #[error("a ring of {0} pages is not possible")]
    Pages(usize),
    /// The frontend claims more requests than the ring has slots (XSA-155 and relatives): the ring is dead.
    #[error("the frontend claims {0} requests in a ring of {1}")]
    Overrun(u32, u32),
}

/// The back half of a shared ring.
#[derive(Debug)]
pub struct BackRing {
    grants: Arc<GrantTable>,
    pages: Vec<PinnedPage>,
    entry_size: usize,
    nr_entries: u32,
    req_cons: u32,
    rsp_prod: u32,
    rsp_published: u32,
}

impl BackRing {
    /// Attaches to the ring at `refs`. `entry_size` is the larger of a request and a response. Continues at the
    /// response index that the page shows, as a frontend that was connected before expects.
    pub fn new(grants: Arc<GrantTable>, refs: &[GrantRef], entry_size: usize) -> Result<Self, RingError> {
        if !refs.len().is_power_of_two() || refs.len() > MAX_PAGES || entry_size == 0 {
            return Err(RingError::Pages(refs.len()));
        }
        let slots = (refs.len() * PAGE_SIZE - HEADER) / entry_size;
        let nr_entries = 1u32 << (u32::try_from(slots).unwrap_or(1).max(1).ilog2());
        let mut ring = Self {
            grants,
            pages: Vec::new(),
            entry_size,
            nr_entries,
            req_cons: 0,
            rsp_prod: 0,
            rsp_published: 0,
        };
        for gref in refs {
            ring.pages.push(ring.grants.pin(*gref, Access::Write)?);
        }
        let start = ring.index(RSP_PROD).load(Ordering::Acquire);
        (ring.req_cons, ring.rsp_prod, ring.rsp_published) = (start, start, start);
        Ok(ring)
    }

    /// Slots of the ring.
    pub fn nr_entries(&self) -> u32 {
        self.nr_entries
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        #[expect(clippy::indexing_slicing, reason = "new() refuses a ring without pages")]
        let page = &self.pages[0];
        // SAFETY: the offsets are the four constants above: aligned and inside the page, which stays mapped
        // while self.grants lives.
        unsafe { AtomicU32::from_ptr(page.as_ptr().add(offset).cast()) }
    }

    /// Requests that wait now, at most the ring size.
    pub fn pending(&self) -> Result<u32, RingError> {
        let prod = self.index(REQ_PROD).load(Ordering::Acquire);
        let waiting = prod.wrapping_sub(self.req_cons);
        let in_flight = self.req_cons.wrapping_sub(self.rsp_prod);
        if waiting > self.nr_entries.wrapping_sub(in_flight) {
            return Err(RingError::Overrun(waiting.wrapping_add(in_flight), self.nr_entries));
        }
        Ok(waiting)
    }

    /// Copies the next request into `request` (at most an entry) and takes it; false if there is none.
    pub fn next_request(&mut self, request: &mut [u8]) -> Result<bool, RingError> {
        if self.pending()? == 0 {
            return Ok(false);
        }
        self.copy(self.req_cons, request.len(), |page, offset, range, grants| {
            if let (Some(slice), Some(part)) =
                (grants.slice(page, offset, range.len()), request.get_mut(range))
            {
                slice.copy_to(part);
            }
        });
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(true)
    }

    /// Says that we sleep unless more requests came meanwhile; true: they did, go on.
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        self.final_check_for(1)
    }

    /// As [`BackRing::final_check`], when we cannot go on with less than `wanted` requests: then there is one
    /// event for all of them.
    pub fn final_check_for(&mut self, wanted: u32) -> Result<bool, RingError> {
        if self.pending()? >= wanted {
            return Ok(true);
        }
        self.index(REQ_EVENT).store(self.req_cons.wrapping_add(wanted), Ordering::Release);
        fence(Ordering::SeqCst);
        Ok(self.pending()? >= wanted)
    }

    /// Puts a response into the next slot; [`BackRing::publish`] shows it to the frontend. The caller answers
    /// each taken request once, so a slot is never overwritten before its request was read.
    pub fn push_response(&mut self, response: &[u8]) {
        debug_assert_ne!(self.rsp_prod, self.req_cons, "a response without a request");
        self.copy(self.rsp_prod, response.len(), |page, offset, range, grants| {
            if let (Some(slice), Some(part)) = (grants.slice(page, offset, range.len()), response.get(range))
            {
                slice.copy_from(part);
            }
        });
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Shows all pushed responses to the frontend; true: it asked to be notified of one of them.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.rsp_published, self.rsp_prod);
        if old == new {
            return false;
        }
        self.index(RSP_PROD).store(new, Ordering::Release);
        self.rsp_published = new;
        fence(Ordering::SeqCst);
        let event = self.index(RSP_EVENT).load(Ordering::Acquire);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Calls `f(page, offset in page, range of the entry, grants)` for each page that slot `index` touches.
    fn copy(
        &self,
        index: u32,
        len: usize,
        mut f: impl FnMut(&PinnedPage, usize, std::ops::Range<usize>, &GrantTable),
    ) {
        let start = HEADER + (index % self.nr_entries) as usize * self.entry_size;
        let len = len.min(self.entry_size);
        let mut done = 0;
        while done < len {
            let (page, offset) = ((start + done) / PAGE_SIZE, (start + done) % PAGE_SIZE);
            let part = (len - done).min(PAGE_SIZE - offset);
            if let Some(page) = self.pages.get(page) {
                f(page, offset, done..done + part, &self.grants);
            }
            done += part;
        }
    }
}

impl Drop for BackRing {
    fn drop(&mut self) {
        for page in self.pages.drain(..) {
            self.grants.unpin(page);
        }
    }
}

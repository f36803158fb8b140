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

/// Bytes of what the quick way copies at once.
const WORD: usize = 4;

/// A ring in one page, as all of the network's are: its entries lie one after the other, in aligned words.
#[derive(Clone, Copy, Debug)]
struct SinglePage(*mut u8);

// SAFETY: the pointer names guest RAM, which is shared with the guest anyway and only accessed volatilely.
unsafe impl Send for SinglePage {}

/// The back half of a shared ring.
#[derive(Debug)]
pub struct BackRing {
    grants: Arc<GrantTable>,
    pages: Vec<PinnedPage>,
    entry_size: usize,
    nr_entries: u32,
    /// The only page of a ring of one, whose entries are words.
    single: Option<SinglePage>,
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
            single: None,
            req_cons: 0,
            rsp_prod: 0,
            rsp_published: 0,
        };
        for gref in refs {
            ring.pages.push(ring.grants.pin(*gref, Access::Write)?);
        }
        if let [page] = &ring.pages[..]
            && entry_size.is_multiple_of(WORD)
            && page.as_ptr().cast::<u32>().is_aligned()
        {
            ring.single = Some(SinglePage(page.as_ptr()));
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
        self.next_pending(request);
        Ok(true)
    }

    /// As [`BackRing::next_request`], of the requests that [`BackRing::pending`] has told and that were not taken since:
    /// the frontend's index, whose cache line it may be writing, is not read again for each of them.
    #[inline]
    pub fn next_pending(&mut self, request: &mut [u8]) {
        let index = self.req_cons;
        self.req_cons = self.req_cons.wrapping_add(1);
        if let Some(slot) = self.words(index, request.len()) {
            let (words, _) = request.as_chunks_mut::<WORD>();
            for (at, word) in words.iter_mut().enumerate() {
                // SAFETY: words() vouches for as many aligned words; the page stays mapped while self.grants lives.
                *word = unsafe { slot.add(at).read_volatile() }.to_ne_bytes();
            }
            return;
        }
        self.copy(index, request.len(), |page, offset, range, grants| {
            if let (Some(slice), Some(part)) =
                (grants.slice(page, offset, range.len()), request.get_mut(range))
            {
                slice.copy_to(part);
            }
        });
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
    #[inline]
    pub fn push_response(&mut self, response: &[u8]) {
        debug_assert_ne!(self.rsp_prod, self.req_cons, "a response without a request");
        let index = self.rsp_prod;
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        if let Some(slot) = self.words(index, response.len()) {
            let (words, _) = response.as_chunks::<WORD>();
            for (at, word) in words.iter().enumerate() {
                // SAFETY: as in next_pending().
                unsafe { slot.add(at).write_volatile(u32::from_ne_bytes(*word)) };
            }
            return;
        }
        self.copy(index, response.len(), |page, offset, range, grants| {
            if let (Some(slice), Some(part)) = (grants.slice(page, offset, range.len()), response.get(range))
            {
                slice.copy_from(part);
            }
        });
    }

    /// The slot of `index`, if its first `len` bytes are aligned words of the one page of the ring.
    #[inline]
    fn words(&self, index: u32, len: usize) -> Option<*mut u32> {
        let SinglePage(page) = self.single?;
        if len > self.entry_size || !len.is_multiple_of(WORD) {
            return None;
        }
        // The number of slots is a power of two, so that they fit the page behind its header.
        let at = HEADER + (index & (self.nr_entries - 1)) as usize * self.entry_size;
        Some(page.wrapping_add(at).cast())
    }

    /// Whether responses were pushed that the frontend was not shown.
    pub fn has_unpublished(&self) -> bool {
        self.rsp_published != self.rsp_prod
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

    /// Shows the responses pushed so far to a frontend that looks at the ring just now, without a notification: that is
    /// [`BackRing::publish`]'s, which has to follow.
    pub fn show(&self) {
        self.index(RSP_PROD).store(self.rsp_prod, Ordering::Release);
    }

    /// Calls `f(page, offset in page, range of the entry, grants)` for each page that slot `index` touches.
    fn copy(
        &self,
        index: u32,
        len: usize,
        mut f: impl FnMut(&PinnedPage, usize, std::ops::Range<usize>, &GrantTable),
    ) {
        let start = HEADER + (index & (self.nr_entries - 1)) as usize * self.entry_size;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{FakeGuest, FrontRing};

    const SIZE: usize = 112;

    fn ring(pages: usize) -> (FakeGuest, FrontRing, BackRing) {
        let mut guest = FakeGuest::new(64);
        let front = FrontRing::new(&mut guest, pages, SIZE);
        let back = attach(&guest, &front).unwrap();
        (guest, front, back)
    }

    fn attach(guest: &FakeGuest, front: &FrontRing) -> Result<BackRing, RingError> {
        BackRing::new(Arc::clone(&guest.domain.grants), &front.refs, front.entry_size)
    }

    /// Starts both ends at an index.
    fn ring_at(pages: usize, index: u32) -> (FakeGuest, FrontRing, BackRing) {
        let mut guest = FakeGuest::new(64);
        let mut front = FrontRing::new(&mut guest, pages, SIZE);
        for (offset, value) in
            [(0, index), (4, index.wrapping_add(1)), (8, index), (12, index.wrapping_add(1))]
        {
            guest.write(front.frames[0], offset, &value.to_le_bytes());
        }
        (front.req_prod, front.rsp_cons) = (index, index);
        let back = attach(&guest, &front).unwrap();
        (guest, front, back)
    }

    fn entry(n: u32) -> [u8; SIZE] {
        let mut entry = [0; SIZE];
        for (i, word) in (0u32..).zip(entry.chunks_exact_mut(4)) {
            word.copy_from_slice(&(n * 1000 + i).to_le_bytes());
        }
        entry
    }

    fn set_req_prod(guest: &FakeGuest, front: &FrontRing, value: u32) {
        guest.write(front.frames[0], 0, &value.to_le_bytes());
    }

    #[test]
    fn slots_are_a_power_of_two() {
        for (pages, slots) in [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)] {
            assert_eq!(ring(pages).2.nr_entries(), slots, "{pages} pages");
        }
    }

    #[test]
    fn page_counts_that_are_no_power_of_two_up_to_16_are_refused() {
        let mut guest = FakeGuest::new(64);
        for pages in [3, 12, 17, 32] {
            let front = FrontRing::new(&mut guest, pages, SIZE);
            assert_eq!(attach(&guest, &front).unwrap_err(), RingError::Pages(pages));
        }
        let none = BackRing::new(Arc::clone(&guest.domain.grants), &[], SIZE);
        assert_eq!(none.unwrap_err(), RingError::Pages(0));
    }

    #[test]
    fn a_ring_that_cannot_be_mapped_leaves_nothing_pinned() {
        let mut guest = FakeGuest::new(64);
        let mut front = FrontRing::new(&mut guest, 2, SIZE);
        front.refs[1] = GrantRef(400);
        assert!(matches!(attach(&guest, &front), Err(RingError::Grant(_))));
        assert_eq!(guest.grant_flags(front.refs[0]), 1);
    }

    #[test]
    fn a_dropped_ring_gives_its_pages_back() {
        let (guest, front, back) = ring(4);
        assert!(front.refs.iter().all(|gref| guest.grant_flags(*gref) == 1 | 8 | 16));
        drop(back);
        assert!(front.refs.iter().all(|gref| guest.grant_flags(*gref) == 1));
    }

    #[test]
    fn entries_pass_both_ways_in_every_slot_of_every_size_of_ring() {
        for pages in [1, 2, 16] {
            let (guest, mut front, mut back) = ring(pages);
            // More than one round, and in a ring of several pages entries lie across two of them.
            for n in 0..front.nr_entries() + 5 {
                front.put(&guest, &entry(n));
                front.publish(&guest);
                let mut request = [0; SIZE];
                assert!(back.next_request(&mut request).unwrap());
                assert!(request == entry(n), "request {n} of {pages} pages");
                back.push_response(&entry(n + 7));
                back.publish();
                assert!(front.take(&guest, SIZE).unwrap() == entry(n + 7), "response {n} of {pages} pages");
            }
        }
    }

    #[test]
    fn indexes_wrap_around() {
        let (guest, mut front, mut back) = ring_at(1, u32::MAX - 3);
        for round in 0..3u32 {
            for n in 0..32 {
                front.put(&guest, &entry(round * 32 + n));
            }
            assert!(front.publish(&guest));
            let mut request = [0; SIZE];
            for n in 0..32 {
                assert!(back.next_request(&mut request).unwrap());
                assert!(request == entry(round * 32 + n));
            }
            assert!(!back.final_check().unwrap());
            for n in 0..32 {
                back.push_response(&entry(n));
            }
            assert!(back.publish(), "round {round}");
            for n in 0..32 {
                assert!(front.take(&guest, SIZE).unwrap() == entry(n));
            }
        }
    }

    #[test]
    fn a_ring_of_a_former_connection_goes_on_where_it_was() {
        let (guest, mut front, back) = ring_at(1, 77);
        drop(back);
        front.put(&guest, &entry(1));
        front.publish(&guest);
        let mut back = attach(&guest, &front).unwrap();
        assert_eq!(back.pending().unwrap(), 1);
        let mut request = [0; SIZE];
        assert!(back.next_request(&mut request).unwrap());
        assert!(request == entry(1));
    }

    #[test]
    fn no_request_is_taken_from_an_empty_ring() {
        let (_guest, _front, mut back) = ring(1);
        let mut request = [9; SIZE];
        assert!(!back.next_request(&mut request).unwrap());
        assert_eq!(request, [9; SIZE]);
    }

    #[test]
    fn a_full_ring_is_not_an_overrun() {
        let (guest, front, back) = ring(1);
        set_req_prod(&guest, &front, 32);
        assert_eq!(back.pending().unwrap(), 32);
    }

    #[test]
    fn claiming_more_than_the_ring_holds_is_an_overrun() {
        for claim in [33, 64, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let (guest, front, mut back) = ring(1);
            set_req_prod(&guest, &front, claim);
            let mut request = [9; SIZE];
            assert_eq!(back.next_request(&mut request).unwrap_err(), RingError::Overrun(claim, 32));
            assert!(matches!(back.final_check(), Err(RingError::Overrun(..))));
            assert_eq!(request, [9; SIZE], "nothing was copied");
        }
    }

    #[test]
    fn unanswered_requests_count_against_the_ring() {
        let (guest, front, mut back) = ring(1);
        set_req_prod(&guest, &front, 10);
        let mut request = [0; SIZE];
        for _ in 0..10 {
            assert!(back.next_request(&mut request).unwrap());
        }
        set_req_prod(&guest, &front, 32);
        assert_eq!(back.pending().unwrap(), 22);
        set_req_prod(&guest, &front, 33);
        assert_eq!(back.pending().unwrap_err(), RingError::Overrun(33, 32));
        back.push_response(&[0; 16]);
        assert_eq!(back.pending().unwrap(), 23);
    }

    #[test]
    fn a_producer_that_goes_back_is_an_overrun() {
        let (guest, front, mut back) = ring(1);
        set_req_prod(&guest, &front, 5);
        let mut request = [0; SIZE];
        assert!(back.next_request(&mut request).unwrap());
        set_req_prod(&guest, &front, 0);
        assert!(matches!(back.next_request(&mut request), Err(RingError::Overrun(..))));
    }

    #[test]
    fn our_own_indexes_are_not_read_back() {
        let (guest, mut front, mut back) = ring(1);
        front.put(&guest, &entry(1));
        front.put(&guest, &entry(2));
        front.publish(&guest);
        let mut request = [0; SIZE];
        assert!(back.next_request(&mut request).unwrap());
        // The frontend writes to what only the backend may write: req_event and rsp_prod.
        guest.write(front.frames[0], 4, &[0xff; 8]);
        assert!(back.next_request(&mut request).unwrap());
        assert!(request == entry(2));
        back.push_response(&entry(3));
        back.publish();
        assert_eq!(front.rsp_prod(&guest), 1);
    }

    #[test]
    fn final_check_asks_for_an_event_and_sees_what_came_meanwhile() {
        let (guest, mut front, mut back) = ring(1);
        assert!(!back.final_check().unwrap());
        assert_eq!(guest.read_u32(front.frames[0], 4), 1);
        front.put(&guest, &entry(1));
        assert!(front.publish(&guest), "the first request wakes the backend");
        front.put(&guest, &entry(2));
        assert!(!front.publish(&guest), "the second one does not");
        assert!(back.final_check().unwrap());
        let mut request = [0; SIZE];
        while back.next_request(&mut request).unwrap() {}
        assert!(!back.final_check().unwrap());
        assert_eq!(guest.read_u32(front.frames[0], 4), 3);
    }

    #[test]
    fn final_check_for_several_asks_for_one_event() {
        let (guest, mut front, mut back) = ring(1);
        assert!(!back.final_check_for(3).unwrap());
        for n in 0..2 {
            front.put(&guest, &entry(n));
            assert!(!front.publish(&guest), "request {n} is not enough");
        }
        assert!(!back.final_check_for(3).unwrap());
        front.put(&guest, &entry(2));
        assert!(front.publish(&guest));
        assert!(back.final_check_for(3).unwrap());
    }

    #[test]
    fn responses_that_were_shown_are_seen_and_notified_of_with_the_rest() {
        for taken_early in [true, false] {
            let (guest, mut front, mut back) = ring(1);
            let mut request = [0; SIZE];
            for n in 0..4 {
                front.put(&guest, &entry(n));
            }
            front.publish(&guest);
            while back.next_request(&mut request).unwrap() {}
            back.push_response(&entry(0));
            back.push_response(&entry(1));
            back.show();
            assert_eq!(front.rsp_prod(&guest), 2);
            if taken_early {
                assert!(front.take(&guest, SIZE).unwrap() == entry(0));
                assert!(front.take(&guest, SIZE).unwrap() == entry(1));
                // It sleeps until the third.
                guest.write(front.frames[0], 12, &3u32.to_le_bytes());
            }
            back.push_response(&entry(2));
            assert!(back.publish(), "it sleeps");
            assert!(!back.publish(), "once");
        }
    }

    #[test]
    fn responses_are_shown_by_publish_and_notified_only_if_asked_for() {
        let (guest, mut front, mut back) = ring(1);
        for n in 0..6 {
            front.put(&guest, &entry(n));
        }
        front.publish(&guest);
        let mut request = [0; SIZE];
        while back.next_request(&mut request).unwrap() {}
        let rsp_event = |event: u32| guest.write(front.frames[0], 12, &event.to_le_bytes());

        assert!(!back.publish(), "there is nothing to show");
        back.push_response(&entry(0));
        assert_eq!(front.rsp_prod(&guest), 0);
        assert!(back.publish(), "it asked for the first");
        assert_eq!(front.rsp_prod(&guest), 1);
        back.push_response(&entry(1));
        assert!(!back.publish(), "it did not ask for the second");
        rsp_event(4);
        back.push_response(&entry(2));
        assert!(!back.publish(), "it wants four");
        back.push_response(&entry(3));
        back.push_response(&entry(4));
        assert!(back.publish(), "the fourth is among these two");
        rsp_event(u32::MAX / 2);
        back.push_response(&entry(5));
        assert!(!back.publish(), "it asked for one far away");
    }

    #[test]
    fn a_response_shorter_than_its_slot_leaves_the_rest() {
        let (guest, mut front, mut back) = ring(1);
        front.put(&guest, &[0xee; SIZE]);
        front.publish(&guest);
        let mut request = [0; 12];
        assert!(back.next_request(&mut request).unwrap());
        assert_eq!(request, [0xee; 12]);
        back.push_response(&[1; 16]);
        back.publish();
        let slot = front.take(&guest, SIZE).unwrap();
        assert!(slot[..16] == [1; 16] && slot[16..] == [0xee; SIZE - 16]);
    }
}

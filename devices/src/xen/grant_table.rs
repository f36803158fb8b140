//! The guest's grant table, version 1 (xen/include/public/grant_table.h).
//!
//! A "map" by a backend is pointer arithmetic, because guest RAM is mapped here anyway. What a map must
//! still do is told to the guest in the entry: GTF_reading and GTF_writing are set while a backend uses the
//! page, so that a frontend which takes back a grant too early finds it busy, as on Xen.
//!
//! Entry, 8 bytes: flags u16 @0, domid u16 @2, frame u32 @4.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

use thiserror::Error;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::types::{DomId, Gfn, GrantRef};
use crate::memory::{GuestRam, PAGE_SIZE, SharedPages};

/// Entries of one version 1 grant frame.
pub const ENTRIES_PER_FRAME: u32 = 512;
/// Frames of a grant table: Xen's default of `max_grant_frames`.
pub const MAX_FRAMES: u32 = 64;
/// Grant references that the toolstack fills in before the guest runs.
pub const RESERVED_CONSOLE: GrantRef = GrantRef(0);
/// As [`RESERVED_CONSOLE`], for the xenstore page.
pub const RESERVED_XENSTORE: GrantRef = GrantRef(1);

const GTF_TYPE_MASK: u16 = 3;
const GTF_PERMIT_ACCESS: u16 = 1;
const GTF_READONLY: u16 = 4;
const GTF_READING: u16 = 8;
const GTF_WRITING: u16 = 16;
const GTF_SUB_PAGE: u16 = 256;
/// Attempts at an entry that the guest changes under us; then it is refused (a live-lock by the guest).
const MAX_RETRIES: usize = 5;

/// Why a grant reference cannot be used. The guest sees a failed request, never this text.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GrantError {
    /// grant reference {0} is past the end of the table
    #[error("grant reference {0} is past the end of the table")]
    BadRef(u32),
    /// grant reference {0} does not permit access by domain 0
    #[error("grant reference {0} does not permit access by domain 0")]
    NotPermitted(u32),
    /// grant reference {0} is read-only
    #[error("grant reference {0} is read-only")]
    ReadOnly(u32),
    /// grant reference {0} names a frame that is not RAM
    #[error("grant reference {0} names a frame that is not RAM")]
    NotRam(u32),
    /// grant reference {0} changed again and again while it was looked at, or is in use too often
    #[error("grant reference {0} changed again and again while it was looked at, or is in use too often")]
    Busy(u32),
}

/// What a backend does with a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The backend only reads the page.
    Read,
    /// The backend reads and writes the page.
    Write,
}

/// A copy of a grant entry.
struct Entry {
    flags: u16,
    domid: u16,
    frame: Gfn,
}

impl From<u64> for Entry {
    fn from(raw: u64) -> Self {
        let [a, b, c, d, frame @ ..] = raw.to_le_bytes();
        Entry {
            flags: u16::from_le_bytes([a, b]),
            domid: u16::from_le_bytes([c, d]),
            frame: Gfn(u32::from_le_bytes(frame).into()),
        }
    }
}

/// A granted page in use. Give it back with [`GrantTable::unpin`]; the pointer is valid as long as the
/// [`GrantTable`] it came from.
#[derive(Debug)]
#[must_use = "a pinned page must be given back with GrantTable::unpin"]
pub struct PinnedPage {
    gref: GrantRef,
    access: Access,
    addr: *mut u8,
}

// SAFETY: the pointer names guest RAM, which is shared with the guest anyway and only accessed volatilely.
unsafe impl Send for PinnedPage {}

impl PinnedPage {
    /// Host address of the page's first byte; 4096 bytes are accessible. For io_uring and readv vectors.
    pub fn as_ptr(&self) -> *mut u8 {
        self.addr
    }
}

/// The guest's grant table.
#[derive(Debug)]
pub struct GrantTable {
    ram: Arc<GuestRam>,
    frames: SharedPages,
    nr_frames: AtomicU32,
    pins: Box<[Pins]>,
}

/// Users of one entry: readers in the low half, writers in the high half, and a lock in the highest bit. The
/// lock keeps count and in-use flags together: without it, the last user's clearing of the flags could come
/// after a new user's setting of them.
#[derive(Debug)]
#[repr(transparent)]
struct Pins(AtomicU32);

const ONE_READER: u32 = 1;
const ONE_WRITER: u32 = 1 << 16;
const LOCKED: u32 = 1 << 31;

impl Pins {
    /// Locks: the count.
    fn lock(&self) -> u32 {
        loop {
            let count = self.0.load(Relaxed) & !LOCKED;
            if self.0.compare_exchange_weak(count, count | LOCKED, Acquire, Relaxed).is_ok() {
                return count;
            }
            // Two queues use one page at once, which frontends have no reason to ask for. The other one is a
            // few instructions from the end, unless the host took its CPU away.
            std::thread::yield_now();
        }
    }

    /// Sets the count and unlocks.
    fn unlock(&self, count: u32) {
        self.0.store(count, Release);
    }
}

impl Access {
    /// One user's share of the count.
    fn one(self) -> u32 {
        match self {
            Access::Read => ONE_READER,
            Access::Write => ONE_WRITER,
        }
    }

    /// What a user sets in the entry.
    fn flags(self) -> u16 {
        match self {
            Access::Read => GTF_READING,
            Access::Write => GTF_READING | GTF_WRITING,
        }
    }
}

/// One user more, unless the count would run over: a frontend may name one page in many requests at once.
fn add_user(count: u32, access: Access) -> Option<u32> {
    let (readers, writers) = (count & 0xffff, count >> 16);
    match access {
        Access::Read => (readers < 0xffff).then_some(count + ONE_READER),
        Access::Write => (writers < 0x7fff).then_some(count + ONE_WRITER),
    }
}

impl GrantTable {
    /// A table of one frame, growing to [`MAX_FRAMES`].
    pub fn new(ram: Arc<GuestRam>) -> std::io::Result<Self> {
        let entries = MAX_FRAMES * ENTRIES_PER_FRAME;
        Ok(Self {
            ram,
            frames: SharedPages::new("xen-grant-table", MAX_FRAMES as usize)?,
            nr_frames: AtomicU32::new(1),
            pins: (0..entries).map(|_| Pins(AtomicU32::new(0))).collect(),
        })
    }

    /// The pages of the table, for overlays over guest frames.
    pub fn frames(&self) -> &SharedPages {
        &self.frames
    }

    /// RAM that granted frames are in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Frames in use.
    pub fn nr_frames(&self) -> u32 {
        self.nr_frames.load(SeqCst)
    }

    /// Grows the table to hold frame `index` (XENMEM_add_to_physmap, space 1); false past [`MAX_FRAMES`].
    pub fn grow_to(&self, index: u32) -> bool {
        if index >= MAX_FRAMES {
            return false;
        }
        self.nr_frames.fetch_max(index + 1, SeqCst);
        true
    }

    /// Fills in a reserved entry: permits access to `frame` by domain 0.
    pub fn set_reserved(&self, gref: GrantRef, frame: Gfn) {
        let entry = u64::from(GTF_PERMIT_ACCESS) | u64::from(DomId::DOM0.0) << 16 | frame.0 << 32;
        if let Some(slot) = self.frames.u64_at(gref.0 as usize * 8) {
            slot.store(entry, SeqCst);
        }
    }

    /// Starts the use of a granted page: checks the entry, marks it as in use, finds the page in RAM.
    pub fn pin(&self, gref: GrantRef, access: Access) -> Result<PinnedPage, GrantError> {
        if gref.0 >= self.nr_frames().min(MAX_FRAMES) * ENTRIES_PER_FRAME {
            return Err(GrantError::BadRef(gref.0));
        }
        let slot = self.frames.u64_at(gref.0 as usize * 8).ok_or(GrantError::BadRef(gref.0))?;
        let users = self.pins.get(gref.0 as usize).ok_or(GrantError::BadRef(gref.0))?;
        let count = users.lock();
        let pinned = match add_user(count, access) {
            Some(more) => self.check_and_mark(slot, gref, access).map(|page| (page, more)),
            None => Err(GrantError::Busy(gref.0)),
        };
        users.unlock(pinned.as_ref().map_or(count, |(_, more)| *more));
        pinned.map(|(page, _)| page)
    }

    fn check_and_mark(
        &self,
        slot: &AtomicU64,
        gref: GrantRef,
        access: Access,
    ) -> Result<PinnedPage, GrantError> {
        for _ in 0..MAX_RETRIES {
            let old = slot.load(SeqCst);
            let entry = Entry::from(old);
            if entry.flags & (GTF_TYPE_MASK | GTF_SUB_PAGE) != GTF_PERMIT_ACCESS
                || entry.domid != DomId::DOM0.0
            {
                return Err(GrantError::NotPermitted(gref.0));
            }
            if access == Access::Write && entry.flags & GTF_READONLY != 0 {
                return Err(GrantError::ReadOnly(gref.0));
            }
            let addr = self.host_page(entry.frame).ok_or(GrantError::NotRam(gref.0))?;
            // Only if the entry is still the one that was checked.
            if slot.compare_exchange(old, old | u64::from(access.flags()), SeqCst, SeqCst).is_ok() {
                return Ok(PinnedPage { gref, access, addr });
            }
        }
        Err(GrantError::Busy(gref.0))
    }

    /// Ends the use of a page; the last user of an entry clears its in-use flags.
    pub fn unpin(&self, page: PinnedPage) {
        let index = page.gref.0 as usize;
        let (Some(users), Some(flags)) = (self.pins.get(index), self.frames.u16_at(index * 8)) else {
            return;
        };
        let left = users.lock().wrapping_sub(page.access.one());
        let mut unused = 0;
        if page.access == Access::Write && left < ONE_WRITER {
            unused |= GTF_WRITING;
        }
        if left == 0 {
            unused |= GTF_READING;
        }
        if unused != 0 {
            flags.fetch_and(!unused, SeqCst);
        }
        users.unlock(left & !LOCKED);
    }

    /// Part of a pinned page as a slice; `None` if it does not lie inside the page.
    pub fn slice<'a>(&'a self, page: &'a PinnedPage, offset: usize, len: usize) -> Option<VolatileSlice<'a>> {
        if offset.checked_add(len)? > PAGE_SIZE {
            return None;
        }
        // SAFETY: the page lies in RAM that self keeps mapped, and the range is inside the page.
        Some(unsafe { VolatileSlice::new(page.addr.add(offset), len) })
    }

    fn host_page(&self, gfn: Gfn) -> Option<*mut u8> {
        let gpa = GuestAddress(gfn.gpa()?);
        let region = self.ram.find_region(gpa)?;
        let offset = gpa.checked_offset_from(region.start_addr())?;
        if region.len() - offset < PAGE_SIZE as u64 {
            return None;
        }
        region.get_host_address(vm_memory::MemoryRegionAddress(offset)).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::FakeGuest;

    const READING: u16 = 1 | 8;
    const WRITING: u16 = 1 | 8 | 16;

    fn error(guest: &FakeGuest, gref: GrantRef, access: Access) -> GrantError {
        guest.domain.grants.pin(gref, access).unwrap_err()
    }

    #[test]
    fn a_granted_page_is_the_guest_page() {
        let mut guest = FakeGuest::new(16);
        let (frame, gref) = guest.granted_page();
        let grants = &guest.domain.grants;
        let page = grants.pin(gref, Access::Write).unwrap();
        grants.slice(&page, 100, 5).unwrap().copy_from(b"hello");
        assert_eq!(guest.read(frame, 100, 5), b"hello");
        grants.unpin(page);
    }

    #[test]
    fn references_past_the_table_are_refused() {
        let guest = FakeGuest::new(16);
        for gref in [512, 513, MAX_FRAMES * ENTRIES_PER_FRAME, u32::MAX] {
            assert_eq!(error(&guest, GrantRef(gref), Access::Read), GrantError::BadRef(gref));
        }
    }

    #[test]
    fn the_table_grows_up_to_its_last_frame() {
        let mut guest = FakeGuest::new(16);
        let frame = guest.alloc_page();
        let last = GrantRef(MAX_FRAMES * ENTRIES_PER_FRAME - 1);
        assert!(!guest.domain.grants.grow_to(MAX_FRAMES));
        assert_eq!(guest.domain.grants.nr_frames(), 1);
        guest.set_grant(last, 1, 0, frame);
        assert_eq!(guest.domain.grants.nr_frames(), MAX_FRAMES);
        let page = guest.domain.grants.pin(last, Access::Write).unwrap();
        guest.domain.grants.unpin(page);
    }

    #[test]
    fn only_plain_access_for_domain_0_is_permitted() {
        let guest = FakeGuest::new(16);
        // Flags and domid: invalid, transfer, transitive, sub-page, another domain, the guest itself.
        for (flags, domid) in [(0, 0), (2, 0), (3, 0), (1 | 256, 0), (1, 1), (1, 0x7ff0)] {
            guest.set_grant(GrantRef(20), flags, domid, 3);
            assert_eq!(error(&guest, GrantRef(20), Access::Read), GrantError::NotPermitted(20));
            assert_eq!(guest.grant_flags(GrantRef(20)), flags, "a refused entry is not marked");
        }
    }

    #[test]
    fn a_read_only_grant_is_not_written() {
        let mut guest = FakeGuest::new(16);
        let frame = guest.alloc_page();
        let gref = guest.grant(frame, true);
        assert_eq!(error(&guest, gref, Access::Write), GrantError::ReadOnly(gref.0));
        let page = guest.domain.grants.pin(gref, Access::Read).unwrap();
        guest.domain.grants.unpin(page);
    }

    #[test]
    fn a_frame_that_is_not_ram_is_refused() {
        let guest = FakeGuest::new(16);
        for frame in [16, 17, 0xf_ffff, 0xffff_ffff] {
            guest.set_grant(GrantRef(20), 1, 0, frame);
            assert_eq!(error(&guest, GrantRef(20), Access::Read), GrantError::NotRam(20), "{frame:#x}");
        }
        guest.set_grant(GrantRef(20), 1, 0, 15);
        let page = guest.domain.grants.pin(GrantRef(20), Access::Read).unwrap();
        guest.domain.grants.unpin(page);
    }

    #[test]
    fn slices_end_with_the_page() {
        let mut guest = FakeGuest::new(16);
        let (_, gref) = guest.granted_page();
        let grants = &guest.domain.grants;
        let page = grants.pin(gref, Access::Read).unwrap();
        assert!(grants.slice(&page, 0, 4096).is_some());
        assert!(grants.slice(&page, 4096, 0).is_some());
        assert!(grants.slice(&page, 1, 4096).is_none());
        assert!(grants.slice(&page, 4097, 0).is_none());
        assert!(grants.slice(&page, usize::MAX, 2).is_none());
        grants.unpin(page);
    }

    #[test]
    fn flags_show_the_use_until_the_last_user_is_gone() {
        let mut guest = FakeGuest::new(16);
        let (_, gref) = guest.granted_page();
        let grants = &guest.domain.grants;
        let reader = grants.pin(gref, Access::Read).unwrap();
        assert_eq!(guest.grant_flags(gref), READING);
        let writers = [grants.pin(gref, Access::Write).unwrap(), grants.pin(gref, Access::Write).unwrap()];
        assert_eq!(guest.grant_flags(gref), WRITING);
        let [one, two] = writers;
        grants.unpin(one);
        assert_eq!(guest.grant_flags(gref), WRITING);
        grants.unpin(two);
        assert_eq!(guest.grant_flags(gref), READING);
        grants.unpin(reader);
        assert_eq!(guest.grant_flags(gref), 1);
    }

    #[test]
    fn a_lone_writer_clears_both_flags() {
        let mut guest = FakeGuest::new(16);
        let (_, gref) = guest.granted_page();
        let page = guest.domain.grants.pin(gref, Access::Write).unwrap();
        assert_eq!(guest.grant_flags(gref), WRITING);
        guest.domain.grants.unpin(page);
        assert_eq!(guest.grant_flags(gref), 1);
    }

    #[test]
    fn unpin_leaves_the_rest_of_the_entry_to_the_guest() {
        let mut guest = FakeGuest::new(16);
        let (_, gref) = guest.granted_page();
        let page = guest.domain.grants.pin(gref, Access::Read).unwrap();
        guest.set_grant(gref, 1 | 4 | 8, 9, 5);
        guest.domain.grants.unpin(page);
        let entry = guest.domain.grants.frames().u64_at(gref.0 as usize * 8).unwrap().load(SeqCst);
        assert_eq!(entry, 1 | 4 | 9 << 16 | 5 << 32);
    }

    #[test]
    fn a_pinned_page_stays_the_one_that_was_checked() {
        let mut guest = FakeGuest::new(16);
        let (frame, gref) = guest.granted_page();
        let grants = &guest.domain.grants;
        let page = grants.pin(gref, Access::Write).unwrap();
        guest.set_grant(gref, 1, 0, frame + 1);
        grants.slice(&page, 0, 1).unwrap().copy_from(&[7u8]);
        assert_eq!((guest.read(frame, 0, 1), guest.read(frame + 1, 0, 1)), (vec![7], vec![0]));
        grants.unpin(page);
    }

    #[test]
    fn more_users_than_can_be_counted_are_refused() {
        let mut guest = FakeGuest::new(16);
        let (_, gref) = guest.granted_page();
        let grants = &guest.domain.grants;
        let mut pages = Vec::new();
        for (access, limit) in [(Access::Read, 0xffff), (Access::Write, 0x7fff)] {
            pages.extend((0..limit).map(|_| grants.pin(gref, access).unwrap()));
            assert_eq!(error(&guest, gref, access), GrantError::Busy(gref.0));
        }
        pages.into_iter().for_each(|page| grants.unpin(page));
        assert_eq!(guest.grant_flags(gref), 1);
    }

    #[test]
    fn users_on_several_threads_never_see_their_page_unmarked() {
        let mut guest = FakeGuest::new(16);
        let (_, gref) = guest.granted_page();
        let (guest, rounds) = (&guest, 20_000);
        std::thread::scope(|scope| {
            for access in [Access::Read, Access::Write, Access::Write] {
                scope.spawn(move || {
                    for _ in 0..rounds {
                        let page = guest.domain.grants.pin(gref, access).unwrap();
                        let wanted = 1 | access.flags();
                        assert_eq!(guest.grant_flags(gref) & wanted, wanted);
                        guest.domain.grants.unpin(page);
                    }
                });
            }
        });
        assert_eq!(guest.grant_flags(gref), 1);
    }

    #[test]
    fn what_was_checked_is_what_is_used_when_the_guest_changes_the_entry() {
        let mut guest = FakeGuest::new(64);
        let gref = GrantRef(20);
        let (even, odd) = (guest.alloc_page(), guest.alloc_page());
        guest.write(odd, 0, &[1]);
        guest.set_grant(gref, 0, 0, even);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (guest, stop) = (&guest, &stop);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    guest.set_grant(gref, 1, 0, odd);
                    guest.set_grant(gref, 1, 7, even);
                    guest.set_grant(gref, 0, 0, even);
                }
            });
            for _ in 0..10_000 {
                match guest.domain.grants.pin(gref, Access::Read) {
                    // Only the odd page is ever granted to domain 0.
                    Ok(page) => {
                        let mut byte = [0u8];
                        guest.domain.grants.slice(&page, 0, 1).unwrap().copy_to(&mut byte);
                        assert_eq!(byte, [1]);
                        guest.domain.grants.unpin(page);
                    }
                    Err(e) => {
                        assert!(matches!(e, GrantError::NotPermitted(20) | GrantError::Busy(20)), "{e}")
                    }
                }
            }
            stop.store(true, SeqCst);
        });
    }
}

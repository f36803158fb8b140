//! The guest's grant table, version 1 (xen/include/public/grant_table.h).
//!
//! A "map" by a backend is pointer arithmetic, because guest RAM is mapped here anyway. What a map must
//! still do is told to the guest in the entry: GTF_reading and GTF_writing are set while a backend uses the
//! page, so that a frontend which takes back a grant too early finds it busy, as on Xen.
//!
//! Entry, 8 bytes: flags u16 @0, domid u16 @2, frame u32 @4.

#[cfg(test)]
mod tests;
mod users;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU32, AtomicU64};

use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, VolatileSlice};

use self::users::{AllUsers, Locked};
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
    regions: Box<[Region]>,
    frames: SharedPages,
    nr_frames: AtomicU32,
    users: AllUsers,
}

/// Where a row of guest pages is in our address space, for as long as the RAM is.
#[derive(Debug)]
struct Region {
    first: Gfn,
    pages: u64,
    base: *mut u8,
}

// SAFETY: the pointer is only handed on, as that of a page; see PinnedPage.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(region: &GuestRegionMmap<()>) -> Self {
        let start = region.start_addr().raw_value();
        let first = start.div_ceil(PAGE_SIZE as u64);
        // A part of a page is no page.
        let skipped = first * PAGE_SIZE as u64 - start;
        Self {
            first: Gfn(first),
            pages: region.len().saturating_sub(skipped) / PAGE_SIZE as u64,
            base: region.as_ptr().wrapping_add(usize::try_from(skipped).unwrap_or(0)),
        }
    }

    fn page(&self, gfn: Gfn) -> Option<*mut u8> {
        let index = gfn.0.checked_sub(self.first.0).filter(|index| *index < self.pages)?;
        Some(self.base.wrapping_add(usize::try_from(index).ok()? * PAGE_SIZE))
    }
}

impl Access {
    /// What a user sets in the entry.
    fn flags(self) -> u16 {
        match self {
            Access::Read => GTF_READING,
            Access::Write => GTF_READING | GTF_WRITING,
        }
    }
}

impl GrantTable {
    /// A table of one frame, growing to [`MAX_FRAMES`].
    pub fn new(ram: Arc<GuestRam>) -> std::io::Result<Self> {
        let entries = MAX_FRAMES * ENTRIES_PER_FRAME;
        Ok(Self {
            regions: ram.iter().map(Region::new).collect(),
            ram,
            frames: SharedPages::new("xen-grant-table", MAX_FRAMES as usize)?,
            nr_frames: AtomicU32::new(1),
            users: AllUsers::new(entries),
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
        self.batch().pin(gref, access)
    }

    /// Ends the use of a page; the last user of an entry clears its in-use flags.
    pub fn unpin(&self, page: PinnedPage) {
        self.batch().unpin(page);
    }

    /// For many pages at once. While it lives, other threads may wait for it, and this one must not ask for another.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            table: self,
            entries: self.nr_frames().min(MAX_FRAMES) * ENTRIES_PER_FRAME,
            users: self.users.locked(),
        }
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

    /// Part of a pinned page as a slice; `None` if it does not lie inside the page.
    pub fn slice<'a>(&'a self, page: &'a PinnedPage, offset: usize, len: usize) -> Option<VolatileSlice<'a>> {
        if offset.checked_add(len)? > PAGE_SIZE {
            return None;
        }
        // SAFETY: the page lies in RAM that self keeps mapped, and the range is inside the page.
        Some(unsafe { VolatileSlice::new(page.addr.add(offset), len) })
    }

    fn host_page(&self, gfn: Gfn) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| region.page(gfn))
    }
}

/// Pins and unpins pages, with a lock for a row of neighbouring entries instead of one for each.
pub struct Batch<'a> {
    table: &'a GrantTable,
    /// Entries of the table when it began.
    entries: u32,
    users: Locked<'a>,
}

impl Batch<'_> {
    /// As [`GrantTable::pin`].
    pub fn pin(&mut self, gref: GrantRef, access: Access) -> Result<PinnedPage, GrantError> {
        if gref.0 >= self.entries {
            return Err(GrantError::BadRef(gref.0));
        }
        let slot = self.table.frames.u64_at(gref.0 as usize * 8).ok_or(GrantError::BadRef(gref.0))?;
        let users = self.users.of(gref).ok_or(GrantError::BadRef(gref.0))?;
        let more = users.and_one(access).ok_or(GrantError::Busy(gref.0))?;
        let page = self.table.check_and_mark(slot, gref, access)?;
        *users = more;
        Ok(page)
    }

    /// As [`GrantTable::unpin`].
    pub fn unpin(&mut self, page: PinnedPage) {
        let PinnedPage { gref, access, .. } = page;
        let Some(users) = self.users.of(gref) else { return };
        let left = users.less_one(access);
        *users = left;
        let mut unused = 0;
        if access == Access::Write && !left.writes() {
            unused |= GTF_WRITING;
        }
        if !left.any() {
            unused |= GTF_READING;
        }
        if unused != 0
            && let Some(flags) = self.table.frames.u16_at(gref.0 as usize * 8)
        {
            flags.fetch_and(!unused, SeqCst);
        }
    }
}

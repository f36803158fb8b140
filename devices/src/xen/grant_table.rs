//! The guest's grant table, version 1 (xen/include/public/grant_table.h).
//!
//! A "map" by a backend is pointer arithmetic, because guest RAM is mapped here anyway. What a map must
//! still do is told to the guest in the entry: GTF_reading and GTF_writing are set while a backend uses the
//! page, so that a frontend which takes back a grant too early finds it busy, as on Xen.
//!
//! Entry, 8 bytes: flags u16 @0, domid u16 @2, frame u32 @4.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

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
    /// grant reference {0} changed again and again while it was looked at
    #[error("grant reference {0} changed again and again while it was looked at")]
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
    /// Users of each entry: readers in the low half, writers in the high half.
    pins: Box<[AtomicU32]>,
}

const ONE_WRITER: u32 = 1 << 16;

impl GrantTable {
    /// A table of one frame, growing to [`MAX_FRAMES`].
    pub fn new(ram: Arc<GuestRam>) -> std::io::Result<Self> {
        let entries = MAX_FRAMES * ENTRIES_PER_FRAME;
        Ok(Self {
            ram,
            frames: SharedPages::new("xen-grant-table", MAX_FRAMES as usize)?,
            nr_frames: AtomicU32::new(1),
            pins: (0..entries).map(|_| AtomicU32::new(0)).collect(),
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
        for _ in 0..MAX_RETRIES {
            let old = slot.load(SeqCst);
            let (flags, domid, frame) = (old as u16, (old >> 16) as u16, old >> 32);
            if flags & (GTF_TYPE_MASK | GTF_SUB_PAGE) != GTF_PERMIT_ACCESS || domid != DomId::DOM0.0 {
                return Err(GrantError::NotPermitted(gref.0));
            }
            let mut used = GTF_READING;
            if access == Access::Write {
                if flags & GTF_READONLY != 0 {
                    return Err(GrantError::ReadOnly(gref.0));
                }
                used |= GTF_WRITING;
            }
            let addr = self.host_page(Gfn(frame)).ok_or(GrantError::NotRam(gref.0))?;
            if slot.compare_exchange(old, old | u64::from(used), SeqCst, SeqCst).is_ok() {
                users.fetch_add(if access == Access::Write { ONE_WRITER } else { 1 }, SeqCst);
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
        let one = if page.access == Access::Write { ONE_WRITER } else { 1 };
        let left = users.fetch_sub(one, SeqCst).wrapping_sub(one);
        if left >> 16 == 0 && page.access == Access::Write {
            flags.fetch_and(!GTF_WRITING, SeqCst);
        }
        if left == 0 {
            flags.fetch_and(!GTF_READING, SeqCst);
        }
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

//! A request under way: its pages, its memory as the engine takes it, and how far it is.

use devices::xen::grant_table::{Access, GrantError, GrantTable, PinnedPage};
use vm_memory::VolatileSlice;

use crate::bounce::BounceBuffer;
use crate::engine::IoVec;
use crate::protocol::{Segment, Transfer};
use crate::storage::Traits;

/// What a slot waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free,
    Read,
    Write,
    Flush,
    /// The flush before the data of the same request.
    FlushThenWrite,
    Discard,
}

/// What a slot is counted as when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
}

/// A slot for one request. Its lists keep their memory for the next one; a slot that never served a request of
/// many segments has little.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) opcode: u8,
    pub(crate) kind: Kind,
    pub(crate) phase: Phase,
    /// Flushed once more after the data, and nothing else of the ring is done meanwhile.
    pub(crate) barrier: bool,
    pub(crate) retries: u8,
    /// It found no room, and waited for some.
    pub(crate) held: bool,
    /// Where the rest of the data goes on the disk, or where it is discarded, in bytes.
    pub(crate) offset: u64,
    /// Bytes to discard.
    pub(crate) discarded: u64,
    /// Bytes of the rest.
    left: usize,
    /// Bytes of all data.
    pub(crate) total: usize,
    pages: Vec<PinnedPage>,
    /// The rest of the data in memory: guest pages, or the bounce buffer.
    buffers: Vec<IoVec>,
    /// With a bounce buffer in use: the guest's memory.
    bounced: Vec<IoVec>,
    bounce: Option<BounceBuffer>,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            id: 0,
            opcode: 0,
            kind: Kind::Read,
            phase: Phase::Free,
            barrier: false,
            retries: 0,
            held: false,
            offset: 0,
            discarded: 0,
            left: 0,
            total: 0,
            pages: Vec::new(),
            buffers: Vec::new(),
            bounced: Vec::new(),
            bounce: None,
        }
    }

    /// The rest of the data in memory.
    pub(crate) fn buffers(&self) -> &[IoVec] {
        &self.buffers
    }

    /// Pins the pages of a transfer and lists their memory. On an error nothing stays pinned.
    pub(crate) fn map(
        &mut self,
        grants: &GrantTable,
        transfer: &Transfer,
        segments: &[Segment],
        access: Access,
    ) -> Result<(), GrantError> {
        self.offset = transfer.offset();
        self.total = transfer.bytes() as usize;
        self.left = self.total;
        for segment in segments {
            let page = match grants.pin(segment.gref, access) {
                Ok(page) => page,
                Err(e) => {
                    self.unmap(grants);
                    return Err(e);
                }
            };
            let (base, len) = (page.as_ptr().wrapping_add(segment.offset.into()), segment.len.into());
            self.pages.push(page);
            if !self.buffers.last_mut().is_some_and(|last| last.extend(base, len)) {
                self.buffers.push(IoVec::new(base, len));
            }
        }
        Ok(())
    }

    /// Gives the pages back. Bytes of the bounce buffer that went with them.
    pub(crate) fn unmap(&mut self, grants: &GrantTable) -> usize {
        self.buffers.clear();
        self.bounced.clear();
        for page in self.pages.drain(..) {
            grants.unpin(page);
        }
        self.bounce.take().map_or(0, |bounce| bounce.len())
    }

    /// Whether the storage cannot reach the memory as it is: direct I/O cannot reach every segment that the
    /// protocol can name. On a disk with sectors of 512 bytes that does not happen.
    pub(crate) fn is_misaligned(&self, traits: &Traits) -> bool {
        let (memory, length) = (traits.memory_alignment as usize, traits.offset_alignment as usize);
        self.buffers
            .iter()
            .any(|v| !(v.base() as usize).is_multiple_of(memory) || !v.size().is_multiple_of(length))
    }

    /// Puts memory of our own between guest and storage, in one piece; its bytes.
    pub(crate) fn bounce(&mut self, access: Access) -> usize {
        let bounce = BounceBuffer::new(self.total);
        self.bounced.append(&mut self.buffers);
        self.buffers.push(IoVec::new(bounce.as_ptr(), self.total.min(bounce.len())));
        let len = bounce.len();
        self.bounce = Some(bounce);
        if access == Access::Read {
            self.copy_bounced(|guest, buffer| guest.copy_to_volatile_slice(buffer));
        }
        len
    }

    /// A read is done: what is in the bounce buffer, if there is one, goes to the guest.
    pub(crate) fn copy_to_guest(&self) {
        self.copy_bounced(|guest, buffer| buffer.copy_to_volatile_slice(*guest));
    }

    /// Calls `copy(guest memory, the same part of the bounce buffer)` for each piece.
    fn copy_bounced(&self, copy: impl Fn(&VolatileSlice, VolatileSlice)) {
        let Some(bounce) = &self.bounce else { return };
        let mut at = 0;
        for piece in &self.bounced {
            if at + piece.size() > bounce.len() {
                return;
            }
            // SAFETY: the piece lies in pages that are pinned, and its part in the buffer; both are only
            // touched through volatile accesses, and no operation on either is under way.
            let (guest, buffer) = unsafe {
                (
                    VolatileSlice::new(piece.base(), piece.size()),
                    VolatileSlice::new(bounce.as_ptr().add(at), piece.size()),
                )
            };
            copy(&guest, buffer);
            at += piece.size();
        }
    }

    /// Goes on after `done` bytes; true: there is a rest.
    pub(crate) fn advance(&mut self, mut done: usize) -> bool {
        done = done.min(self.left);
        self.left -= done;
        self.offset += done as u64;
        if self.left == 0 {
            return false;
        }
        for buffer in &mut self.buffers {
            done -= buffer.advance(done);
        }
        self.buffers.retain(|b| b.size() > 0);
        true
    }
}

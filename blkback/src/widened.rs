//! A storage that addresses smaller units than the one below it can: what is misaligned is widened.
//!
//! Direct I/O on some file systems takes multiples of 4096 bytes only, while the guest was told sectors of 512.
//! A read is done around what is asked for. A write reads, changes and writes back the units that it touches;
//! meanwhile no other write is done, or the neighbours' new data would be overwritten by old.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::VolatileSlice;

use crate::bounce::BounceBuffer;
use crate::engine::IoVec;
use crate::storage::{Storage, Traits};

/// A storage in units of its `logical_block`. It has no descriptor: only its methods do what it does.
#[derive(Debug)]
pub(crate) struct Widened {
    inner: Arc<dyn Storage>,
    traits: Traits,
    writers: RwLock<()>,
}

impl Widened {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        let traits = inner.traits();
        Self { inner, traits, writers: RwLock::new(()) }
    }

    fn unit(&self) -> u64 {
        u64::from(self.traits.offset_alignment)
    }

    fn is_aligned(&self, buffers: &[IoVec], offset: u64) -> bool {
        let memory = self.traits.memory_alignment as usize;
        offset.is_multiple_of(self.unit())
            && buffers.iter().all(|b| {
                (b.base() as usize).is_multiple_of(memory) && (b.size() as u64).is_multiple_of(self.unit())
            })
    }

    /// Memory for the units around `len` bytes at `offset`, and the offset of the first.
    fn around(&self, offset: u64, len: usize) -> io::Result<(u64, Units)> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let start = offset - offset % self.unit();
        let end = offset.checked_add(len as u64).and_then(|end| end.checked_next_multiple_of(self.unit()));
        let len = end.and_then(|end| usize::try_from(end - start).ok()).ok_or_else(invalid)?;
        Ok((start, Units { memory: BounceBuffer::new(len), len }))
    }

    /// Reads all of it, or up to the end of the storage: how much.
    fn fill(&self, start: u64, units: &Units) -> io::Result<usize> {
        let mut done = 0;
        while done < units.len {
            // SAFETY: the memory is our own and lives until the call returns.
            match unsafe { self.inner.read_at(&[units.rest(done)], start + done as u64) } {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if !(done as u64).is_multiple_of(self.unit()) {
                // The end is inside a unit.
                break;
            }
        }
        Ok(done.min(units.len))
    }

    fn write_back(&self, start: u64, units: &Units) -> io::Result<()> {
        let mut done = 0;
        while done < units.len {
            // SAFETY: as above.
            match unsafe { self.inner.write_at(&[units.rest(done)], start + done as u64) } {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => done += bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whole units in memory.
struct Units {
    memory: BounceBuffer,
    len: usize,
}

impl Units {
    fn rest(&self, done: usize) -> IoVec {
        let done = done.min(self.len);
        IoVec::new(self.memory.as_ptr().wrapping_add(done), self.len - done)
    }

    /// Calls `copy(guest memory, the same part of the units)` for up to `len` bytes from byte `at` on.
    fn copy(
        &self,
        buffers: &[IoVec],
        mut at: usize,
        mut len: usize,
        copy: impl Fn(&VolatileSlice, VolatileSlice),
    ) {
        for buffer in buffers {
            let part = buffer.size().min(len);
            if at + part > self.memory.len() {
                return;
            }
            // SAFETY: the caller of read_at or write_at promises that the buffer is valid; the other part is
            // inside our memory. Both are only touched through volatile accesses.
            let (guest, own) = unsafe {
                (
                    VolatileSlice::new(buffer.base(), part),
                    VolatileSlice::new(self.memory.as_ptr().add(at), part),
                )
            };
            copy(&guest, own);
            at += part;
            len -= part;
        }
    }
}

fn length(buffers: &[IoVec]) -> usize {
    buffers.iter().map(IoVec::size).sum()
}

impl Storage for Widened {
    fn traits(&self) -> Traits {
        Traits { memory_alignment: 1, offset_alignment: self.traits.logical_block, ..self.traits }
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn raw(&self) -> Option<RawFd> {
        None
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        if self.is_aligned(buffers, offset) {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.inner.read_at(buffers, offset) };
        }
        let len = length(buffers);
        let (start, units) = self.around(offset, len)?;
        let before = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let len = self.fill(start, &units)?.saturating_sub(before).min(len);
        units.copy(buffers, before, len, |guest, own| own.copy_to_volatile_slice(*guest));
        Ok(len)
    }

    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        if self.is_aligned(buffers, offset) {
            let _shared = self.writers.read().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the caller's promise is the same.
            return unsafe { self.inner.write_at(buffers, offset) };
        }
        let _alone = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        let len = length(buffers);
        let (start, units) = self.around(offset, len)?;
        // A unit that the storage has only a part of cannot be written without making the storage larger.
        if self.fill(start, &units)? < units.len {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let before = usize::try_from(offset - start).unwrap_or(usize::MAX);
        units.copy(buffers, before, len, |guest, own| guest.copy_to_volatile_slice(own));
        self.write_back(start, &units)?;
        Ok(len)
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{Memory, sector_pattern};

    fn widened(sectors: u64) -> (Arc<Memory>, Widened) {
        let mut memory = Memory::new(sectors);
        memory.traits.offset_alignment = 4096;
        let memory = Arc::new(memory);
        let storage: Arc<dyn Storage> = Arc::clone(&memory) as _;
        (memory, Widened::new(storage))
    }

    fn read(storage: &Widened, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let (first, second) = bytes.split_at_mut(len / 3);
        let buffers = [first, second].map(|part| IoVec::new(part.as_mut_ptr(), part.len()));
        // SAFETY: the buffers live until the call returns.
        let done = unsafe { storage.read_at(&buffers, offset) }?;
        bytes.truncate(done);
        Ok(bytes)
    }

    fn write(storage: &Widened, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer lives until the call returns.
        unsafe { storage.write_at(&[IoVec::new(bytes.as_mut_ptr(), bytes.len())], offset) }
    }

    #[test]
    fn every_range_is_read_as_it_is() {
        let (memory, storage) = widened(32);
        for first in 0..32 {
            for count in 1..=(32 - first) {
                let read = read(&storage, first * 512, usize::try_from(count).unwrap() * 512).unwrap();
                assert!(read == memory.sectors(first, usize::try_from(count).unwrap()), "{first}+{count}");
            }
        }
    }

    #[test]
    fn a_read_at_the_end_is_short() {
        let (memory, storage) = widened(12);
        assert!(read(&storage, 11 * 512, 512).unwrap() == memory.sectors(11, 1));
        assert_eq!(read(&storage, 11 * 512, 4096).unwrap().len(), 512);
        assert_eq!(read(&storage, 12 * 512, 512).unwrap().len(), 0);
    }

    #[test]
    fn a_write_changes_its_sectors_and_no_others() {
        for (first, count) in [(1u64, 1usize), (7, 2), (0, 15), (8, 8), (5, 20)] {
            let (memory, storage) = widened(32);
            let mut expected = memory.sectors(0, 32);
            let mut bytes: Vec<u8> = (0..count).flat_map(|s| sector_pattern(s as u64, 9)).collect();
            let at = usize::try_from(first).unwrap() * 512;
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
            assert_eq!(write(&storage, first * 512, &mut bytes).unwrap(), count * 512);
            assert!(memory.sectors(0, 32) == expected, "{first}+{count}");
        }
    }

    #[test]
    fn a_write_into_a_part_of_a_unit_at_the_end_fails_and_does_not_make_the_storage_larger() {
        let (memory, storage) = widened(12);
        let error = write(&storage, 11 * 512, &mut [1; 512]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(memory.bytes.lock().unwrap().len(), 12 * 512);
        assert_eq!(write(&storage, 7 * 512, &mut [1; 512]).unwrap(), 512);
    }

    #[test]
    fn neighbours_in_one_unit_do_not_overwrite_each_other() {
        let (memory, storage) = widened(8);
        std::thread::scope(|scope| {
            for sector in 0..8u8 {
                let storage = &storage;
                scope.spawn(move || {
                    for round in 0..200u64 {
                        let mut bytes = sector_pattern(round, sector);
                        write(storage, u64::from(sector) * 512, &mut bytes).unwrap();
                    }
                });
            }
        });
        for sector in 0..8u8 {
            assert!(memory.sectors(sector.into(), 1) == sector_pattern(199, sector), "sector {sector}");
        }
    }
}

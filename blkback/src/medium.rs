//! A disk as the medium of an emulated drive ([`devices::medium`]): one thread, one request at a time, in their order.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::medium::{Medium, Op, Request, SECTOR};
use vm_memory::VolatileSlice;

use crate::bounce::BounceBuffer;
use crate::disk::Disk;
use crate::engine::IoVec;
use crate::storage::{Storage, Traits};
use crate::widened::Widened;

/// A write that found no room is tried again after this.
const RETRY_HELD: Duration = Duration::from_secs(1);
/// Memory of the thread: image formats have tables of 64 KiB at most on it.
const STACK_SIZE: usize = 512 << 10;

#[derive(Default)]
struct State {
    requests: VecDeque<(u64, Request)>,
    /// Requests so far, and how many of them nobody waits for.
    count: u64,
    cancelled: u64,
    closed: bool,
}

struct Shared {
    disk: Arc<Disk>,
    storage: Arc<dyn Storage>,
    traits: Traits,
    state: Mutex<State>,
    wake: Condvar,
}

/// A disk for an emulated drive, with sectors of 512 bytes whatever the storage has. Its thread (`ide-NAME`) ends with
/// it.
pub struct DiskMedium {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl DiskMedium {
    /// Starts the thread.
    pub fn new(disk: Arc<Disk>) -> io::Result<Self> {
        let (mut storage, mut traits) = (Arc::clone(disk.storage()), *disk.traits());
        if traits.logical_block as usize > SECTOR {
            storage = Arc::new(Widened::new(storage));
            traits = Traits { memory_alignment: 1, offset_alignment: 1, ..traits };
        }
        let name = format!("ide-{}", disk.name());
        let shared = Shared { disk, storage, traits, state: Mutex::default(), wake: Condvar::new() };
        let shared = Arc::new(shared);
        let worker = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || worker.serve())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.shared.disk
    }
}

impl Drop for DiskMedium {
    /// What is under way is finished first; what is not fails.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.cancelled = state.count;
        drop(state);
        self.shared.wake.notify_all();
        // The end of a request may have let go of the drive, and so of this: then the thread ends after it.
        if let Some(thread) =
            self.thread.take_if(|thread| thread.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}

impl Medium for DiskMedium {
    fn sectors(&self) -> u64 {
        self.shared.disk.sectors()
    }

    fn readonly(&self) -> bool {
        self.shared.disk.readonly()
    }

    fn submit(&self, request: Request) {
        self.shared.disk.counters().requests.fetch_add(1, Relaxed);
        let mut state = self.shared.lock();
        let number = state.count;
        state.count += 1;
        state.requests.push_back((number, request));
        drop(state);
        self.shared.wake.notify_all();
    }

    fn cancel(&self) {
        let mut state = self.shared.lock();
        state.cancelled = state.count;
        drop(state);
        self.shared.wake.notify_all();
    }
}

fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some((number, mut request)) = state.requests.pop_front() {
                drop(state);
                let result = self.run(number, &mut request);
                if result.is_err() {
                    self.disk.counters().errors.fetch_add(1, Relaxed);
                }
                request.finish(result);
                state = self.lock();
            } else if state.closed {
                return;
            } else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                self.disk.counters().wakeups.fetch_add(1, Relaxed);
            }
        }
    }

    /// Waits, unless nobody waits for the request any more.
    fn pause(&self, number: u64, time: Duration) -> io::Result<()> {
        let state = self.lock();
        let waited = self.wake.wait_timeout_while(state, time, |state| number >= state.cancelled);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if number < state.cancelled { Err(cancelled()) } else { Ok(()) }
    }

    fn run(&self, number: u64, request: &mut Request) -> io::Result<()> {
        self.pause(number, Duration::ZERO)?;
        let bytes = request.memory.size();
        while let Some(delay) = self.disk.delay() {
            self.pause(number, delay)?;
        }
        self.disk.charge(bytes as u64);
        let counters = self.disk.counters();
        match request.op {
            Op::Flush => {
                self.storage.flush()?;
                counters.flushes.fetch_add(1, Relaxed);
            }
            Op::Read => {
                self.transfer(number, request)?;
                counters.reads.fetch_add(1, Relaxed);
                counters.bytes_read.fetch_add(bytes as u64, Relaxed);
            }
            Op::Write if self.disk.readonly() => return Err(io::Error::from_raw_os_error(libc::EROFS)),
            Op::Write => {
                self.transfer(number, request)?;
                counters.writes.fetch_add(1, Relaxed);
                counters.bytes_written.fetch_add(bytes as u64, Relaxed);
            }
        }
        Ok(())
    }

    fn transfer(&self, number: u64, request: &mut Request) -> io::Result<()> {
        let pieces = request.memory.pieces();
        let (memory, length) = (self.traits.memory_alignment as usize, self.traits.offset_alignment as usize);
        let misaligned = |piece: &IoVec| {
            !(piece.base() as usize).is_multiple_of(memory) || !piece.size().is_multiple_of(length)
        };
        if !pieces.iter().any(misaligned) {
            // SAFETY: the request keeps its memory until it is finished, which is after this call.
            return unsafe { self.move_all(number, request.op, request.offset, pieces) };
        }
        self.disk.counters().bounces.fetch_add(1, Relaxed);
        let size = request.memory.size();
        let bounce = BounceBuffer::new(size);
        let whole = vec![IoVec::new(bounce.as_ptr(), size.min(bounce.len()))];
        if request.op == Op::Write {
            copy(&pieces, &bounce, |guest, own| guest.copy_to_volatile_slice(own));
        }
        // SAFETY: the memory is our own, and lives until the end of this function.
        unsafe { self.move_all(number, request.op, request.offset, whole)? };
        if request.op == Op::Read {
            copy(&pieces, &bounce, |guest, own| own.copy_to_volatile_slice(guest));
        }
        Ok(())
    }

    /// Reads or writes all of it.
    ///
    /// # Safety
    /// The memory stays valid until this returns.
    unsafe fn move_all(
        &self,
        number: u64,
        op: Op,
        mut offset: u64,
        mut pieces: Vec<IoVec>,
    ) -> io::Result<()> {
        let mut held = false;
        while !pieces.is_empty() {
            let result = if op == Op::Read {
                // SAFETY: the caller's promise.
                unsafe { self.storage.read_at(&pieces, offset) }
            } else {
                // SAFETY: the same.
                unsafe { self.storage.write_at(&pieces, offset) }
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(mut done) => {
                    offset += done as u64;
                    for piece in &mut pieces {
                        done -= piece.advance(done);
                    }
                    pieces.retain(|piece| piece.size() > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
                        && op == Op::Write
                        && self.disk.enospc_pause() =>
                {
                    held = true;
                    self.disk.full();
                    self.pause(number, RETRY_HELD)?;
                }
                Err(e) => return Err(e),
            }
        }
        if held {
            self.disk.has_room();
        }
        Ok(())
    }
}

/// Calls `copy(a piece, the same part of the bounce buffer)` for each piece.
fn copy(pieces: &[IoVec], bounce: &BounceBuffer, copy: impl Fn(VolatileSlice, VolatileSlice)) {
    let mut at = 0;
    for piece in pieces {
        if at + piece.size() > bounce.len() {
            return;
        }
        // SAFETY: the request keeps the memory of the piece valid, and the part lies in the buffer; both are only touched
        // through volatile accesses.
        let (guest, own) = unsafe {
            (
                VolatileSlice::new(piece.base(), piece.size()),
                VolatileSlice::new(bounce.as_ptr().add(at), piece.size()),
            )
        };
        copy(guest, own);
        at += piece.size();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{Receiver, channel};

    use devices::medium::Memory as Buffer;
    use devices::memory::GuestRam;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::testing::{Memory, config, sector_pattern};

    type End = (io::Result<()>, Buffer);

    fn submit(medium: &DiskMedium, op: Op, sector: u64, memory: Buffer) -> Receiver<End> {
        let (sender, receiver) = channel();
        let done = Box::new(move |result, memory| sender.send((result, memory)).unwrap());
        medium.submit(Request { op, offset: sector * SECTOR as u64, memory, done });
        receiver
    }

    fn medium_with(memory: &Arc<Memory>, readonly: bool) -> DiskMedium {
        DiskMedium::new(Arc::new(Disk::new(&config(readonly), memory.backing()))).unwrap()
    }

    #[test]
    fn requests_are_done_in_order() {
        let memory = Arc::new(Memory::new(64));
        let medium = medium_with(&memory, false);
        let data = sector_pattern(7, 1);
        let write = submit(&medium, Op::Write, 9, Buffer::own(data.clone()));
        let flush = submit(&medium, Op::Flush, 0, Buffer::own(Vec::new()));
        let read = submit(&medium, Op::Read, 9, Buffer::own(vec![0; SECTOR]));
        assert!(write.recv().unwrap().0.is_ok() && flush.recv().unwrap().0.is_ok());
        assert_eq!(read.recv().unwrap().1.into_own(), data);
        assert_eq!(memory.sectors(9, 1), data);
        let counters = medium.disk().counters();
        assert_eq!(counters.flushes.load(Relaxed), 1);
        assert_eq!((counters.bytes_read.load(Relaxed), counters.bytes_written.load(Relaxed)), (512, 512));
    }

    #[test]
    fn a_transfer_goes_between_the_storage_and_scattered_guest_memory() {
        let ram: Arc<GuestRam> = Arc::new(
            GuestRam::from_ranges(&[(GuestAddress(0), 4096), (GuestAddress(0x8000), 4096)]).unwrap(),
        );
        for alignment in [1, 512] {
            let free = Memory::new(8).traits();
            let traits = Traits { memory_alignment: alignment, offset_alignment: alignment, ..free };
            let memory = Arc::new(Memory::with_traits(64, traits));
            let medium = medium_with(&memory, false);
            let ranges = [(GuestAddress(0x8002), 512), (GuestAddress(6), 510), (GuestAddress(0x8ffe), 2)];
            let bytes = [sector_pattern(1, 2), sector_pattern(2, 2)].concat();
            ram.write_slice(&bytes[..512], ranges[0].0).unwrap();
            ram.write_slice(&bytes[512..1022], ranges[1].0).unwrap();
            ram.write_slice(&bytes[1022..], ranges[2].0).unwrap();
            let guest = Buffer::guest(&ram, &ranges).unwrap();
            assert!(submit(&medium, Op::Write, 5, guest).recv().unwrap().0.is_ok());
            assert_eq!(memory.sectors(5, 2), bytes);
            let guest = Buffer::guest(&ram, &[(GuestAddress(0x101), 1024)]).unwrap();
            assert!(submit(&medium, Op::Read, 5, guest).recv().unwrap().0.is_ok());
            let mut read = vec![0; 1024];
            ram.read_slice(&mut read, GuestAddress(0x101)).unwrap();
            assert_eq!(read, bytes);
            let bounces = if alignment == 1 { 0 } else { 2 };
            assert_eq!(medium.disk().counters().bounces.load(Relaxed), bounces);
        }
        for outside in [(0xffe, 4), (0x4000, 1), (0x8ffe, 4), (u64::MAX, 2)] {
            assert!(Buffer::guest(&ram, &[(GuestAddress(outside.0), outside.1)]).is_none(), "{outside:x?}");
        }
    }

    #[test]
    fn what_lies_beyond_the_end_and_a_write_to_a_read_only_disk_fail() {
        let memory = Arc::new(Memory::new(8));
        let medium = medium_with(&memory, true);
        let write = submit(&medium, Op::Write, 0, Buffer::own(vec![1; SECTOR]));
        let errno = write.recv().unwrap().0.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(libc::EROFS));
        let read = submit(&medium, Op::Read, 7, Buffer::own(vec![1; 2 * SECTOR]));
        assert!(read.recv().unwrap().0.is_err());
        assert_eq!(medium.disk().counters().errors.load(Relaxed), 2);
    }

    #[test]
    fn a_cancelled_request_that_waits_for_a_limit_fails_and_the_next_one_is_served() {
        let memory = Arc::new(Memory::new(8));
        let mut config = config(false);
        // One byte a second: the second request would wait for minutes.
        config.bps = Some(1);
        let medium = DiskMedium::new(Arc::new(Disk::new(&config, memory.backing()))).unwrap();
        let first = submit(&medium, Op::Read, 0, Buffer::own(vec![0; SECTOR]));
        assert!(first.recv().unwrap().0.is_ok());
        let second = submit(&medium, Op::Read, 0, Buffer::own(vec![0; SECTOR]));
        medium.cancel();
        let errno = second.recv().unwrap().0.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(libc::ECANCELED));
        let third = submit(&medium, Op::Read, 0, Buffer::own(vec![0; SECTOR]));
        drop(medium);
        let errno = third.recv().unwrap().0.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(libc::ECANCELED), "dropped with the medium, and told");
    }

    #[test]
    fn a_medium_may_be_dropped_by_the_end_of_its_own_request() {
        let memory = Arc::new(Memory::new(8));
        let medium = Arc::new(medium_with(&memory, false));
        let (sender, receiver) = channel();
        let (go, wait) = channel::<()>();
        let own = Arc::clone(&medium);
        let done = Box::new(move |result: io::Result<()>, _| {
            wait.recv().unwrap();
            drop(own);
            sender.send(result.is_ok()).unwrap();
        });
        medium.submit(Request { op: Op::Read, offset: 0, memory: Buffer::own(vec![0; SECTOR]), done });
        drop(medium);
        go.send(()).unwrap();
        assert!(receiver.recv().unwrap());
    }
}

//! The engine on io_uring: one system call per batch, in which the thread also sleeps.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::pool::{Job, Pool};
use super::{Completion, Engine, IoVec, Op, Sleep};
use crate::storage::Storage;

const EVENT: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const POOL: u64 = u64::MAX - 2;
const NOTIFY: u64 = u64::MAX - 3;
/// What an eventfd is written.
static ONE: u64 = 1;
const ONE_SIZE: u32 = 8;

/// Threads for what would block, and where everything would.
const FEW_THREADS: usize = 4;
const MANY_THREADS: usize = 16;
/// Operations handed to the kernel in one go.
const MAX_BATCH: u32 = 128;
/// The parts of an operation are multiples of this many bytes, whatever direct I/O demands.
const PART: usize = 4096;
/// From so many operations in the kernel on, one system call waits for several of them: for half of them, or for so
/// many, ...
const MANY: usize = 16;
const BATCH: usize = 12;
/// ... but not longer than this.
const PATIENCE: Duration = Duration::from_millis(1);

/// io_uring on one storage. Needs Linux 6.1.
///
/// The eventfds of the frontend's event channel and of the order to stop are polled by the same ring
/// (multi-shot), so that waiting for completions is waiting for them. They are never read: a poll reports
/// each write by itself, and the counter that grows meanwhile is of no interest.
///
/// Transfers are asked to fail rather than to block (RWF_NOWAIT): what the kernel cannot start at once, a hole
/// to be filled or a page that is not cached, goes to threads of our own, and so do flushes and discards. It cannot
/// start what it would have to split for the device either: we split that ourselves.
///
/// The file is not registered with the ring, which would spare the kernel a look-up per operation: a ring is
/// taken down some time after its process has ended, and would hold the lock on the image until then. Nor are
/// buffers: that would pin all RAM of the guest, which is given as it is touched.
pub struct Uring {
    ring: IoUring,
    file: types::Fd,
    event: RawFd,
    stop: RawFd,
    enabled: bool,
    arm_event: bool,
    arm_stop: bool,
    arm_pool: bool,
    pool: Pool,
    /// What was started, by token, for another try in the pool.
    jobs: Vec<Option<Job>>,
    /// Operations that were split, by token.
    parts: Vec<Parts>,
    max_transfer: usize,
    /// Operations in the kernel, each part for itself, and how many there may be.
    in_ring: usize,
    max_in_ring: usize,
    /// Of these, the parts beyond one for each operation.
    extra: usize,
    in_pool: usize,
    /// What the guest is notified by, when the kernel refused to write it.
    notifier: RawFd,
    /// Calls of io_uring_enter that were not told yet.
    calls: u64,
    /// A poll that the kernel refused.
    failed: Option<i32>,
    /// Whether the file can fail rather than block: reads, writes.
    nowait: [bool; 2],
    /// What completions() hands to the pool; empty outside of it.
    again: Vec<Job>,
}

/// The parts of an operation in the kernel.
#[derive(Clone, Debug, Default)]
struct Parts {
    buffers: Vec<IoVec>,
    parts: Vec<Part>,
    /// Parts that have not ended.
    left: usize,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    /// Of the buffers.
    start: usize,
    end: usize,
    bytes: usize,
    /// As io_uring gives it.
    result: i32,
}

impl Parts {
    /// Splits `buffers` into parts of `size` bytes.
    fn split(&mut self, buffers: &[IoVec], size: usize) {
        self.buffers.clear();
        self.parts.clear();
        let mut part = Part { start: 0, end: 0, bytes: 0, result: 0 };
        for buffer in buffers {
            let mut rest = *buffer;
            while rest.size() > 0 {
                let base = rest.base();
                let len = rest.advance(size - part.bytes);
                self.buffers.push(IoVec::new(base, len));
                (part.end, part.bytes) = (self.buffers.len(), part.bytes + len);
                if part.bytes == size {
                    self.parts.push(part);
                    part = Part { start: part.end, bytes: 0, ..part };
                }
            }
        }
        if part.bytes > 0 {
            self.parts.push(part);
        }
        self.left = self.parts.len();
    }

    /// What came of all: bytes up to where one did less than all, or an error if that is the start.
    fn result(&self) -> i32 {
        // All is done once more, elsewhere.
        let whole = |part: &&Part| matches!(-part.result, libc::EAGAIN | libc::EOPNOTSUPP);
        if let Some(part) = self.parts.iter().find(whole) {
            return part.result;
        }
        let mut done = 0;
        for part in &self.parts {
            if part.result < 0 && done == 0 {
                return part.result;
            }
            done += part.result.max(0);
            if usize::try_from(part.result) != Ok(part.bytes) {
                break;
            }
        }
        done
    }
}

impl Uring {
    /// A ring for `slots` operations at a time on `storage`, which is a descriptor. The eventfds stay open as
    /// long as the ring. It may be made on another thread than the one that then uses it.
    pub fn new(storage: Arc<dyn Storage>, event: RawFd, stop: RawFd, slots: u32) -> io::Result<Self> {
        let file = storage.raw().ok_or(io::ErrorKind::Unsupported)?;
        let max_transfer = storage.traits().max_transfer as usize;
        let max_in_ring = (2 * slots + 3).next_power_of_two();
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_r_disabled()
            .setup_cqsize(max_in_ring)
            .build((slots + 3).min(MAX_BATCH).next_power_of_two())?;
        Ok(Self {
            ring,
            file: types::Fd(file),
            event,
            stop,
            enabled: false,
            arm_event: true,
            arm_stop: true,
            arm_pool: true,
            pool: Pool::new(storage, FEW_THREADS)?,
            jobs: vec![None; slots as usize],
            parts: vec![Parts::default(); slots as usize],
            max_transfer,
            // The eventfds have completions too, and so may a notification.
            max_in_ring: max_in_ring as usize - 4,
            in_ring: 0,
            extra: 0,
            in_pool: 0,
            notifier: -1,
            calls: 0,
            failed: None,
            nowait: [true; 2],
            again: Vec::new(),
        })
    }

    /// The thread that enables the ring is the one that may use it.
    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// # Safety
    /// As [`Engine::start`].
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        // A full batch goes to the kernel before the next one is gathered.
        self.calls += 1;
        if self.enable().is_err() || self.ring.submit().is_err() {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Of an operation that Engine::start was called with, whose caller's promise holds until its completion is
    /// returned.
    fn start_in_pool(&mut self, job: Job) {
        self.in_pool += 1;
        // SAFETY: the promise of start()'s caller.
        unsafe { self.pool.start(job) };
    }

    /// Starts a transfer; false: the kernel is short of memory.
    ///
    /// # Safety
    /// As [`Engine::start`].
    unsafe fn transfer(&mut self, op: Op, offset: u64, buffers: &[IoVec], id: u64) -> bool {
        let len = |one: &IoVec| u32::try_from(one.size()).unwrap_or(u32::MAX);
        let count = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        let (file, flags) = (self.file, libc::RWF_NOWAIT);
        let entry = match (op, buffers) {
            (Op::Write, [one]) => {
                opcode::Write::new(file, one.base(), len(one)).offset(offset).rw_flags(flags).build()
            }
            (Op::Write, _) => opcode::Writev::new(file, buffers.as_ptr().cast(), count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (_, [one]) => {
                opcode::Read::new(file, one.base(), len(one)).offset(offset).rw_flags(flags).build()
            }
            (_, _) => opcode::Readv::new(file, buffers.as_ptr().cast(), count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
        };
        // SAFETY: the caller promises that array and memory stay.
        let pushed = unsafe { self.push(&entry.user_data(id)) };
        self.in_ring += usize::from(pushed);
        pushed
    }

    fn poll(&mut self, fd: RawFd, token: u64) -> bool {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true);
        // SAFETY: a poll uses no memory of ours.
        unsafe { self.push(&poll.build().user_data(token)) }
    }

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let end = match sleep {
            Sleep::Never => {
                self.calls += 1;
                return passed(self.ring.submit());
            }
            Sleep::For(time) => Some(time),
            Sleep::Forever => None,
        };
        // Several together make one wake-up, one notification and one batch of new requests. The others stay
        // under way meanwhile: a disk that ran dry until the frontend has answered would be slower. With few
        // operations under way, it is the parts of one that make one wake-up.
        let wanted = if self.in_ring >= MANY {
            (self.in_ring / 2).min(BATCH)
        } else {
            self.in_ring.checked_div(self.in_ring - self.extra).unwrap_or(1)
        };
        if wanted > 1 {
            passed(self.wait_for(wanted, Some(PATIENCE)))?;
            if !self.is_empty() {
                return Ok(());
            }
        }
        passed(self.wait_for(1, end))
    }

    fn wait_for(&mut self, count: usize, time: Option<Duration>) -> io::Result<usize> {
        self.calls += 1;
        let submitter = self.ring.submitter();
        let Some(time) = time else { return submitter.submit_and_wait(count) };
        submitter.submit_with_args(count, &types::SubmitArgs::new().timespec(&time.into()))
    }

    /// Whether no completion waits to be taken.
    fn is_empty(&self) -> bool {
        // SAFETY: nothing else looks at the completion queue: this thread alone uses the ring, and completions()
        // does not hold it beyond its end.
        unsafe { self.ring.completion_shared() }.is_empty()
    }
}

/// Not an error: the time is over; a signal; or the kernel is short of memory or has completions to hand over
/// first.
fn passed(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(e)
            if !matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) =>
        {
            Err(e)
        }
        _ => Ok(()),
    }
}

impl Engine for Uring {
    unsafe fn start(&mut self, token: u16, op: Op, offset: u64, buffers: &[IoVec]) {
        let job = Job::new(token, op, offset, buffers);
        let [reads, writes] = self.nowait;
        match op {
            Op::Read if reads => {}
            Op::Write if writes => {}
            _ => return self.start_in_pool(job),
        }
        let bytes: usize = buffers.iter().map(IoVec::size).sum();
        let count = bytes.div_ceil(self.max_transfer).max(1);
        let index = usize::from(token);
        if self.in_ring + count > self.max_in_ring || index >= self.jobs.len() {
            return self.start_in_pool(job);
        }
        if let Some(slot) = self.jobs.get_mut(index) {
            *slot = Some(job);
        }
        if count == 1 {
            // SAFETY: the caller promises that array and memory stay.
            if !unsafe { self.transfer(op, offset, buffers, token.into()) } {
                self.start_in_pool(job);
            }
            return;
        }
        let Some(mut parts) = self.parts.get_mut(index).map(std::mem::take) else { return };
        parts.split(buffers, bytes.div_ceil(count).next_multiple_of(PART));
        let mut at = offset;
        for (number, part) in (0u64..).zip(&mut parts.parts) {
            let list = parts.buffers.get(part.start..part.end).unwrap_or_default();
            // SAFETY: the memory is the caller's, and the list stays as it is until all parts have ended.
            if !unsafe { self.transfer(op, at, list, number << 16 | u64::from(token)) } {
                part.result = -libc::EAGAIN;
                parts.left -= 1;
            }
            at += part.bytes as u64;
        }
        self.extra += parts.left.saturating_sub(1);
        if parts.left == 0 {
            self.start_in_pool(job);
        }
        if let Some(slot) = self.parts.get_mut(index) {
            *slot = parts;
        }
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        self.enable()?;
        if let Some(errno) = self.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.arm_event {
            self.arm_event = !self.poll(self.event, EVENT);
        }
        if self.arm_stop {
            self.arm_stop = !self.poll(self.stop, STOP);
        }
        if self.arm_pool {
            self.arm_pool = !self.poll(self.pool.event(), POOL);
        }
        let armed = !self.arm_event && !self.arm_stop && !self.arm_pool;
        self.enter(if armed { sleep } else { Sleep::Never })
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        let mut again = std::mem::take(&mut self.again);
        for entry in self.ring.completion() {
            let token = entry.user_data();
            if let Ok(id) = u32::try_from(token) {
                self.in_ring -= 1;
                let (token, number) = ((id & 0xffff) as u16, (id >> 16) as usize);
                let mut result = entry.result();
                if let Some(parts) = self.parts.get_mut(usize::from(token))
                    && parts.left > 0
                {
                    if let Some(part) = parts.parts.get_mut(number) {
                        part.result = result;
                    }
                    parts.left -= 1;
                    if parts.left > 0 {
                        self.extra -= 1;
                        continue;
                    }
                    result = parts.result();
                }
                let job = self.jobs.get_mut(usize::from(token)).and_then(Option::take);
                match (-result, job) {
                    (libc::EAGAIN, Some(job)) => again.push(job),
                    (libc::EOPNOTSUPP, Some(job)) => {
                        let [reads, writes] = &mut self.nowait;
                        *(if job.op == Op::Read { reads } else { writes }) = false;
                        self.pool.max_threads = MANY_THREADS;
                        again.push(job);
                    }
                    _ => done.push(Completion::new(token, result)),
                }
            } else if token == NOTIFY {
                // Only a failure is told.
                // SAFETY: writes eight bytes of a static, to a descriptor that the queue keeps open.
                unsafe { libc::write(self.notifier, (&raw const ONE).cast(), ONE_SIZE as usize) };
            } else if !cqueue::more(entry.flags()) {
                // The poll ended: it was refused, or completions overflowed the ring.
                if entry.result() < 0 {
                    self.failed = Some(-entry.result());
                }
                match token {
                    EVENT => self.arm_event = true,
                    STOP => self.arm_stop = true,
                    _ => self.arm_pool = true,
                }
            }
        }
        for job in again.drain(..) {
            self.start_in_pool(job);
        }
        self.again = again;
        if self.in_pool > 0 {
            self.in_pool -= self.pool.completions(done);
        }
    }

    fn notify(&mut self, fd: RawFd) -> bool {
        self.notifier = fd;
        let write = opcode::Write::new(types::Fd(fd), (&raw const ONE).cast(), ONE_SIZE);
        let entry = write.build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOTIFY);
        // SAFETY: the eight bytes are a static's.
        unsafe { self.push(&entry) }
    }

    fn system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}

impl Drop for Uring {
    /// Waits for what is under way: the kernel still reads and writes the memory.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_ring > 0 {
            self.completions(&mut done);
            if self.in_ring > 0 && self.enter(Sleep::Forever).is_err() {
                return;
            }
        }
        // What the pool does ends when the pool is dropped.
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::storage::Traits;
    use crate::testing::Memory;

    /// A file of which the kernel takes three pages in one piece. What comes to the pool, with `pool`, is done there.
    #[derive(Debug)]
    struct Small {
        file: File,
        pool: bool,
    }

    impl Small {
        fn each(
            &self,
            buffers: &[IoVec],
            mut offset: u64,
            op: impl Fn(&File, *mut u8, usize, u64) -> io::Result<usize>,
        ) -> io::Result<usize> {
            let mut done = 0;
            for buffer in buffers.iter().filter(|_| self.pool) {
                done += op(&self.file, buffer.base(), buffer.size(), offset)?;
                offset += buffer.size() as u64;
            }
            if self.pool { Ok(done) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
        }
    }

    impl Storage for Small {
        fn traits(&self) -> Traits {
            Traits { max_transfer: 3 * 4096, ..Memory::new(0).traits() }
        }
        fn size(&self) -> io::Result<u64> {
            Ok(self.file.metadata()?.len())
        }
        fn raw(&self) -> Option<RawFd> {
            Some(self.file.as_raw_fd())
        }
        unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
            self.each(buffers, offset, |file, base, len, offset| {
                // SAFETY: the caller's memory.
                file.read_at(unsafe { std::slice::from_raw_parts_mut(base, len) }, offset)
            })
        }
        unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
            self.each(buffers, offset, |file, base, len, offset| {
                // SAFETY: the caller's memory.
                file.write_at(unsafe { std::slice::from_raw_parts(base, len) }, offset)
            })
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    /// Does one operation: its result, and the greatest number of operations in the kernel.
    fn run(storage: &Arc<Small>, op: Op, offset: u64, buffers: &[IoVec]) -> (Result<usize, i32>, usize) {
        let event = EventFd::new(0).unwrap();
        let mut engine =
            Uring::new(Arc::clone(storage) as _, event.as_raw_fd(), event.as_raw_fd(), 32).unwrap();
        // SAFETY: the loop waits for the completion.
        unsafe { engine.start(7, op, offset, buffers) };
        let most = engine.in_ring;
        let mut done = Vec::new();
        while done.is_empty() {
            engine.wait(Sleep::Forever).unwrap();
            engine.completions(&mut done);
        }
        assert_eq!((done.len(), done[0].token, engine.in_ring, engine.extra), (1, 7, 0, 0));
        (done[0].result, most)
    }

    fn vectors(memory: &mut [u8], sizes: &[usize]) -> Vec<IoVec> {
        let mut rest = memory;
        let mut vectors = Vec::new();
        for size in sizes {
            let (one, others) = rest.split_at_mut(*size);
            vectors.push(IoVec::new(one.as_mut_ptr(), *size));
            rest = others;
        }
        vectors
    }

    #[test]
    fn what_the_kernel_would_split_is_split_and_needs_no_thread() {
        let zeros = Arc::new(Small { file: File::open("/dev/zero").unwrap(), pool: false });
        let mut memory = vec![1; 10 * 4096];
        for (sizes, parts) in [
            (&[3 * 4096][..], 1),
            (&[3 * 4096 + 512], 2),
            (&[10 * 4096], 4),
            (&[512, 4096, 5 * 4096, 4096], 3),
        ] {
            memory.fill(1);
            let total = sizes.iter().sum::<usize>();
            let buffers = vectors(&mut memory, sizes);
            assert_eq!(run(&zeros, Op::Read, 0, &buffers), (Ok(total), parts), "{sizes:?}");
            assert!(memory[..total].iter().all(|byte| *byte == 0));
            assert!(memory[total..].iter().all(|byte| *byte == 1));
        }
    }

    #[test]
    fn the_parts_of_a_transfer_go_where_the_whole_belongs() {
        let storage = Arc::new(Small { file: tempfile::tempfile().unwrap(), pool: true });
        let data: Vec<u8> = (0..20 * 4096u32).map(|n| (n ^ n >> 8) as u8).collect();
        let mut memory = data.clone();
        let sizes = [512, 1024, 5 * 4096, 512, 4096 - 2048, 13 * 4096];
        let total = sizes.iter().sum::<usize>();
        let buffers = vectors(&mut memory, &sizes);
        assert_eq!(run(&storage, Op::Write, 4096, &buffers), (Ok(total), 7));
        let mut back = vec![0; total];
        storage.file.read_exact_at(&mut back, 4096).unwrap();
        assert_eq!(back, data[..total]);
        memory.fill(0);
        let buffers = vectors(&mut memory, &sizes);
        // The end of the file is in the midst of a part.
        let (result, _) = run(&storage, Op::Read, 8192, &buffers);
        assert_eq!(result, Ok(total - 4096));
        assert_eq!(memory[..total - 4096], data[4096..total]);
    }

    #[test]
    fn a_transfer_counts_up_to_the_first_part_that_fell_short() {
        let mut parts = Parts::default();
        parts.split(&[IoVec::new(std::ptr::null_mut(), 5 * 4096)], 2 * 4096);
        assert_eq!(parts.parts.iter().map(|part| part.bytes).collect::<Vec<_>>(), [8192, 8192, 4096]);
        for (results, whole) in [
            ([8192, 8192, 4096], 20480),
            ([8192, 4096, 4096], 12288),
            ([8192, -libc::EIO, 4096], 8192),
            ([-libc::EIO, 8192, 4096], -libc::EIO),
            ([0, 8192, 4096], 0),
            ([-libc::EIO, 8192, -libc::EAGAIN], -libc::EAGAIN),
            ([8192, 8192, -libc::EOPNOTSUPP], -libc::EOPNOTSUPP),
        ] {
            for (part, result) in parts.parts.iter_mut().zip(results) {
                part.result = result;
            }
            assert_eq!(parts.result(), whole, "{results:?}");
        }
    }
}

//! The engine on io_uring: one system call per batch, in which the thread also sleeps.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use devices::ring::{End, Ring};
use io_uring::{opcode, types};

use super::pool::{Job, Pool};
use super::{Completion, Engine, IoVec, Op, Sleep};
use crate::storage::Storage;

/// Tokens of operations are below.
const EVENT: u64 = 1 << 32;
const STOP: u64 = EVENT + 1;
const POOL: u64 = EVENT + 2;

/// Threads for what would block, and where everything would.
const FEW_THREADS: usize = 4;
const MANY_THREADS: usize = 16;
/// Operations handed to the kernel in one go.
const MAX_BATCH: u32 = 128;
/// The parts of an operation are multiples of this many bytes, whatever direct I/O demands.
const PART: usize = 4096;
/// Neighbours are handed to the kernel together up to so many bytes, and so many pieces of memory in each operation: it
/// would have to split what is more.
const MAX_RUN: usize = 1 << 20;
const MAX_PIECES: usize = 256;
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
/// start what it would have to split for the device either: we split that ourselves. Neighbours that are started one
/// after the other, as a frontend sends what is too large for one request, are joined before they are split.
///
/// The file is not registered with the ring, which would spare the kernel a look-up per operation: a ring is
/// taken down some time after its process has ended, and would hold the lock on the image until then. Nor are
/// buffers: that would pin all RAM of the guest, which is given as it is touched.
pub struct Uring {
    ring: Ring,
    file: types::Fd,
    event: RawFd,
    stop: RawFd,
    arm_event: bool,
    arm_stop: bool,
    arm_pool: bool,
    pool: Pool,
    /// What was started, by token, for another try in the pool.
    jobs: Vec<Option<Job>>,
    /// What is in the kernel together, by the token of its first operation; and the run that may still grow.
    runs: Vec<Run>,
    open: Option<u16>,
    /// Bytes that the kernel takes in one piece.
    max_transfer: usize,
    /// Operations in the kernel, each part for itself, and how many there may be.
    in_ring: usize,
    max_in_ring: usize,
    /// Of these, the parts beyond one for each run.
    extra: usize,
    in_pool: usize,
    /// A poll that the kernel refused.
    failed: Option<i32>,
    /// Whether the file can fail rather than block: reads, writes.
    nowait: [bool; 2],
    /// What completions() hands to the pool; empty outside of it.
    again: Vec<Job>,
}

/// One operation or several neighbours, and the parts that they are for the kernel.
#[derive(Clone, Debug, Default)]
struct Run {
    op: Op,
    offset: u64,
    bytes: usize,
    pieces: usize,
    /// Tokens and bytes.
    members: Vec<(u16, usize)>,
    /// Of all members, as the parts have them. Empty if there is one of each: then the job has them.
    buffers: Vec<IoVec>,
    parts: Vec<Part>,
    /// Parts that have not ended.
    left: usize,
}

/// One operation of the kernel's.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Of the buffers.
    start: usize,
    end: usize,
    bytes: usize,
    /// As io_uring gives it.
    result: i32,
}

impl Run {
    /// Begins anew with one operation.
    fn begin(&mut self, op: Op, offset: u64, member: (u16, usize), pieces: usize) {
        (self.op, self.offset, self.bytes, self.pieces) = (op, offset, member.1, pieces);
        self.buffers.clear();
        self.parts.clear();
        self.members.clear();
        self.members.push(member);
    }

    /// Splits the members' buffers, which `list` gives by token, into parts of `size` bytes.
    fn split<'a>(&mut self, list: impl Fn(&u16) -> &'a [IoVec], size: usize) {
        let mut part = Part { start: 0, end: 0, bytes: 0, result: 0 };
        for mut rest in self.members.iter().flat_map(|(token, _)| list(token)).copied() {
            while rest.size() > 0 {
                let base = rest.base();
                let len = rest.advance(size - part.bytes);
                self.buffers.push(IoVec::new(base, len));
                (part.end, part.bytes) = (self.buffers.len(), part.bytes + len);
                if part.bytes == size || part.end - part.start == MAX_PIECES {
                    self.parts.push(part);
                    part = Part { start: part.end, bytes: 0, ..part };
                }
            }
        }
        if part.bytes > 0 {
            self.parts.push(part);
        }
    }

    /// What came of all: bytes up to where one part did less than all, or an error if that is the start.
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
        let max_transfer = (storage.traits().max_transfer as usize).min(MAX_RUN);
        // Parts are multiples of PART.
        let max_transfer = if max_transfer > PART { max_transfer / PART * PART } else { max_transfer };
        let max_in_ring = (2 * slots + 3).next_power_of_two();
        let ring = Ring::new((slots + 3).min(MAX_BATCH), max_in_ring)?;
        Ok(Self {
            ring,
            file: types::Fd(file),
            event,
            stop,
            arm_event: true,
            arm_stop: true,
            arm_pool: true,
            pool: Pool::new(storage, FEW_THREADS)?,
            jobs: vec![None; slots as usize],
            runs: vec![Run::default(); slots as usize],
            open: None,
            max_transfer,
            // The eventfds have completions too, and so may a notification.
            max_in_ring: max_in_ring as usize - 4,
            in_ring: 0,
            extra: 0,
            in_pool: 0,
            failed: None,
            nowait: [true; 2],
            again: Vec::new(),
        })
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
        let pushed = unsafe { self.ring.push(&entry.user_data(id)) };
        self.in_ring += usize::from(pushed);
        pushed
    }

    /// Operations of the kernel that so much may need.
    fn most_parts(&self, bytes: usize, pieces: usize) -> usize {
        bytes.div_ceil(self.max_transfer).max(1) + pieces / MAX_PIECES
    }

    /// Adds an operation to the open run, if that ends where it begins.
    fn join(&mut self, op: Op, offset: u64, member: (u16, usize), pieces: usize) -> bool {
        let Some(run) = self.open.and_then(|first| self.runs.get_mut(usize::from(first))) else {
            return false;
        };
        let bytes = run.bytes + member.1;
        let joined = run.op == op && run.offset + run.bytes as u64 == offset && bytes <= MAX_RUN;
        if joined {
            (run.bytes, run.pieces) = (bytes, run.pieces + pieces);
            run.members.push(member);
        }
        joined
    }

    /// Hands the open run to the kernel.
    fn close(&mut self) {
        let Some(token) = self.open.take() else { return };
        let index = usize::from(token);
        let Some(mut run) = self.runs.get_mut(index).map(std::mem::take) else { return };
        let jobs = &self.jobs;
        let list = |token: &u16| match jobs.get(usize::from(*token)) {
            // SAFETY: the promise of start()'s caller holds until the completion of the operation.
            Some(Some(job)) => unsafe { job.buffers() },
            _ => &[],
        };
        let count = run.bytes.div_ceil(self.max_transfer).max(1);
        if run.members.len() == 1 && count == 1 {
            let list = list(&token);
            run.parts.push(Part { start: 0, end: 0, bytes: run.bytes, result: 0 });
            // SAFETY: the memory and the list are those of start()'s caller.
            run.left = usize::from(unsafe { self.transfer(run.op, run.offset, list, token.into()) });
        } else {
            run.split(list, run.bytes.div_ceil(count).next_multiple_of(PART));
            let mut at = run.offset;
            for (number, part) in (0u64..).zip(&mut run.parts) {
                let list = run.buffers.get(part.start..part.end).unwrap_or_default();
                // SAFETY: the memory is that of start()'s callers, and the list stays as it is until all parts have
                // ended.
                if unsafe { self.transfer(run.op, at, list, number << 16 | u64::from(token)) } {
                    run.left += 1;
                } else {
                    part.result = -libc::EAGAIN;
                }
                at += part.bytes as u64;
            }
        }
        self.extra += run.left.saturating_sub(1);
        if run.left == 0 {
            for (token, _) in run.members.drain(..) {
                if let Some(job) = self.jobs.get_mut(usize::from(token)).and_then(Option::take) {
                    self.start_in_pool(job);
                }
            }
        }
        if let Some(slot) = self.runs.get_mut(index) {
            *slot = run;
        }
    }

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let end = match sleep {
            Sleep::Never => return self.ring.submit(),
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
            self.ring.wait(wanted, Some(PATIENCE))?;
            if !self.ring.is_empty() {
                return Ok(());
            }
        }
        self.ring.wait(1, end)
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
        let index = usize::from(token);
        let open = self.open.and_then(|first| self.runs.get(usize::from(first)));
        let waiting = open.map_or(0, |run| self.most_parts(run.bytes, run.pieces));
        let full = self.in_ring + waiting + self.most_parts(bytes, buffers.len()) > self.max_in_ring;
        let Some(slot) = self.jobs.get_mut(index).filter(|_| !full) else {
            return self.start_in_pool(job);
        };
        *slot = Some(job);
        if !self.join(op, offset, (token, bytes), buffers.len()) {
            self.close();
            if let Some(run) = self.runs.get_mut(index) {
                run.begin(op, offset, (token, bytes), buffers.len());
                self.open = Some(token);
            }
        }
    }

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        self.close();
        if let Some(errno) = self.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.arm_event {
            self.arm_event = !self.ring.poll(self.event, EVENT, true);
        }
        if self.arm_stop {
            self.arm_stop = !self.ring.poll(self.stop, STOP, true);
        }
        if self.arm_pool {
            self.arm_pool = !self.ring.poll(self.pool.event(), POOL, true);
        }
        let armed = !self.arm_event && !self.arm_stop && !self.arm_pool;
        self.enter(if armed { sleep } else { Sleep::Never })
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        let mut again = std::mem::take(&mut self.again);
        while let Some(End { token, result, more }) = self.ring.next() {
            if let Ok(id) = u32::try_from(token) {
                self.in_ring -= 1;
                let (token, number) = ((id & 0xffff) as u16, (id >> 16) as usize);
                let Some(run) = self.runs.get_mut(usize::from(token)) else { continue };
                if let Some(part) = run.parts.get_mut(number) {
                    part.result = result;
                }
                run.left = run.left.saturating_sub(1);
                if run.left > 0 {
                    self.extra -= 1;
                    continue;
                }
                let result = run.result();
                let alone = run.members.len() == 1;
                // All by themselves, elsewhere: of several it is not known which one failed.
                let redo = matches!(-result, libc::EAGAIN | libc::EOPNOTSUPP) || result < 0 && !alone;
                let mut rest = usize::try_from(result).ok();
                for (number, (token, bytes)) in run.members.drain(..).enumerate() {
                    let Some(job) = self.jobs.get_mut(usize::from(token)).and_then(Option::take) else {
                        continue;
                    };
                    if result == -libc::EOPNOTSUPP {
                        let [reads, writes] = &mut self.nowait;
                        *(if job.op == Op::Read { reads } else { writes }) = false;
                        self.pool.max_threads = MANY_THREADS;
                    }
                    match rest {
                        _ if redo => again.push(job),
                        None => done.push(Completion::new(token, result)),
                        // It ended before their turn.
                        Some(0) if number > 0 => again.push(job),
                        Some(left) => {
                            let part = left.min(bytes);
                            done.push(Completion { token, result: Ok(part) });
                            rest = Some(left - part);
                        }
                    }
                }
            } else if !more {
                // The poll ended: it was refused, or completions overflowed the ring.
                if result < 0 {
                    self.failed = Some(-result);
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
        self.ring.notify(fd)
    }

    fn system_calls(&mut self) -> u64 {
        self.ring.system_calls()
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
        /// What the kernel is given instead of the file.
        raw: Option<File>,
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
            Some(self.raw.as_ref().unwrap_or(&self.file).as_raw_fd())
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

    /// Does one operation: its result, and the number of operations in the kernel.
    fn run(storage: &Arc<Small>, op: Op, offset: u64, buffers: &[IoVec]) -> (Result<usize, i32>, usize) {
        let (results, most) = run_all(storage, op, &[(offset, buffers)]);
        (results[0], most)
    }

    /// Does operations that are started one after the other.
    fn run_all(storage: &Arc<Small>, op: Op, list: &[(u64, &[IoVec])]) -> (Vec<Result<usize, i32>>, usize) {
        let event = EventFd::new(0).unwrap();
        let mut engine =
            Uring::new(Arc::clone(storage) as _, event.as_raw_fd(), event.as_raw_fd(), 32).unwrap();
        for (token, (offset, buffers)) in (7..).zip(list) {
            // SAFETY: the loop waits for the completions.
            unsafe { engine.start(token, op, *offset, buffers) };
        }
        engine.close();
        let most = engine.in_ring;
        let mut done = Vec::new();
        while done.len() < list.len() {
            engine.wait(Sleep::Forever).unwrap();
            engine.completions(&mut done);
        }
        done.sort_by_key(|completion| completion.token);
        let tokens: Vec<_> = done.iter().map(|completion| usize::from(completion.token) - 7).collect();
        assert_eq!(tokens, (0..list.len()).collect::<Vec<_>>());
        assert_eq!((engine.in_ring, engine.extra, engine.in_pool), (0, 0, 0));
        (done.iter().map(|completion| completion.result).collect(), most)
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
        // Written just now, it is in memory, and needs no waiting.
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0; 10 * 4096], 0).unwrap();
        let zeros = Arc::new(Small { file, pool: false, raw: None });
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
        let storage = Arc::new(Small { file: tempfile::tempfile().unwrap(), pool: true, raw: None });
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
    fn neighbours_are_one_operation_up_to_what_the_kernel_takes() {
        let storage = Arc::new(Small { file: tempfile::tempfile().unwrap(), pool: false, raw: None });
        let data: Vec<u8> = (0..10 * 4096u32).map(|n| (n ^ n >> 8) as u8).collect();
        storage.file.write_all_at(&data, 0).unwrap();
        let mut memory = vec![0; data.len()];
        let buffers = vectors(&mut memory, &[8192, 8192, 6144, 2048, 4096, 12288]);
        let at = |page: u64, range: std::ops::Range<usize>| (page * 4096, &buffers[range]);
        // Six pages in three, which are two; one that does not follow; and as much as fits by itself.
        let list = [at(0, 0..1), at(2, 1..2), at(4, 2..4), at(7, 4..5), at(6, 5..6)];
        let (results, operations) = run_all(&storage, Op::Read, &list);
        assert_eq!(results, [Ok(8192), Ok(8192), Ok(8192), Ok(4096), Ok(12288)]);
        assert_eq!(operations, 4);
        let pages = [0, 1, 2, 3, 4, 5, 7, 6, 7, 8];
        for (part, page) in memory.chunks(4096).zip(pages) {
            assert!(part == &data[page * 4096..][..4096], "page {page}");
        }
        // And back, to other places.
        let other = Arc::new(Small { file: tempfile::tempfile().unwrap(), pool: true, raw: None });
        let list = [at(1, 4..5), at(2, 0..1), at(9, 1..2)];
        assert_eq!(run_all(&other, Op::Write, &list), (vec![Ok(4096), Ok(8192), Ok(8192)], 2));
        let mut back = vec![0; 11 * 4096];
        other.file.read_exact_at(&mut back, 0).unwrap();
        assert!(back[4096..][..4096] == data[7 * 4096..][..4096] && back[8192..][..8192] == data[..8192]);
        assert!(back[9 * 4096..] == data[2 * 4096..][..8192]);
    }

    #[test]
    fn each_of_several_neighbours_has_its_own_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096 + 1024).unwrap();
        let open = || file.reopen().unwrap();
        let mut memory = vec![1; 3 * 4096];
        let buffers = vectors(&mut memory, &[4096; 3]);
        let list = [(0, &buffers[..1]), (4096, &buffers[1..2]), (8192, &buffers[2..])];
        // The file ends in the second one.
        let storage = Arc::new(Small { file: open(), pool: true, raw: None });
        assert_eq!(run_all(&storage, Op::Read, &list), (vec![Ok(4096), Ok(1024), Ok(0)], 1));
        // The kernel fails the whole: each is tried by itself.
        let raw = File::options().write(true).open(file.path()).ok();
        let storage = Arc::new(Small { file: open(), pool: true, raw });
        assert_eq!(run_all(&storage, Op::Read, &list), (vec![Ok(4096), Ok(1024), Ok(0)], 1));
        // One by itself that fails has failed.
        assert_eq!(run_all(&storage, Op::Read, &list[..1]), (vec![Err(libc::EBADF)], 1));
    }

    #[test]
    fn a_transfer_counts_up_to_the_first_part_that_fell_short() {
        let buffers = [IoVec::new(std::ptr::null_mut(), 5 * 4096)];
        let mut run = Run { members: vec![(0, 5 * 4096)], ..Run::default() };
        run.split(|_| &buffers, 2 * 4096);
        assert_eq!(run.parts.iter().map(|part| part.bytes).collect::<Vec<_>>(), [8192, 8192, 4096]);
        let pieces = [IoVec::new(std::ptr::null_mut(), 512); 300];
        let mut small = Run { members: vec![(0, 150 << 10)], ..Run::default() };
        small.split(|_| &pieces, 1 << 20);
        assert_eq!(small.parts.iter().map(|part| part.bytes).collect::<Vec<_>>(), [128 << 10, 22 << 10]);
        for (results, whole) in [
            ([8192, 8192, 4096], 20480),
            ([8192, 4096, 4096], 12288),
            ([8192, -libc::EIO, 4096], 8192),
            ([-libc::EIO, 8192, 4096], -libc::EIO),
            ([0, 8192, 4096], 0),
            ([-libc::EIO, 8192, -libc::EAGAIN], -libc::EAGAIN),
            ([8192, 8192, -libc::EOPNOTSUPP], -libc::EOPNOTSUPP),
        ] {
            for (part, result) in run.parts.iter_mut().zip(results) {
                part.result = result;
            }
            assert_eq!(run.result(), whole, "{results:?}");
        }
    }
}

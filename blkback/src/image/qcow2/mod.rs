//! qcow2 images, versions 2 and 3 (QEMU, docs/interop/qcow2.txt).
//!
//! A disk is cut into clusters; an L1 table refers to L2 tables, and these to the clusters in the file. A
//! refcount for each cluster of the file says how many refer to it.
//!
//! What a process that is killed leaves behind must be sound, at any instruction. References are in the file
//! only when what they refer to is there, and was counted there before:
//!
//! - Data goes to a new cluster first. Its L2 entry is changed in memory afterwards, and written by
//!   [`Qcow2::sync`]: at a flush, or when much has changed.
//! - `sync` writes refcounts, then waits for the disk, then writes L2 tables and the L1 table, then waits for the
//!   disk again. So even a host that loses power keeps the order.
//! - A cluster that is not referred to any more is given back after that.
//!
//! What can be left is a cluster that is counted and not used. The feature bit "dirty" is set while that may
//! be, and the counts are made anew when an image with it is opened for writing ([`check`]). Version 2 has no
//! such bit, so there this is done each time.

mod check;
mod compressed;
mod header;
mod open;
mod refcounts;
mod tables;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use self::compressed::Place;
use self::header::{AUTOCLEAR_AT, CORRUPT, DIRTY, Header, INCOMPATIBLE_AT};
use self::refcounts::{Refcounts, Run};
use self::tables::{Change, Tables};
use super::Node;
use super::file::ImageFile;
use super::pieces::Pieces;
use super::raw::format_traits;
use crate::engine::IoVec;
use crate::storage::{Storage, Traits};

/// Of an entry: the offset of a table or a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an entry: nobody else refers to it, it may be written in place.
const COPIED: u64 = 1 << 63;
/// Of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry, from version 3 on: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// Bytes of L2 tables in memory: with clusters of 64 KiB those of 64 GiB of the disk.
const L2_CACHE: usize = 8 << 20;
/// Unpacked clusters that are kept.
const UNPACKED: usize = 4;
/// Clusters, in ranges, that wait for being given back.
const MAX_UNUSED: usize = 1 << 12;
/// Bytes of the parts of the L1 table that are written.
const L1_PART: usize = 512;

fn damaged() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    pub(super) file: ImageFile,
    header: Header,
    backing: Option<Box<Node>>,
    /// Held for reading by whoever uses clusters, for writing by whoever gives clusters back: nothing is under
    /// way then to what may be used for something else next. Taken before the state.
    users: RwLock<()>,
    state: Mutex<State>,
    /// A cluster that was being allocated is there, or failed.
    allocated: Condvar,
    /// One sync at a time. Taken before the users.
    syncing: Mutex<()>,
    unpacked: Mutex<VecDeque<(Place, Arc<Vec<u8>>)>>,
}

/// What changes.
#[derive(Debug)]
struct State {
    l1: Vec<u64>,
    /// Parts of the L1 table that are changed and not written.
    l1_changed: BTreeSet<usize>,
    l2: Tables,
    refcounts: Refcounts,
    /// Clusters of the disk that are being allocated.
    allocating: Vec<(u64, u64)>,
    /// Clusters of the file that are not referred to in memory, and are in the file.
    unused: Vec<(u64, u64)>,
    /// Whether the file says that counts may be wrong.
    marked: bool,
    /// Something could not be given back: the mark stays.
    leaked: bool,
    /// What is wrong; no more writing.
    damage: Option<&'static str>,
}

/// What a part of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// In the file from this byte on, and whether it may be written there.
    Data(u64, bool),
    /// Zeroes; the cluster that is kept for it, if any.
    Zero(Option<u64>),
    /// In the backing file, or zeroes.
    Backing,
    Compressed(Place),
}

/// How a write goes on.
#[derive(Debug)]
enum Plan {
    /// Into clusters that are there, from this byte on.
    Overwrite { offset: u64, len: usize },
    /// Into new ones for `run.count` clusters of the disk from `first` on; the first and the last had these.
    Allocate { first: u64, run: Run, before: (Mapping, Mapping), len: usize },
}

impl Qcow2 {
    fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Entries of an L2 table.
    fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Bytes of the disk that a piece of an L2 table in memory is about.
    fn piece_bytes(&self, state: &State) -> u64 {
        state.l2.piece() / 8 * self.cluster()
    }

    /// The L2 entry of a cluster of the disk; 0 where there is no table.
    fn entry(&self, state: &mut State, cluster: u64) -> io::Result<u64> {
        let l1 = usize::try_from(cluster / self.l2_entries()).map_err(|_| damaged())?;
        let table = state.l1.get(l1).ok_or_else(damaged)? & OFFSET;
        if table == 0 {
            return Ok(0);
        }
        state.l2.number(&self.file, table + cluster % self.l2_entries() * 8)
    }

    /// What an L2 entry means.
    fn mapping(&self, state: &State, entry: u64) -> io::Result<Mapping> {
        let end = state.refcounts.end();
        if entry & COMPRESSED != 0 {
            let place = Place::of(entry, self.header.cluster_bits);
            let (first, count) = place.clusters(self.header.cluster_bits);
            return if first + count <= end { Ok(Mapping::Compressed(place)) } else { Err(damaged()) };
        }
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster()) || offset / self.cluster() >= end {
            return Err(damaged());
        }
        match (entry & ZERO != 0, offset) {
            (true, _) if self.header.version < 3 => Err(damaged()),
            (true, 0) => Ok(Mapping::Zero(None)),
            (true, offset) => Ok(Mapping::Zero(Some(offset))),
            (false, 0) => Ok(Mapping::Backing),
            (false, offset) => Ok(Mapping::Data(offset, entry & COPIED != 0)),
        }
    }

    /// What the disk has from byte `offset` on, and for how many of `len` bytes that goes on.
    fn look_up(&self, offset: u64, len: usize) -> io::Result<(Mapping, usize)> {
        let mut state = lock(&self.state);
        let (first, within) = (offset / self.cluster(), offset % self.cluster());
        let entry = self.entry(&mut state, first)?;
        let mapping = self.mapping(&state, entry)?;
        let mut have = self.cluster() - within;
        // Within a piece of a table, so that the lock is not held for long.
        let stop = self.piece_bytes(&state) - offset % self.piece_bytes(&state);
        let want = (len as u64).min(stop);
        while have < want && !matches!(mapping, Mapping::Compressed(_)) {
            let cluster = (offset + have) / self.cluster();
            let entry = self.entry(&mut state, cluster)?;
            let next = self.mapping(&state, entry);
            let goes_on = match (mapping, next) {
                (Mapping::Data(start, _), Ok(Mapping::Data(next, _))) => next == start + within + have,
                (Mapping::Zero(_), Ok(Mapping::Zero(_))) | (Mapping::Backing, Ok(Mapping::Backing)) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            have += self.cluster();
        }
        let mapping = match mapping {
            Mapping::Data(start, own) => Mapping::Data(start + within, own),
            other => other,
        };
        Ok((mapping, usize::try_from(have.min(len as u64)).map_err(|_| damaged())?))
    }

    /// Reads, with the users held.
    ///
    /// # Safety
    /// As [`Storage::read_at`].
    unsafe fn read_held(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        while pieces.len() > 0 {
            let (mapping, len) = self.look_up(offset, pieces.len())?;
            let part = pieces.take(len);
            // SAFETY: passed on.
            unsafe { self.read_mapped(mapping, part, offset)? };
            offset += len as u64;
        }
        Ok(())
    }

    /// Reads a part of the disk at `offset` that has one mapping.
    ///
    /// # Safety
    /// As [`Storage::read_at`].
    unsafe fn read_mapped(&self, mapping: Mapping, part: Pieces, offset: u64) -> io::Result<()> {
        match mapping {
            // SAFETY: passed on.
            Mapping::Data(start, _) => unsafe { self.file.read_pieces(part, start) },
            Mapping::Compressed(place) => {
                let cluster = self.unpack(place)?;
                let within = usize::try_from(offset % self.cluster()).map_err(|_| damaged())?;
                // SAFETY: passed on.
                unsafe { part.fill_from(cluster.get(within..).unwrap_or_default()) };
                Ok(())
            }
            Mapping::Backing if let Some(backing) = &self.backing => {
                // SAFETY: passed on.
                unsafe { backing.read_pieces(part, offset) }
            }
            Mapping::Backing | Mapping::Zero(_) => {
                // SAFETY: passed on.
                unsafe { part.zero() };
                Ok(())
            }
        }
    }

    /// A compressed cluster, unpacked.
    fn unpack(&self, place: Place) -> io::Result<Arc<Vec<u8>>> {
        if let Some((_, cluster)) = lock(&self.unpacked).iter().find(|(other, _)| *other == place) {
            return Ok(cluster.clone());
        }
        let size = |bytes| usize::try_from(bytes).map_err(|_| damaged());
        let mut stream = vec![0; size(place.len)?];
        self.file.read(&mut stream, place.offset)?;
        let mut cluster = vec![0; size(self.cluster())?];
        compressed::decompress(self.header.compression, &stream, &mut cluster)?;
        let cluster = Arc::new(cluster);
        let mut unpacked = lock(&self.unpacked);
        unpacked.truncate(UNPACKED - 1);
        unpacked.push_front((place, cluster.clone()));
        Ok(cluster)
    }

    /// Writes, with the users held.
    ///
    /// # Safety
    /// As [`Storage::write_at`].
    unsafe fn write_held(&self, mut pieces: Pieces, mut offset: u64) -> io::Result<()> {
        while pieces.len() > 0 {
            let len = match self.plan(offset, pieces.len())? {
                Plan::Overwrite { offset: start, len } => {
                    // SAFETY: passed on.
                    unsafe { self.file.write_pieces(pieces.take(len), start)? };
                    len
                }
                Plan::Allocate { first, run, before, len } => {
                    // SAFETY: passed on.
                    let written = unsafe { self.fill(pieces.take(len), offset, run, before) };
                    self.link(first, run, written)?;
                    len
                }
            };
            offset += len as u64;
        }
        Ok(())
    }

    /// Decides where the first of `len` bytes go, and for how many that holds.
    fn plan(&self, offset: u64, len: usize) -> io::Result<Plan> {
        let mut guard = lock(&self.state);
        let (first, within) = (offset / self.cluster(), offset % self.cluster());
        while guard.allocating.iter().any(|(start, count)| (*start..start + count).contains(&first)) {
            guard = self.allocated.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        let state = &mut *guard;
        if state.damage.is_some() {
            return Err(damaged());
        }
        self.mark(state)?;
        let stop = self.piece_bytes(state) - offset % self.piece_bytes(state);
        let len = (len as u64).min(stop);
        let last = (offset + len - 1) / self.cluster();
        let before = self.own_mapping(state, first)?;
        if let Mapping::Data(start, true) = before {
            let mut count = 1;
            while first + count <= last
                && self.own_mapping(state, first + count)?
                    == Mapping::Data(start + count * self.cluster(), true)
            {
                count += 1;
            }
            for cluster in start / self.cluster()..start / self.cluster() + count {
                if state.refcounts.is_metadata(cluster) {
                    return Err(self.found_damage(state, "data lies where metadata is"));
                }
            }
            let len = usize::try_from((count * self.cluster() - within).min(len)).map_err(|_| damaged())?;
            return Ok(Plan::Overwrite { offset: start + within, len });
        }
        self.own_l2_table(state, first)?;
        let mut count = 1;
        let free = |state: &State, cluster: u64| {
            !state.allocating.iter().any(|(start, count)| (*start..start + count).contains(&cluster))
        };
        while first + count <= last
            && free(state, first + count)
            && !matches!(self.own_mapping(state, first + count), Ok(Mapping::Data(_, true)) | Err(_))
        {
            count += 1;
        }
        let run = state.refcounts.allocate(&self.file, count)?;
        let end = first + run.count - 1;
        let after = self.own_mapping(state, end)?;
        state.allocating.push((first, run.count));
        let len = usize::try_from((run.count * self.cluster() - within).min(len)).map_err(|_| damaged())?;
        Ok(Plan::Allocate { first, run, before: (before, after), len })
    }

    /// The mapping of one cluster of the disk. Nothing in a shared L2 table may be written in place.
    fn own_mapping(&self, state: &mut State, cluster: u64) -> io::Result<Mapping> {
        let entry = self.entry(state, cluster)?;
        let l1 = usize::try_from(cluster / self.l2_entries()).map_err(|_| damaged())?;
        let own = state.l1.get(l1).is_some_and(|entry| entry & COPIED != 0);
        Ok(match self.mapping(state, entry)? {
            Mapping::Data(offset, copied) => Mapping::Data(offset, copied && own),
            other => other,
        })
    }

    /// Something cannot be right: nothing is written any more.
    fn found_damage(&self, state: &mut State, what: &'static str) -> io::Error {
        if state.damage.replace(what).is_none() {
            tracing::error!(
                "disk image {}: {what}; it is not written to any more, repair it with `qemu-img check -r all`",
                self.file.path().display()
            );
            if self.header.version >= 3 {
                let features = self.header.incompatible | DIRTY | CORRUPT;
                let _ = self.file.write(&features.to_be_bytes(), INCOMPATIBLE_AT);
            }
        }
        damaged()
    }

    /// Says in the file that counts may be wrong, before the first of them is.
    fn mark(&self, state: &mut State) -> io::Result<()> {
        if !state.marked && self.header.version >= 3 {
            // What others keep up to date beside the data (bitmaps) is not kept by us, and must not be believed.
            self.file.write(&0u64.to_be_bytes(), AUTOCLEAR_AT)?;
            self.file.write(&(self.header.incompatible | DIRTY).to_be_bytes(), INCOMPATIBLE_AT)?;
        }
        state.marked = true;
        Ok(())
    }

    /// Makes an L2 table for a cluster of the disk, if there is none, or one of our own, if it is shared with a
    /// snapshot.
    fn own_l2_table(&self, state: &mut State, cluster: u64) -> io::Result<()> {
        let l1 = usize::try_from(cluster / self.l2_entries()).map_err(|_| damaged())?;
        let entry = state.l1.get(l1).copied().ok_or_else(damaged)?;
        if entry & COPIED != 0 && entry & OFFSET != 0 {
            return Ok(());
        }
        let old = entry & OFFSET;
        let mut table = vec![0; usize::try_from(self.cluster()).map_err(|_| damaged())?];
        if old != 0 {
            self.file.read(&mut table, old)?;
        }
        let new = state.refcounts.allocate(&self.file, 1)?.start;
        let offset = new * self.cluster();
        state.l2.forget(offset, self.cluster());
        if let Err(error) = self.file.write(&table, offset) {
            self.release(state, new, 1)?;
            return Err(error);
        }
        state.refcounts.metadata().insert(new);
        if let Some(entry) = state.l1.get_mut(l1) {
            *entry = offset | COPIED;
        }
        state.l1_changed.insert(l1 * 8 / L1_PART);
        if old != 0 {
            state.l2.forget(old, self.cluster());
            state.refcounts.metadata().remove(&(old / self.cluster()));
            state.unused.push((old / self.cluster(), 1));
        }
        Ok(())
    }

    /// Writes into new clusters, together with what the rest of the first and the last of them had before.
    ///
    /// # Safety
    /// As [`Storage::write_at`].
    unsafe fn fill(&self, part: Pieces, offset: u64, run: Run, before: (Mapping, Mapping)) -> io::Result<()> {
        let cluster = self.cluster();
        let start = run.start * cluster + offset % cluster;
        let end = offset + part.len() as u64;
        let head = usize::try_from(offset % cluster).map_err(|_| damaged())?;
        let tail = usize::try_from(end.next_multiple_of(cluster) - end).map_err(|_| damaged())?;
        let zeroes = |mapping| match mapping {
            Mapping::Zero(_) => true,
            Mapping::Backing => self.backing.is_none(),
            Mapping::Data(..) | Mapping::Compressed(_) => false,
        };
        // A new end of the file reads as zeroes without being written.
        let head = if run.fresh && zeroes(before.0) { 0 } else { head };
        let tail = if run.fresh && zeroes(before.1) { 0 } else { tail };
        let (mut above, mut below) = (vec![0; head], vec![0; tail]);
        if head > 0 {
            // SAFETY: memory of our own.
            unsafe { self.read_old(before.0, &mut above, offset - head as u64)? };
        }
        if tail > 0 {
            // SAFETY: memory of our own.
            unsafe { self.read_old(before.1, &mut below, end)? };
        }
        // SAFETY: passed on; the other memory is our own.
        unsafe { self.file.write_pieces(part.between(&above, &below), start - head as u64) }
    }

    /// Reads what a cluster had; the disk may end within it.
    unsafe fn read_old(&self, mapping: Mapping, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mapping = match mapping {
            Mapping::Data(start, own) => Mapping::Data(start + offset % self.cluster(), own),
            other => other,
        };
        // SAFETY: the memory is borrowed.
        unsafe { self.read_mapped(mapping, Pieces::of(buffer), offset) }
    }

    /// Ends an allocation: the new clusters are the disk's, or free again.
    fn link(&self, first: u64, run: Run, written: io::Result<()>) -> io::Result<()> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.allocating.retain(|(start, _)| *start != first);
        self.allocated.notify_all();
        let mut linked = 0;
        let result = written.and_then(|()| {
            while linked < run.count {
                let new = (run.start + linked) * self.cluster();
                self.set_entry(state, first + linked, new | COPIED)?;
                linked += 1;
            }
            Ok(())
        });
        if linked < run.count {
            self.release(state, run.start + linked, run.count - linked)?;
        }
        result
    }

    /// Changes an L2 entry in a table of our own; what it referred to before is given back in time.
    fn set_entry(&self, state: &mut State, cluster: u64, value: u64) -> io::Result<()> {
        let old = self.entry(state, cluster)?;
        let l1 = usize::try_from(cluster / self.l2_entries()).map_err(|_| damaged())?;
        let table = state.l1.get(l1).ok_or_else(damaged)? & OFFSET;
        state.l2.set_number(&self.file, table + cluster % self.l2_entries() * 8, value)?;
        let unused = match self.mapping(state, old)? {
            Mapping::Data(offset, _) | Mapping::Zero(Some(offset)) => (offset / self.cluster(), 1),
            Mapping::Compressed(place) => place.clusters(self.header.cluster_bits),
            Mapping::Zero(None) | Mapping::Backing => return Ok(()),
        };
        match state.unused.last_mut() {
            Some((start, count)) if *start + *count == unused.0 => *count += unused.1,
            _ => state.unused.push(unused),
        }
        Ok(())
    }

    /// Frees whole clusters, with the users held for writing. Returns where it stopped: at the end, or where it
    /// is time for a sync.
    fn discard_held(&self, offset: u64, end: u64) -> io::Result<u64> {
        let (mut cluster, stop) = (offset.div_ceil(self.cluster()), end / self.cluster());
        // The disk may end within its last cluster.
        let stop = if end == self.header.size { end.div_ceil(self.cluster()) } else { stop };
        let value = match (&self.backing, self.header.version) {
            (None, _) => 0,
            (Some(_), 3..) => ZERO,
            // Version 2 cannot say that what the backing file has is gone.
            (Some(_), _) => return Ok(end),
        };
        let mut holes: Option<(u64, u64)> = None;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.damage.is_some() {
            return Err(damaged());
        }
        while cluster < stop {
            let l1 = usize::try_from(cluster / self.l2_entries()).map_err(|_| damaged())?;
            if state.l1.get(l1).ok_or_else(damaged)? & OFFSET == 0 && value == 0 {
                cluster = (cluster / self.l2_entries() + 1) * self.l2_entries();
                continue;
            }
            let before = self.own_mapping(state, cluster)?;
            let done = match before {
                Mapping::Zero(None) => true,
                Mapping::Backing => value == 0,
                _ => false,
            };
            if !done {
                self.mark(state)?;
                self.own_l2_table(state, cluster)?;
                self.set_entry(state, cluster, value)?;
            }
            if let Mapping::Data(offset, true) = before {
                if state.refcounts.is_metadata(offset / self.cluster()) {
                    return Err(self.found_damage(state, "data lies where metadata is"));
                }
                holes = match holes {
                    Some((start, len)) if start + len == offset => Some((start, len + self.cluster())),
                    other => {
                        self.punch(other);
                        Some((offset, self.cluster()))
                    }
                };
            }
            cluster += 1;
            if state.l2.crowded() || state.unused.len() > MAX_UNUSED {
                break;
            }
        }
        drop(guard);
        self.punch(holes);
        Ok(if cluster < stop { cluster * self.cluster() } else { end })
    }

    /// Gives the blocks of the file system back. It is only room: that it fails is no harm.
    fn punch(&self, hole: Option<(u64, u64)>) {
        if let Some((offset, len)) = hole {
            let _ = self.file.discard(offset, len);
        }
    }

    /// Whether so much has changed that it is time for a sync.
    fn crowded(&self) -> bool {
        let state = lock(&self.state);
        state.l2.crowded() || state.unused.len() > MAX_UNUSED
    }

    /// Writes all metadata in the order that keeps the image sound, and what it refers to.
    fn sync(&self) -> io::Result<()> {
        let _alone = lock(&self.syncing);
        let (l2, l1, unused) = {
            let mut guard = lock(&self.state);
            let state = &mut *guard;
            if state.refcounts.dirty() {
                state.refcounts.write(&self.file)?;
            }
            let l1: Vec<(usize, Vec<u8>)> =
                state.l1_changed.iter().map(|part| (*part, l1_part(&state.l1, *part))).collect();
            (state.l2.changes(), l1, std::mem::take(&mut state.unused))
        };
        let written = self.write_references(&l2, &l1);
        let mut state = lock(&self.state);
        if let Err(error) = written {
            // They stay changed, and are written the next time.
            state.unused.extend(unused);
            return Err(error);
        }
        state.l2.written(&l2);
        drop(state);
        if unused.is_empty() {
            return Ok(());
        }
        let _alone = self.users.write().unwrap_or_else(PoisonError::into_inner);
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        lock(&self.unpacked).clear();
        let mut result = Ok(());
        for (start, count) in unused {
            result = result.and(self.release(state, start, count));
        }
        result
    }

    /// Gives clusters back that nothing refers to.
    fn release(&self, state: &mut State, start: u64, count: u64) -> io::Result<()> {
        state.refcounts.release(&self.file, start, count).map_err(|error| {
            state.leaked = true;
            match error.kind() {
                io::ErrorKind::InvalidData => self.found_damage(state, "a cluster in use is counted as free"),
                _ => error,
            }
        })
    }

    fn write_references(&self, l2: &[Change], l1: &[(usize, Vec<u8>)]) -> io::Result<()> {
        self.file.flush()?;
        if l2.is_empty() && l1.is_empty() {
            return Ok(());
        }
        for change in l2 {
            self.file.write(&change.bytes, change.offset)?;
        }
        for (part, bytes) in l1 {
            self.file.write(bytes, self.header.l1_offset + (part * L1_PART) as u64)?;
        }
        self.file.flush()?;
        let mut state = lock(&self.state);
        for (part, bytes) in l1 {
            if l1_part(&state.l1, *part) == *bytes {
                state.l1_changed.remove(part);
            }
        }
        Ok(())
    }

    /// Bytes of a request that lie on the disk.
    fn clip(&self, buffers: &[IoVec], offset: u64) -> Pieces {
        let mut pieces = Pieces::new(buffers);
        pieces.take(usize::try_from(self.header.size.saturating_sub(offset)).unwrap_or(usize::MAX))
    }

    /// Reads all of it; zeroes behind the end of the disk.
    ///
    /// # Safety
    /// As [`Storage::read_at`].
    pub(super) unsafe fn read_pieces(&self, mut pieces: Pieces, offset: u64) -> io::Result<()> {
        let _held = self.users.read().unwrap_or_else(PoisonError::into_inner);
        let left = usize::try_from(self.header.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let inside = pieces.take(left);
        // SAFETY: passed on.
        unsafe {
            self.read_held(inside, offset)?;
            pieces.zero();
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        if self.file.readonly() || !lock(&self.state).marked {
            return Ok(());
        }
        // The second writes the counts of what the first gave back.
        self.sync()?;
        self.sync()?;
        let state = lock(&self.state);
        if state.damage.is_none() && !state.leaked && self.header.version >= 3 {
            self.file.write(&(self.header.incompatible & !DIRTY).to_be_bytes(), INCOMPATIBLE_AT)?;
            self.file.flush()?;
        }
        Ok(())
    }
}

/// A part of the L1 table as it is in the file.
fn l1_part(l1: &[u64], part: usize) -> Vec<u8> {
    let entries = L1_PART / 8;
    let entries = l1.iter().skip(part * entries).take(entries);
    entries.flat_map(|entry| entry.to_be_bytes()).collect()
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(
                "disk image {}: cannot be closed properly ({error}); unused clusters are freed when it is opened again",
                self.file.path().display()
            );
        }
    }
}

impl Storage for Qcow2 {
    fn traits(&self) -> Traits {
        format_traits(&self.file, u32::try_from(self.cluster()).ok())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.header.size)
    }

    fn raw(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    unsafe fn read_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        let pieces = self.clip(buffers, offset);
        let len = pieces.len();
        // SAFETY: the caller's promise.
        unsafe { self.read_pieces(pieces, offset)? };
        Ok(len)
    }

    unsafe fn write_at(&self, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
        if self.file.readonly() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let pieces = self.clip(buffers, offset);
        let len = pieces.len();
        if len == 0 && buffers.iter().any(|buffer| buffer.size() > 0) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        {
            let _held = self.users.read().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the caller's promise.
            unsafe { self.write_held(pieces, offset)? };
        }
        if self.crowded() {
            self.sync()?;
        }
        Ok(len)
    }

    fn flush(&self) -> io::Result<()> {
        if self.file.readonly() { Ok(()) } else { self.sync() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let end = offset.checked_add(len).filter(|end| *end <= self.header.size).ok_or_else(invalid)?;
        if self.file.readonly() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // In parts, so that others get their turn, and no more is remembered than there is room for.
        let step = self.l2_entries() * self.cluster();
        let mut at = offset;
        while at < end {
            let next = (at / step + 1).saturating_mul(step).min(end);
            {
                let _alone = self.users.write().unwrap_or_else(PoisonError::into_inner);
                at = self.discard_held(at, next)?;
            }
            if self.crowded() {
                self.sync()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

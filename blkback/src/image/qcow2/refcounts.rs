//! Which clusters of the file are used, how often, and where there is room.
//!
//! What is in memory counts at least what the file's tables refer to: a cluster is counted before anything
//! refers to it, and given back only after the last reference is out of the file. So the counts may be written
//! at any time, and are written before the references (see [`super::Qcow2::sync`]).

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::header::{Header, REFCOUNT_TABLE_AT};
use super::tables::Tables;
use crate::image::file::ImageFile;

/// Bytes of refcount blocks in memory.
const CACHE: usize = 2 << 20;
/// Ranges of free clusters that are remembered; the others are found when the image is opened again.
const MAX_FREE_RANGES: usize = 1 << 16;
/// Clusters looked at for room before the file is made longer instead: the caller holds a lock.
const SCAN: u64 = 1 << 16;

/// Clusters in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) count: u64,
    /// Nothing was ever written there: it reads as zeroes.
    pub(super) fresh: bool,
}

/// The counts.
#[derive(Debug)]
pub(super) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    table_offset: u64,
    table_clusters: u64,
    /// Offsets of the refcount blocks; 0: all of its clusters are free.
    table: Vec<u64>,
    blocks: Tables,
    /// Clusters of the file; beyond it nothing was written.
    end: u64,
    /// Clusters of the file when it was opened: below it there may be room that is not known.
    scan_end: u64,
    scanned: u64,
    free: BTreeMap<u64, u64>,
    /// Clusters that hold metadata, which a guest's data must never go to.
    metadata: HashSet<u64>,
}

fn damaged() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Refcounts {
    /// Reads the table. `metadata` are the clusters of the other tables; the blocks are added to them, and it
    /// is an error, a sentence, if one of them is there already or outside of the file.
    pub(super) fn load(
        file: &ImageFile,
        header: &Header,
        len: u64,
        mut metadata: HashSet<u64>,
    ) -> io::Result<Result<Self, String>> {
        let cluster = header.cluster();
        let end = len.div_ceil(cluster);
        let bytes = usize::try_from(header.refcount_table_clusters * cluster).map_err(|_| damaged())?;
        let mut table = vec![0; bytes];
        file.read(&mut table, header.refcount_table_offset)?;
        let table: Vec<u64> = numbers(&table).map(|entry| entry & !0x1ff).collect();
        for block in table.iter().filter(|block| **block != 0) {
            if !block.is_multiple_of(cluster) || block / cluster >= end {
                return Ok(Err(format!("a refcount block at byte {block:#x}, outside of the file")));
            }
            if !metadata.insert(block / cluster) {
                return Ok(Err(format!("the refcount block at byte {block:#x} overlaps other metadata")));
            }
        }
        Ok(Ok(Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table_offset: header.refcount_table_offset,
            table_clusters: header.refcount_table_clusters,
            table,
            blocks: Tables::new(cluster, CACHE),
            end: if file.block_device() { len / cluster } else { end },
            scan_end: end,
            scanned: 0,
            free: BTreeMap::new(),
            metadata,
        }))
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters that one block counts.
    pub(super) fn per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.order)
    }

    /// Clusters of the file.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    #[cfg(test)]
    pub(super) fn set_end_for_test(&mut self, end: u64) {
        self.end = end;
    }

    /// The offsets of the blocks.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Offset and clusters of the table.
    pub(super) fn table_place(&self) -> (u64, u64) {
        (self.table_offset, self.table_clusters)
    }

    /// The clusters that hold metadata.
    pub(super) fn metadata(&mut self) -> &mut HashSet<u64> {
        &mut self.metadata
    }

    /// Whether a cluster holds metadata.
    pub(super) fn is_metadata(&self, cluster: u64) -> bool {
        self.metadata.contains(&cluster)
    }

    /// Whether counts are changed and not written.
    pub(super) fn dirty(&self) -> bool {
        self.blocks.dirty() > 0
    }

    /// Writes what is changed.
    pub(super) fn write(&mut self, file: &ImageFile) -> io::Result<()> {
        self.blocks.write(file)
    }

    /// Where the count of a cluster is: byte in the file, and the first bit of a count below 8 bits.
    fn place(&self, cluster: u64) -> Option<(u64, u32)> {
        let block = usize::try_from(cluster / self.per_block()).ok()?;
        let block = self.table.get(block).copied().filter(|block| *block != 0)?;
        let bit = (cluster % self.per_block()) << self.order;
        Some((block + bit / 8, (bit % 8) as u32))
    }

    /// The count of a cluster.
    pub(super) fn get(&mut self, file: &ImageFile, cluster: u64) -> io::Result<u64> {
        let Some((offset, bit)) = self.place(cluster) else { return Ok(0) };
        let order = self.order;
        let (bytes, at) = self.blocks.bytes(file, offset)?;
        read_count(bytes, at, bit, order).ok_or_else(damaged)
    }

    /// Sets the count of a cluster whose block exists.
    pub(super) fn set(&mut self, file: &ImageFile, cluster: u64, count: u64) -> io::Result<()> {
        let order = self.order;
        let most = u64::MAX >> (64 - (1u32 << order));
        let (offset, bit) = self.place(cluster).filter(|_| count <= most).ok_or_else(damaged)?;
        if self.blocks.crowded() {
            self.blocks.write(file)?;
        }
        self.blocks.change(file, offset, |bytes, at| write_count(bytes, at, bit, order, count))
    }

    /// Takes up to `want` free clusters in a row, counted once.
    pub(super) fn allocate(&mut self, file: &ImageFile, want: u64) -> io::Result<Run> {
        if let Some((start, len)) = self.free.pop_first() {
            let count = want.min(len);
            if count < len {
                self.free.insert(start + count, len - count);
            }
            return self.take(file, Run { start, count, fresh: false });
        }
        if let Some(run) = self.scan(file, want)? {
            return self.take(file, run);
        }
        if file.block_device() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.grow(file, want)
    }

    /// Takes up to `want` clusters behind the end of the file.
    pub(super) fn grow(&mut self, file: &ImageFile, want: u64) -> io::Result<Run> {
        while self.place(self.end).is_none() {
            let at = self.end;
            if !self.add_block(file, at)? {
                self.end = at + 1;
            }
        }
        let start = self.end;
        let count = want.min(self.per_block() - start % self.per_block());
        let end = (start + count).checked_mul(self.cluster()).filter(|end| *end <= i64::MAX.cast_unsigned());
        if end.is_none() {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.end = start + count;
        self.take(file, Run { start, count, fresh: true })
    }

    fn take(&mut self, file: &ImageFile, run: Run) -> io::Result<Run> {
        for cluster in run.start..run.start + run.count {
            self.set(file, cluster, 1)?;
        }
        Ok(run)
    }

    /// Looks for free clusters where it was not looked before.
    fn scan(&mut self, file: &ImageFile, want: u64) -> io::Result<Option<Run>> {
        // A device has no end to go beyond.
        let budget = if file.block_device() { u64::MAX } else { SCAN };
        let stop = self.scanned.saturating_add(budget).min(self.scan_end);
        while self.scanned < stop {
            let start = self.scanned;
            if self.place(start).is_none() {
                if file.block_device() && !self.is_metadata(start) {
                    self.add_block(file, start)?;
                } else {
                    self.scanned = (start / self.per_block() + 1) * self.per_block();
                }
                continue;
            }
            let mut count = 0;
            while count < want
                && start + count < self.scan_end.min(self.end)
                && self.place(start + count).is_some()
                && self.get(file, start + count)? == 0
                // A table that nobody counted: the counts are wrong, and this is not to be written to.
                && !self.is_metadata(start + count)
            {
                count += 1;
            }
            self.scanned = start + count.max(1);
            if count > 0 {
                return Ok(Some(Run { start, count, fresh: false }));
            }
        }
        Ok(None)
    }

    /// Makes the block that counts cluster `at`, which is free. Either that cluster becomes the block, or the
    /// table had to become longer, and the end of the file is beyond it; true: the latter.
    fn add_block(&mut self, file: &ImageFile, at: u64) -> io::Result<bool> {
        let index = usize::try_from(at / self.per_block()).map_err(|_| damaged())?;
        if index >= self.table.len() {
            self.grow_table(file)?;
            return Ok(true);
        }
        let offset = at * self.cluster();
        self.write_block(file, offset, at, 1, at - at % self.per_block())?;
        // The block is on the disk before the table refers to it. It is a rare thing.
        file.flush()?;
        file.write(&offset.to_be_bytes(), self.table_offset + index as u64 * 8)?;
        if let Some(entry) = self.table.get_mut(index) {
            *entry = offset;
        }
        self.metadata.insert(at);
        Ok(false)
    }

    /// Writes the block of the clusters from `first` on, with counts of 1 for `count` clusters from `start`.
    fn write_block(
        &mut self,
        file: &ImageFile,
        offset: u64,
        start: u64,
        count: u64,
        first: u64,
    ) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(self.cluster()).map_err(|_| damaged())?];
        for cluster in start.max(first)..(start + count).min(first + self.per_block()) {
            let bit = (cluster - first) << self.order;
            let at = usize::try_from(bit / 8).map_err(|_| damaged())?;
            write_count(&mut bytes, at, (bit % 8) as u32, self.order, 1);
        }
        self.blocks.forget(offset, self.cluster());
        file.write(&bytes, offset)
    }

    /// Moves the table to the end of the file, half as long again, together with the blocks that count the
    /// clusters it takes there.
    fn grow_table(&mut self, file: &ImageFile) -> io::Result<()> {
        let (per_block, cluster) = (self.per_block(), self.cluster());
        let start = self.end.max(self.table.len() as u64 * per_block);
        if file.block_device() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let first_block = start / per_block;
        let (mut blocks, mut clusters) = (1, 1);
        loop {
            let entries = (first_block + blocks) * 3 / 2;
            let more = (entries * 8).div_ceil(cluster).max(clusters);
            let covered = (start % per_block + blocks + more).div_ceil(per_block);
            if covered <= blocks && more <= clusters {
                break;
            }
            (blocks, clusters) = (covered.max(blocks), more.max(clusters));
        }
        if clusters * cluster > u64::from(u32::MAX) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let count = blocks + clusters;
        let mut table = self.table.clone();
        table.resize(usize::try_from(clusters * cluster / 8).map_err(|_| damaged())?, 0);
        for block in 0..blocks {
            let offset = (start + block) * cluster;
            self.write_block(file, offset, start, count, (first_block + block) * per_block)?;
            let index = usize::try_from(first_block + block).map_err(|_| damaged())?;
            *table.get_mut(index).ok_or_else(damaged)? = offset;
        }
        let offset = (start + blocks) * cluster;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.blocks.forget(offset, clusters * cluster);
        file.write(&bytes, offset)?;
        file.flush()?;
        // Both numbers lie in one sector: the header has the old table or the new one.
        let mut place = [0; 12];
        let (place_offset, place_clusters) = place.split_at_mut(8);
        place_offset.copy_from_slice(&offset.to_be_bytes());
        place_clusters.copy_from_slice(&u32::try_from(clusters).map_err(|_| damaged())?.to_be_bytes());
        file.write(&place, REFCOUNT_TABLE_AT)?;
        file.flush()?;
        let (old_offset, old_clusters) = (self.table_offset, self.table_clusters);
        (self.table_offset, self.table_clusters, self.table) = (offset, clusters, table);
        self.end = start + count;
        self.metadata.extend(start..start + count);
        for old in old_offset / cluster..old_offset / cluster + old_clusters {
            self.metadata.remove(&old);
            // Counted wrong, it stays unused.
            let _ = self.release(file, old, 1);
        }
        Ok(())
    }

    /// Takes a reference of each of these clusters away.
    pub(super) fn release(&mut self, file: &ImageFile, start: u64, count: u64) -> io::Result<()> {
        for cluster in start..start + count {
            let references = self.get(file, cluster)?;
            // Nobody counted it: the image is damaged, and giving the cluster away would spread that.
            let left = references.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
            self.set(file, cluster, left)?;
            if left == 0 {
                self.remember_free(cluster);
            }
        }
        Ok(())
    }

    fn remember_free(&mut self, cluster: u64) {
        if self.is_metadata(cluster) {
            return;
        }
        let before = self.free.range(..=cluster).next_back().map(|(start, len)| (*start, *len));
        match before {
            Some((start, len)) if cluster < start + len => return,
            Some((start, len)) if cluster == start + len => {
                self.free.insert(start, len + 1);
                self.join(start);
                return;
            }
            _ => {}
        }
        if self.free.len() < MAX_FREE_RANGES {
            self.free.insert(cluster, 1);
            self.join(cluster);
        }
    }

    /// Joins the range that begins at `start` with the one that follows it.
    fn join(&mut self, start: u64) {
        let Some(len) = self.free.get(&start).copied() else { return };
        if let Some(next) = self.free.remove(&(start + len)) {
            self.free.insert(start, len + next);
        }
    }
}

/// The big-endian numbers of a table.
pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (numbers, _) = bytes.as_chunks::<8>();
    numbers.iter().map(|number| u64::from_be_bytes(*number))
}

fn read_count(bytes: &[u8], at: usize, bit: u32, order: u32) -> Option<u64> {
    if order < 3 {
        let mask = (1u8 << (1 << order)) - 1;
        return Some(u64::from((bytes.get(at)? >> bit) & mask));
    }
    let width = 1 << (order - 3);
    Some(bytes.get(at..at + width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn write_count(bytes: &mut [u8], at: usize, bit: u32, order: u32, count: u64) {
    let count = count.to_be_bytes();
    if order < 3 {
        let mask = ((1u8 << (1 << order)) - 1) << bit;
        if let Some(byte) = bytes.get_mut(at) {
            *byte = (*byte & !mask) | ((count[7] << bit) & mask);
        }
        return;
    }
    let width = 1 << (order - 3);
    if let (Some(bytes), Some(count)) = (bytes.get_mut(at..at + width), count.get(8 - width..)) {
        bytes.copy_from_slice(count);
    }
}

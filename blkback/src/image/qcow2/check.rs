//! Counts anew what refers to each cluster, after somebody was stopped while he wrote to an image.
//!
//! Work and memory are bounded by what is really in the file, not by what tables in it claim: holes are
//! skipped, a table that is referred to often is read once.

use std::collections::HashMap;
use std::io;

use super::compressed::Place;
use super::header::Header;
use super::refcounts::{Refcounts, numbers};
use super::{COMPRESSED, COPIED, OFFSET};
use crate::image::file::ImageFile;

/// Clusters that are counted together.
const GROUP: u64 = GROUP_LEN as u64;
/// The same, as the length of an array.
const GROUP_LEN: usize = 64;
/// Groups: with clusters of 64 KiB those of a file of 8 TiB, and about 300 MiB of memory.
const MAX_GROUPS: usize = 1 << 21;
/// Entries of the L1 tables of all snapshots.
const MAX_SNAPSHOT_ENTRIES: u64 = 1 << 24;
/// QEMU's bound for what newer versions may add to a snapshot.
const MAX_SNAPSHOT_EXTRA: u64 = 1024;

/// References per cluster.
#[derive(Debug, Default)]
struct Counts {
    groups: HashMap<u64, Box<[u16; GROUP_LEN]>>,
    /// Clusters of the file.
    end: u64,
    /// Some cluster has more than one.
    shared: bool,
}

impl Counts {
    fn add(&mut self, start: u64, count: u64, references: u16) -> Result<(), String> {
        for cluster in start..start.saturating_add(count) {
            if cluster >= self.end {
                return Err("a table refers to a cluster beyond the end of the file".into());
            }
            if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&(cluster / GROUP)) {
                return Err("it was not closed properly and is too large to be checked here".into());
            }
            let group = self.groups.entry(cluster / GROUP).or_insert_with(|| Box::new([0; GROUP_LEN]));
            let slot = usize::try_from(cluster % GROUP).ok().and_then(|slot| group.get_mut(slot));
            if let Some(slot) = slot {
                *slot = slot.saturating_add(references);
                self.shared |= *slot > 1;
            }
        }
        Ok(())
    }

    fn get(&self, cluster: u64) -> u16 {
        let slot = usize::try_from(cluster % GROUP).unwrap_or(0);
        self.groups.get(&(cluster / GROUP)).and_then(|group| group.get(slot)).copied().unwrap_or(0)
    }
}

/// Makes all counts right in memory; returns how many were wrong, or a sentence about what cannot be right.
pub(super) fn recount(
    file: &ImageFile,
    header: &Header,
    l1: &[u64],
    refcounts: &mut Refcounts,
) -> io::Result<Result<u64, String>> {
    let mut recount = Recount {
        file,
        header,
        tables: HashMap::new(),
        counts: Counts { end: refcounts.end(), ..Counts::default() },
    };
    match recount.count(l1, refcounts)? {
        Ok(()) => recount.mend(refcounts),
        Err(sentence) => Ok(Err(sentence)),
    }
}

struct Recount<'a> {
    file: &'a ImageFile,
    header: &'a Header,
    /// L2 tables by their offset, and how many L1 entries refer to them.
    tables: HashMap<u64, u16>,
    counts: Counts,
}

/// What `?` does for the sentences inside of I/O results.
macro_rules! sound {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(sentence) => return Ok(Err(sentence)),
        }
    };
}

impl Recount<'_> {
    fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Counts a table of `bytes` at `offset`.
    fn add_bytes(&mut self, offset: u64, bytes: u64) -> Result<(), String> {
        let first = offset / self.cluster();
        self.counts.add(first, bytes.div_ceil(self.cluster()), 1)
    }

    fn count(&mut self, l1: &[u64], refcounts: &mut Refcounts) -> io::Result<Result<(), String>> {
        let cluster = self.cluster();
        sound!(self.counts.add(0, 1, 1));
        let (table, clusters) = refcounts.table_place();
        sound!(self.counts.add(table / cluster, clusters, 1));
        for block in refcounts.table().iter().filter(|block| **block != 0) {
            sound!(self.counts.add(block / cluster, 1, 1));
        }
        sound!(self.add_bytes(self.header.l1_offset, self.header.l1_entries * 8));
        self.add_tables(l1);
        sound!(self.snapshots()?);
        for (table, references) in std::mem::take(&mut self.tables) {
            if !table.is_multiple_of(cluster) {
                return Ok(Err(format!("the L1 table of a snapshot refers to byte {table:#x}")));
            }
            sound!(self.counts.add(table / cluster, 1, references));
            sound!(self.table(table, |this, entry| this.add_entry(entry, references))?);
            self.tables.insert(table, references);
        }
        for metadata in refcounts.metadata().iter() {
            let expected = self.tables.get(&(metadata * cluster)).copied().unwrap_or(1);
            if self.counts.get(*metadata) != expected {
                return Ok(Err(format!("data overlaps metadata at byte {:#x}", metadata * cluster)));
            }
        }
        if self.counts.shared {
            return self.check_own(l1);
        }
        Ok(Ok(()))
    }

    fn add_tables(&mut self, l1: &[u64]) {
        for entry in l1.iter().map(|entry| entry & OFFSET).filter(|entry| *entry != 0) {
            let references = self.tables.entry(entry).or_insert(0);
            *references = references.saturating_add(1);
        }
    }

    /// Calls a function with each entry of an L2 table.
    fn table(
        &mut self,
        offset: u64,
        mut with: impl FnMut(&mut Self, u64) -> Result<(), String>,
    ) -> io::Result<Result<(), String>> {
        if self.file.is_hole(offset, self.cluster()) {
            return Ok(Ok(()));
        }
        let mut bytes = vec![0; usize::try_from(self.cluster()).unwrap_or(0)];
        self.file.read(&mut bytes, offset)?;
        for entry in numbers(&bytes).filter(|entry| *entry != 0) {
            sound!(with(self, entry));
        }
        Ok(Ok(()))
    }

    /// Where the cluster of an L2 entry is, if it has one.
    fn place(&self, entry: u64) -> Result<Option<(u64, u64)>, String> {
        if entry & COMPRESSED != 0 {
            let bits = self.header.cluster_bits;
            return Ok(Some(Place::of(entry, bits).clusters(bits)));
        }
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster()) {
            return Err(format!("an L2 table refers to byte {offset:#x}, where no cluster begins"));
        }
        Ok((offset != 0).then_some((offset / self.cluster(), 1)))
    }

    fn add_entry(&mut self, entry: u64, references: u16) -> Result<(), String> {
        match self.place(entry)? {
            Some((start, count)) => self.counts.add(start, count, references),
            None => Ok(()),
        }
    }

    /// The snapshot table and the L1 tables that it refers to.
    fn snapshots(&mut self) -> io::Result<Result<(), String>> {
        let mut at = self.header.snapshots_offset;
        let mut entries = 0;
        for _ in 0..self.header.snapshots {
            let mut fixed = [0; 40];
            self.file.read(&mut fixed, at)?;
            let number = |at: usize, len: usize| {
                fixed
                    .get(at..at + len)
                    .unwrap_or_default()
                    .iter()
                    .fold(0, |n, byte| n << 8 | u64::from(*byte))
            };
            let (l1_offset, l1_entries) = (number(0, 8), number(8, 4));
            let (id, name, extra) = (number(12, 2), number(14, 2), number(36, 4));
            entries += l1_entries;
            let invalid = !l1_offset.is_multiple_of(self.cluster())
                || entries > MAX_SNAPSHOT_ENTRIES
                || extra > MAX_SNAPSHOT_EXTRA;
            if invalid {
                return Ok(Err("an entry of the snapshot table is not one".into()));
            }
            sound!(self.add_bytes(l1_offset, l1_entries * 8));
            let mut bytes = vec![0; usize::try_from(l1_entries * 8).unwrap_or(0)];
            self.file.read(&mut bytes, l1_offset)?;
            let l1: Vec<u64> = numbers(&bytes).collect();
            self.add_tables(&l1);
            at += (40 + extra + id + name).next_multiple_of(8);
        }
        if self.header.snapshots > 0 {
            sound!(self.add_bytes(self.header.snapshots_offset, at - self.header.snapshots_offset));
        }
        Ok(Ok(()))
    }

    /// What the disk may write in place must be its own.
    fn check_own(&mut self, l1: &[u64]) -> io::Result<Result<(), String>> {
        for entry in l1.iter().filter(|entry| **entry & COPIED != 0) {
            let table = entry & OFFSET;
            if self.counts.get(table / self.cluster()) > 1 {
                return Ok(Err(format!("the L2 table at byte {table:#x} overlaps something else")));
            }
            sound!(self.table(table, |this, entry| {
                let place = if entry & COPIED != 0 { this.place(entry)? } else { None };
                match place {
                    Some((start, _)) if this.counts.get(start) > 1 => {
                        Err(format!("two parts of the disk are at byte {:#x}", start * this.cluster()))
                    }
                    _ => Ok(()),
                }
            })?);
        }
        Ok(Ok(()))
    }

    /// Sets the counts that are wrong.
    fn mend(&self, refcounts: &mut Refcounts) -> io::Result<Result<u64, String>> {
        let mut wrong = 0;
        let per_block = refcounts.per_block();
        let blocks: Vec<u64> = refcounts.table().to_vec();
        for (index, block) in blocks.iter().enumerate() {
            let first = index as u64 * per_block;
            if *block == 0 || first >= self.counts.end || self.file.is_hole(*block, self.cluster()) {
                continue;
            }
            for cluster in first..(first + per_block).min(self.counts.end) {
                let counted = self.counts.get(cluster).into();
                if refcounts.get(self.file, cluster)? != counted {
                    refcounts.set(self.file, cluster, counted)?;
                    wrong += 1;
                }
            }
        }
        for (group, counts) in &self.counts.groups {
            for (cluster, count) in (group * GROUP..).zip(counts.iter()) {
                if refcounts.get(self.file, cluster)? == u64::from(*count) {
                    continue;
                }
                let block = usize::try_from(cluster / per_block).unwrap_or(usize::MAX);
                if blocks.get(block).is_none_or(|block| *block == 0) {
                    return Ok(Err(
                        "it was not closed properly and has no refcounts for some clusters".into()
                    ));
                }
                refcounts.set(self.file, cluster, (*count).into())?;
                wrong += 1;
            }
        }
        Ok(Ok(wrong))
    }
}

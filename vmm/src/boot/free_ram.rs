//! Which guest RAM is still free while the boot images are placed.

use std::ops::Range;

use super::pvh::{MemmapEntry, MemmapKind};

/// Free RAM: sorted ranges that neither touch nor overlap.
#[derive(Clone, Debug)]
pub(super) struct FreeRam {
    ranges: Vec<Range<u64>>,
}

impl FreeRam {
    /// The RAM of a memory map, less what other entries of it cover.
    pub(super) fn new(memmap: &[MemmapEntry]) -> Self {
        let range = |entry: &MemmapEntry| entry.addr..entry.addr.saturating_add(entry.size);
        let (ram, other): (Vec<_>, Vec<_>) =
            memmap.iter().filter(|entry| entry.size > 0).partition(|entry| entry.kind == MemmapKind::Ram);
        let mut ram: Vec<_> = ram.into_iter().map(range).collect();
        ram.sort_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(ram.len());
        for range in ram {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        let mut free = Self { ranges };
        other.into_iter().map(range).for_each(|range| free.remove(range));
        free
    }

    /// Bytes of all of it.
    pub(super) fn size(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// End of the highest range.
    pub(super) fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Whether all of `range` is free.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        self.ranges.iter().any(|free| free.start <= range.start && range.end <= free.end)
    }

    /// Takes what is free of `range`.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        let old = std::mem::take(&mut self.ranges);
        let pieces =
            |free: Range<u64>| [free.start..free.end.min(range.start), free.start.max(range.end)..free.end];
        self.ranges.extend(old.into_iter().flat_map(pieces).filter(|piece| !piece.is_empty()));
    }

    /// The lowest place of `size` bytes from `within.start` that ends by `within.end`. `align` is a power of two.
    pub(super) fn lowest(&self, size: u64, align: u64, within: Range<u64>) -> Option<u64> {
        self.ranges.iter().find_map(|free| {
            let start = free.start.max(within.start).checked_next_multiple_of(align)?;
            (start.checked_add(size)? <= free.end.min(within.end)).then_some(start)
        })
    }

    /// The highest place of `size` bytes that ends by `limit`. `align` is a power of two.
    pub(super) fn highest(&self, size: u64, align: u64, limit: u64) -> Option<u64> {
        self.ranges.iter().rev().find_map(|free| {
            let start = free.end.min(limit).checked_sub(size)? & !(align - 1);
            (start >= free.start).then_some(start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(entries: &[(u64, u64, MemmapKind)]) -> FreeRam {
        let entries: Vec<_> =
            entries.iter().map(|&(addr, size, kind)| MemmapEntry { addr, size, kind }).collect();
        FreeRam::new(&entries)
    }

    #[test]
    fn adjacent_ram_is_one_range_and_reserved_ranges_win() {
        use MemmapKind::{Ram, Reserved};
        let free = free(&[(0x4000, 0x4000, Ram), (0, 0x4000, Ram), (0x2000, 0x1000, Reserved)]);
        assert_eq!(free.ranges, [0..0x2000, 0x3000..0x8000]);
        assert_eq!((free.size(), free.end()), (0x7000, 0x8000));
    }

    #[test]
    fn taken_ranges_are_not_given_again() {
        let mut free = free(&[(0, 0x10_000, MemmapKind::Ram)]);
        free.remove(0x4000..0x5000);
        free.remove(0x20_000..0x30_000);
        assert!(!free.contains(&(0x3000..0x4001)));
        assert_eq!(free.lowest(0x4000, 0x1000, 0x1000..0x10_000), Some(0x5000));
        assert_eq!(free.highest(0x1000, 0x1000, 0x5800), Some(0x3000));
    }

    #[test]
    fn impossible_requests_find_no_place() {
        let free = free(&[(0, 0x10_000, MemmapKind::Ram)]);
        assert_eq!(free.lowest(u64::MAX, 0x1000, 0..u64::MAX), None);
        assert_eq!(free.lowest(1, 1 << 63, 1..u64::MAX), None);
        assert_eq!(free.highest(u64::MAX, 0x1000, u64::MAX), None);
        assert_eq!(free.highest(0x1000, 0x1000, 0xfff), None);
    }
}

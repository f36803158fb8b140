//! How the CPU reaches video memory through 0xa0000 to 0xbffff.
//!
//! Four planes of 64 KiB are stored side by side: address `a` of plane `p` is byte `4 * a + p` of video memory, so that the
//! four bytes that the card works on at a time are one little-endian word. Chained (256 colours), address `a` of the window
//! is byte `a`. IBM's card skips three of four addresses in each plane then, and so does its CRTC with doublewords; here
//! neither does, which looks the same and is linear.

use super::Window;
use super::dispi::Depth;
use super::spec::{
    GC_BIT_MASK, GC_COLOR_CARE, GC_COLOR_COMPARE, GC_ENABLE_SET_RESET, GC_MISC, GC_MODE, GC_READ_MAP,
    GC_ROTATE, GC_SET_RESET, MEMORY_CHAIN_4, MEMORY_SEQUENTIAL, MISC_RAM, SEQ_MAP_MASK, SEQ_MEMORY_MODE,
};
use super::state::State;

/// First address of the window.
pub(super) const BASE: u64 = 0xa_0000;
/// All bytes of it.
const ALL: u32 = 0x2_0000;

/// An offset of the region as one in the window; `None`: beyond it.
pub(super) fn offset(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| *offset < ALL)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// Video memory itself, from this byte on.
    Linear(u32),
    /// The plane is the lowest two bits of the address.
    Chained,
    /// An address of all planes. `bank` is in addresses.
    Planes { bank: u32, odd_even_write: bool, odd_even_read: bool, replace_a0: bool },
}

/// Write modes and what they use, as it is needed for each byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// The part of the window that answers, from [`BASE`].
    start: u32,
    len: u32,
    mapping: Mapping,
    /// What may be written, a bit per plane.
    map_mask: u8,
    write_mode: u8,
    rotate: u32,
    function: u8,
    set_reset: u32,
    enable_set_reset: u32,
    bit_mask: u32,
    read_compare: bool,
    read_map: u8,
    color_compare: u32,
    color_care: u32,
}

/// What a write changes: the bits of `mask` in the word with this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) word: usize,
    pub(super) value: u32,
    pub(super) mask: u32,
}

/// A byte for each of four bits.
const fn planes(bits: u8) -> u32 {
    let bits = bits as u32;
    ((bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21) * 0xff
}

fn repeat(value: u8) -> u32 {
    u32::from(value) * 0x0101_0101
}

impl Path {
    /// As the registers say.
    pub(super) fn new(state: &State) -> Self {
        let (gc, seq) = (&state.gc, &state.seq);
        let extended = state.dispi.mode();
        let (start, len) = match (extended, gc[GC_MISC] >> 2 & 3) {
            _ if state.misc & MISC_RAM == 0 => (0, 0),
            (Some(_), _) | (None, 1) => (0, 0x1_0000),
            (None, 0) => (0, ALL),
            (None, 2) => (0x1_0000, 0x8000),
            (None, _) => (0x1_8000, 0x8000),
        };
        let memory_mode = seq[SEQ_MEMORY_MODE];
        let bank = state.dispi.bank() << 16;
        let mapping = match extended.map(|mode| mode.depth) {
            Some(Depth::Planar) => {
                Mapping::Planes { bank, odd_even_write: false, odd_even_read: false, replace_a0: false }
            }
            Some(_) => Mapping::Linear(bank),
            None if memory_mode & MEMORY_CHAIN_4 != 0 => Mapping::Chained,
            None => Mapping::Planes {
                bank: 0,
                odd_even_write: memory_mode & MEMORY_SEQUENTIAL == 0,
                odd_even_read: gc[GC_MODE] & 0x10 != 0,
                replace_a0: gc[GC_MISC] & 2 != 0,
            },
        };
        Self {
            start,
            len,
            mapping,
            map_mask: seq[SEQ_MAP_MASK],
            write_mode: gc[GC_MODE] & 3,
            rotate: u32::from(gc[GC_ROTATE] & 7),
            function: gc[GC_ROTATE] >> 3 & 3,
            set_reset: planes(gc[GC_SET_RESET]),
            enable_set_reset: planes(gc[GC_ENABLE_SET_RESET]),
            bit_mask: repeat(gc[GC_BIT_MASK]),
            read_compare: gc[GC_MODE] & 8 != 0,
            read_map: gc[GC_READ_MAP] & 3,
            color_compare: planes(gc[GC_COLOR_COMPARE]),
            color_care: planes(gc[GC_COLOR_CARE]),
        }
    }

    /// Whether a write is stored as it is in all planes.
    fn is_plain(&self) -> bool {
        (self.write_mode, self.rotate, self.function, self.enable_set_reset) == (0, 0, 0, 0)
            && self.bit_mask == u32::MAX
            && self.map_mask == 15
    }

    /// Where video memory can be mapped at the window, as plain memory. Reads of it would not load the latches: nothing uses
    /// them while it lasts.
    pub(super) fn window(&self) -> Option<Window> {
        let offset = match self.mapping {
            Mapping::Linear(offset) => offset,
            Mapping::Chained if self.is_plain() && !self.read_compare => 0,
            _ => return None,
        };
        let base = BASE + u64::from(self.start);
        (self.len > 0).then(|| Window { base, len: self.len.into(), offset: offset.into() })
    }

    /// The address in the part that answers.
    fn inside(&self, at: u32) -> Option<u32> {
        let at = at.wrapping_sub(self.start);
        (at < self.len).then_some(at)
    }

    /// The address of the planes that `at` stands for.
    fn address(&self, at: u32, bank: u32, replace_a0: bool) -> usize {
        // With 128 KiB, the bit above the planes' addresses takes the place of the lowest.
        let a = if replace_a0 { at & 0xfffe | at >> 16 } else { at & 0xffff };
        (bank + a) as usize
    }

    /// The byte of video memory that `at` is, counted from [`BASE`], where it is memory and nothing else.
    pub(super) fn linear(&self, at: u32) -> Option<usize> {
        match self.mapping {
            Mapping::Linear(offset) => self.inside(at).map(|at| (offset + at) as usize),
            _ => None,
        }
    }

    /// Which word a read is from; `None`: nothing answers.
    pub(super) fn read_word(&self, at: u32) -> Option<usize> {
        let at = self.inside(at)?;
        Some(match self.mapping {
            Mapping::Planes { bank, replace_a0, .. } => self.address(at, bank, replace_a0),
            Mapping::Chained => (at >> 2) as usize,
            Mapping::Linear(offset) => ((offset + at) >> 2) as usize,
        })
    }

    /// What the CPU reads at `at` when the word holds `latches`.
    pub(super) fn read_byte(&self, at: u32, latches: u32) -> u8 {
        if self.read_compare {
            let differ = (latches ^ self.color_compare) & self.color_care;
            let differ = differ | differ >> 16;
            return !(((differ | differ >> 8) & 0xff) as u8);
        }
        let plane = match self.mapping {
            Mapping::Planes { odd_even_read: true, .. } => u32::from(self.read_map & 2) | at & 1,
            Mapping::Planes { .. } => self.read_map.into(),
            Mapping::Chained | Mapping::Linear(_) => at & 3,
        };
        (latches >> (8 * plane) & 0xff) as u8
    }

    /// What the CPU's write of `value` at `at` does; `None`: nothing.
    pub(super) fn write_byte(&self, at: u32, value: u8, latches: u32) -> Option<Change> {
        let at = self.inside(at)?;
        let (word, enabled) = match self.mapping {
            Mapping::Planes { bank, odd_even_write, replace_a0, .. } => {
                let enabled = if odd_even_write { 0b0101 << (at & 1) } else { 0b1111 };
                (self.address(at, bank, replace_a0), enabled)
            }
            Mapping::Chained => ((at >> 2) as usize, 1 << (at & 3)),
            Mapping::Linear(offset) => (((offset + at) >> 2) as usize, 1 << (at & 3)),
        };
        let mask = planes(self.map_mask & enabled);
        let rotated = value.rotate_right(self.rotate);
        let (data, bits) = match self.write_mode {
            0 => {
                let data = repeat(rotated);
                (data & !self.enable_set_reset | self.set_reset & self.enable_set_reset, self.bit_mask)
            }
            1 => return Some(Change { word, value: latches, mask }),
            2 => (planes(value & 15), self.bit_mask),
            _ => (self.set_reset, repeat(rotated) & self.bit_mask),
        };
        let data = match self.function {
            0 => data,
            1 => data & latches,
            2 => data | latches,
            _ => data ^ latches,
        };
        Some(Change { word, value: data & bits | latches & !bits, mask })
    }
}

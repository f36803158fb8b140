//! The registers behind the ports, without the memory.

use super::dac::Dac;
use super::dispi::Dispi;
use super::spec::{
    AC_COUNT, AC_MODE, CRTC_COUNT, CRTC_FLIP_FLOP, CRTC_LATCH, CRTC_OVERFLOW, CRTC_PROTECT,
    CRTC_V_RETRACE_END, GC_MASKS, GC_READ_MAP, MISC_COLOR, SEQ_MASKS,
};
use super::timing::Timing;

/// All that a reset sets back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) misc: u8,
    feature: u8,
    enable: u8,
    seq_index: u8,
    pub(super) seq: [u8; SEQ_MASKS.len()],
    crtc_index: u8,
    pub(super) crtc: [u8; CRTC_COUNT],
    gc_index: u8,
    pub(super) gc: [u8; GC_MASKS.len()],
    /// With [`super::spec::AC_PALETTE_ON`].
    pub(super) ac_index: u8,
    /// The next write to 0x3c0 is data.
    ac_data: bool,
    pub(super) ac: [u8; AC_COUNT],
    pub(super) dac: Dac,
    pub(super) dispi: Dispi,
    /// What the last read of the window found in the four planes; plane 0 is the lowest byte.
    pub(super) latches: u32,
}

impl State {
    /// As after power on, with `memory` bytes of video memory.
    pub(super) fn new(memory: usize) -> Self {
        Self {
            misc: 0,
            feature: 0,
            enable: 1,
            seq_index: 0,
            seq: [0; SEQ_MASKS.len()],
            crtc_index: 0,
            crtc: [0; CRTC_COUNT],
            gc_index: 0,
            gc: [0; GC_MASKS.len()],
            ac_index: 0,
            ac_data: false,
            ac: [0; AC_COUNT],
            dac: Dac::default(),
            dispi: Dispi::new(memory),
            latches: 0,
        }
    }

    /// The CRTC's ports are at 0x3d4 with colour, and at 0x3b4 without; the others of the two do not answer.
    fn hidden(&self, port: u16) -> bool {
        match port {
            0x3b0..=0x3bf => self.misc & MISC_COLOR != 0,
            0x3d0..=0x3df => self.misc & MISC_COLOR == 0,
            _ => false,
        }
    }

    /// Reads a port at `now` nanoseconds.
    pub(super) fn read(&mut self, port: u16, now: u64) -> u8 {
        if self.hidden(port) {
            return 0xff;
        }
        match port {
            0x3c0 => self.ac_index,
            0x3c1 => at(&self.ac, self.ac_index & 0x1f),
            // Input status 0: the monitor is there (bit 4), no interrupt.
            0x3c2 => 0x10,
            0x3c3 => self.enable,
            0x3c4 => self.seq_index,
            0x3c5 => at(&self.seq, self.seq_index),
            0x3c6 => self.dac.mask,
            0x3c7 => self.dac.state(),
            0x3c8 => self.dac.index(),
            0x3c9 => self.dac.read(),
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.gc_index,
            0x3cf => at(&self.gc, self.gc_index),
            0x3b4 | 0x3d4 => self.crtc_index,
            0x3b5 | 0x3d5 => match self.crtc_index {
                CRTC_LATCH => (self.latches >> (8 * u32::from(self.gc[GC_READ_MAP] & 3)) & 0xff) as u8,
                CRTC_FLIP_FLOP => u8::from(self.ac_data) << 7,
                index => at(&self.crtc, index),
            },
            0x3ba | 0x3da => {
                self.ac_data = false;
                Timing::new(self).status(now)
            }
            _ => 0xff,
        }
    }

    /// Writes a port. Returns whether it may have changed how the window is reached: the sequencer, the graphics controller
    /// and the miscellaneous output.
    pub(super) fn write(&mut self, port: u16, value: u8) -> bool {
        if self.hidden(port) {
            return false;
        }
        match port {
            0x3c0 => self.write_attribute(value),
            0x3c2 => self.misc = value,
            0x3c3 => self.enable = value & 1,
            0x3c4 => self.seq_index = value & 7,
            0x3c5 => put(&mut self.seq, self.seq_index, value & at(&SEQ_MASKS, self.seq_index)),
            0x3c6 => self.dac.mask = value,
            0x3c7 => self.dac.start_reading(value),
            0x3c8 => self.dac.start_writing(value),
            0x3c9 => self.dac.write(value, self.dispi.wide_dac()),
            0x3ce => self.gc_index = value & 15,
            0x3cf => put(&mut self.gc, self.gc_index, value & at(&GC_MASKS, self.gc_index)),
            0x3b4 | 0x3d4 => self.crtc_index = value & 0x3f,
            0x3b5 | 0x3d5 => self.write_crtc(value),
            0x3ba | 0x3da => self.feature = value & 0x0b,
            _ => {}
        }
        matches!(port, 0x3c2 | 0x3c5 | 0x3cf)
    }

    fn write_attribute(&mut self, value: u8) {
        if self.ac_data {
            let index = self.ac_index & 0x1f;
            let mask = match usize::from(index) {
                AC_MODE => 0xef,
                0..AC_MODE => 0x3f,
                0x11 => 0xff,
                0x12 => 0x3f,
                _ => 0x0f,
            };
            put(&mut self.ac, index, value & mask);
        } else {
            self.ac_index = value & 0x3f;
        }
        self.ac_data = !self.ac_data;
    }

    fn write_crtc(&mut self, value: u8) {
        let index = usize::from(self.crtc_index);
        let protected = self.crtc[CRTC_V_RETRACE_END] & CRTC_PROTECT != 0;
        match index {
            // Bit 8 of the line compare is not protected.
            CRTC_OVERFLOW if protected => {
                let overflow = &mut self.crtc[CRTC_OVERFLOW];
                *overflow = *overflow & !0x10 | value & 0x10;
            }
            0..=CRTC_OVERFLOW if protected => {}
            _ => put(&mut self.crtc, self.crtc_index, value),
        }
    }
}

/// Registers beyond the last read as 0, and take nothing.
fn at(registers: &[u8], index: u8) -> u8 {
    registers.get(usize::from(index)).copied().unwrap_or(0)
}

fn put(registers: &mut [u8], index: u8, value: u8) {
    if let Some(register) = registers.get_mut(usize::from(index)) {
        *register = value;
    }
}

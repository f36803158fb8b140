//! Where the beam is, from the time alone.

use super::spec::{
    CLOCKING_8_DOTS, CLOCKING_HALF, CRTC_H_DISPLAY_END, CRTC_H_TOTAL, CRTC_MODE, CRTC_OVERFLOW,
    CRTC_V_DISPLAY_END, CRTC_V_RETRACE_START, CRTC_V_TOTAL, SEQ_CLOCKING,
};
use super::state::State;

/// Input status 1: the beam is outside the picture.
const NOT_DISPLAYING: u8 = 0x01;
/// Input status 1: the beam returns to the top.
const V_RETRACE: u8 = 0x08;

/// Lines and character clocks of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Character clocks in a second, times 1000.
    millihertz: u64,
    h_total: u64,
    h_shown: u64,
    v_total: u64,
    v_shown: u64,
    v_retrace: u64,
}

impl Timing {
    /// Of the mode that is set. Whatever the registers hold, each frame has a line that is not shown, and a retrace: a guest
    /// that waits for one goes on.
    pub(super) fn new(state: &State) -> Self {
        if let Some(mode) = state.dispi.mode() {
            let v_shown = mode.height as u64;
            let v_total = v_shown + 40;
            // 100 characters, 80 of them shown, at 60 frames a second.
            return Self {
                millihertz: 60_000 * v_total * 100,
                h_total: 100,
                h_shown: 80,
                v_total,
                v_shown,
                v_retrace: v_shown + 10,
            };
        }
        let crtc = &state.crtc;
        let overflow = u64::from(crtc[CRTC_OVERFLOW]);
        let wide = |low: usize, eight: u32, nine: u32| {
            low as u64 | (overflow >> eight & 1) << 8 | (overflow >> nine & 1) << 9
        };
        // Bit 2 of the mode: the vertical counter counts every other line.
        let double = u64::from(crtc[CRTC_MODE] >> 2 & 1);
        let v_shown = (wide(crtc[CRTC_V_DISPLAY_END].into(), 1, 6) + 1) << double;
        let v_total = (wide(crtc[CRTC_V_TOTAL].into(), 0, 5) + 2) << double;
        let v_total = v_total.max(v_shown + 2);
        let v_retrace = wide(crtc[CRTC_V_RETRACE_START].into(), 2, 7) << double;
        let h_shown = u64::from(crtc[CRTC_H_DISPLAY_END]) + 1;
        let clocking = state.seq[SEQ_CLOCKING];
        let dots = if clocking & CLOCKING_8_DOTS != 0 { 8 } else { 9 };
        let dots = dots << u64::from(clocking & CLOCKING_HALF != 0);
        let hertz: u64 = if state.misc >> 2 & 3 == 1 { 28_322_000 } else { 25_175_000 };
        Self {
            millihertz: hertz * 1000 / dots,
            h_total: (u64::from(crtc[CRTC_H_TOTAL]) + 5).max(h_shown + 1),
            h_shown,
            v_total,
            v_shown,
            v_retrace: v_retrace.clamp(v_shown, v_total - 1),
        }
    }

    /// Input status register 1 at `now` nanoseconds. The retrace bit stays set to the end of the frame, a millisecond instead
    /// of two lines: a guest whose polls are exits would miss a shorter one.
    pub(super) fn status(&self, now: u64) -> u8 {
        let clocks = u128::from(now) * u128::from(self.millihertz) / 1_000_000_000_000;
        let in_frame = u64::try_from(clocks % u128::from(self.h_total * self.v_total)).unwrap_or(0);
        let (line, column) = (in_frame / self.h_total, in_frame % self.h_total);
        let mut status = 0;
        if line >= self.v_shown || column >= self.h_shown {
            status |= NOT_DISPLAYING;
        }
        if line >= self.v_retrace {
            status |= V_RETRACE;
        }
        status
    }
}

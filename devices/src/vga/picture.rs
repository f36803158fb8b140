//! What the registers make of video memory, worked out once for a look at the screen.

use super::dispi::{Depth, LinearMode};
use super::spec::{
    AC_BLINK, AC_COLOR_SELECT, AC_LINE_GRAPHICS, AC_MODE, AC_MONO, AC_P54_SELECT, AC_PALETTE_ON,
    AC_PAN_TOP_ONLY, AC_PANNING, AC_PLANE_ENABLE, CLOCKING_8_DOTS, CLOCKING_HALF, CLOCKING_OFF,
    CRTC_CURSOR_END, CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW, CRTC_CURSOR_START, CRTC_H_DISPLAY_END,
    CRTC_LINE_COMPARE, CRTC_MAX_SCAN, CRTC_MODE, CRTC_OFFSET, CRTC_OVERFLOW, CRTC_PRESET_ROW,
    CRTC_START_HIGH, CRTC_START_LOW, CRTC_UNDERLINE, CRTC_V_DISPLAY_END, GC_MISC, GC_MODE,
    SEQ_CHARACTER_MAPS, SEQ_CLOCKING, SEQ_RESET,
};
use super::state::State;
use super::{MAX_HEIGHT, MAX_WIDTH};

/// The size of the screen while nothing sensible is set.
const NOTHING: (usize, usize) = (640, 480);
/// Smaller ones are a mode that is being set.
const LEAST: (usize, usize) = (160, 100);
/// 8 times the length of a frame at 70 Hz: the cursor is on and off for 8 frames, blinking characters for 16.
const BLINK: u64 = 8 * 14_285_714;

/// What is shown, apart from the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Black.
    Blank,
    /// A mode of the VGA.
    Vga(Box<VgaMode>),
    /// A mode of the extension.
    Linear(Box<Linear>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linear {
    pub(super) mode: LinearMode,
    /// What the pixels of palette modes look like; planar ones have the first 16.
    pub(super) palette: [u32; 256],
}

/// How a character clock's four bytes become dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dots {
    Text(Text),
    /// A bit in each of four planes, 8 pixels.
    Planar,
    /// Two bits of a plane at a time: planes 0 and 2, then 1 and 3; 8 pixels.
    Pairs,
    /// A byte for each of 4 pixels, two dots wide.
    Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    /// 8 or 9.
    pub(super) width: usize,
    /// Addresses in plane 2 of the characters whose attribute has bit 3 clear, and set.
    pub(super) fonts: [usize; 2],
    /// Attribute bit 7 means blinking.
    pub(super) blink: bool,
    /// The ninth dot of the line characters is their eighth.
    pub(super) line_graphics: bool,
    /// Which line of a row is the underline, for attributes that have one.
    pub(super) underline: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VgaMode {
    pub(super) dots: Dots,
    /// Character clocks in a line.
    pub(super) columns: u32,
    /// Each dot is two.
    pub(super) wide: bool,
    pub(super) start: u32,
    pub(super) row_step: u32,
    preset_row: u8,
    last_line: u8,
    /// Each line is shown twice.
    twice: bool,
    /// The last line of the upper part.
    line_compare: usize,
    /// Dots to the left.
    pan: usize,
    pan_top_only: bool,
    underline: u8,
    crtc_mode: u8,
    pub(super) palette16: [u32; 16],
    pub(super) palette: [u32; 256],
}

/// A line of dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The address counter at its first character.
    pub(super) counter: u32,
    /// Line of the row.
    pub(super) scan: u8,
    /// Dots to leave out.
    pub(super) pan: usize,
}

/// The cursor of text modes, and the phase of what blinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Its place in the address counter, and its first and last line, while it is to be seen.
    shape: Option<(u32, u8, u8)>,
    /// Blinking characters are to be seen.
    pub(super) characters: bool,
}

impl Cursor {
    pub(super) fn new(state: &State, now: u64) -> Self {
        let crtc = &state.crtc;
        let phase = now / BLINK;
        let (start, end) = (crtc[CRTC_CURSOR_START], crtc[CRTC_CURSOR_END]);
        let address = u32::from(crtc[CRTC_CURSOR_HIGH]) << 8 | u32::from(crtc[CRTC_CURSOR_LOW]);
        let address = (address + u32::from(end >> 5 & 3)) & 0xffff;
        let on = start & 0x20 == 0 && start & 0x1f <= end & 0x1f && phase & 1 == 0;
        Self { shape: on.then_some((address, start & 0x1f, end & 0x1f)), characters: phase & 2 == 0 }
    }

    /// The column of a line of `columns` that it covers.
    pub(super) fn column(&self, line: Line, columns: u32) -> Option<u32> {
        let (address, first, last) = self.shape?;
        let column = address.wrapping_sub(line.counter) & 0xffff;
        ((first..=last).contains(&line.scan) && column < columns).then_some(column)
    }

    /// Whether `self` and `other` differ in the cursor.
    pub(super) fn moved(&self, other: &Self) -> bool {
        self.shape != other.shape
    }
}

impl Picture {
    pub(super) fn new(state: &State) -> Self {
        let off = state.ac_index & AC_PALETTE_ON == 0 || state.seq[SEQ_CLOCKING] & CLOCKING_OFF != 0;
        if let Some(mode) = state.dispi.mode() {
            let content =
                if off { Content::Blank } else { Content::Linear(Box::new(Linear::new(state, mode))) };
            return Self { width: mode.width, height: mode.height, content };
        }
        let mode = VgaMode::new(state);
        let crtc = &state.crtc;
        let overflow = usize::from(crtc[CRTC_OVERFLOW]);
        let lines = usize::from(crtc[CRTC_V_DISPLAY_END]) | (overflow & 2) << 7 | (overflow & 0x40) << 3;
        let height = (lines + 1) << (crtc[CRTC_MODE] >> 2 & 1);
        let width = (mode.columns as usize * mode.dots.per_clock()) << u8::from(mode.wide);
        if !(LEAST.0..=MAX_WIDTH).contains(&width) || !(LEAST.1..=MAX_HEIGHT).contains(&height) {
            return Self { width: NOTHING.0, height: NOTHING.1, content: Content::Blank };
        }
        let stopped = state.seq[SEQ_RESET] & 3 != 3 || crtc[CRTC_MODE] & 0x80 == 0;
        let content = if off || stopped { Content::Blank } else { Content::Vga(Box::new(mode)) };
        Self { width, height, content }
    }
}

impl Linear {
    fn new(state: &State, mode: LinearMode) -> Self {
        let mut palette = [0; 256];
        match mode.depth {
            Depth::Planar => {
                for (slot, color) in palette.iter_mut().zip(palette16(state)) {
                    *slot = color;
                }
            }
            Depth::Palette => palette = state.dac.palette(state.dispi.wide_dac()),
            _ => {}
        }
        Self { mode, palette }
    }
}

impl Dots {
    /// Dots of a character clock.
    pub(super) fn per_clock(&self) -> usize {
        match self {
            Self::Text(text) => text.width,
            _ => 8,
        }
    }
}

/// What the 16 colours of the attribute controller look like.
fn palette16(state: &State) -> [u32; 16] {
    let (mode, select) = (state.ac[AC_MODE], state.ac[AC_COLOR_SELECT]);
    let enabled = state.ac[AC_PLANE_ENABLE] & 15;
    let mut index = 0u8;
    [(); 16].map(|()| {
        let color = state.ac.get(usize::from(index & enabled)).copied().unwrap_or(0);
        index += 1;
        let low = if mode & AC_P54_SELECT != 0 { color & 0x0f | (select & 3) << 4 } else { color & 0x3f };
        state.dac.rgb(low | (select & 0x0c) << 4, state.dispi.wide_dac())
    })
}

impl VgaMode {
    fn new(state: &State) -> Self {
        let (crtc, ac, clocking) = (&state.crtc, &state.ac, state.seq[SEQ_CLOCKING]);
        let (max_scan, preset) = (crtc[CRTC_MAX_SCAN], crtc[CRTC_PRESET_ROW]);
        let dots = if state.gc[GC_MISC] & 1 == 0 {
            Dots::Text(Text::new(state))
        } else {
            match state.gc[GC_MODE] >> 5 & 3 {
                0 => Dots::Planar,
                1 => Dots::Pairs,
                _ => Dots::Bytes,
            }
        };
        let compare = u32::from(crtc[CRTC_LINE_COMPARE])
            | u32::from(crtc[CRTC_OVERFLOW] & 0x10) << 4
            | u32::from(max_scan & 0x40) << 3;
        let panning = usize::from(ac[AC_PANNING] & 15);
        let pan = match &dots {
            // With nine dots, 8 is none and 0 is one.
            Dots::Text(text) if text.width == 9 => {
                if panning >= 8 {
                    0
                } else {
                    panning + 1
                }
            }
            Dots::Bytes => panning & 6,
            _ => panning & 7,
        };
        let start = u32::from(crtc[CRTC_START_HIGH]) << 8 | u32::from(crtc[CRTC_START_LOW]);
        Self {
            dots,
            columns: u32::from(crtc[CRTC_H_DISPLAY_END]) + 1,
            wide: clocking & CLOCKING_HALF != 0,
            start: start + u32::from(preset >> 5 & 3),
            row_step: 2 * u32::from(crtc[CRTC_OFFSET]),
            preset_row: preset & 0x1f,
            last_line: max_scan & 0x1f,
            twice: max_scan & 0x80 != 0,
            line_compare: (compare as usize) << (crtc[CRTC_MODE] >> 2 & 1),
            pan,
            pan_top_only: ac[AC_MODE] & AC_PAN_TOP_ONLY != 0,
            underline: crtc[CRTC_UNDERLINE],
            crtc_mode: crtc[CRTC_MODE],
            palette16: palette16(state),
            palette: state.dac.palette(state.dispi.wide_dac()),
        }
    }

    /// The lines from the top, without end.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        let mut line = Line { counter: self.start & 0xffff, scan: self.preset_row, pan: self.pan };
        let mut again = self.twice;
        (0usize..).map(move |y| {
            let now = line;
            if y == self.line_compare {
                (line.counter, line.scan, again) = (0, 0, self.twice);
                if self.pan_top_only {
                    line.pan = 0;
                }
            } else if again {
                again = false;
            } else {
                again = self.twice;
                if line.scan == self.last_line {
                    line.scan = 0;
                    line.counter = (line.counter + self.row_step) & 0xffff;
                } else {
                    line.scan = (line.scan + 1) & 0x1f;
                }
            }
            now
        })
    }

    /// The address in the planes that is shown in a column of a line.
    pub(super) fn address(&self, line: Line, column: u32) -> usize {
        // Counting by 2 and by 4: the counter stands still meanwhile.
        let slow = if self.underline & 0x20 != 0 { 2 } else { u8::from(self.crtc_mode & 8 != 0) };
        let counter = (line.counter + (column >> slow)) & 0xffff;
        // Doublewords are the chained planes' way, see the window.
        if self.underline & 0x40 != 0 {
            return counter as usize;
        }
        let mut address = if self.crtc_mode & 0x40 != 0 {
            counter
        } else {
            let wrap = if self.crtc_mode & 0x20 != 0 { 15 } else { 13 };
            (counter << 1 | counter >> wrap & 1) & 0xffff
        };
        // Bits 0 and 1 clear: the row scan counter stands in for address bits 13 and 14, as the CGA and Hercules have it.
        let scan = u32::from(line.scan);
        if self.crtc_mode & 1 == 0 {
            address = address & !0x2000 | (scan & 1) << 13;
        }
        if self.crtc_mode & 2 == 0 {
            address = address & !0x4000 | (scan >> 1 & 1) << 14;
        }
        address as usize
    }
}

impl Text {
    fn new(state: &State) -> Self {
        let (maps, mode) = (state.seq[SEQ_CHARACTER_MAPS], state.ac[AC_MODE]);
        // Two bits in units of 16 KiB, and one of 8 KiB.
        let font = |two: u8, one: u8| usize::from(two & 3) << 14 | usize::from(one & 1) << 13;
        let width = if state.seq[SEQ_CLOCKING] & CLOCKING_8_DOTS != 0 { 8 } else { 9 };
        Self {
            width,
            fonts: [font(maps, maps >> 4), font(maps >> 2, maps >> 5)],
            blink: mode & AC_BLINK != 0,
            line_graphics: mode & AC_LINE_GRAPHICS != 0,
            underline: (mode & AC_MONO != 0).then_some(state.crtc[CRTC_UNDERLINE] & 0x1f),
        }
    }
}

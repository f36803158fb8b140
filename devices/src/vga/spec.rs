//! The registers' names, indexes and bits.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem" (VGA); the comments name a register as it
//! does. For the Bochs registers: the VBE DISPI interface, versions 0xb0c0 to 0xb0c5.

/// Sequencer: clocking mode. Bit 0: 8 dots in a character; 3: dot clock / 2; 5: screen off.
pub(super) const SEQ_RESET: usize = 0;
pub(super) const SEQ_CLOCKING: usize = 1;
pub(super) const SEQ_MAP_MASK: usize = 2;
pub(super) const SEQ_CHARACTER_MAPS: usize = 3;
pub(super) const SEQ_MEMORY_MODE: usize = 4;
/// Bits that exist.
pub(super) const SEQ_MASKS: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];

pub(super) const CLOCKING_8_DOTS: u8 = 0x01;
pub(super) const CLOCKING_HALF: u8 = 0x08;
pub(super) const CLOCKING_OFF: u8 = 0x20;
/// Set: system addresses are sequential in a plane. Clear: even ones go to planes 0 and 2, odd ones to 1 and 3.
pub(super) const MEMORY_SEQUENTIAL: u8 = 0x04;
pub(super) const MEMORY_CHAIN_4: u8 = 0x08;

pub(super) const GC_SET_RESET: usize = 0;
pub(super) const GC_ENABLE_SET_RESET: usize = 1;
pub(super) const GC_COLOR_COMPARE: usize = 2;
pub(super) const GC_ROTATE: usize = 3;
pub(super) const GC_READ_MAP: usize = 4;
/// Bits 0-1: write mode; 3: read mode; 4: odd/even for reads; 5-6: shift register.
pub(super) const GC_MODE: usize = 5;
/// Bit 0: graphics; 1: chain odd maps to even; 2-3: memory map.
pub(super) const GC_MISC: usize = 6;
pub(super) const GC_COLOR_CARE: usize = 7;
pub(super) const GC_BIT_MASK: usize = 8;
pub(super) const GC_MASKS: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];

pub(super) const CRTC_H_TOTAL: usize = 0x00;
pub(super) const CRTC_H_DISPLAY_END: usize = 0x01;
pub(super) const CRTC_V_TOTAL: usize = 0x06;
pub(super) const CRTC_OVERFLOW: usize = 0x07;
/// Bits 0-4: first line of a row shown at the top; 5-6: byte panning.
pub(super) const CRTC_PRESET_ROW: usize = 0x08;
/// Bits 0-4: last line of a row; 6: line compare bit 9; 7: each line twice.
pub(super) const CRTC_MAX_SCAN: usize = 0x09;
pub(super) const CRTC_CURSOR_START: usize = 0x0a;
pub(super) const CRTC_CURSOR_END: usize = 0x0b;
pub(super) const CRTC_START_HIGH: usize = 0x0c;
pub(super) const CRTC_START_LOW: usize = 0x0d;
pub(super) const CRTC_CURSOR_HIGH: usize = 0x0e;
pub(super) const CRTC_CURSOR_LOW: usize = 0x0f;
pub(super) const CRTC_V_RETRACE_START: usize = 0x10;
/// Bit 7 protects registers 0 to 7.
pub(super) const CRTC_V_RETRACE_END: usize = 0x11;
pub(super) const CRTC_V_DISPLAY_END: usize = 0x12;
pub(super) const CRTC_OFFSET: usize = 0x13;
/// Bits 0-4: underline; 5: count by 4; 6: doublewords.
pub(super) const CRTC_UNDERLINE: usize = 0x14;
/// Bits 0, 1: address bits 13, 14 are not from the row scan counter; 2: the vertical counter counts every other line;
/// 3: count by 2; 5: address wrap; 6: bytes; 7: retrace on.
pub(super) const CRTC_MODE: usize = 0x17;
pub(super) const CRTC_LINE_COMPARE: usize = 0x18;
pub(super) const CRTC_COUNT: usize = 0x19;
pub(super) const CRTC_PROTECT: u8 = 0x80;
/// Not IBM's, but on most cards: the latch of the plane that the read map register names, and the attribute
/// controller's flip-flop.
pub(super) const CRTC_LATCH: u8 = 0x22;
pub(super) const CRTC_FLIP_FLOP: u8 = 0x24;

/// Attribute controller. Bit 0: graphics; 1: monochrome; 2: line graphics; 3: blinking; 5: panning ends at the line
/// compare; 6: 8 bits a pixel; 7: palette bits 4-5 from the colour select register.
pub(super) const AC_MODE: usize = 0x10;
pub(super) const AC_PLANE_ENABLE: usize = 0x12;
pub(super) const AC_PANNING: usize = 0x13;
pub(super) const AC_COLOR_SELECT: usize = 0x14;
pub(super) const AC_COUNT: usize = 0x15;
pub(super) const AC_MONO: u8 = 0x02;
pub(super) const AC_LINE_GRAPHICS: u8 = 0x04;
pub(super) const AC_BLINK: u8 = 0x08;
pub(super) const AC_PAN_TOP_ONLY: u8 = 0x20;
pub(super) const AC_P54_SELECT: u8 = 0x80;
/// Of the index register: the palette drives the screen, not the CPU.
pub(super) const AC_PALETTE_ON: u8 = 0x20;

/// Miscellaneous output. Bit 0: colour addresses (0x3d4, 0x3da); 1: the CPU reaches video memory; 2-3: clock.
pub(super) const MISC_COLOR: u8 = 0x01;
pub(super) const MISC_RAM: u8 = 0x02;

/// DISPI registers.
pub(super) const DISPI_ID: u16 = 0;
pub(super) const DISPI_WIDTH: u16 = 1;
pub(super) const DISPI_HEIGHT: u16 = 2;
pub(super) const DISPI_BPP: u16 = 3;
pub(super) const DISPI_ENABLE: u16 = 4;
pub(super) const DISPI_BANK: u16 = 5;
pub(super) const DISPI_VIRTUAL_WIDTH: u16 = 6;
pub(super) const DISPI_VIRTUAL_HEIGHT: u16 = 7;
pub(super) const DISPI_X: u16 = 8;
pub(super) const DISPI_Y: u16 = 9;
/// Video memory in units of 64 KiB.
pub(super) const DISPI_MEMORY: u16 = 10;
pub(super) const DISPI_FIRST_ID: u16 = 0xb0c0;
pub(super) const DISPI_LAST_ID: u16 = 0xb0c5;

pub(super) const ENABLE_ON: u16 = 0x01;
/// The size registers read as their limits.
pub(super) const ENABLE_GET_CAPS: u16 = 0x02;
/// Palette entries have 8 bits a colour.
pub(super) const ENABLE_8_BIT_DAC: u16 = 0x20;
pub(super) const ENABLE_LINEAR: u16 = 0x40;
/// Video memory is not cleared when the mode is switched on.
pub(super) const ENABLE_NO_CLEAR: u16 = 0x80;

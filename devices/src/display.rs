//! What lies between a screen and who watches it, and between keyboard, pointer and who uses them.

use std::ops::Range;

/// A picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width * height` pixels, row by row, as 0x00RRGGBB.
    pub pixels: Vec<u32>,
}

/// What of a frame has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// All, its size perhaps too.
    All,
    /// These rows; none: nothing.
    Rows(Vec<Range<usize>>),
}

/// A screen that may be looked at. It costs nothing while nobody does.
pub trait Screen: Send {
    /// Brings `frame` up to date, and tells what of it has changed since the last call with the same frame. With an empty
    /// frame, or one of another size, it is all.
    fn refresh(&mut self, frame: &mut Frame) -> Damage;
}

/// What somebody in front of the screen does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key went down or up.
    Key {
        /// The scan code of set 1 of the key as pressed: 0x01 to 0x7f, with 0xe000 added for those with the prefix
        /// 0xe0. Pause is 0xe046, Print Screen 0xe037.
        code: u16,
        /// It went down.
        down: bool,
    },
    /// The pointer is at a place, for devices that take it as such.
    Absolute {
        /// From the left, 0 to 0x7fff.
        x: u16,
        /// From the top, 0 to 0x7fff.
        y: u16,
        /// Bit 0 left, 1 right, 2 middle.
        buttons: u8,
    },
    /// The pointer was moved.
    Relative {
        /// To the right.
        dx: i16,
        /// Down.
        dy: i16,
        /// The wheel, towards the user.
        dz: i8,
        /// Bit 0 left, 1 right, 2 middle.
        buttons: u8,
    },
}

/// What takes input, from any thread. It never blocks; what the guest does not fetch is dropped at last.
pub trait InputSink: Send + Sync {
    /// Takes an event.
    fn input(&self, event: Input);
    /// Whether a device takes [`Input::Absolute`] now.
    fn is_absolute(&self) -> bool;
    /// The keyboard's lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    fn leds(&self) -> u8;
}

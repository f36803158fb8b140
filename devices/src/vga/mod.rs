//! A standard VGA with the Bochs VBE extension, PCI 1234:1111.
//!
//! [`Vga`] is the card: the VGA's registers at 0x3b0 to 0x3df, the DISPI registers at 0x1ce, the window at 0xa0000, linear
//! video memory in base address register 0 and the registers in memory in 2. [`VgaScreen`] is the monitor, of which there
//! may be several: it draws only what has changed when somebody looks.

mod dac;
mod device;
mod dirty;
mod dispi;
mod draw;
mod edid;
mod picture;
mod screen;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod timing;
mod window;

pub use device::{FIXED_MEMORY, FIXED_PORTS, Vga, VgaConfig};
pub use screen::VgaScreen;

/// The largest picture, in pixels.
pub const MAX_WIDTH: usize = 1920;
/// The largest picture, in rows.
pub const MAX_HEIGHT: usize = 1200;

/// A part of the window at 0xa0000 to 0xbffff that is plain video memory, and can be mapped as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Guest-physical address, a multiple of 64 KiB.
    pub base: u64,
    /// Bytes: 64 or 128 KiB.
    pub len: u64,
    /// Where it begins in video memory, a multiple of 64 KiB.
    pub offset: u64,
}

/// What the board does for video memory that it maps into the guest. Both are called while the card is locked, from any
/// thread, and must not reach for it.
pub trait Mapped: Send + Sync {
    /// Adds which pages of video memory were written by the guest through mappings since the last call: page `n` is bit
    /// `n % 64` of word `n / 64`.
    fn take_dirty(&self, pages: &mut [u64]);
    /// `window` can be mapped from now on, and nothing else of the window at 0xa0000; or nothing can. To ignore it is
    /// correct, and slower: accesses come as [`crate::bus::Registers::read`] and `write` then.
    fn window(&self, _window: Option<Window>) {}
}

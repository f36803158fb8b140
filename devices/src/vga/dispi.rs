//! The Bochs VBE extension: modes with up to 32 bits a pixel in linear video memory.

use super::spec::{
    DISPI_BANK, DISPI_BPP, DISPI_ENABLE, DISPI_FIRST_ID, DISPI_HEIGHT, DISPI_ID, DISPI_LAST_ID, DISPI_MEMORY,
    DISPI_VIRTUAL_HEIGHT, DISPI_VIRTUAL_WIDTH, DISPI_WIDTH, DISPI_X, DISPI_Y, ENABLE_8_BIT_DAC,
    ENABLE_GET_CAPS, ENABLE_LINEAR, ENABLE_NO_CLEAR, ENABLE_ON,
};
use super::{MAX_HEIGHT, MAX_WIDTH};

/// How a pixel is stored. All but the first are little-endian and linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// A bit in each of four planes.
    Planar,
    /// An index of the palette.
    Palette,
    /// 5-5-5 bits.
    Bits15,
    /// 5-6-5 bits.
    Bits16,
    /// Blue, green, red.
    Bits24,
    /// Blue, green, red, and a byte that means nothing.
    Bits32,
}

impl Depth {
    fn new(bpp: u16) -> Option<Self> {
        Some(match bpp {
            4 => Self::Planar,
            0 | 8 => Self::Palette,
            15 => Self::Bits15,
            16 => Self::Bits16,
            24 => Self::Bits24,
            32 => Self::Bits32,
            _ => return None,
        })
    }

    fn bpp(self) -> u16 {
        match self {
            Self::Planar => 4,
            Self::Palette => 8,
            Self::Bits15 => 15,
            Self::Bits16 => 16,
            Self::Bits24 => 24,
            Self::Bits32 => 32,
        }
    }

    /// Bytes of video memory that `pixels` pixels take. Planar ones come in groups of eight, of four bytes.
    pub(super) fn bytes(self, pixels: usize) -> usize {
        match self {
            Self::Planar => pixels / 8 * 4,
            Self::Palette => pixels,
            Self::Bits15 | Self::Bits16 => pixels * 2,
            Self::Bits24 => pixels * 3,
            Self::Bits32 => pixels * 4,
        }
    }
}

/// The DISPI registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dispi {
    /// Bytes of video memory.
    memory: usize,
    pub(super) index: u16,
    id: u16,
    width: u16,
    height: u16,
    depth: Depth,
    enable: u16,
    bank: u16,
    virtual_width: u16,
    x: u16,
    y: u16,
}

/// What is shown while the extension is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinearMode {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) depth: Depth,
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// First pixel shown of the first row shown.
    pub(super) x: usize,
    /// First row shown.
    pub(super) y: usize,
}

impl Dispi {
    /// As after power on, with `memory` bytes.
    pub(super) fn new(memory: usize) -> Self {
        Self {
            memory,
            index: 0,
            id: DISPI_LAST_ID,
            width: 640,
            height: 480,
            depth: Depth::Palette,
            enable: 0,
            bank: 0,
            virtual_width: 640,
            x: 0,
            y: 0,
        }
    }

    /// Whether a mode of the extension is shown, instead of one of the VGA.
    pub(super) fn mode(&self) -> Option<LinearMode> {
        (self.enable & ENABLE_ON != 0).then(|| LinearMode {
            width: self.width.into(),
            height: self.height.into(),
            depth: self.depth,
            stride: self.stride(),
            x: self.x.into(),
            y: self.y.into(),
        })
    }

    /// Palette entries have 8 bits a colour instead of 6.
    pub(super) fn wide_dac(&self) -> bool {
        self.enable & ENABLE_8_BIT_DAC != 0
    }

    /// Which 64 KiB of the address space (planar) or of the memory the window shows.
    pub(super) fn bank(&self) -> u32 {
        self.bank.into()
    }

    fn virtual_width(&self) -> u16 {
        self.virtual_width.max(self.width)
    }

    fn stride(&self) -> usize {
        // A mode of fewer than 8 planar pixels has a row all the same.
        self.depth.bytes(self.virtual_width().into()).max(4)
    }

    /// Reads the register that the index names.
    pub(super) fn read(&self) -> u16 {
        let caps = self.enable & ENABLE_GET_CAPS != 0;
        let small = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        match self.index {
            DISPI_ID => self.id,
            DISPI_WIDTH if caps => small(MAX_WIDTH),
            DISPI_HEIGHT if caps => small(MAX_HEIGHT),
            DISPI_BPP if caps => 32,
            DISPI_WIDTH => self.width,
            DISPI_HEIGHT => self.height,
            DISPI_BPP => self.depth.bpp(),
            DISPI_ENABLE => self.enable,
            DISPI_BANK => self.bank,
            DISPI_VIRTUAL_WIDTH => self.virtual_width(),
            DISPI_VIRTUAL_HEIGHT => small(self.memory / self.stride()),
            DISPI_X => self.x,
            DISPI_Y => self.y,
            DISPI_MEMORY => small(self.memory >> 16),
            _ => 0,
        }
    }

    /// Writes the register that the index names; what it cannot be set to changes nothing. Returns the number of bytes of
    /// video memory, from the first, that are to be cleared.
    pub(super) fn write(&mut self, value: u16) -> Option<usize> {
        let size = usize::from(value);
        match self.index {
            DISPI_ID if (DISPI_FIRST_ID..=DISPI_LAST_ID).contains(&value) => self.id = value,
            DISPI_WIDTH if (1..=MAX_WIDTH).contains(&size) => self.width = value,
            DISPI_HEIGHT if (1..=MAX_HEIGHT).contains(&size) => self.height = value,
            DISPI_BPP => self.depth = Depth::new(value).unwrap_or(self.depth),
            DISPI_ENABLE => return self.switch(value),
            DISPI_BANK => {
                // The upper two bits say of later versions whether reads or writes are meant: here always both.
                let bank = value & 0x3fff;
                let banks = match self.depth {
                    Depth::Planar => self.memory >> 18,
                    _ => self.memory >> 16,
                };
                if usize::from(bank) < banks {
                    self.bank = bank;
                }
            }
            DISPI_VIRTUAL_WIDTH => self.virtual_width = value,
            DISPI_X => self.x = value,
            DISPI_Y => self.y = value,
            _ => {}
        }
        None
    }

    fn switch(&mut self, value: u16) -> Option<usize> {
        let was_on = self.enable & ENABLE_ON != 0;
        let known = ENABLE_ON | ENABLE_GET_CAPS | ENABLE_8_BIT_DAC | ENABLE_LINEAR | ENABLE_NO_CLEAR;
        self.enable = value & known;
        if was_on || value & ENABLE_ON == 0 {
            return None;
        }
        (self.virtual_width, self.x, self.y, self.bank) = (self.width, 0, 0, 0);
        let bytes = self.stride() * usize::from(self.height);
        if bytes > self.memory {
            self.enable &= !ENABLE_ON;
            return None;
        }
        (value & ENABLE_NO_CLEAR == 0).then_some(bytes)
    }
}

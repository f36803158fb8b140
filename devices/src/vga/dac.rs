//! The palette: 256 colours behind ports 0x3c6 to 0x3c9.

/// The digital-to-analog converter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dac {
    /// Red, green and blue as written.
    colors: [[u8; 3]; 256],
    /// A pixel is ANDed with it before the colour is looked up.
    pub(super) mask: u8,
    /// The colour that is read or written next, of which `component`.
    index: u8,
    component: u8,
    /// Bytes of a colour that is not yet complete: it is stored with the third.
    pending: [u8; 3],
    reading: bool,
}

impl Default for Dac {
    fn default() -> Self {
        Self { colors: [[0; 3]; 256], mask: 0xff, index: 0, component: 0, pending: [0; 3], reading: false }
    }
}

impl Dac {
    /// Port 0x3c7: colours are read from `index` on.
    pub(super) fn start_reading(&mut self, index: u8) {
        (self.index, self.component, self.reading) = (index, 0, true);
    }

    /// Port 0x3c8: colours are written from `index` on.
    pub(super) fn start_writing(&mut self, index: u8) {
        (self.index, self.component, self.reading) = (index, 0, false);
    }

    /// Port 0x3c7, read: 3 while colours are read, 0 while they are written.
    pub(super) fn state(&self) -> u8 {
        if self.reading { 3 } else { 0 }
    }

    /// Port 0x3c8, read.
    pub(super) fn index(&self) -> u8 {
        self.index
    }

    fn step(&mut self) -> bool {
        self.component = (self.component + 1) % 3;
        if self.component == 0 {
            self.index = self.index.wrapping_add(1);
        }
        self.component == 0
    }

    /// Port 0x3c9, read.
    pub(super) fn read(&mut self) -> u8 {
        let color = self.colors.get(usize::from(self.index)).copied().unwrap_or_default();
        let value = color.get(usize::from(self.component)).copied().unwrap_or(0);
        self.step();
        value
    }

    /// Port 0x3c9, write. The upper two bits exist only where a colour has `wide` components of 8 bits.
    pub(super) fn write(&mut self, value: u8, wide: bool) {
        let index = self.index;
        if let Some(byte) = self.pending.get_mut(usize::from(self.component)) {
            *byte = if wide { value } else { value & 0x3f };
        }
        if self.step()
            && let Some(color) = self.colors.get_mut(usize::from(index))
        {
            *color = self.pending;
        }
    }

    /// What a pixel looks like, as 0x00RRGGBB.
    pub(super) fn rgb(&self, pixel: u8, wide: bool) -> u32 {
        let color = self.colors.get(usize::from(pixel & self.mask)).copied().unwrap_or_default();
        let widen = |value: u8| u32::from(if wide { value } else { value << 2 | value >> 4 & 3 });
        color.iter().fold(0, |rgb, value| rgb << 8 | widen(*value))
    }

    /// All of [`Dac::rgb`].
    pub(super) fn palette(&self, wide: bool) -> [u32; 256] {
        let mut pixel = 0u8;
        [(); 256].map(|()| {
            let rgb = self.rgb(pixel, wide);
            pixel = pixel.wrapping_add(1);
            rgb
        })
    }
}

//! What the fuzz targets share: the input as a list of numbers and bytes.

pub mod image;

/// The input, read from the front. An input that ends early reads as zeros, so that every input means
/// something and most small changes of one change one thing.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether all of it was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or what there is.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes(N);
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next little-endian number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next little-endian number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next little-endian number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, of one byte.
    pub fn below(&mut self, end: u8) -> u8 {
        self.u8() % end.max(1)
    }

    /// A number of any size: a byte below 0xf0 is itself, the others begin a wider one or name an extreme.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            0xf0 => self.u16().into(),
            0xf1 => self.u32().into(),
            0xf2 => self.u64(),
            0xf3 => u64::from(self.u16()) << 48,
            0xf4 => u64::from(self.u8()) << 12,
            0xf5 => u32::MAX.into(),
            0xf6 => 1 << 31,
            0xf7 => 1 << 32,
            0xf8 => i64::MAX.cast_unsigned(),
            0xf9 => 1 << 63,
            0xfa => u64::MAX - u64::from(self.u8()),
            0xfb => u64::MAX >> 12,
            0xfc => (u64::MAX >> 12) - 1,
            0xfd => 4095,
            0xfe => u16::MAX.into(),
            small => small.into(),
        }
    }
}

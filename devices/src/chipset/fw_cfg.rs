//! fw_cfg: items of configuration that firmware reads.
//!
//! A selector at port 0x510 (16 bits), the selected item byte by byte at 0x511, and DMA: the big-endian address of a
//! command at 0x514, whose low half starts it. A command is 16 bytes, big-endian: control (32 bits), length (32), address
//! (64). Source: the description of the interface, QEMU docs/specs/fw_cfg.rst.

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::bus::{Region, Registers, read_le};
use crate::memory::GuestRam;

/// The ports: base, length, region.
pub const FW_CFG_PORTS: (u64, u64, Region) = (0x510, 12, 0);

const SIGNATURE: u16 = 0;
const ID: u16 = 1;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// Bits of the id: the traditional interface, and DMA.
const INTERFACES: u32 = 3;
/// What the DMA register reads as.
const DMA_SIGNATURE: u64 = u64::from_be_bytes(*b"QEMU CFG");
/// Bytes of a file's name with the zero at the end.
const NAME: usize = 56;
const MAX_FILES: usize = 256;

// Bits of a command.
const ERROR: u32 = 1;
const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

/// Zeros behind the end of an item that one command may ask for: a guest must not have us fill gigabytes.
const MAX_ZEROS: usize = 64 << 10;
const COMMAND: usize = 16;

/// Why an item cannot be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The name has more than 55 bytes, or there is such a file.
    #[error("firmware cannot be given a file {0:?}: the name is too long, or taken")]
    Name(String),
    /// Too many files.
    #[error("firmware can be given {MAX_FILES} files, and no more")]
    TooMany,
    /// A file of 4 GiB.
    #[error("firmware cannot be given a file {0:?}: it is too large")]
    TooLarge(String),
}

/// The items, and the device that hands them out.
pub struct FwCfg {
    ram: Arc<GuestRam>,
    items: BTreeMap<u16, Vec<u8>>,
    files: Vec<(String, u32)>,
    selected: u16,
    at: usize,
    dma: u64,
}

impl FwCfg {
    /// No items yet but those that say what this is. `ram` is for DMA.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        let items = [(SIGNATURE, b"QEMU".to_vec()), (ID, INTERFACES.to_le_bytes().to_vec())];
        let mut device = Self { ram, items: items.into(), files: Vec::new(), selected: 0, at: 0, dma: 0 };
        device.list();
        device
    }

    /// Adds an item with a number of its own.
    pub fn add(&mut self, key: u16, bytes: impl Into<Vec<u8>>) {
        self.items.insert(key, bytes.into());
    }

    /// Adds a file.
    pub fn add_file(&mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Result<(), FwCfgError> {
        let bytes = bytes.into();
        if name.is_empty() || name.len() >= NAME || self.files.iter().any(|(other, _)| other == name) {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.files.len() >= MAX_FILES {
            return Err(FwCfgError::TooMany);
        }
        let len = u32::try_from(bytes.len()).map_err(|_| FwCfgError::TooLarge(name.to_owned()))?;
        let key = FIRST_FILE + u16::try_from(self.files.len()).map_err(|_| FwCfgError::TooMany)?;
        self.files.push((name.to_owned(), len));
        self.items.insert(key, bytes);
        self.list();
        Ok(())
    }

    /// Writes the directory: the number of files, then for each its size (32 bits), number (16), two bytes, name (56),
    /// all big-endian.
    fn list(&mut self) {
        let mut directory = u32::try_from(self.files.len()).unwrap_or(0).to_be_bytes().to_vec();
        for (key, (name, len)) in (FIRST_FILE..).zip(&self.files) {
            directory.extend(len.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let end = directory.len() + NAME;
            directory.extend(name.bytes());
            directory.resize(end, 0);
        }
        self.items.insert(DIRECTORY, directory);
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.at) = (key, 0);
    }

    fn rest(&self) -> &[u8] {
        self.items.get(&self.selected).and_then(|item| item.get(self.at..)).unwrap_or_default()
    }

    fn next(&mut self) -> u8 {
        let byte = self.rest().first().copied();
        self.at = self.at.saturating_add(usize::from(byte.is_some()));
        byte.unwrap_or(0)
    }

    /// Executes the command at `gpa`, and writes there whether it failed.
    fn transfer(&mut self, gpa: u64) {
        let mut command = [0; COMMAND];
        let gpa = GuestAddress(gpa);
        if self.ram.read_slice(&mut command, gpa).is_err() {
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = command;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        let done = self.execute(control, len as usize, GuestAddress(u64::from_be_bytes(address)));
        let result = if done.is_some() { 0 } else { ERROR };
        let _ = self.ram.write_slice(&result.to_be_bytes(), gpa);
    }

    fn execute(&mut self, control: u32, len: usize, to: GuestAddress) -> Option<()> {
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & READ != 0 {
            let rest = self.rest();
            let bytes = rest.get(..len).unwrap_or(rest);
            let zeros = len - bytes.len();
            if zeros > MAX_ZEROS {
                return None;
            }
            self.ram.write_slice(bytes, to).ok()?;
            let behind = GuestAddress(to.0.checked_add(bytes.len() as u64)?);
            self.ram.write_slice(&vec![0; zeros], behind).ok()?;
            self.at += bytes.len();
        } else if control & WRITE != 0 {
            // Nothing here may be changed.
            return None;
        } else if control & SKIP != 0 {
            self.at = self.at.saturating_add(len);
        }
        Some(())
    }
}

impl Registers for FwCfg {
    fn read(&mut self, _: Region, offset: u64, data: &mut [u8]) {
        match offset {
            0 => read_le(self.selected.into(), 0, data),
            1 => data.iter_mut().for_each(|byte| *byte = self.next()),
            4.. => read_le(DMA_SIGNATURE.swap_bytes(), offset - 4, data),
            _ => {}
        }
    }

    fn write(&mut self, _: Region, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [low, high]) => self.select(u16::from_le_bytes([*low, *high])),
            (4, [a, b, c, d]) => self.dma = u64::from(u32::from_be_bytes([*a, *b, *c, *d])) << 32,
            (8, [a, b, c, d]) => {
                let gpa = self.dma | u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
                self.dma = 0;
                self.transfer(gpa);
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.select(0);
        self.dma = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bus::value_le;

    fn device() -> (Arc<GuestRam>, FwCfg) {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let mut device = FwCfg::new(Arc::clone(&ram));
        device.add(5, 2u16.to_le_bytes());
        device.add_file("bootorder", *b"/pci@i0cf8\0").unwrap();
        device.add_file("etc/e820", [7; 20]).unwrap();
        (ram, device)
    }

    fn bytes(device: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
        device.write(0, 0, &key.to_le_bytes());
        (0..len)
            .map(|_| {
                let mut byte = [0xff];
                device.read(0, 1, &mut byte);
                byte[0]
            })
            .collect()
    }

    #[test]
    fn items_are_read_byte_by_byte() {
        let (_, mut device) = device();
        assert_eq!(bytes(&mut device, 0, 6), b"QEMU\0\0");
        assert_eq!(bytes(&mut device, 1, 4), [3, 0, 0, 0]);
        assert_eq!(bytes(&mut device, 5, 2), [2, 0]);
        assert_eq!(bytes(&mut device, 0x7777, 2), [0, 0]);
    }

    #[test]
    fn the_directory_names_the_files() {
        let (_, mut device) = device();
        let directory = bytes(&mut device, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 11, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..22], *b"bootorder\0");
        assert_eq!(directory[68..76], [0, 0, 0, 20, 0, 0x21, 0, 0]);
        assert_eq!(bytes(&mut device, 0x21, 21), [&[7; 20][..], &[0]].concat());
        let long = "x".repeat(56);
        for name in ["bootorder", "", &long] {
            assert_eq!(device.add_file(name, []), Err(FwCfgError::Name(name.into())));
        }
    }

    fn dma(ram: &GuestRam, device: &mut FwCfg, control: u32, len: u32, to: u64) -> u32 {
        let at = 0x1000u32;
        ram.write_slice(&control.to_be_bytes(), GuestAddress(at.into())).unwrap();
        ram.write_slice(&len.to_be_bytes(), GuestAddress(u64::from(at) + 4)).unwrap();
        ram.write_slice(&to.to_be_bytes(), GuestAddress(u64::from(at) + 8)).unwrap();
        device.write(0, 4, &[0; 4]);
        device.write(0, 8, &at.to_be_bytes());
        let mut result = [0; 4];
        ram.read_slice(&mut result, GuestAddress(at.into())).unwrap();
        u32::from_be_bytes(result)
    }

    #[test]
    fn commands_copy_into_guest_memory() {
        let (ram, mut device) = device();
        let mut signature = [0; 8];
        device.read(0, 4, &mut signature[..4]);
        device.read(0, 8, &mut signature[4..]);
        assert_eq!(&signature, b"QEMU CFG");
        assert_eq!(dma(&ram, &mut device, 0x20 << 16 | SELECT | SKIP, 1, 0), 0);
        assert_eq!(dma(&ram, &mut device, READ, 20, 0x2000), 0);
        let mut text = [1; 21];
        ram.read_slice(&mut text[..20], GuestAddress(0x2000)).unwrap();
        assert_eq!(text, *b"pci@i0cf8\0\0\0\0\0\0\0\0\0\0\0\x01");
    }

    #[test]
    fn bad_commands_fail() {
        let (ram, mut device) = device();
        for (control, len, to) in [
            (0x20 << 16 | SELECT | WRITE, 1, 0x2000),
            (0x20 << 16 | SELECT | READ, u32::MAX, 0x2000),
            (0x20 << 16 | SELECT | READ, 4, 0xffff),
            (0x20 << 16 | SELECT | READ, 4, u64::MAX),
        ] {
            assert_eq!(dma(&ram, &mut device, control, len, to), ERROR, "{control:#x} {len} {to:#x}");
        }
        device.write(0, 4, &[0xff; 4]);
        device.write(0, 8, &[0xff; 4]);
        assert_eq!(dma(&ram, &mut device, SKIP, u32::MAX, 0), 0);
        assert_eq!(dma(&ram, &mut device, SKIP, u32::MAX, 0), 0);
        let mut byte = [0xff];
        device.read(0, 1, &mut byte);
        assert_eq!(value_le(&byte), 0);
    }
}

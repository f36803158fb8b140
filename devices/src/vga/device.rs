//! The card: ports, window, base address registers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::dirty::{History, Pages};
use super::edid;
use super::picture::{Cursor, Picture};
use super::state::State;
use super::window::{self, Path};
use super::{Mapped, Window};
use crate::bus::{Region, Registers, Timer, read_le, value_le};
use crate::memory::{PAGE_SIZE, SharedPages};
use crate::pci::{BarKind, Config, PciFunction};

const MEMORY: Region = 0;
const MMIO: Region = 2;
const ROM: Region = 6;
const PORTS: Region = 16;
const DISPI_PORTS: Region = 17;
const WINDOW: Region = 18;

/// The ports, as base, length and region.
pub const FIXED_PORTS: [(u64, u64, Region); 2] = [(FIRST_PORT, 0x30, PORTS), (0x1ce, 4, DISPI_PORTS)];
/// The memory that answers at a fixed place: guest-physical base, length and region.
pub const FIXED_MEMORY: [(u64, u64, Region); 1] = [(window::BASE, 0x2_0000, WINDOW)];

const FIRST_PORT: u64 = 0x3b0;
/// Where the ports from 0x3c0 on and the DISPI registers are in the memory of base address register 2.
const MMIO_PORTS: u64 = 0x400;
const MMIO_DISPI: u64 = 0x500;
/// What a video BIOS can have.
const MAX_ROM: usize = 256 << 10;

/// What a card is made of.
#[derive(Clone, Debug)]
pub struct VgaConfig {
    /// MiB of video memory; made a power of two of 8 to 64. 16 is usual.
    pub memory_mib: usize,
    /// The expansion ROM, at most 256 KiB, where the firmware does not get it another way.
    pub rom: Option<Vec<u8>>,
}

impl Default for VgaConfig {
    fn default() -> Self {
        Self { memory_mib: 16, rom: None }
    }
}

/// The card.
pub struct Vga {
    config: Config,
    timer: Arc<dyn Timer>,
    memory: Arc<SharedPages>,
    rom: Option<Arc<SharedPages>>,
    mapped: Option<Arc<dyn Mapped>>,
    edid: [u8; edid::LEN],
    /// Written through the card itself since somebody last looked.
    dirty: Pages,
    history: History,
    state: State,
    /// Of the state: how the window is reached.
    path: Path,
    window: Option<Window>,
}

/// What somebody who looks is told.
pub(super) struct Look {
    pub(super) picture: Picture,
    pub(super) cursor: Cursor,
    pub(super) memory: Arc<SharedPages>,
}

impl Vga {
    /// A card. Error: no memory of that size, or a ROM that is too large.
    pub fn new(config: &VgaConfig, timer: Arc<dyn Timer>) -> io::Result<Self> {
        let bytes = config.memory_mib.clamp(8, 64).next_power_of_two() << 20;
        let bar = |bytes: usize| u32::try_from(bytes).unwrap_or(0);
        // The subsystem is that of Xen's own emulated devices.
        let mut pci = Config::new(0x1234, 0x1111, 0x03_00_00, 2)
            .subsystem(0x5853, 0x0001)
            .bar(MEMORY, BarKind::Prefetchable, bar(bytes))
            .bar(MMIO, BarKind::Memory, bar(PAGE_SIZE));
        let rom = match &config.rom {
            Some(rom) if rom.is_empty() || rom.len() > MAX_ROM => {
                let len = rom.len();
                let what = format!("the video BIOS has {len} bytes; give one of 1 to {MAX_ROM}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Some(rom) => {
                let pages = rom.len().div_ceil(PAGE_SIZE).next_power_of_two();
                let shared = SharedPages::new("xvmm-vga-rom", pages)?;
                shared.write(0, rom);
                pci = pci.bar(ROM, BarKind::Rom, bar(pages * PAGE_SIZE));
                Some(Arc::new(shared))
            }
            None => None,
        };
        let state = State::new(bytes);
        let pages = bytes / PAGE_SIZE;
        Ok(Self {
            config: pci,
            timer,
            memory: Arc::new(SharedPages::new("xvmm-vga", pages)?),
            rom,
            mapped: None,
            edid: edid::block(),
            dirty: Pages::new(pages),
            history: History::new(pages),
            path: Path::new(&state),
            state,
            window: None,
        })
    }

    /// Video memory will be mapped into the guest by `mapped`. Without this, every access has to come to the card.
    pub fn set_mapped(&mut self, mapped: Arc<dyn Mapped>) {
        mapped.window(self.window);
        self.mapped = Some(mapped);
    }

    /// What of the window at 0xa0000 can be mapped as plain memory now: [`Mapped::window`] tells when it changes.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// The screen as it is to be shown, and the pages of video memory that were written to after `since`.
    pub(super) fn look(&mut self, since: &mut u64, pages: &mut Pages) -> Look {
        if let Some(mapped) = &self.mapped {
            mapped.take_dirty(self.dirty.words());
        }
        if pages.words().is_empty() {
            *pages = Pages::new(self.memory.pages());
        }
        self.history.look(&mut self.dirty, since, pages);
        let picture = Picture::new(&self.state);
        let cursor = Cursor::new(&self.state, self.timer.now());
        Look { picture, cursor, memory: Arc::clone(&self.memory) }
    }

    fn window_changed(&mut self) {
        self.path = Path::new(&self.state);
        let window = self.path.window();
        if window != self.window {
            self.window = window;
            if let Some(mapped) = &self.mapped {
                mapped.window(window);
            }
        }
    }

    fn read_ports(&mut self, port: u64, data: &mut [u8]) {
        let now = self.timer.now();
        for (port, byte) in (port..).zip(data) {
            // Beyond the last port nothing answers.
            *byte = u16::try_from(port).map_or(0xff, |port| self.state.read(port, now));
        }
    }

    fn write_ports(&mut self, port: u64, data: &[u8]) {
        let mut changed = false;
        for (port, byte) in (port..).zip(data) {
            changed |= u16::try_from(port).is_ok_and(|port| self.state.write(port, *byte));
        }
        if changed {
            self.window_changed();
        }
    }

    fn write_dispi(&mut self, index: u16, value: u16) {
        self.state.dispi.index = index;
        if let Some(bytes) = self.state.dispi.write(value) {
            self.clear(bytes);
        }
        self.window_changed();
    }

    fn clear(&mut self, bytes: usize) {
        const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        for at in (0..bytes).step_by(PAGE_SIZE) {
            let len = PAGE_SIZE.min(bytes - at);
            self.memory.write(at, ZEROS.get(..len).unwrap_or(&ZEROS));
        }
        self.dirty.mark_range(0, bytes);
    }

    fn read_window(&mut self, at: u32, data: &mut [u8]) {
        if let Some(byte) = self.path.linear(at) {
            self.memory.read(byte, data);
            return;
        }
        for (at, value) in (at..).zip(data) {
            let word = self.path.read_word(at).and_then(|word| self.memory.u32_at(4 * word));
            if let Some(word) = word {
                self.state.latches = u32::from_le(word.load(Relaxed));
                *value = self.path.read_byte(at, self.state.latches);
            }
        }
    }

    fn write_window(&mut self, at: u32, data: &[u8]) {
        if let Some(byte) = self.path.linear(at) {
            self.write_memory(byte, data);
            return;
        }
        for (at, value) in (at..).zip(data) {
            let Some(change) = self.path.write_byte(at, *value, self.state.latches) else { continue };
            let Some(word) = self.memory.u32_at(4 * change.word) else { continue };
            let old = u32::from_le(word.load(Relaxed));
            let new = old & !change.mask | change.value & change.mask;
            if new != old {
                word.store(new.to_le(), Relaxed);
                self.dirty.mark(4 * change.word);
            }
        }
    }

    fn write_memory(&mut self, at: usize, data: &[u8]) {
        if self.memory.write(at, data).is_some() {
            self.dirty.mark_range(at, data.len());
        }
    }
}

/// Which DISPI register is at `offset` of the memory of base address register 2.
fn mmio_index(offset: u64) -> u16 {
    u16::try_from((offset - MMIO_DISPI) / 2).unwrap_or(u16::MAX)
}

impl Registers for Vga {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        match region {
            WINDOW => {
                if let Some(at) = window::offset(offset) {
                    self.read_window(at, data);
                }
            }
            PORTS if offset < 0x30 => self.read_ports(FIRST_PORT + offset, data),
            DISPI_PORTS if offset == 0 => read_le(self.state.dispi.index.into(), 0, data),
            DISPI_PORTS if offset <= 2 => read_le(self.state.dispi.read().into(), 0, data),
            MMIO => match offset {
                0..0x100 => {
                    for (n, byte) in data.iter_mut().enumerate() {
                        *byte = self.edid.get(at + n).copied().unwrap_or(0);
                    }
                }
                MMIO_PORTS..0x420 => self.read_ports(0x3c0 + offset - MMIO_PORTS, data),
                MMIO_DISPI..0x516 => {
                    let index = self.state.dispi.index;
                    self.state.dispi.index = mmio_index(offset);
                    read_le(self.state.dispi.read().into(), offset & 1, data);
                    self.state.dispi.index = index;
                }
                _ => {}
            },
            MEMORY => drop(self.memory.read(at, data)),
            ROM => drop(self.rom.as_ref().and_then(|rom| rom.read(at, data))),
            _ => {}
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        match region {
            WINDOW => {
                if let Some(at) = window::offset(offset) {
                    self.write_window(at, data);
                }
            }
            PORTS if offset < 0x30 => self.write_ports(FIRST_PORT + offset, data),
            DISPI_PORTS if offset == 0 => self.state.dispi.index = (value_le(data) & 0xffff) as u16,
            DISPI_PORTS if offset <= 2 => {
                self.write_dispi(self.state.dispi.index, (value_le(data) & 0xffff) as u16);
            }
            MMIO => match offset {
                MMIO_PORTS..0x420 => self.write_ports(0x3c0 + offset - MMIO_PORTS, data),
                MMIO_DISPI..0x516 if offset & 1 == 0 => {
                    let selected = self.state.dispi.index;
                    self.write_dispi(mmio_index(offset), (value_le(data) & 0xffff) as u16);
                    self.state.dispi.index = selected;
                }
                _ => {}
            },
            MEMORY => {
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                self.write_memory(at, data);
            }
            _ => {}
        }
    }

    /// Video memory stays as it is.
    fn reset(&mut self) {
        self.config.reset();
        self.state = State::new(self.memory.pages() * PAGE_SIZE);
        self.window_changed();
    }
}

impl PciFunction for Vga {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }

    /// Region 0 is video memory, and 6 the ROM, which is to be mapped read-only.
    fn memory(&self, region: Region) -> Option<Arc<SharedPages>> {
        match region {
            MEMORY => Some(Arc::clone(&self.memory)),
            ROM => self.rom.clone(),
            _ => None,
        }
    }
}

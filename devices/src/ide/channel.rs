//! A channel: two drives behind one set of registers, their interrupt line, and the bus master.

use std::io;
use std::sync::{Arc, Condvar};

use vm_memory::{Bytes, GuestAddress};

use super::bus_master::{BusMaster, Change};
use super::drive::{Drive, MAX_CHUNK, Place};
use super::spec::command::EXECUTE_DEVICE_DIAGNOSTIC;
use super::spec::{control, device, register};
use crate::bus::IrqLine;
use crate::medium::Memory;
use crate::memory::GuestRam;

pub(super) struct Channel {
    irq: Arc<dyn IrqLine>,
    ram: Arc<GuestRam>,
    /// Told when a request is done.
    pub(super) quiet: Arc<Condvar>,
    pub(super) drives: [Option<Drive>; 2],
    /// The function may read and write memory.
    master: bool,
    selected: usize,
    control: u8,
    pub(super) bus_master: BusMaster,
    /// What the line was set to.
    level: bool,
}

impl Channel {
    pub(super) fn new(irq: Arc<dyn IrqLine>, ram: Arc<GuestRam>) -> Self {
        Self {
            irq,
            ram,
            quiet: Arc::default(),
            drives: [None, None],
            master: false,
            selected: 0,
            control: 0,
            bus_master: BusMaster::default(),
            level: false,
        }
    }

    /// Whether a request of a drive is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.drives.iter().flatten().any(Drive::is_under_way)
    }

    /// As after power on.
    pub(super) fn reset(&mut self) {
        self.selected = 0;
        self.control = 0;
        self.master = false;
        self.bus_master = BusMaster::default();
        self.drives.iter_mut().flatten().for_each(Drive::power_on);
        self.settle();
    }

    fn drive(&mut self) -> Option<&mut Drive> {
        self.drives.get_mut(self.selected)?.as_mut()
    }

    /// The status register without its effect.
    fn status(&mut self) -> u8 {
        // Drive 0 answers for an absent drive 1 (ATA/ATAPI-6, 9.16.1); nobody does for an absent drive 0.
        self.drive().map_or(0, |drive| drive.status)
    }

    /// Reads registers of the command block. With no drive at all the bus floats.
    pub(super) fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.drives.iter().all(Option::is_none) {
            return;
        }
        if offset == register::DATA {
            if let Some(drive) = self.drive() {
                drive.read_data(data);
            }
            self.settle();
            return;
        }
        for (byte, offset) in data.iter_mut().zip(offset..=register::COMMAND) {
            *byte = self.read_register(offset);
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        if offset == register::COMMAND {
            if let Some(drive) = self.drive() {
                drive.irq = false;
            }
            self.settle();
            return self.status();
        }
        let previous = self.control & control::HOB != 0;
        let selected = self.selected;
        let [first, second] = &self.drives;
        let drive = if selected == 1 { second.as_ref().or(first.as_ref()) } else { first.as_ref() };
        let Some(drive) = drive else { return 0 };
        match offset {
            register::FEATURES => drive.error,
            // The register of the drive that answers for another one tells which one was selected.
            register::DEVICE => {
                let unit = if selected == 1 { device::DEV } else { 0 };
                drive.regs.read(offset, previous) & !device::DEV | unit
            }
            _ => drive.regs.read(offset, previous),
        }
    }

    /// The alternate status register.
    pub(super) fn read_control(&mut self, data: &mut [u8]) {
        if self.drives.iter().any(Option::is_some)
            && let Some(byte) = data.first_mut()
        {
            *byte = self.status();
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == register::DATA {
            if let Some(drive) = self.drive() {
                drive.write_data(data);
            }
        } else {
            for (byte, offset) in data.iter().zip(offset..=register::COMMAND) {
                self.write_register(offset, *byte);
            }
        }
        self.settle();
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.control &= !control::HOB;
        if offset == register::COMMAND {
            return self.write_command(value);
        }
        // Both drives see the host write; one that is busy does not mind it.
        for drive in self.drives.iter_mut().flatten().filter(|drive| !drive.is_busy()) {
            drive.regs.write(offset, value);
        }
        if offset == register::DEVICE && !self.drive().is_some_and(|drive| drive.is_busy()) {
            self.selected = usize::from(value & device::DEV != 0);
        }
    }

    fn write_command(&mut self, value: u8) {
        if value != EXECUTE_DEVICE_DIAGNOSTIC {
            if let Some(drive) = self.drive() {
                drive.command(value);
            }
            return;
        }
        // Both drives execute it, whichever is selected; drive 0 tells the result.
        if self.drives.iter().flatten().any(Drive::is_busy) {
            return;
        }
        for drive in self.drives.iter_mut().flatten() {
            drive.drop_transfer();
            drive.asleep = false;
            drive.sign();
            drive.irq = drive.unit == 0;
        }
        self.selected = 0;
    }

    /// The device control register.
    pub(super) fn write_control(&mut self, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let before = std::mem::replace(&mut self.control, *value) & control::SRST;
        let now = *value & control::SRST;
        if before != now {
            for drive in self.drives.iter_mut().flatten() {
                drive.begin_reset(now != 0);
            }
            self.selected = 0;
        }
        self.settle();
    }

    pub(super) fn write_bus_master(&mut self, offset: u64, value: u8) {
        if self.bus_master.write(offset, value) == Change::Stopped {
            self.drives.iter_mut().flatten().for_each(Drive::cut_dma);
        }
        self.settle();
    }

    pub(super) fn set_master(&mut self, master: bool) {
        self.master = master;
        self.settle();
    }

    /// A request of a drive is done.
    pub(super) fn done(&mut self, unit: usize, result: io::Result<()>, memory: Memory) {
        if let Some(Some(drive)) = self.drives.get_mut(unit) {
            drive.done(result, memory);
        }
        self.settle();
        self.quiet.notify_all();
    }

    /// What follows from a change: the bus master moves what it can, and the interrupt line is set.
    pub(super) fn settle(&mut self) {
        while self.step() {}
        let pending = self.drive().is_some_and(|drive| drive.irq);
        let level = pending && self.control & control::NIEN == 0;
        if level != self.level {
            self.level = level;
            if level {
                self.bus_master.interrupt();
            }
            self.irq.set(level);
        }
    }

    /// Moves a piece of what the selected drive has for the bus master; false: there is nothing to do.
    fn step(&mut self) -> bool {
        let Some(Some(drive)) = self.drives.get_mut(self.selected) else { return false };
        let Some(dma) = drive.waiting_dma() else { return false };
        let left = match dma.place {
            Place::Medium { left, .. } => left,
            Place::Buffer => drive.buffer.len().saturating_sub(drive.at) as u64,
        };
        if left == 0 {
            if self.bus_master.is_at_end() {
                self.bus_master.end();
            }
            drive.end_dma();
            return true;
        }
        if !self.master || !self.bus_master.is_active() {
            return false;
        }
        if self.bus_master.is_to_memory() != dma.to_memory {
            self.bus_master.fail();
            drive.dma_fault();
            return true;
        }
        let Ok(ranges) = self.bus_master.take(&self.ram, left.min(MAX_CHUNK) as usize, dma.unit) else {
            self.bus_master.fail();
            drive.dma_fault();
            return true;
        };
        if ranges.is_empty() {
            // The table is shorter than the transfer: the drive waits, without an interrupt (SFF-8038i, 3.1).
            self.bus_master.end();
            return false;
        }
        let moved = match dma.place {
            Place::Medium { offset, .. } => match Memory::guest(&self.ram, &ranges) {
                Some(memory) => {
                    let op = if dma.to_memory { crate::medium::Op::Read } else { crate::medium::Op::Write };
                    drive.submit(op, offset, memory);
                    true
                }
                None => false,
            },
            Place::Buffer => ranges.iter().all(|(address, len)| {
                let bytes = drive.buffer.get_mut(drive.at..drive.at + len).unwrap_or_default();
                drive.at += len;
                copy(&self.ram, bytes, *address, dma.to_memory)
            }),
        };
        if !moved {
            self.bus_master.fail();
            drive.dma_fault();
        }
        true
    }
}

fn copy(ram: &GuestRam, bytes: &mut [u8], address: GuestAddress, to_memory: bool) -> bool {
    if to_memory { ram.write_slice(bytes, address).is_ok() } else { ram.read_slice(bytes, address).is_ok() }
}

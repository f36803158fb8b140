//! What is at 0xc0000 to 0xfffff: RAM, or the end of the firmware's ROM, segment by segment.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::chipset::{SEGMENTS, Shadow, ShadowMode, segment};
use devices::memory::{PAGE_SIZE, SharedPages};
use vm_memory::{Bytes, GuestAddress};

use super::super::Machine;
use super::super::memory::Access;

/// From here on the ROM shows.
const ROM_START: u64 = 0xe_0000;
const END: u64 = 0x10_0000;
const START: u64 = 0xc_0000;

struct Segment {
    mode: ShadowMode,
    slot: Option<u32>,
}

/// The segments as they are mapped.
pub(super) struct ShadowMap {
    machine: Weak<Machine>,
    rom: Arc<SharedPages>,
    segments: Mutex<[Segment; SEGMENTS]>,
}

impl ShadowMap {
    /// All segments are ROM. `rom` is the firmware, whose end shows below 1 MiB.
    pub(super) fn new(machine: &Arc<Machine>, rom: Arc<SharedPages>) -> Self {
        let machine = Arc::downgrade(machine);
        let segments = std::array::from_fn(|_| Segment { mode: ShadowMode::default(), slot: None });
        let map = Self { machine, rom, segments: Mutex::new(segments) };
        map.change(&[ShadowMode::default(); SEGMENTS], true);
        map
    }

    fn change(&self, modes: &[ShadowMode; SEGMENTS], all: bool) {
        let Some(machine) = self.machine.upgrade() else { return };
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (now, mode)) in segments.iter_mut().zip(modes).enumerate() {
            if now.mode == *mode && !all {
                continue;
            }
            now.mode = *mode;
            let range = segment(index);
            if let Some(slot) = now.slot.take()
                && let Err(error) = machine.space.unmap(slot, range.start)
            {
                tracing::warn!(%error, "KVM does not unmap a segment of the firmware's");
            }
            let len = range.end - range.start;
            let mapped = match mode {
                ShadowMode { read: true, write: true } => {
                    machine.space.map_ram(range.start, len, Access::Full).map(Some)
                }
                ShadowMode { read: true, write: false } => {
                    machine.space.map_ram(range.start, len, Access::ReadOnly).map(Some)
                }
                _ if range.start < ROM_START => Ok(None),
                _ => {
                    let page = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX) / PAGE_SIZE;
                    match self.rom.pages().checked_sub(page(END - range.start)) {
                        Some(first) => machine
                            .space
                            .map_pages(&self.rom, first, page(len), range.start, Access::ReadOnly)
                            .map(Some),
                        None => Ok(None),
                    }
                }
            };
            match mapped {
                Ok(slot) => now.slot = slot,
                Err(error) => tracing::warn!(%error, "KVM does not map a segment of the firmware's"),
            }
        }
    }

    /// A write that no mapping took: to RAM behind ROM, or to nothing. True: it was in one of the segments.
    pub(super) fn write(&self, addr: u64, data: &[u8]) -> bool {
        if !(START..END).contains(&addr) {
            return false;
        }
        let segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = segments.iter().enumerate().find(|(index, _)| segment(*index).contains(&addr));
        if let (Some((_, Segment { mode: ShadowMode { write: true, .. }, .. })), Some(machine)) =
            (hit, self.machine.upgrade())
        {
            let _ = machine.ram.write_slice(data, GuestAddress(addr));
        }
        true
    }
}

impl Shadow for ShadowMap {
    fn set(&self, modes: &[ShadowMode; SEGMENTS]) {
        self.change(modes, false);
    }
}

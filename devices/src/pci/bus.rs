//! Bus 0, and configuration mechanism 1.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::config::{Bar, Config};
use crate::bus::{Region, Registers, Shared, read_le, value_le};
use crate::memory::SharedPages;

const ENABLE: u32 = 1 << 31;

/// A function on the bus: its registers are the regions of its base address registers.
pub trait PciFunction: Registers {
    /// The configuration space as it is.
    fn config(&self) -> &Config;
    /// Software writes to the configuration space. A function with side effects there does them after
    /// [`Config::write`].
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// The pages behind a region that is plain memory: they are mapped into the guest, and no access is trapped.
    fn memory(&self, _region: Region) -> Option<Arc<SharedPages>> {
        None
    }
}

/// What maps and unmaps base address registers.
pub trait BarMapper: Send + Sync {
    /// `bar` of the function answers from now on.
    fn map(&self, function: &Shared<dyn PciFunction>, bar: Bar);
    /// It does not any more.
    fn unmap(&self, function: &Shared<dyn PciFunction>, bar: Bar);
}

struct Slot {
    function: Shared<dyn PciFunction>,
    mapped: Vec<Bar>,
}

/// The functions of bus 0, and the ports 0xcf8 to 0xcff: region 0 with eight bytes.
pub struct PciBus {
    /// By device and function: `device << 3 | function`.
    slots: BTreeMap<u8, Slot>,
    mapper: Arc<dyn BarMapper>,
    address: u32,
}

impl PciBus {
    /// An empty bus.
    pub fn new(mapper: Arc<dyn BarMapper>) -> Self {
        Self { slots: BTreeMap::new(), mapper, address: 0 }
    }

    /// Adds `function` as function number `number` (0 to 7) of `device` (0 to 31); false: the place is taken, or there is
    /// no such place.
    pub fn add(&mut self, device: u8, number: u8, function: Shared<dyn PciFunction>) -> bool {
        let place = device << 3 | number;
        let free = device < 32 && number < 8 && !self.slots.contains_key(&place);
        if free {
            self.slots.insert(place, Slot { function, mapped: Vec::new() });
        }
        free
    }

    /// Takes the function away: its registers do not answer any more, and its interrupt line is low. False: there is none.
    pub fn remove(&mut self, device: u8, number: u8) -> bool {
        let Some(mut slot) = self.slots.remove(&(device << 3 | number & 7)) else { return false };
        slot.function.lock().unwrap_or_else(PoisonError::into_inner).reset();
        slot.remap(&*self.mapper);
        true
    }

    /// Device and function number of each function, and its interrupt pin (0 to 3).
    pub fn pins(&self) -> impl Iterator<Item = (u8, u8, u8)> + '_ {
        self.slots.iter().filter_map(|(place, slot)| {
            let function = slot.function.lock().unwrap_or_else(PoisonError::into_inner);
            Some((place >> 3, place & 7, function.config().pin()?))
        })
    }

    /// The place that the address register names.
    fn selected(&mut self) -> Option<&mut Slot> {
        let bus = self.address >> 16 & 0xff;
        if self.address & ENABLE == 0 || bus != 0 {
            return None;
        }
        self.slots.get_mut(&((self.address >> 8 & 0xff) as u8))
    }

    fn register(&self, offset: u64) -> usize {
        (self.address & 0xfc) as usize + (offset & 3) as usize
    }
}

impl Slot {
    /// Maps and unmaps what has changed.
    fn remap(&mut self, mapper: &dyn BarMapper) {
        let bars: Vec<Bar> = {
            let function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
            function.config().bars().collect()
        };
        for bar in self.mapped.iter().filter(|bar| !bars.contains(bar)) {
            mapper.unmap(&self.function, *bar);
        }
        for bar in bars.iter().filter(|bar| !self.mapped.contains(bar)) {
            mapper.map(&self.function, *bar);
        }
        self.mapped = bars;
    }
}

impl Registers for PciBus {
    fn read(&mut self, _: Region, offset: u64, data: &mut [u8]) {
        if offset < 4 {
            if (offset, data.len()) == (0, 4) {
                read_le(self.address.into(), 0, data);
            }
            return;
        }
        let register = self.register(offset);
        if let Some(slot) = self.selected() {
            let function = slot.function.lock().unwrap_or_else(PoisonError::into_inner);
            function.config().read(register, data);
        }
    }

    fn write(&mut self, _: Region, offset: u64, data: &[u8]) {
        if offset < 4 {
            // The register is written as a whole; single bytes pass by (PCI 2.1, 3.2.2.3.2).
            if (offset, data.len()) == (0, 4) {
                self.address = (value_le(data) & 0x80ff_fffc) as u32;
            }
            return;
        }
        let register = self.register(offset);
        let mapper = Arc::clone(&self.mapper);
        if let Some(slot) = self.selected() {
            slot.function.lock().unwrap_or_else(PoisonError::into_inner).write_config(register, data);
            slot.remap(&*mapper);
        }
    }

    fn reset(&mut self) {
        self.address = 0;
        let mapper = Arc::clone(&self.mapper);
        for slot in self.slots.values_mut() {
            slot.function.lock().unwrap_or_else(PoisonError::into_inner).reset();
            slot.remap(&*mapper);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::super::config::BarKind;
    use super::*;

    struct Card(Config);

    impl Registers for Card {
        fn read(&mut self, _: Region, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: Region, _: u64, _: &[u8]) {}
        fn reset(&mut self) {
            self.0.reset();
        }
    }

    impl PciFunction for Card {
        fn config(&self) -> &Config {
            &self.0
        }
        fn write_config(&mut self, offset: usize, data: &[u8]) {
            self.0.write(offset, data);
        }
    }

    #[derive(Default)]
    struct Mapper(Mutex<Vec<(bool, u64)>>);

    impl BarMapper for Mapper {
        fn map(&self, _: &Shared<dyn PciFunction>, bar: Bar) {
            self.0.lock().unwrap().push((true, bar.base));
        }
        fn unmap(&self, _: &Shared<dyn PciFunction>, bar: Bar) {
            self.0.lock().unwrap().push((false, bar.base));
        }
    }

    fn write(bus: &mut PciBus, device: u32, register: u32, data: &[u8]) {
        bus.write(0, 0, &(ENABLE | device << 11 | register & 0xfc).to_le_bytes());
        bus.write(0, 4 + u64::from(register & 3), data);
    }

    fn read(bus: &mut PciBus, address: u32, len: usize) -> u64 {
        bus.write(0, 0, &address.to_le_bytes());
        let mut data = vec![0xff; len];
        bus.read(0, 4, &mut data);
        value_le(&data)
    }

    #[test]
    fn software_finds_and_moves_a_function() {
        let mapper = Arc::new(Mapper::default());
        let mut bus = PciBus::new(Arc::clone(&mapper) as _);
        let config =
            Config::new(0x8086, 0x100e, 0x020000, 3).interrupt_pin(1).bar(0, BarKind::Memory, 0x20000);
        let card: Shared<dyn PciFunction> = Arc::new(Mutex::new(Card(config)));
        assert!(
            bus.add(3, 0, Arc::clone(&card)) && !bus.add(3, 0, Arc::clone(&card)) && !bus.add(32, 0, card)
        );
        assert_eq!(bus.pins().collect::<Vec<_>>(), [(3, 0, 0)]);
        let id = ENABLE | 3 << 11;
        assert_eq!(read(&mut bus, id, 4), 0x100e_8086);
        assert_eq!(read(&mut bus, id, 2), 0x8086);
        for nothing in [id & !ENABLE, id | 1 << 16, id | 1 << 8, ENABLE | 4 << 11] {
            assert_eq!(read(&mut bus, nothing, 4), 0xffff_ffff, "{nothing:#x}");
        }
        // Three of the four bytes of the address, and a byte: neither is the register.
        bus.write(0, 0, &[0; 3]);
        bus.write(0, 1, &[0]);
        let mut address = [0xff; 4];
        bus.read(0, 0, &mut address);
        assert_eq!(u32::from_le_bytes(address), ENABLE | 4 << 11);

        let at = |mapper: &Mapper| std::mem::take(&mut *mapper.0.lock().unwrap());
        write(&mut bus, 3, 0x10, &0xfebc_0000u32.to_le_bytes());
        assert_eq!(at(&mapper), []);
        write(&mut bus, 3, 4, &[2]);
        assert_eq!(at(&mapper), [(true, 0xfebc_0000)]);
        write(&mut bus, 3, 0x13, &[0xfd]);
        assert_eq!(at(&mapper), [(false, 0xfebc_0000), (true, 0xfdbc_0000)]);
        bus.reset();
        assert_eq!(at(&mapper), [(false, 0xfdbc_0000)]);
    }

    #[test]
    fn a_function_that_is_taken_away_does_not_answer() {
        let mapper = Arc::new(Mapper::default());
        let mut bus = PciBus::new(Arc::clone(&mapper) as _);
        let config = Config::new(0x8086, 0x100e, 0x020000, 3).bar(0, BarKind::Memory, 0x20000);
        let card = Arc::new(Mutex::new(Card(config)));
        assert!(bus.add(3, 0, Arc::clone(&card) as _));
        write(&mut bus, 3, 0x10, &0xfebc_0000u32.to_le_bytes());
        write(&mut bus, 3, 4, &[2]);
        assert!(bus.remove(3, 0) && !bus.remove(3, 0) && !bus.remove(2, 0));
        assert_eq!(*mapper.0.lock().unwrap(), [(true, 0xfebc_0000), (false, 0xfebc_0000)]);
        assert_eq!(read(&mut bus, ENABLE | 3 << 11, 4), 0xffff_ffff);
        assert_eq!(Arc::strong_count(&card), 1);
    }
}

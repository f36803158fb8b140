//! $PIR: which PCI interrupt pins share a PIRQ, for guests without ACPI that use the PIC (Microsoft, "PCI IRQ
//! Routing Table Specification", version 1.0).

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::routing::{ISA_BRIDGE_DEVFN, LINK_IRQS, PCI_PINS, PciPin, Route, SCI_IRQ};
use crate::sdt;

/// Vendor and device id of the PIIX, which the PIIX3's router is compatible with.
const COMPATIBLE_ROUTER: u32 = 0x122e_8086;

/// Link value of PIRQA: its register. The SCI has none, but a value of its own.
const PIRQA: u8 = 0x60;
const SCI: u8 = 0x01;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    version: U16,
    size: U16,
    router_bus: u8,
    router_devfn: u8,
    exclusive_irqs: U16,
    compatible_router: U32,
    miniport_data: U32,
    reserved: [u8; 11],
    checksum: u8,
}
const _: () = assert!(size_of::<Header>() == 32);

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Link {
    link: u8,
    irqs: U16,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Slot {
    bus: u8,
    devfn: u8,
    pins: [Link; PCI_PINS as usize],
    /// 0: on the board.
    slot: u8,
    reserved: u8,
}
const _: () = assert!(size_of::<Slot>() == 16);

/// The table of these devices: the ISA bridge, and all devices with an interrupt pin.
pub(crate) fn pir(pins: &[PciPin]) -> Vec<u8> {
    let mut devices: Vec<u8> = pins.iter().map(|pin| pin.device).chain([ISA_BRIDGE_DEVFN >> 3]).collect();
    devices.sort_unstable();
    devices.dedup();
    let slots: Vec<u8> = devices.iter().flat_map(|device| slot(*device).as_bytes().to_vec()).collect();
    let header = Header {
        signature: *b"$PIR",
        version: U16::new(0x0100),
        // At most 32 devices.
        size: U16::new(u16::try_from(size_of::<Header>() + slots.len()).unwrap_or(u16::MAX)),
        router_bus: 0,
        router_devfn: ISA_BRIDGE_DEVFN,
        exclusive_irqs: U16::ZERO,
        compatible_router: U32::new(COMPATIBLE_ROUTER),
        miniport_data: U32::ZERO,
        reserved: [0; 11],
        checksum: 0,
    };
    let mut table = [header.as_bytes(), &slots].concat();
    let sum = sdt::checksum(&table);
    if let Some(byte) = table.get_mut(std::mem::offset_of!(Header, checksum)) {
        *byte = sum;
    }
    table
}

fn slot(device: u8) -> Slot {
    let mut pins = [Link { link: 0, irqs: U16::ZERO }; PCI_PINS as usize];
    for (pin, link) in (0..PCI_PINS).zip(&mut pins) {
        *link = match (PciPin { device, function: 0, pin }).route() {
            Route::Pirq(pirq) => {
                let irqs = LINK_IRQS.iter().fold(0, |mask, irq| mask | 1u16 << (irq & 15));
                Link { link: PIRQA + pirq, irqs: U16::new(irqs) }
            }
            Route::Sci => Link { link: SCI, irqs: U16::new(1 << SCI_IRQ) },
        };
    }
    // A slot's number is its device's; those on the board are 0.
    Slot { bus: 0, devfn: device << 3, pins, slot: if device < 2 { 0 } else { device }, reserved: 0 }
}

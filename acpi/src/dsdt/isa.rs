//! What is behind the ISA bridge.

use acpi_tables::aml::{Device, EISAName, IO, Memory32Fixed, Name, ResourceTemplate};

use super::resources::{DmaCascade, Irq};
use super::{Raw, children, links, raw};
use crate::HvmTopology;
use crate::hpet::{HPET_ADDRESS, HPET_LEN};
use crate::hvm::{PM_PORTS_LEN, SMBUS_PORTS_LEN};
use crate::routing::ISA_BRIDGE_DEVICE;

fn io(port: u16, len: u8) -> Raw {
    raw(&IO::new(port, port, 1, len))
}

fn irq(number: u8) -> Raw {
    raw(&Irq(number))
}

fn device(name: &str, hid: &str, resources: &[Raw]) -> Raw {
    let resources = ResourceTemplate::new(children(resources));
    raw(&Device::new(
        name.into(),
        vec![&Name::new("_HID".into(), &EISAName::new(hid)), &Name::new("_CRS".into(), &resources)],
    ))
}

/// \_SB.PCI0.ISA.
pub(super) fn bridge(topology: &HvmTopology) -> Raw {
    let address = u32::from(ISA_BRIDGE_DEVICE) << 16;
    let mut parts = vec![
        raw(&Name::new("_ADR".into(), &address)),
        links::registers(),
        device("PIC_", "PNP0000", &[io(0x20, 2), io(0xa0, 2), io(0x4d0, 2), irq(2)]),
        device("TMR_", "PNP0100", &[io(0x40, 4), irq(0)]),
        device("DMA_", "PNP0200", &[io(0x00, 16), io(0x81, 15), io(0xc0, 32), raw(&DmaCascade)]),
        device("RTC_", "PNP0B00", &[io(0x70, 2), irq(8)]),
        device("KBD_", "PNP0303", &[io(0x60, 1), io(0x64, 1), irq(1)]),
        device("MOU_", "PNP0F13", &[irq(12)]),
        device("SPKR", "PNP0800", &[io(0x61, 1)]),
        device("FPU_", "PNP0C04", &[io(0xf0, 16), irq(13)]),
        device("SYSR", "PNP0C02", &reserved(topology)),
    ];
    if topology.com1 {
        parts.push(device("COM1", "PNP0501", &[io(0x3f8, 8), irq(4)]));
    }
    if topology.hpet.is_some() {
        let registers = raw(&Memory32Fixed::new(false, HPET_ADDRESS, HPET_LEN));
        parts.push(device("HPET", "PNP0103", &[registers]));
    }
    raw(&Device::new("ISA_".into(), children(&parts)))
}

/// Ports of no device that an operating system would otherwise think free.
fn reserved(topology: &HvmTopology) -> Vec<Raw> {
    vec![
        // A20 and reset; SMI command and status; fw_cfg.
        io(0x92, 1),
        io(0xb2, 2),
        io(0x510, 12),
        io(topology.pm.gpe0, 4),
        io(topology.pm.base, PM_PORTS_LEN),
        io(topology.pm.smbus, SMBUS_PORTS_LEN),
    ]
}

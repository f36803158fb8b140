//! An HVM guest's DSDT: i440FX, PIIX3, PIIX4. Only what ACPI 1.0b has, so that Windows XP's interpreter takes it:
//! integers of 32 bits, no operator and no descriptor of a later version.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, IO, Method, Name, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::{Processor, Raw, children, isa, links, raw};
use crate::fadt::PIIX4_SLEEP_TYPE_S5;
use crate::routing::IO_APIC_ADDRESS;
use crate::{HvmTopology, Profile, sdt};

/// The processor object of ACPI 1.0: its ProcessorId is the MADT's. No P_BLK: there is no C2 and no throttling.
struct ProcessorObject(u8);

impl Aml for ProcessorObject {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const PKG_LENGTH: u8 = 11;
        sink.vec(&[0x5b, 0x83, PKG_LENGTH]);
        Path::new(&format!("C{:03X}", self.0)).to_aml_bytes(sink);
        sink.byte(self.0);
        sink.dword(0);
        sink.byte(0);
    }
}

pub(crate) fn hvm(topology: &HvmTopology) -> Vec<u8> {
    let (revision, processors) = match topology.profile {
        Profile::Xp => {
            let count = u8::try_from(topology.vcpus.len()).unwrap_or(u8::MAX);
            let objects: Vec<_> = (0..count).map(|id| raw(&ProcessorObject(id))).collect();
            (1, raw(&Scope::new("\\_PR_".into(), children(&objects))))
        }
        Profile::Modern => {
            let devices: Vec<_> = (0..topology.vcpus.len()).map(|uid| raw(&Processor(uid))).collect();
            (2, raw(&Scope::new("\\_SB_".into(), children(&devices))))
        }
    };
    let parts = [
        interrupt_model(),
        processors,
        pci_bus(topology),
        links::links(),
        links::routing_table(),
        soft_off(),
    ];
    let aml: Vec<u8> = parts.into_iter().flat_map(|Raw(bytes)| bytes).collect();
    sdt::table(*b"DSDT", revision, sdt::HVM, &aml)
}

/// \_PIC: the guest tells whether it uses the PIC (0) or the I/O APIC (1). The routing is the same with both, so
/// the answer is only kept.
fn interrupt_model() -> Raw {
    let model = Path::new("PICM");
    let name = Name::new("\\PICM".into(), &ZERO);
    let arg = Arg(0);
    let store = Store::new(&model, &arg);
    let method = Method::new("\\_PIC".into(), 1, false, vec![&store]);
    Raw([raw(&name).0, raw(&method).0].concat())
}

/// \_S5: SLP_TYP for PM1a and PM1b control, and two reserved values.
fn soft_off() -> Raw {
    let s5 = Package::new(vec![&PIIX4_SLEEP_TYPE_S5, &PIIX4_SLEEP_TYPE_S5, &0u8, &0u8]);
    raw(&Name::new("\\_S5_".into(), &s5))
}

/// \_SB.PCI0.
fn pci_bus(topology: &HvmTopology) -> Raw {
    let last_of_hole = IO_APIC_ADDRESS.saturating_sub(1);
    let resources = raw(&ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, 0xff),
        // The configuration ports are the bridge's own; what is around them is the bus's.
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::<u16>::new_io(0, 0xcf7, None),
        &AddressSpace::<u16>::new_io(0xd00, 0xffff, None),
        &AddressSpace::<u32>::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa_0000, 0xb_ffff, None),
        &AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            topology.low_ram_end,
            last_of_hole,
            None,
        ),
    ]));
    let bridge = isa::bridge(topology);
    let bus = raw(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &bridge,
        ],
    ));
    raw(&Scope::new("\\_SB_".into(), vec![&bus as &dyn Aml]))
}

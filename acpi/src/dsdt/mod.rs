//! DSDT: the devices that no bus tells of, how PCI interrupts are routed, and the sleep state that means off.

mod hvm;
mod isa;
mod links;
mod pvh;
mod resources;

pub(crate) use hvm::hvm;
pub(crate) use pvh::pvh;

use acpi_tables::aml::{Device, Name, Path};
use acpi_tables::{Aml, AmlSink};

/// A processor device: _HID ACPI0007, _UID as in the MADT.
struct Processor(usize);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &self.0);
        Device::new(Path::new(&format!("C{:03X}", self.0)), vec![&hid, &uid]).to_aml_bytes(sink);
    }
}

/// AML that is there already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn raw(aml: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn children(aml: &[Raw]) -> Vec<&dyn Aml> {
    aml.iter().map(|child| child as &dyn Aml).collect()
}

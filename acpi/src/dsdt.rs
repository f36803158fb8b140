//! DSDT: the processors as devices, and the sleep state that means off.

use acpi_tables::aml::{Device, Name, Package, Path, Scope};
use acpi_tables::{Aml, AmlSink};

use crate::fadt::SLEEP_TYPE_S5;
use crate::sdt;

/// A processor device: _HID ACPI0007, _UID as in the MADT.
struct Processor(usize);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &self.0);
        Device::new(Path::new(&format!("C{:03X}", self.0)), vec![&hid, &uid]).to_aml_bytes(sink);
    }
}

/// A PVH guest's: no buses and no other devices.
pub(crate) fn pvh(vcpus: usize) -> Vec<u8> {
    let mut aml = Vec::new();
    // SLP_TYPa, SLP_TYPb and two reserved values. Only the first counts with the sleep control register.
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut aml);
    let processors: Vec<_> = (0..vcpus).map(Processor).collect();
    let children = processors.iter().map(|processor| processor as &dyn Aml).collect();
    Scope::new("\\_SB_".into(), children).to_aml_bytes(&mut aml);
    // Revision 2: integers are 64 bits wide.
    sdt::table(*b"DSDT", 2, &aml)
}

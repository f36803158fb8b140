//! A PVH guest's DSDT: the processors as devices.

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, Scope};

use super::Processor;
use crate::fadt::SLEEP_TYPE_S5;
use crate::sdt;

/// No buses and no other devices.
pub(crate) fn pvh(vcpus: usize) -> Vec<u8> {
    let mut aml = Vec::new();
    // SLP_TYPa, SLP_TYPb and two reserved values. Only the first counts with the sleep control register.
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut aml);
    let processors: Vec<_> = (0..vcpus).map(Processor).collect();
    let children = processors.iter().map(|processor| processor as &dyn Aml).collect();
    Scope::new("\\_SB_".into(), children).to_aml_bytes(&mut aml);
    // Revision 2: integers are 64 bits wide.
    sdt::table(*b"DSDT", 2, sdt::PVH, &aml)
}

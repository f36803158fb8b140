//! ACPI tables: a [`DomainTopology`] becomes the bytes of RSDP, XSDT, FADT, MADT and DSDT.
//!
//! Source: ACPI specification 6.4. The tables of a PVH guest describe what such a guest has: processors with a
//! local APIC, a register to switch off and one to reset. There is no I/O APIC, PIC, PM timer, RTC, VGA or
//! keyboard controller, and the FADT must say so: Linux takes a Xen guest for PVH by those bits.
//!
//! Nothing here knows of KVM: the caller puts the bytes into guest memory at the address that it named, and
//! serves the ports.

mod dsdt;
mod fadt;
mod madt;
mod root;
mod sdt;

pub use fadt::{PowerPorts, RESET_VALUE, is_power_off};

/// Devices \_SB.C000 to \_SB.CFFF.
pub const MAX_VCPUS: usize = 4096;

/// Where the tables may begin: the RSDP wants this alignment.
const ALIGN: usize = 16;

/// One virtual processor. Its place in [`DomainTopology::vcpus`] is its Xen vcpu id and its ACPI processor UID:
/// Linux takes the one for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// (x2)APIC id.
    pub apic_id: u32,
    /// False: it may be brought up later.
    pub online: bool,
}

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainTopology {
    /// All processors that the guest may ever have.
    pub vcpus: Vec<Vcpu>,
    /// Registers in I/O space.
    pub ports: PowerPorts,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AcpiError {
    /// None or more than [`MAX_VCPUS`].
    #[error("a guest has 1 to {MAX_VCPUS} vCPUs, not {0}; change --vcpus")]
    Vcpus(usize),
    /// Not aligned to 16 bytes, or the tables would reach past 4 GiB.
    #[error("ACPI tables cannot be at {0:#x}: the address must be below 4 GiB and a multiple of 16")]
    Base(u64),
}

/// The tables, ready to be copied to the address that they were made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// All tables in one piece. The length does not depend on the address.
    pub bytes: Vec<u8>,
    /// Guest-physical address of the RSDP.
    pub rsdp: u64,
}

impl DomainTopology {
    /// `vcpus` processors, all online, whose APIC ids are their vcpu ids.
    pub fn new(vcpus: u32) -> Self {
        let vcpus = (0..vcpus).map(|apic_id| Vcpu { apic_id, online: true }).collect();
        Self { vcpus, ports: PowerPorts::default() }
    }

    /// The tables of a PVH guest, for guest-physical address `base`.
    pub fn pvh_tables(&self, base: u64) -> Result<Tables, AcpiError> {
        if self.vcpus.is_empty() || self.vcpus.len() > MAX_VCPUS {
            return Err(AcpiError::Vcpus(self.vcpus.len()));
        }
        if !base.is_multiple_of(ALIGN as u64) {
            return Err(AcpiError::Base(base));
        }
        // The RSDP comes first, and is written last: it points at what follows.
        let mut bytes = vec![0; root::RSDP_LEN.next_multiple_of(ALIGN)];
        let mut place = |table: Vec<u8>| {
            let gpa = base.wrapping_add(bytes.len() as u64);
            bytes.extend_from_slice(&table);
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
            gpa
        };
        let dsdt = place(dsdt::pvh(self.vcpus.len()));
        let fadt = place(fadt::pvh(&self.ports, dsdt));
        let madt = place(madt::pvh(&self.vcpus));
        let xsdt = place(root::xsdt(&[fadt, madt]));
        for (to, from) in bytes.iter_mut().zip(root::rsdp(xsdt)) {
            *to = from;
        }
        // Below 4 GiB, so that a 32-bit guest reaches them as well.
        match base.checked_add(bytes.len() as u64) {
            Some(end) if end <= 1 << 32 => Ok(Tables { bytes, rsdp: base }),
            _ => Err(AcpiError::Base(base)),
        }
    }
}

#[cfg(test)]
mod tests;

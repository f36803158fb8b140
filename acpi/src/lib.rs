//! The tables of a guest's firmware: what a machine has, as bytes. [`DomainTopology`] describes a PVH guest,
//! [`HvmTopology`] an HVM guest's PC; an HVM guest may have ACPI 1.0b, ACPI 6.4 or neither, and without ACPI the
//! tables of Intel's MultiProcessor Specification. [`Smbios`] tells what it is called.
//!
//! Source: ACPI specification 6.4, and 1.0b for the XP profile. The tables of a PVH guest describe what such a guest
//! has: processors with a local APIC, a register to switch off and one to reset. There is no I/O APIC, PIC, PM
//! timer, RTC, VGA or keyboard controller, and the FADT must say so: Linux takes a Xen guest for PVH by those bits.
//!
//! Nothing here knows of KVM: the caller puts the bytes into guest memory at the address that it named, or into
//! fw_cfg for SeaBIOS, and serves the ports. `docs/hvm-tables.md` says what a board must do to be what its tables
//! tell.

mod dsdt;
mod facs;
mod fadt;
mod hpet;
mod hvm;
mod linker;
mod madt;
mod mp;
mod pir;
mod root;
mod routing;
mod sdt;
mod smbios;

pub use fadt::{
    ACPI_DISABLE, ACPI_ENABLE, CMOS_CENTURY, PIIX4_SLEEP_TYPE_S5, PowerPorts, RESET_CONTROL_PORT,
    RESET_CONTROL_VALUE, RESET_VALUE, SMI_COMMAND_PORT, is_power_off,
};
pub use hpet::HPET_ADDRESS;
pub use hvm::{
    CpuIdentity, HvmTopology, MP_CONFIG_FILE, MP_POINTER_FILE, PIR_FILE, PmPorts, Profile, RSDP_FILE,
    TABLES_FILE,
};
pub use linker::{LOADER_SCRIPT, RomFile, RomFiles, Zone};
pub use routing::{ISA_BRIDGE_DEVICE, PIRQ_IRQS, PciPin, Route, SCI_IRQ};
pub use smbios::{SMBIOS_ANCHOR_FILE, SMBIOS_TABLES_FILE, Smbios, SmbiosTables};

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
    /// Several processors without APICs.
    #[error("a guest without APICs has one vCPU, not {0}; use --apic on, or --vcpus 1")]
    NoApic(usize),
    /// More than 255 processors, or an APIC id above 254, where ids are bytes.
    #[error("{0} vCPUs need ids of more than 8 bits, which only ACPI's modern profile has; change --vcpus")]
    ByteIds(usize),
    /// Overlaps the I/O APIC, or there is none.
    #[error("RAM below 4 GiB cannot end at {0:#x}: it must end between 1 and 0xfebfffff")]
    LowRam(u32),
    /// Zero, or not aligned as the chip wants it.
    #[error("power management cannot be at {0:x?}: the ports must be multiples of 64, 16 and 4")]
    PmPorts(PmPorts),
    /// Not a pin of bus 0.
    #[error(
        "there is no pin {pin} of PCI function {device}.{function}: devices are 0 to 31, functions 0 to 7, pins 0 to 3"
    )]
    PciPin {
        /// Device number.
        device: u8,
        /// Function number.
        function: u8,
        /// 0 for INTA#.
        pin: u8,
    },
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
        let xsdt = place(root::xsdt(sdt::PVH, &[fadt, madt]));
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

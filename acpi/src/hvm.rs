//! An HVM guest's board: i440FX, PIIX3, PIIX4 power management; and all tables that tell of it.

use crate::linker::{RomFiles, Zone};
use crate::routing::PciPin;
use crate::{AcpiError, MAX_VCPUS, Vcpu, dsdt, facs, fadt, hpet, madt, mp, pir, root, sdt};

/// Names of the files, as fw_cfg has them. SeaBIOS knows the first two.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// All ACPI tables but the RSDP.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// MP floating pointer.
pub const MP_POINTER_FILE: &str = "etc/mp/pointer";
/// MP configuration table.
pub const MP_CONFIG_FILE: &str = "etc/mp/config";
/// $PIR.
pub const PIR_FILE: &str = "etc/pir";

/// Ports of PIIX4's power management and SMBus functions.
pub(crate) const PM_PORTS_LEN: u8 = 64;
pub(crate) const SMBUS_PORTS_LEN: u8 = 16;

/// An MP configuration table up to this size goes to the F segment, where Linux before 2.6.30 wants it. A larger
/// one would not fit.
const MP_CONFIG_IN_F_SEGMENT: usize = 1024;

/// UIDs and APIC ids of ACPI 1.0 and MP 1.4 are bytes, and 255 is for all: 0 to 254.
const MAX_BYTE_IDS: usize = 255;

/// The I/O APIC's id has four bits.
const IO_APIC_IDS: u8 = 16;

/// Which ACPI the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// ACPI 1.0b, for Windows XP and all of its age: RSDT, FADT revision 1, Processor objects.
    Xp,
    /// ACPI 6.4: XSDT too, FADT with reset register, processor devices, x2APIC ids.
    Modern,
}

/// Ports of PIIX4's power management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmPorts {
    /// PMBASE, a multiple of 64: PM1a event (4 bytes) at 0, PM1a control (2) at 4, timer (4, 24 bits) at 8.
    pub base: u16,
    /// SMBHSTBASE, a multiple of 16.
    pub smbus: u16,
    /// General-purpose events: 2 bytes of status, 2 of enable. Not the chip's own place, which has one byte of each.
    pub gpe0: u16,
}

impl Default for PmPorts {
    /// What SeaBIOS programs on a machine that brings an `etc/table-loader` (without, it would be 0xb000 and 0xb100).
    fn default() -> Self {
        Self { base: 0x600, smbus: 0x700, gpe0: 0xafe0 }
    }
}

impl PmPorts {
    pub(crate) fn pm1a_event(&self) -> u16 {
        self.base
    }

    pub(crate) fn pm1a_control(&self) -> u16 {
        self.base | 4
    }

    pub(crate) fn timer(&self) -> u16 {
        self.base | 8
    }
}

/// What CPUID leaf 1 says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuIdentity {
    /// EAX: stepping, model, family.
    pub signature: u32,
    /// EDX: features.
    pub features: u32,
}

/// What the tables of an HVM guest describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HvmTopology {
    /// All processors that the guest may ever have; the first one boots.
    pub vcpus: Vec<Vcpu>,
    /// For the MP table.
    pub cpu: CpuIdentity,
    /// The interrupt pins of the PCI functions of bus 0. The DSDT covers all devices, whether they are there or not.
    pub pins: Vec<PciPin>,
    /// End of RAM below 4 GiB, where the PCI window begins; at most 0xfec00000.
    pub low_ram_end: u32,
    /// Power management ports.
    pub pm: PmPorts,
    /// A serial port at 0x3f8, interrupt 4.
    pub com1: bool,
    /// Low half of the event timer's capabilities register, if there is one.
    pub hpet: Option<u32>,
    /// Of the ACPI tables.
    pub profile: Profile,
    /// Without, there is no ACPI table. The board hides the power management function, too.
    pub acpi: bool,
    /// Without, no table names an APIC, and there is one vCPU. The board clears CPUID's APIC bit, too.
    pub apic: bool,
}

/// Tables one after the other in one file, and their pointers to each other.
#[derive(Default)]
struct TablesFile {
    bytes: Vec<u8>,
    pointers: Vec<(u32, u8)>,
    /// Offset and length.
    checksums: Vec<(u32, u32)>,
}

impl TablesFile {
    /// Adds a table, whose pointers are at these offsets and have so many bytes. Returns its offset in the file.
    fn add(&mut self, table: &[u8], align: u32, pointers: &[(usize, u8)]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align as usize), 0);
        let at = offset(self.bytes.len());
        self.bytes.extend_from_slice(table);
        for (place, size) in pointers {
            self.pointers.push((at.saturating_add(offset(*place)), *size));
        }
        if !pointers.is_empty() {
            self.checksums.push((at, offset(table.len())));
        }
        at
    }
}

/// All tables together are far below 4 GiB.
fn offset(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl HvmTopology {
    /// A board with `vcpus` processors, all online, whose APIC ids are their vcpu ids, and no PCI functions: XP
    /// profile, ACPI and APIC on, a serial port, no HPET.
    pub fn new(vcpus: u32, low_ram_end: u32) -> Self {
        Self {
            vcpus: (0..vcpus).map(|apic_id| Vcpu { apic_id, online: true }).collect(),
            cpu: CpuIdentity::default(),
            pins: Vec::new(),
            low_ram_end,
            pm: PmPorts::default(),
            com1: true,
            hpet: None,
            profile: Profile::Xp,
            acpi: true,
            apic: true,
        }
    }

    /// The id that the tables give the I/O APIC, and that its register must have from the start: the lowest that
    /// no local APIC has, as both specifications want it. 0 with more processors than ids.
    pub fn io_apic_id(&self) -> u8 {
        let taken = |id: &u8| self.vcpus.iter().any(|vcpu| vcpu.apic_id == u32::from(*id));
        (0..IO_APIC_IDS).find(|id| !taken(id)).unwrap_or(0)
    }

    /// All tables of the board's state, as files that link to each other:
    ///
    /// | acpi | apic | files |
    /// |---|---|---|
    /// | on | on | [`RSDP_FILE`], [`TABLES_FILE`] with a MADT |
    /// | on | off | [`RSDP_FILE`], [`TABLES_FILE`] without |
    /// | off | on | [`MP_POINTER_FILE`], [`MP_CONFIG_FILE`], [`PIR_FILE`] |
    /// | off | off | [`PIR_FILE`] |
    pub fn tables(&self) -> Result<RomFiles, AcpiError> {
        self.check()?;
        let mut files = RomFiles::default();
        if self.acpi {
            self.add_acpi(&mut files);
            return Ok(files);
        }
        if self.apic {
            self.add_mp(&mut files);
        }
        files.add(PIR_FILE, Zone::FSegment, 16, pir::pir(&self.pins));
        Ok(files)
    }

    fn check(&self) -> Result<(), AcpiError> {
        let vcpus = self.vcpus.len();
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(AcpiError::Vcpus(vcpus));
        }
        if !self.apic && vcpus > 1 {
            return Err(AcpiError::NoApic(vcpus));
        }
        let modern = self.acpi && self.profile == Profile::Modern;
        let fits = vcpus <= MAX_BYTE_IDS && self.vcpus.iter().all(|vcpu| vcpu.apic_id < 255);
        if !modern && !fits {
            return Err(AcpiError::ByteIds(vcpus));
        }
        if self.low_ram_end == 0 || self.low_ram_end >= crate::routing::IO_APIC_ADDRESS {
            return Err(AcpiError::LowRam(self.low_ram_end));
        }
        let PmPorts { base, smbus, gpe0 } = self.pm;
        if base == 0 || base % 64 != 0 || smbus == 0 || smbus % 16 != 0 || gpe0 == 0 || gpe0 % 4 != 0 {
            return Err(AcpiError::PmPorts(self.pm));
        }
        self.pins.iter().try_for_each(PciPin::check)
    }

    fn add_acpi(&self, files: &mut RomFiles) {
        let xp = self.profile == Profile::Xp;
        let mut tables = TablesFile::default();
        let facs = tables.add(&facs::facs(if xp { 0 } else { 2 }), facs::ALIGN, &[]);
        let dsdt = tables.add(&dsdt::hvm(self), 16, &[]);
        let mut listed = Vec::new();
        listed.push(if xp {
            let fadt = fadt::xp(&self.pm, self.apic, facs, dsdt);
            tables.add(&fadt, 16, &[(fadt::FIRMWARE_CTRL, 4), (fadt::DSDT, 4)])
        } else {
            let fadt = fadt::modern(&self.pm, facs, dsdt);
            tables.add(&fadt, 16, &[(fadt::FIRMWARE_CTRL, 4), (fadt::DSDT, 4), (fadt::X_DSDT, 8)])
        });
        if self.apic {
            listed.push(tables.add(&madt::hvm(self.profile, &self.vcpus, self.io_apic_id()), 16, &[]));
        }
        if let Some(block_id) = self.hpet {
            listed.push(tables.add(&hpet::hpet(block_id), 16, &[]));
        }
        let entries =
            |size: u8| (sdt::BODY..).step_by(size.into()).zip(&listed).map(move |(at, _)| (at, size));
        let rsdt = tables.add(&root::rsdt(&listed), 16, &entries(4).collect::<Vec<_>>());
        let rsdp = if xp {
            root::rsdp_v1(rsdt)
        } else {
            let wide: Vec<u64> = listed.iter().map(|at| u64::from(*at)).collect();
            let xsdt = root::xsdt(sdt::HVM, &wide);
            let xsdt = tables.add(&xsdt, 16, &entries(8).collect::<Vec<_>>());
            root::rsdp_v2(rsdt, xsdt.into())
        };
        files.add(RSDP_FILE, Zone::FSegment, 16, rsdp);
        files.add(TABLES_FILE, Zone::High, facs::ALIGN, tables.bytes);
        for (at, size) in tables.pointers {
            files.pointer(TABLES_FILE, at, size, TABLES_FILE);
        }
        for (at, len) in tables.checksums {
            files.checksum(TABLES_FILE, at.saturating_add(offset(sdt::CHECKSUM)), at, len);
        }
        files.pointer(RSDP_FILE, offset(root::RSDP_RSDT), 4, TABLES_FILE);
        if !xp {
            files.pointer(RSDP_FILE, offset(root::RSDP_XSDT), 8, TABLES_FILE);
        }
        files.checksum(RSDP_FILE, offset(root::RSDP_CHECKSUM), 0, offset(root::RSDP_V1_LEN));
        if !xp {
            files.checksum(RSDP_FILE, offset(root::RSDP_EXTENDED_CHECKSUM), 0, offset(root::RSDP_LEN));
        }
    }

    fn add_mp(&self, files: &mut RomFiles) {
        let config = mp::configuration(&self.vcpus, &self.cpu, self.io_apic_id(), &self.pins);
        let zone = if config.len() <= MP_CONFIG_IN_F_SEGMENT { Zone::FSegment } else { Zone::High };
        files.add(MP_CONFIG_FILE, zone, 16, config);
        files.add(MP_POINTER_FILE, Zone::FSegment, 16, mp::floating_pointer(0));
        files.pointer(MP_POINTER_FILE, offset(mp::PHYSICAL_ADDRESS), 4, MP_CONFIG_FILE);
        files.checksum(MP_POINTER_FILE, offset(mp::CHECKSUM), 0, offset(mp::POINTER_LEN));
    }
}

//! A board, and its tables as they lie in guest memory.

use acpi::{CpuIdentity, HvmTopology, PciPin, RSDP_FILE, RomFiles};

pub(crate) const F_SEGMENT: u32 = 0xf_5a40;
pub(crate) const HIGH: u32 = 0x3ffe_0000;

/// A PC with 1 GiB: USB (1.2), power management (1.3), VGA without a pin, NIC (3.0), platform device (4.0), another
/// NIC (5.0).
pub(crate) fn board(vcpus: u32) -> HvmTopology {
    let pin = |device, function, pin| PciPin { device, function, pin };
    let mut board = HvmTopology::new(vcpus, 0x4000_0000);
    board.cpu = CpuIdentity { signature: 0x6f2, features: 0x0781_abff };
    board.pins = vec![pin(1, 2, 3), pin(1, 3, 0), pin(3, 0, 0), pin(4, 0, 0), pin(5, 0, 0)];
    board
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Pieces of guest memory.
pub(crate) struct Memory(pub(crate) Vec<(u32, Vec<u8>)>);

impl Memory {
    pub(crate) fn of(board: &HvmTopology) -> Self {
        Self(board.tables().unwrap().place(F_SEGMENT, HIGH).unwrap())
    }

    /// From an address to the end of the piece.
    pub(crate) fn from(&self, gpa: u32) -> &[u8] {
        let piece = self.0.iter().find(|(start, bytes)| (*start..*start + bytes.len() as u32).contains(&gpa));
        let (start, bytes) = piece.unwrap_or_else(|| panic!("nothing at {gpa:#x}"));
        &bytes[(gpa - start) as usize..]
    }

    /// Scans the F segment in steps of 16 bytes, as guests do.
    pub(crate) fn find(&self, signature: &[u8]) -> Option<u32> {
        let found = self
            .0
            .iter()
            .filter(|(start, _)| (0xf_0000..0x10_0000).contains(start))
            .flat_map(|(start, bytes)| (0..bytes.len()).map(move |at| (start + at as u32, &bytes[at..])));
        found.filter(|(gpa, bytes)| gpa % 16 == 0 && bytes.starts_with(signature)).map(|(gpa, _)| gpa).next()
    }

    /// A table with its header, whose checksum holds (a FACS has none).
    pub(crate) fn table(&self, gpa: u32, signature: &[u8; 4]) -> &[u8] {
        let bytes = self.from(gpa);
        let table = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(&table[..4], signature);
        assert!(
            signature == b"FACS" || sum(table) == 0,
            "checksum of {}",
            String::from_utf8_lossy(signature)
        );
        table
    }

    pub(crate) fn rsdp(&self) -> &[u8] {
        self.from(self.find(b"RSD PTR ").unwrap())
    }

    /// What the RSDT lists.
    pub(crate) fn rsdt(&self) -> Vec<&[u8]> {
        let rsdt = self.table(u32_at(self.rsdp(), 16), b"RSDT");
        rsdt[36..].chunks_exact(4).map(|entry| self.any_table(u32_at(entry, 0))).collect()
    }

    /// What the XSDT lists.
    pub(crate) fn xsdt(&self) -> Vec<&[u8]> {
        let xsdt = self.table(u64_at(self.rsdp(), 24) as u32, b"XSDT");
        xsdt[36..].chunks_exact(8).map(|entry| self.any_table(u64_at(entry, 0).try_into().unwrap())).collect()
    }

    fn any_table(&self, gpa: u32) -> &[u8] {
        self.table(gpa, self.from(gpa)[..4].try_into().unwrap())
    }

    pub(crate) fn listed(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        self.rsdt().into_iter().find(|table| table.starts_with(signature))
    }

    pub(crate) fn dsdt(&self) -> &[u8] {
        self.table(u32_at(self.listed(b"FACP").unwrap(), 40), b"DSDT")
    }

    /// All tables with a header, and the FACS.
    pub(crate) fn all(&self) -> Vec<&[u8]> {
        let fadt = self.listed(b"FACP").unwrap();
        let mut tables = self.rsdt();
        tables.push(self.dsdt());
        tables.push(self.table(u32_at(fadt, 36), b"FACS"));
        tables.push(self.table(u32_at(self.rsdp(), 16), b"RSDT"));
        if self.rsdp()[15] > 0 {
            tables.push(self.table(u64_at(self.rsdp(), 24) as u32, b"XSDT"));
        }
        tables
    }
}

pub(crate) fn names(files: &RomFiles) -> Vec<&'static str> {
    files.files().iter().map(|file| file.name).collect()
}

pub(crate) fn signatures(tables: &[&[u8]]) -> Vec<String> {
    tables.iter().map(|table| String::from_utf8_lossy(&table[..4]).into_owned()).collect()
}

#[test]
fn a_guest_finds_the_rsdp_on_a_16_byte_boundary() {
    let memory = Memory::of(&board(1));
    assert_eq!(memory.find(b"RSD PTR "), Some(F_SEGMENT));
    assert_eq!(names(&board(1).tables().unwrap())[0], RSDP_FILE);
}

//! The PVH boot protocol: where kernel, initrd and `hvm_start_info` go in guest RAM.
//!
//! Source: Xen's docs/misc/pvh.pandoc and public arch-x86/hvm/start_info.h.
//!
//! Layout, from below: page 0 stays empty; `hvm_start_info` with its lists and the command line from 0x8000; the
//! ISA hole stays empty; the kernel where it is linked, or where its note lets it go; the initrd as high as the
//! kernel can reach.

use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use zerocopy::{Immutable, IntoBytes};

use devices::memory::{GuestRam, PAGE_SIZE};

use super::free_ram::FreeRam;
use super::image::shorter;
use super::{BootError, Class, Kernel};

/// Linux copies the map into a table of 128 and adds an entry of its own.
pub(super) const MAX_MEMMAP_ENTRIES: usize = 127;

/// Linux's COMMAND_LINE_SIZE on x86 is 2048 with the final NUL, and it cuts off the rest in silence.
const MAX_COMMAND_LINE: usize = 2047;

/// Below this address the early page tables of Linux map memory.
const START_INFO_LIMIT: u64 = 1 << 30;

/// Linux lays shared_info over the lowest free page from 0x1000 on, and puts its real-mode trampoline here, too.
const START_INFO_MIN: u64 = 0x8000;

/// Where the 32-bit fields for the initrd end.
const FOUR_GIB: u64 = 1 << 32;

const PAGE: u64 = PAGE_SIZE as u64;

/// Memory that no boot image may use, whatever the map says: page 0, where null pointers and BIOS data are, and
/// the ISA hole, which Linux takes out of the map by itself.
const NEVER_USED: [Range<u64>; 2] = [0..PAGE, 0xa_0000..0x10_0000];

/// Kind of a range of guest-physical addresses. The numbers are those of e820.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemmapKind {
    /// Usable by the guest.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables; usable once they are read.
    Acpi = 3,
    /// ACPI memory to be kept over sleep.
    Nvs = 4,
    /// RAM with errors.
    Unusable = 5,
}

/// One range of the guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemmapEntry {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// What is there.
    pub kind: MemmapKind,
}

/// `struct hvm_start_info`, version 1.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<StartInfo>() == 56);

/// `struct hvm_modlist_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ModlistEntry {
    paddr: u64,
    size: u64,
    cmdline_paddr: u64,
    reserved: u64,
}
const _: () = assert!(size_of::<ModlistEntry>() == 32);

/// `struct hvm_memmap_table_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemmapTableEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<MemmapTableEntry>() == 24);

const START_INFO_MAGIC: u32 = 0x336e_c578;

/// An initrd, open and measured, not yet read.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Initrd {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::InitrdUnreadable { path: path.to_owned(), source };
        // A FIFO without a writer would block the open, and a length is needed: look before opening.
        let regular = std::fs::metadata(path).map_err(unreadable)?.is_file();
        if !regular {
            return Err(unreadable(io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        if size == 0 {
            return Err(unreadable(io::Error::other("it is empty")));
        }
        Ok(Self { path: path.to_owned(), file, size })
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// What a guest is booted with, beside its kernel.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest<'a> {
    /// The guest's whole memory map, as it is to see it; ranges that are not RAM win over RAM.
    pub memmap: &'a [MemmapEntry],
    /// First module.
    pub initrd: Option<&'a Initrd>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Guest-physical address of the ACPI RSDP, or 0 for a guest without ACPI.
    pub rsdp: u64,
    /// The RAM was never written: bss need not be cleared, which would make the host back every page of it.
    pub ram_is_zero: bool,
}

/// Where everything went, and how the first vCPU starts: 32-bit protected mode, no paging, EBX = `start_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// EIP of the first vCPU; below 4 GiB.
    pub entry_gpa: u64,
    /// Guest-physical address of `hvm_start_info`, for EBX; below 1 GiB.
    pub start_info: u64,
    /// The kernel, from its first segment to the end of its bss.
    pub kernel: Range<u64>,
    /// The kernel's executable segments, as loaded.
    pub executable: Vec<Range<u64>>,
    /// The initrd.
    pub initrd: Option<Range<u64>>,
    /// Class of the ELF image.
    pub elf_class: Class,
}

/// A layout that was found good: the bytes below `boot_data` go to `entry.start_info`.
struct Plan {
    entry: BootEntry,
    /// Added to every linked address, modulo 2^64.
    delta: u64,
    boot_data: Vec<u8>,
}

impl Kernel {
    /// Refuses what [`Kernel::load_into`] would refuse, without touching memory.
    pub fn check(&self, request: &LoadRequest<'_>) -> Result<BootEntry, BootError> {
        self.plan(request).map(|plan| plan.entry)
    }

    /// Loads kernel, initrd and start information into guest RAM.
    pub fn load_into(&self, ram: &GuestRam, request: &LoadRequest<'_>) -> Result<BootEntry, BootError> {
        let plan = self.plan(request)?;
        for segment in &self.elf.segments {
            let start = segment.memory.start.wrapping_add(plan.delta);
            self.image.load(segment.file.clone(), ram, start).map_err(|source| match source {
                GuestMemoryError::IOError(source) => {
                    BootError::KernelUnreadable { path: self.path.clone(), source }
                }
                source => BootError::GuestMemory { gpa: start, source },
            })?;
            if !request.ram_is_zero {
                clear(ram, start + segment.file.len() as u64..segment.memory.end.wrapping_add(plan.delta))?;
            }
        }
        if let (Some(initrd), Some(place)) = (request.initrd, &plan.entry.initrd) {
            initrd.read_into(ram, place.start)?;
        }
        write(ram, plan.entry.start_info, &plan.boot_data)?;
        Ok(plan.entry)
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Plan, BootError> {
        if request.cmdline.len() > MAX_COMMAND_LINE {
            return Err(BootError::CommandLine("is longer than 2047 bytes"));
        }
        if request.cmdline.contains('\0') {
            return Err(BootError::CommandLine("contains a NUL byte"));
        }
        if request.memmap.len() > MAX_MEMMAP_ENTRIES {
            return Err(BootError::MemmapTooLong(request.memmap.len()));
        }
        let mut free = FreeRam::new(request.memmap);
        let memory = free.size();
        NEVER_USED.into_iter().for_each(|range| free.remove(range));

        let delta = self.place(&mut free, memory)?;
        let moved = |range: &Range<u64>| range.start.wrapping_add(delta)..range.end.wrapping_add(delta);

        let boot_data_size = boot_data_size(request) as u64;
        let start_info = free
            .lowest(boot_data_size, PAGE, START_INFO_MIN..START_INFO_LIMIT)
            .ok_or(BootError::NoPlaceForStartInfo)?;
        free.remove(start_info..start_info + boot_data_size);

        let initrd = request.initrd.map(|initrd| self.place_initrd(initrd, &free, memory)).transpose()?;
        let executable = self.elf.segments.iter().filter(|segment| segment.executable);
        let entry = BootEntry {
            entry_gpa: u64::from(self.elf.entry).wrapping_add(delta),
            start_info,
            kernel: moved(&self.elf.memory()),
            executable: executable.map(|segment| moved(&segment.memory)).collect(),
            initrd,
            elf_class: self.elf.class,
        };
        let boot_data = boot_data(request, &entry);
        Ok(Plan { entry, delta, boot_data })
    }

    /// Takes the kernel's memory out of `free`: at its linked address, else where its note allows.
    fn place(&self, free: &mut FreeRam, memory: u64) -> Result<u64, BootError> {
        let linked = self.elf.memory();
        let segments = || self.elf.segments.iter().map(|segment| &segment.memory);
        if linked.end <= FOUR_GIB && segments().all(|segment| free.contains(segment)) {
            segments().for_each(|segment| free.remove(segment.clone()));
            return Ok(0);
        }
        let size = linked.end - linked.start;
        let place = self.elf.relocation.and_then(|to| free.lowest(size, to.align, to.min..to.max + 1));
        if let Some(start) = place {
            free.remove(start..start + size);
            return Ok(start.wrapping_sub(linked.start));
        }
        let path = self.path.clone();
        Err(if linked.end > free.end() && linked.end <= FOUR_GIB {
            BootError::MemoryTooSmall { path, needed: linked.end, memory }
        } else {
            BootError::NoPlaceForKernel { path, start: linked.start, end: linked.end }
        })
    }

    /// As high as the kernel's header says; a 64-bit kernel copies one from above that by itself.
    fn place_initrd(&self, initrd: &Initrd, free: &FreeRam, memory: u64) -> Result<Range<u64>, BootError> {
        let limits = match self.elf.class {
            Class::Elf64 => [self.initrd_limit, FOUR_GIB],
            Class::Elf32 => [self.initrd_limit; 2],
        };
        let size = initrd.size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let start = limits.into_iter().find_map(|limit| free.highest(size, PAGE, limit.min(FOUR_GIB)));
        let too_large = || BootError::InitrdTooLarge { path: initrd.path.clone(), size: initrd.size, memory };
        let start = start.ok_or_else(too_large)?;
        Ok(start..start + initrd.size)
    }
}

impl Initrd {
    /// Reads the file straight into guest RAM.
    fn read_into(&self, ram: &GuestRam, gpa: u64) -> Result<(), BootError> {
        let unreadable = |source| BootError::InitrdUnreadable { path: self.path.clone(), source };
        let size = usize::try_from(self.size).map_err(|_| unreadable(io::ErrorKind::FileTooLarge.into()))?;
        let mut file = self.file.try_clone().map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        ram.read_exact_volatile_from(GuestAddress(gpa), &mut file, size).map_err(|source| {
            match shorter(source) {
                GuestMemoryError::IOError(source) => unreadable(source),
                source => BootError::GuestMemory { gpa, source },
            }
        })
    }
}

fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(gpa)).map_err(|source| BootError::GuestMemory { gpa, source })
}

fn clear(ram: &GuestRam, range: Range<u64>) -> Result<(), BootError> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut gpa = range.start;
    while gpa < range.end {
        let len = usize::try_from(range.end - gpa).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        write(ram, gpa, ZEROS.get(..len).unwrap_or_default())?;
        gpa += len as u64;
    }
    Ok(())
}

/// Offsets of the parts behind `hvm_start_info`.
const MODLIST: usize = 64;
const MEMMAP: usize = MODLIST + size_of::<ModlistEntry>();

fn cmdline_offset(request: &LoadRequest<'_>) -> usize {
    MEMMAP + request.memmap.len() * size_of::<MemmapTableEntry>()
}

fn boot_data_size(request: &LoadRequest<'_>) -> usize {
    (cmdline_offset(request) + request.cmdline.len() + 1).next_multiple_of(PAGE_SIZE)
}

/// hvm_start_info, the module list, the memory map and the command line, one behind the other.
fn boot_data(request: &LoadRequest<'_>, entry: &BootEntry) -> Vec<u8> {
    let at = |offset: usize| entry.start_info + offset as u64;
    let start_info = StartInfo {
        magic: START_INFO_MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::from(entry.initrd.is_some()),
        modlist_paddr: if entry.initrd.is_some() { at(MODLIST) } else { 0 },
        cmdline_paddr: at(cmdline_offset(request)),
        rsdp_paddr: request.rsdp,
        memmap_paddr: at(MEMMAP),
        memmap_entries: u32::try_from(request.memmap.len()).unwrap_or(0),
        reserved: 0,
    };
    let mut data = Vec::with_capacity(boot_data_size(request));
    data.extend_from_slice(start_info.as_bytes());
    data.resize(MODLIST, 0);
    if let Some(initrd) = &entry.initrd {
        let module = ModlistEntry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            cmdline_paddr: 0,
            reserved: 0,
        };
        data.extend_from_slice(module.as_bytes());
    }
    data.resize(MEMMAP, 0);
    for range in request.memmap {
        let entry =
            MemmapTableEntry { addr: range.addr, size: range.size, kind: range.kind as u32, reserved: 0 };
        data.extend_from_slice(entry.as_bytes());
    }
    data.extend_from_slice(request.cmdline.as_bytes());
    data.push(0);
    data
}

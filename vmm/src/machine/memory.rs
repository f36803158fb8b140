//! Guest physical memory: where RAM is, and the pages that overlay it.
//!
//! Layout of a PVH guest: RAM from 0 to at most 0xf0000000, the special pages at 0xfeff8000 (as libxl places
//! them), the local APIC at 0xfee00000, and the rest of RAM from 4 GiB. The ISA hole 0xa0000-0xfffff is RAM to
//! KVM but not in the memory map.
//!
//! Of a PC: RAM from 0 to at most 0xe0000000 and from 4 GiB; the ISA hole has no memory of its own, the chip set maps it
//! (`pc/shadow.rs`); PCI devices from the end of RAM; pages that KVM needs for itself at 0xfeffc000; firmware below 4 GiB.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use devices::memory::{GuestRam, PAGE_SIZE, SharedPages};
use devices::xen::Gfn;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use vm_memory::mmap::MmapRegionBuilder;

use super::MachineError;
use crate::boot::{MemmapEntry, MemmapKind};

const HIGH_RAM_START: u64 = 1 << 32;
/// First of the special pages (console, xenstore) and their number.
pub const SPECIAL_GFN: Gfn = Gfn(0xfeff8);
/// Number of special pages.
pub const SPECIAL_PAGES: usize = 4;
const ISA_HOLE: (u64, u64) = (0xa0000, 0x10_0000);

/// Where a kind of machine has its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// End of RAM below 4 GiB.
    low_ram_end: u64,
    /// The ISA hole is not mapped.
    isa_hole: bool,
    /// The end of what is reserved from the special pages on.
    reserved_end: u64,
}

impl Layout {
    /// A PVH guest's.
    pub const PVH: Layout = Layout {
        low_ram_end: 0xf000_0000,
        isa_hole: false,
        reserved_end: (SPECIAL_GFN.0 + SPECIAL_PAGES as u64) * PAGE_SIZE as u64,
    };
    /// A PC's.
    pub const PC: Layout = Layout { low_ram_end: 0xe000_0000, isa_hole: true, reserved_end: 0xff00_0000 };

    /// Ranges of RAM for `bytes` of memory: start and length.
    pub fn ram_ranges(self, bytes: u64) -> Vec<(u64, u64)> {
        let low = bytes.min(self.low_ram_end);
        let mut ranges = vec![(0, low)];
        if bytes > low {
            ranges.push((HIGH_RAM_START, bytes - low));
        }
        ranges
    }

    /// The memory map that a guest with `bytes` of memory is told.
    pub fn memmap(self, bytes: u64) -> Vec<MemmapEntry> {
        let entry = |addr, end, kind| MemmapEntry { addr, size: end - addr, kind };
        let mut map = Vec::new();
        for (start, len) in self.ram_ranges(bytes) {
            if start == 0 {
                map.push(entry(0, ISA_HOLE.0, MemmapKind::Ram));
                map.push(entry(ISA_HOLE.1, len, MemmapKind::Ram));
            } else {
                map.push(entry(start, start + len, MemmapKind::Ram));
            }
        }
        let (start, end) = self.reserved();
        map.push(entry(start, end, MemmapKind::Reserved));
        map.sort_by_key(|e| e.addr);
        map
    }

    /// Start and end of what is reserved: the special pages, and what follows them.
    pub fn reserved(self) -> (u64, u64) {
        (SPECIAL_GFN.0 * PAGE_SIZE as u64, self.reserved_end)
    }

    /// The parts of a range of RAM that are always mapped: start and length.
    fn mapped(self, start: u64, len: u64) -> Vec<(u64, u64)> {
        if self.isa_hole && start == 0 && len > ISA_HOLE.1 {
            vec![(0, ISA_HOLE.0), (ISA_HOLE.1, len - ISA_HOLE.1)]
        } else {
            vec![(start, len)]
        }
    }
}

/// Allocates guest RAM. Pages come from the host when the guest first touches them.
pub(super) fn allocate(layout: Layout, bytes: u64) -> Result<GuestRam, MachineError> {
    let mut regions = Vec::new();
    for (start, len) in layout.ram_ranges(bytes) {
        let size =
            usize::try_from(len).map_err(|_| MachineError::Memory(io::ErrorKind::OutOfMemory.into()))?;
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| MachineError::Memory(io::Error::other(e)))?;
        name_guest_ram(region.as_ptr(), size);
        let region = GuestRegionMmap::new(region, GuestAddress(start));
        regions.push(region.ok_or_else(|| MachineError::Memory(io::ErrorKind::OutOfMemory.into()))?);
    }
    GuestRam::from_regions(regions).map_err(|e| MachineError::Memory(io::Error::other(e)))
}

/// Huge pages where the host has them, a name in /proc/PID/maps, and no guest RAM in core dumps.
fn name_guest_ram(addr: *mut u8, size: usize) {
    // SAFETY: advice and a name for a mapping of ours; failure changes nothing that matters.
    unsafe {
        libc::madvise(addr.cast(), size, libc::MADV_HUGEPAGE);
        libc::madvise(addr.cast(), size, libc::MADV_DONTDUMP);
        libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, addr, size, c"guest-ram".as_ptr());
    }
}

/// What the guest may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and write.
    Full,
    /// Read; writes come as exits.
    ReadOnly,
}

#[derive(Debug)]
struct Slots {
    /// Free slot numbers below `next`.
    free: Vec<u32>,
    next: u32,
    /// Overlaid frames: which page, and the memory slot if the frame is outside RAM.
    overlays: BTreeMap<Gfn, (u32, Option<u32>)>,
}

/// All memory slots of the VM, and the overlays over guest frames.
///
/// A frame inside RAM is overlaid by mapping the page over RAM's host address, so that xvmm's own view of
/// guest RAM and the guest's stay the same; a frame outside RAM gets a memory slot.
#[derive(Debug)]
pub(super) struct AddressSpace {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    slots: Mutex<Slots>,
}

impl AddressSpace {
    /// Gives all RAM to the VM.
    pub(super) fn new(vm: Arc<VmFd>, ram: Arc<GuestRam>, layout: Layout) -> Result<Self, MachineError> {
        let slots = Mutex::new(Slots { free: Vec::new(), next: 0, overlays: BTreeMap::new() });
        let space = Self { vm, ram, slots };
        for region in space.ram.iter() {
            for (start, len) in layout.mapped(region.start_addr().0, region.len()) {
                let offset = MemoryRegionAddress(start - region.start_addr().0);
                let host = region.get_host_address(offset).map_err(io::Error::other);
                let slot = host.and_then(|host| space.add_slot(start, len, host, Access::Full));
                slot.map_err(MachineError::Memory)?;
            }
        }
        Ok(space)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_slot(&self, slot: u32, gpa: u64, size: u64, host: *mut u8, access: Access) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if access == Access::ReadOnly { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host as u64,
        };
        // SAFETY: the host range is guest RAM or shared pages, which live as long as the VM: the address space
        // holds RAM, and callers of overlay() hold the pages for the life of the domain.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(io::Error::from)
    }

    fn add_slot(&self, gpa: u64, size: u64, host: *mut u8, access: Access) -> io::Result<u32> {
        let mut slots = self.lock();
        let slot = slots.free.pop().unwrap_or(slots.next);
        match self.set_slot(slot, gpa, size, host, access) {
            Ok(()) => {
                slots.next = slots.next.max(slot + 1);
                Ok(slot)
            }
            Err(e) => {
                if slot < slots.next {
                    slots.free.push(slot);
                }
                Err(e)
            }
        }
    }

    /// Maps `count` special pages of `pages` at `gfn`, outside RAM, for good.
    pub(super) fn map_special(&self, pages: &SharedPages, gfn: Gfn) -> io::Result<()> {
        let host = pages.page_ptr(0).ok_or(io::ErrorKind::InvalidInput)?;
        let gpa = gfn.gpa().ok_or(io::ErrorKind::InvalidInput)?;
        self.add_slot(gpa, (pages.pages() * PAGE_SIZE) as u64, host.as_ptr(), Access::Full).map(drop)
    }

    /// Maps pages `first` to `first + count` of `pages` at `gpa`; the slot, for [`AddressSpace::unmap`]. Who maps them
    /// holds them for the life of the domain.
    pub(super) fn map_pages(
        &self,
        pages: &SharedPages,
        first: usize,
        count: usize,
        gpa: u64,
        access: Access,
    ) -> io::Result<u32> {
        let last = first.checked_add(count).and_then(|end| end.checked_sub(1));
        let host = pages.page_ptr(first).ok_or(io::ErrorKind::InvalidInput)?;
        last.and_then(|last| pages.page_ptr(last)).ok_or(io::ErrorKind::InvalidInput)?;
        self.add_slot(gpa, (count * PAGE_SIZE) as u64, host.as_ptr(), access)
    }

    /// Maps RAM that the layout leaves out, at its own address.
    pub(super) fn map_ram(&self, gpa: u64, len: u64, access: Access) -> io::Result<u32> {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let host = self.ram.get_slice(GuestAddress(gpa), size).map_err(io::Error::other)?;
        self.add_slot(gpa, len, host.ptr_guard_mut().as_ptr(), access)
    }

    /// Takes away what is mapped at `gpa` by `slot`.
    pub(super) fn unmap(&self, slot: u32, gpa: u64) -> io::Result<()> {
        self.set_slot(slot, gpa, 0, std::ptr::null_mut(), Access::Full)?;
        self.lock().free.push(slot);
        Ok(())
    }

    fn ram_host(&self, gfn: Gfn) -> Option<*mut u8> {
        self.ram.get_host_address(GuestAddress(gfn.gpa()?)).ok()
    }

    /// Shows page `index` of `pages` at `gfn`. A frame is overlaid at most once; an overlay there is replaced.
    pub(super) fn overlay(&self, pages: &SharedPages, index: u32, gfn: Gfn) -> io::Result<()> {
        self.remove_overlay(gfn)?;
        let slot = match self.ram_host(gfn) {
            Some(host) => {
                let offset = i64::from(index) * PAGE_SIZE as i64;
                let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
                // SAFETY: replaces one page of guest RAM, which is only accessed volatilely through pointers, by a
                // page of a memfd of ours.
                let at = unsafe {
                    libc::mmap(host.cast(), PAGE_SIZE, prot, flags, pages.fd().as_raw_fd(), offset)
                };
                if at == libc::MAP_FAILED {
                    return Err(io::Error::last_os_error());
                }
                None
            }
            None => {
                let host = pages.page_ptr(index as usize).ok_or(io::ErrorKind::InvalidInput)?;
                let gpa = gfn.gpa().ok_or(io::ErrorKind::InvalidInput)?;
                Some(self.add_slot(gpa, PAGE_SIZE as u64, host.as_ptr(), Access::Full)?)
            }
        };
        self.lock().overlays.insert(gfn, (index, slot));
        Ok(())
    }

    /// Ends an overlay; a frame of RAM is empty then. False if there was none.
    pub(super) fn remove_overlay(&self, gfn: Gfn) -> io::Result<bool> {
        let Some((_, slot)) = self.lock().overlays.remove(&gfn) else { return Ok(false) };
        match slot {
            Some(slot) => {
                self.unmap(slot, gfn.gpa().unwrap_or_default())?;
            }
            None => {
                let Some(host) = self.ram_host(gfn) else { return Ok(true) };
                let prot = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
                // SAFETY: puts an empty page back where the overlay was, inside guest RAM.
                let at = unsafe { libc::mmap(host.cast(), PAGE_SIZE, prot, flags, -1, 0) };
                if at == libc::MAP_FAILED {
                    return Err(io::Error::last_os_error());
                }
                name_guest_ram(host, PAGE_SIZE);
            }
        }
        Ok(true)
    }

    /// Gives a page of RAM back to the host; it reads as zeros when the guest touches it again.
    pub(super) fn discard(&self, gfn: Gfn) -> bool {
        let slots = self.lock();
        let Some(host) = self.ram_host(gfn).filter(|_| !slots.overlays.contains_key(&gfn)) else {
            return false;
        };
        // SAFETY: drops the content of one page of private guest RAM.
        unsafe { libc::madvise(host.cast(), PAGE_SIZE, libc::MADV_DONTNEED) == 0 }
    }
}

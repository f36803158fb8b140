//! memory_op (12): where overlays stand, the memory map, and the balloon.

use devices::memory::PAGE_SIZE;
use devices::xen::Gfn;
use devices::xen::grant_table::MAX_FRAMES;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Errno, GuestCopy, Hypercalls, OverlayPage, Reply};
use crate::boot::MemmapEntry;

/// The operation is in the low bits; Linux passes a continuation index above.
const OP_MASK: u64 = 0x3f;
const SPACE_SHARED_INFO: u32 = 0;
const SPACE_GRANT_TABLE: u32 = 1;
/// Extents of one balloon call that are looked at; the guest is told how many were done and asks again.
const MAX_EXTENTS: u64 = 512;
/// Most entries of the memory map that a caller can have room for.
const MAX_MEMMAP: u32 = 128;

/// xen_add_to_physmap as both modes have it after copying: domid, space, index, gfn.
struct AddToPhysmap {
    domid: u16,
    space: u32,
    index: u64,
    gfn: u64,
}

/// 64-bit: domid @0, size @2, space @4, idx @8, gpfn @16.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct AddToPhysmap64 {
    domid: u16,
    size: u16,
    space: u32,
    index: u64,
    gfn: u64,
}

/// 32-bit: domid @0, size @2, space @4, idx @8, gpfn @12.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct AddToPhysmap32 {
    domid: u16,
    size: u16,
    space: u32,
    index: u32,
    gfn: u32,
}

/// xen_add_to_physmap_batch, 64-bit: domid @0, space @2, size @4, extra @6, idxs @8, gpfns @16, errs @24.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct AddToPhysmapBatch {
    domid: u16,
    space: u16,
    size: u16,
    extra: u16,
    indexes: u64,
    gfns: u64,
    errors: u64,
}

/// xen_memory_reservation, 64-bit: extents @0, nr_extents @8, order @16, flags @20, domid @24.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Reservation {
    extents: u64,
    nr_extents: u64,
    order: u32,
    flags: u32,
    domid: u16,
    pad: [u16; 3],
}

/// The same, 32-bit: extents @0, nr_extents @4, order @8, flags @12, domid @16.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Reservation32 {
    extents: u32,
    nr_extents: u32,
    order: u32,
    flags: u32,
    domid: u16,
    pad: u16,
}

/// An e820 entry, 20 bytes.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C, packed)]
struct E820 {
    addr: u64,
    size: u64,
    kind: u32,
}

impl Hypercalls {
    pub(super) fn memory_op(&self, command: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        match command & OP_MASK {
            1 => self.decrease_reservation(command >> 6, arg, copy),
            // current_reservation, maximum_reservation
            3 | 4 => {
                self.require_self(copy.get(arg)?)?;
                Ok(self.facts.ram_pages.cast_signed())
            }
            6 => self.populate_physmap(arg, copy),
            7 => {
                let a = if copy.long_mode {
                    let a: AddToPhysmap64 = copy.get(arg)?;
                    AddToPhysmap { domid: a.domid, space: a.space, index: a.index, gfn: a.gfn }
                } else {
                    let a: AddToPhysmap32 = copy.get(arg)?;
                    AddToPhysmap { domid: a.domid, space: a.space, index: a.index.into(), gfn: a.gfn.into() }
                };
                self.add_to_physmap(&a, copy.long_mode).map(|()| 0)
            }
            9 => self.memory_map(arg, copy),
            15 => {
                self.require_self(copy.get(arg)?)?;
                let gfn = copy.get_ulong(arg, 1)?;
                match self.platform.remove_overlay(Gfn(gfn))? {
                    true => Ok(0),
                    false => Err(Errno::INVAL),
                }
            }
            23 if copy.long_mode => self.add_to_physmap_batch(arg, copy),
            op => Err(self.unknown("memory_op", op)),
        }
    }

    fn add_to_physmap(&self, a: &AddToPhysmap, long_mode: bool) -> Result<(), Errno> {
        self.require_self(a.domid)?;
        // A frame past what an x86 CPU can address is not a place.
        if a.gfn >= 1 << (52 - PAGE_SIZE.ilog2()) {
            return Err(Errno::INVAL);
        }
        let page = match a.space {
            SPACE_SHARED_INFO if a.index == 0 => {
                self.set_long_mode(long_mode);
                OverlayPage::SharedInfo
            }
            SPACE_GRANT_TABLE => {
                let index = u32::try_from(a.index).ok().filter(|i| *i < MAX_FRAMES).ok_or(Errno::INVAL)?;
                if !self.grants.grow_to(index) {
                    return Err(Errno::INVAL);
                }
                OverlayPage::GrantFrame(index)
            }
            _ => return Err(Errno::INVAL),
        };
        self.platform.overlay(page, Gfn(a.gfn))
    }

    fn add_to_physmap_batch(&self, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        let a: AddToPhysmapBatch = copy.get(arg)?;
        for i in 0..u64::from(a.size) {
            let one = AddToPhysmap {
                domid: a.domid,
                space: a.space.into(),
                index: copy.get_ulong(a.indexes, i)?,
                gfn: copy.get_ulong(a.gfns, i)?,
            };
            let status = match self.add_to_physmap(&one, copy.long_mode) {
                Ok(()) => 0,
                Err(Errno(errno)) => -errno,
            };
            copy.put(a.errors.checked_add(i * 4).ok_or(Errno::FAULT)?, &status)?;
        }
        Ok(0)
    }

    /// xen_memory_map: nr_entries @0 (in: room, out: entries), buffer (pointer) @8 (4).
    fn memory_map(&self, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        let room: u32 = copy.get(arg)?;
        let buffer = copy.get_ulong(arg, 1)?;
        let count = room.min(MAX_MEMMAP) as usize;
        for (i, MemmapEntry { addr, size, kind }) in self.facts.memmap.iter().take(count).enumerate() {
            let entry = E820 { addr: *addr, size: *size, kind: *kind as u32 };
            let at = buffer.checked_add((i * size_of::<E820>()) as u64).ok_or(Errno::FAULT)?;
            copy.put(at, &entry)?;
        }
        let written = self.facts.memmap.len().min(count);
        copy.put(arg, &u32::try_from(written).map_err(|_| Errno::INVAL)?)?;
        Ok(0)
    }

    /// The guest gives pages back: they are dropped, and read as zeros if the guest looks at them after all.
    fn decrease_reservation(&self, start: u64, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        let a: Reservation = self.reservation(arg, copy)?;
        let mut done = start;
        while done < a.nr_extents && done - start < MAX_EXTENTS {
            let gfn = Gfn(copy.get_ulong(a.extents, done)?);
            if !self.platform.remove_overlay(gfn)? && !self.platform.discard(gfn) {
                break;
            }
            done += 1;
        }
        Ok(done.cast_signed())
    }

    /// The guest takes pages: RAM that it gave back is there again by itself, other frames have none.
    fn populate_physmap(&self, arg: u64, copy: &GuestCopy<'_>) -> Reply {
        let a: Reservation = self.reservation(arg, copy)?;
        let mut done = 0;
        while done < a.nr_extents.min(MAX_EXTENTS) && self.is_ram(copy.get_ulong(a.extents, done)?) {
            done += 1;
        }
        Ok(done.cast_signed())
    }

    fn reservation(&self, arg: u64, copy: &GuestCopy<'_>) -> Result<Reservation, Errno> {
        let a: Reservation = if copy.long_mode {
            copy.get(arg)?
        } else {
            let a: Reservation32 = copy.get(arg)?;
            let Reservation32 { extents, nr_extents, order, flags, domid, .. } = a;
            Reservation {
                extents: extents.into(),
                nr_extents: nr_extents.into(),
                order,
                flags,
                domid,
                pad: [0; 3],
            }
        };
        self.require_self(a.domid)?;
        if a.order != 0 {
            return Err(Errno::INVAL);
        }
        Ok(a)
    }
}

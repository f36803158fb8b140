//! grant_table_op (20), version 1. A guest maps or copies no grants of other domains: there are none.

use devices::xen::grant_table::MAX_FRAMES;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Errno, GuestCopy, Hypercalls, Reply};

const GNTST_OKAY: i16 = 0;
const GNTST_BAD_DOMAIN: i16 = -2;
/// Elements answered of one batch: one call must not keep a vCPU in here. A guest that asks for more gets
/// -E2BIG and none done.
const MAX_BATCH: u64 = 1024;

/// gnttab_query_size: dom @0, nr_frames (out) @4, max_nr_frames (out) @8, status (out) @12.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct QuerySize {
    dom: u16,
    pad: u16,
    nr_frames: u32,
    max_nr_frames: u32,
    status: i16,
    pad2: u16,
}

/// gnttab_get_version: dom @0, version (out) @4.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct GetVersion {
    dom: u16,
    pad: u16,
    version: u32,
}

impl Hypercalls {
    pub(super) fn grant_table_op(&self, op: u64, arg: u64, count: u64, copy: &GuestCopy<'_>) -> Reply {
        if count > MAX_BATCH {
            return Err(Errno(libc::E2BIG));
        }
        // Offset of the status in an element, and the element's size, of operations that name another domain.
        let (size, status) = match op {
            0 => (32, 18), // map_grant_ref
            1 => (24, 20), // unmap_grant_ref
            5 if copy.long_mode => (40, 36),
            5 => (24, 20), // copy
            6 => return self.query_size(arg, count, copy),
            8 => {
                let version: u32 = copy.get(arg)?;
                // Version 2 is not offered: guests then use version 1.
                return if version == 1 { Ok(0) } else { Err(Errno::NOSYS) };
            }
            10 => return self.get_version(arg, count, copy),
            _ => return Err(self.unknown("grant_table_op", op)),
        };
        for index in 0..count {
            let at = arg.checked_add(index * size + status).ok_or(Errno::FAULT)?;
            copy.put(at, &GNTST_BAD_DOMAIN)?;
        }
        Ok(0)
    }

    fn query_size(&self, arg: u64, count: u64, copy: &GuestCopy<'_>) -> Reply {
        if count != 1 {
            return Err(Errno::INVAL);
        }
        let mut a: QuerySize = copy.get(arg)?;
        if self.is_self(a.dom) {
            (a.nr_frames, a.max_nr_frames, a.status) = (self.grants.nr_frames(), MAX_FRAMES, GNTST_OKAY);
        } else {
            a.status = GNTST_BAD_DOMAIN;
        }
        copy.put(arg, &a)?;
        Ok(0)
    }

    fn get_version(&self, arg: u64, count: u64, copy: &GuestCopy<'_>) -> Reply {
        if count != 1 {
            return Err(Errno::INVAL);
        }
        let mut a: GetVersion = copy.get(arg)?;
        self.require_self(a.dom)?;
        a.version = 1;
        copy.put(arg, &a)?;
        Ok(0)
    }
}

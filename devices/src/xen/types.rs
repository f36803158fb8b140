//! Numbers of the Xen ABI as types of their own.

use std::fmt;

/// A domain id (xen/include/public/xen.h, `domid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomId(pub u16);

impl DomId {
    /// The host's side: all backends, the console and xenstore live there.
    pub const DOM0: DomId = DomId(0);
    /// "The caller", in hypercall arguments (`DOMID_SELF`).
    pub const SELF: DomId = DomId(0x7ff0);
    /// The first id that is not a real domain (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: u16 = 0x7ff0;
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Index of an entry of the guest's grant table (`grant_ref_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantRef(pub u32);

/// An event channel port of the guest, 1..4096 (`evtchn_port_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u32);

/// A guest frame number: guest physical address >> 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gfn(pub u64);

impl Gfn {
    /// Guest physical address of the frame's first byte, `None` past 2^64.
    pub fn gpa(self) -> Option<u64> {
        self.0.checked_mul(crate::memory::PAGE_SIZE as u64)
    }
}

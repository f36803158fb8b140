//! Domains of this host: ids, names, state folders, and what must hold before one is made.

mod block;
mod change;
mod control;
mod discs;
mod disks;
mod error;
mod firmware;
mod hotplug;
mod life_cycle;
pub mod preflight;
mod registry;
mod state_dir;
mod store_service;
#[cfg(test)]
mod testing;
mod vif;

pub use disks::{LimitGroups, StorageError, open_storage, shown};
pub use error::DomainError;
pub use life_cycle::run;
pub use registry::{DomainEntry, ImageId, Registry};
pub use state_dir::DomainDir;

/// The highest domain id; the next one is 1 again. 0x7ff0 and above have meanings of their own
/// (`DOMID_FIRST_RESERVED`, xen/include/public/xen.h).
pub const LAST_DOMID: u16 = devices::xen::types::DomId::FIRST_RESERVED - 1;

//! Disks that must be fetched before they can be opened.

pub mod iscsi;
mod on_lun;

pub use iscsi::{IscsiDisk, IscsiError, IscsiProblem};

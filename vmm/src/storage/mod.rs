//! Disks that must be fetched before they can be opened.

pub mod iscsi;

pub use iscsi::{IscsiDisk, IscsiError, IscsiProblem};

//! Xen's shared structures, as the back half of the devices sees them.

pub mod console;
pub mod event_channel;
pub mod grant_table;
pub mod platform;
pub mod shared_ring;
pub mod types;
pub mod xenbus;
pub mod xenstore;

pub use types::{DomId, Gfn, GrantRef, Port};

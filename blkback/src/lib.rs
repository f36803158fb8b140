//! blkback: the back half of a Xen block device (xen/include/public/io/blkif.h).
//!
//! A [`BlockDevice`] is what xenbus connects: per connection it has one ring, one event channel and one
//! thread. The thread copies each request out of the ring once ([`protocol`]), turns grant references into
//! memory, hands the operation to its [`engine`] and answers when that is done ([`queue`]).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod device;
pub mod disk;
pub mod engine;
pub mod image;
pub mod protocol;
pub mod queue;
pub mod storage;

pub use device::{BlockDevice, DiskConfig};
pub use disk::{Counters, Disk};
pub use image::{Access, CacheMode, DiskImage, Format, ImageError, ImageOptions};

#[cfg(test)]
mod testing;

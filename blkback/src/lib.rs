//! blkback: the back half of a Xen block device (xen/include/public/io/blkif.h).
//!
//! A [`BlockDevice`] is what xenbus connects: per connection it has one to several queues, each with a ring, an
//! event channel and a thread. The thread copies each request out of the ring once ([`protocol`]), turns grant
//! references into memory, hands the operation to its [`engine`] and answers when that is done ([`queue`]).
//! What the engine reads and writes is a [`storage`]. What a frontend sends to a disk that it has lost is refused
//! by a `remnant`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod bounce;
mod bursts;
pub mod device;
pub mod disk;
pub mod engine;
pub mod image;
pub mod limits;
pub mod medium;
pub mod protocol;
pub mod queue;
mod remnant;
mod slot;
pub mod storage;
mod widened;

pub use device::{BlockDevice, DiskConfig};
pub use disk::{Backing, Counters, Disk};
pub use image::{Access, CacheMode, DiskImage, Format, ImageError, ImageOptions};
pub use medium::DiskMedium;

#[cfg(test)]
mod abuse;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

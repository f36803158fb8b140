//! netback: the back half of a Xen network interface.
//!
//! ```text
//!   guest: xen-netfront          one thread per queue pair             host
//!   tx ring --> TxPacket (checked) --> granted pages --> writev -->  tap --> bridge
//!   rx ring <-- responses          <-- granted pages <-- readv  <--  tap <-- bridge
//! ```
//!
//! Frames are not copied here: the kernel reads and writes the guest's pages. What must be looked at (headers,
//! for checksum and segmentation offload) is copied once, checked, and sent from the copy.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(test)]
mod abuse;
pub mod control;
mod control_ring;
mod device;
mod engine;
#[cfg(test)]
mod feature_tests;
#[cfg(test)]
mod flow_tests;
pub mod hash;
mod headers;
mod mac;
pub mod multicast;
pub mod packet;
#[cfg(test)]
mod pair_tests;
pub mod protocol;
mod queue;
mod rate;
#[cfg(any(test, feature = "testing"))]
pub mod rings;
mod rx;
mod stall;
mod steering;
mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tx;
#[cfg(test)]
mod vif_tests;

pub use device::{NetDevice, ToolstackKeys, VifConfig};
pub use headers::{HEADER_MAX, HeaderError, Headers, IpVersion, Transport};
pub use mac::{MacAddr, MacError};
pub use rate::Rate;
pub use tap::{Offload, PassedProblem, Tap, TapError, VNET_HDR, VnetHeader, is_interface_name};

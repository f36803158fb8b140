//! xenstore: the store, its wire protocol and its transports (docs/misc/xenstore.txt,
//! docs/misc/xenstore-ring.txt).
//!
//! [`XenStore`] is the server. A guest reaches it through [`XenStoreRing`], tools of the host through
//! [`SocketServer`], the VMM's own code by calling it. Everything lives on one thread and never blocks.
//!
//! Whatever one client does may leave output for others. So the event loop, whenever the guest raised the
//! ring's event channel, the socket server's descriptor became readable or the VMM changed the store, calls
//! [`XenStoreRing::process`] or [`SocketServer::process`], and then, until [`XenStore::take_ready`] is empty,
//! [`XenStoreRing::process`], [`SocketServer::flush`] and [`XenStore::take_watch_events`].

mod connection;
mod control;
mod dispatch;
mod ops;
pub mod path;
pub mod perms;
pub mod quota;
pub mod ring;
pub mod server;
pub mod socket;
#[cfg(test)]
mod tests;
mod transaction;
mod tree;
pub mod wire;

pub use path::domain_path;
pub use perms::{Access, Perm};
pub use quota::Limits;
pub use ring::{RingStatus, XenStoreRing};
pub use server::{ConnId, ReceiveError, XenStore};
pub use socket::SocketServer;
pub use wire::XsError;

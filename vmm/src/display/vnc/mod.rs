//! A VNC server: the RFB protocol (RFC 6143) in versions 3.3, 3.7 and 3.8.
//!
//! One thread waits for connections, and one serves each of them (`vnc-N`). A connection costs what it may cost at most: its
//! thread, one chunk of an update that it has not taken, the streams of its encodings, and a mark for each tile of the
//! picture.

mod auth;
mod connection;
mod deflate;
mod encoder;
pub mod peers;
pub mod pixel;
mod pointer;
pub mod protocol;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod tight;
mod viewer;
mod zrle;

use std::sync::Arc;

pub use auth::Password;
pub use server::{Listener, VncError, VncServer};
pub use session::Session;

use super::Display;
use super::keys::Keymap;

/// What all connections of a server share.
#[derive(Debug)]
pub struct Setup {
    /// What is shown.
    pub display: Arc<Display>,
    /// What viewers have to know. `None`: all are let in.
    pub password: Option<Password>,
    /// The layout that the guest takes its keyboard to have.
    pub keymap: Arc<Keymap>,
    /// What viewers show in their title bar.
    pub name: String,
}

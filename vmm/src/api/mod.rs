//! The API of a running domain: HTTP/1.1 with JSON bodies over the unix socket `api.sock`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /api/v1/vm.info` | | 200 and a description of the domain |
//! | `PUT /api/v1/vm.shutdown` | `{"timeout": SECONDS}` or nothing | 204; the guest is asked to switch itself off |
//! | `PUT /api/v1/vm.reboot` | as above | 204; the guest is asked to reboot |
//! | `PUT /api/v1/vm.destroy` | | 204; the guest stops at once |
//! | `PUT /api/v1/vm.block-attach` | [`BlockAttach`] | 200 and `{"vdev": NAME}` when the guest is offered the disk |
//! | `PUT /api/v1/vm.block-detach` | [`BlockDetach`] | 204 when the disk is gone and its image closed |
//! | `PUT /api/v1/vm.cd-insert` | [`CdInsert`] | 204 when the guest is offered the new medium |
//! | `PUT /api/v1/vm.cd-eject` | [`BlockDetach`] | 204 when the medium is gone and its image closed |
//! | `PUT /api/v1/vm.network-attach` | [`NetworkAttach`] | 200 and `{"devid": N, "mac": .., "vifname": ..}` when the guest is offered the interface |
//! | `PUT /api/v1/vm.network-detach` | [`NetworkDetach`] | 204 when the interface is gone from guest and host |
//! | `GET /api/v1/vm.screenshot` | | 200 and the screen, as `image/png` |
//! | `PUT /api/v1/vm.sendkey` | [`SendKey`] | 204 when the keys have been pressed and released |
//!
//! An error has a 4xx status and the body `{"error": "one sentence"}`, with the exit status of the command as
//! `"status"` where there is one of its own; 409 says that the guest cannot do it
//! now. The socket is in a folder of mode 0700 and has mode 0600 itself: who can open it may do everything.

pub mod client;
mod devices;
pub mod http;
mod reply;
mod routes;
mod screen;
mod server;

use std::sync::Arc;
use std::time::Duration;

pub use client::{ApiClient, ApiError};
pub use devices::{BlockAttach, BlockDetach, CdInsert, DeviceChange, NetworkAttach, NetworkDetach};
pub use reply::{Outbox, Reply};
pub use screen::SendKey;
pub use server::ApiServer;

use crate::display::Display;

/// What the guest is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownKind {
    /// Switch itself off.
    Poweroff,
    /// Reboot.
    Reboot,
}

/// A wish to end the guest's run in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// What the guest is asked to do.
    pub kind: ShutdownKind,
    /// How long it may take until it is stopped; `None`: as the description of the guest says.
    pub timeout: Option<Duration>,
}

impl Shutdown {
    /// The word for `control/shutdown` in xenstore.
    pub fn word(self) -> &'static str {
        match self.kind {
            ShutdownKind::Poweroff => "poweroff",
            ShutdownKind::Reboot => "reboot",
        }
    }
}

/// The domain behind the API. The methods run on the main thread and must not block. An error is one sentence
/// that says why it cannot be done now.
pub trait ApiHandler {
    /// Describes the domain.
    fn info(&self) -> serde_json::Value;

    /// Asks the guest to end its run.
    fn shutdown(&mut self, what: Shutdown) -> Result<(), String>;

    /// Stops the guest at once. The process ends after the answer is on its way.
    fn destroy(&mut self) -> Result<(), String>;

    /// Adds or takes away a device; the answer is sent when that is done.
    fn change_devices(&mut self, change: DeviceChange, reply: Reply);

    /// The screen, if the guest has one.
    fn display(&self) -> Option<Arc<Display>> {
        None
    }
}

impl<T: ApiHandler + ?Sized> ApiHandler for Box<T> {
    fn info(&self) -> serde_json::Value {
        (**self).info()
    }

    fn shutdown(&mut self, what: Shutdown) -> Result<(), String> {
        (**self).shutdown(what)
    }

    fn destroy(&mut self) -> Result<(), String> {
        (**self).destroy()
    }

    fn change_devices(&mut self, change: DeviceChange, reply: Reply) {
        (**self).change_devices(change, reply);
    }

    fn display(&self) -> Option<Arc<Display>> {
        (**self).display()
    }
}

//! xenbus, the back half: one state machine for every kind of Xen device (xen/include/public/io/xenbus.h).
//!
//! A backend states its keys and what to do on connect and disconnect ([`BackendDevice`]); the machine here
//! writes the states and survives every order in which a frontend, legal or not, goes through its own.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::event_channel::EventChannels;
use super::grant_table::GrantTable;

/// What a backend uses of its domain. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DomainHandle {
    /// Granted pages.
    pub grants: Arc<GrantTable>,
    /// Event channels.
    pub events: Arc<EventChannels>,
    /// Written by a backend's thread when [`BackendDevice::is_stopped`] or [`BackendDevice::take_update`] may
    /// answer something new; the main thread then asks.
    pub kick: Arc<EventFd>,
}

/// Keys of the frontend's directory, relative names like `ring-ref` or `queue-0/event-channel`.
pub trait FrontendKeys {
    /// The value, or `None` if the frontend did not write it (or not as text).
    fn read(&self, key: &str) -> Option<String>;
}

/// Keys to write, in order: relative name and value.
pub type Keys = Vec<(String, String)>;

/// Why a backend does not connect. The text goes into the frontend's `error/` directory and the log.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ConnectError(pub String);

/// One backend device. All calls come from the main thread and must not block.
pub trait BackendDevice: Send {
    /// Device class of the paths: "vbd" or "vif".
    fn class(&self) -> &'static str;
    /// Number of the device in the paths: the virtual-device number of a disk, the index of an interface.
    fn index(&self) -> u32;
    /// Keys for the frontend's directory that the toolstack writes (`virtual-device`, `mac`, ...), besides
    /// `backend`, `backend-id` and `state`.
    fn frontend_keys(&self) -> Keys;
    /// Keys for the backend's directory, written before InitWait: configuration and `feature-*`, besides
    /// `frontend`, `frontend-id`, `online` and `state`.
    fn backend_keys(&self) -> Keys;
    /// The frontend is Initialised (or Connected): map its rings, bind its event channels, start the queue
    /// threads. Returns keys to write before the backend's state becomes Connected.
    fn connect(&mut self, frontend: &dyn FrontendKeys, domain: &DomainHandle) -> Result<Keys, ConnectError>;
    /// Stops the queues: no new requests are taken; what is in flight is completed or abandoned safely. Ends
    /// at once; [`BackendDevice::is_stopped`] tells when the last page has been given back.
    fn disconnect(&mut self);
    /// True when nothing of a former connection is left (and before the first).
    fn is_stopped(&mut self) -> bool;
    /// Keys that changed while connected (a resized disk's `sectors`): written, then `state` is written again.
    fn take_update(&mut self) -> Option<Keys> {
        None
    }
    /// Counters for `xvmm info`: name and value.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

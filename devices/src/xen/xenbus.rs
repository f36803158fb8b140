//! xenbus, the back half: one state machine for every kind of Xen device (xen/include/public/io/xenbus.h).
//!
//! A backend states its keys and what to do on connect and disconnect ([`BackendDevice`]); the machine here
//! writes the states and survives every order in which a frontend, legal or not, goes through its own.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::event_channel::EventChannels;
use super::grant_table::GrantTable;
use super::types::DomId;

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

/// Backend and frontend states (xen/include/public/io/xenbus.h, `enum xenbus_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenbusState {
    /// The node is missing or holds no state.
    Unknown = 0,
    /// The frontend (or backend) starts.
    Initialising = 1,
    /// The backend has announced its features.
    InitWait = 2,
    /// The frontend has published its rings.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// On the way down; the device may still be in use.
    Closing = 5,
    /// Down.
    Closed = 6,
    /// The frontend changes a setting (XDP headroom).
    Reconfiguring = 7,
    /// The backend has taken the change.
    Reconfigured = 8,
}

impl XenbusState {
    fn parse(text: Option<String>) -> Self {
        match text.as_deref().map(str::trim) {
            Some("1") => Self::Initialising,
            Some("2") => Self::InitWait,
            Some("3") => Self::Initialised,
            Some("4") => Self::Connected,
            Some("5") => Self::Closing,
            Some("6") => Self::Closed,
            Some("7") => Self::Reconfiguring,
            Some("8") => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }
}

/// What the state machine does to xenstore, as domain 0. Errors of single writes are the store's to log: the
/// nodes are our own, and a guest that removed its directory has lost the device by that.
pub trait Store {
    /// The value of a node as text.
    fn read(&self, path: &str) -> Option<String>;
    /// Writes a node.
    fn write(&mut self, path: &str, value: &str);
    /// Removes a node with all below it.
    fn remove(&mut self, path: &str);
    /// Makes a directory that `owner` owns, and `reader` reads.
    fn make_directory(&mut self, path: &str, owner: DomId, reader: DomId);
}

struct Frontend<'a, S> {
    store: &'a S,
    path: &'a str,
}

impl<S: Store> FrontendKeys for Frontend<'_, S> {
    fn read(&self, key: &str) -> Option<String> {
        self.store.read(&format!("{}/{key}", self.path))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No queue runs.
    Stopped,
    Connected,
    /// The queues were told to stop, and hold granted pages yet.
    Stopping,
}

struct Slot {
    device: Box<dyn BackendDevice>,
    frontend: String,
    backend: String,
    phase: Phase,
    /// The backend's state as last written.
    state: XenbusState,
    /// The device is on its way out: never connected again.
    removing: bool,
}

/// All backend devices of a domain.
pub struct Xenbus {
    domid: DomId,
    domain: DomainHandle,
    slots: Vec<Slot>,
}

impl std::fmt::Debug for Xenbus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths = self.slots.iter().map(|s| (&s.backend, s.phase, s.state));
        f.debug_list().entries(paths).finish()
    }
}

impl Xenbus {
    /// No devices yet.
    pub fn new(domid: DomId, domain: DomainHandle) -> Self {
        Self { domid, domain, slots: Vec::new() }
    }

    /// Offers a device to the guest. Watch the returned path of the frontend's directory and pass what fires to
    /// [`Xenbus::frontend_changed`].
    pub fn add<S: Store>(&mut self, store: &mut S, device: Box<dyn BackendDevice>) -> String {
        let (class, index, domid) = (device.class(), device.index(), self.domid);
        let frontend = format!("/local/domain/{domid}/device/{class}/{index}");
        let backend = format!("/local/domain/0/backend/{class}/{domid}/{index}");
        let slot = Slot {
            device,
            frontend: frontend.clone(),
            backend,
            phase: Phase::Stopped,
            state: XenbusState::InitWait,
            removing: false,
        };
        slot.offer(store, self.domid);
        self.slots.push(slot);
        frontend
    }

    /// A node below a frontend's directory changed.
    pub fn frontend_changed<S: Store>(&mut self, store: &mut S, path: &str) {
        let domain = &self.domain;
        let in_slot =
            |s: &&mut Slot| path.strip_prefix(&*s.frontend).is_some_and(|r| r.is_empty() || r == "/state");
        if let Some(slot) = self.slots.iter_mut().find(in_slot) {
            slot.step(store, domain);
        }
        self.forget_removed(store);
    }

    /// A backend wrote [`DomainHandle::kick`]: some may have stopped, or have keys to update.
    pub fn kicked<S: Store>(&mut self, store: &mut S) {
        for slot in &mut self.slots {
            slot.step(store, &self.domain);
            if slot.phase == Phase::Connected
                && let Some(keys) = slot.device.take_update()
            {
                slot.write_keys(store, &keys);
                slot.set_state(store, XenbusState::Connected);
            }
        }
        self.forget_removed(store);
    }

    /// Takes a device from the guest: asks the frontend to close; with `force` without waiting for it.
    pub fn remove<S: Store>(&mut self, store: &mut S, class: &str, index: u32, force: bool) {
        let Some(slot) =
            self.slots.iter_mut().find(|s| s.device.class() == class && s.device.index() == index)
        else {
            return;
        };
        slot.removing = true;
        store.write(&format!("{}/online", slot.backend), "0");
        if force {
            slot.stop();
            store.remove(&slot.frontend.clone());
        }
        slot.set_state(store, XenbusState::Closing);
        slot.step(store, &self.domain);
        self.forget_removed(store);
    }

    /// Stops all queues, when the domain ends. [`Xenbus::all_stopped`] tells when they have.
    pub fn stop_all(&mut self) {
        for slot in &mut self.slots {
            slot.removing = true;
            slot.stop();
        }
    }

    /// True when no backend holds a granted page.
    pub fn all_stopped(&mut self) -> bool {
        self.slots.iter_mut().all(|s| s.device.is_stopped())
    }

    /// All devices, for `xvmm info`.
    pub fn devices(&self) -> impl Iterator<Item = (&dyn BackendDevice, bool)> {
        self.slots.iter().map(|s| (&*s.device, s.phase == Phase::Connected))
    }

    fn forget_removed<S: Store>(&mut self, store: &mut S) {
        self.slots.retain(|slot| {
            let gone = slot.removing && slot.phase == Phase::Stopped && slot.state == XenbusState::Closed;
            if gone {
                store.remove(&slot.frontend);
                store.remove(&slot.backend);
            }
            !gone
        });
    }
}

impl Slot {
    fn offer<S: Store>(&self, store: &mut S, domid: DomId) {
        store.make_directory(&self.backend, DomId::DOM0, domid);
        store.make_directory(&self.frontend, domid, DomId::DOM0);
        self.write_keys(
            store,
            &[
                ("frontend".into(), self.frontend.clone()),
                ("frontend-id".into(), domid.to_string()),
                ("online".into(), "1".into()),
            ],
        );
        self.write_keys(store, &self.device.backend_keys());
        store.write(&format!("{}/state", self.backend), &(self.state as u8).to_string());
        let mut keys = self.device.frontend_keys();
        keys.push(("backend".into(), self.backend.clone()));
        keys.push(("backend-id".into(), DomId::DOM0.to_string()));
        // Last: the guest may look as soon as the state is there.
        keys.push(("state".into(), (XenbusState::Initialising as u8).to_string()));
        for (key, value) in keys {
            store.write(&format!("{}/{key}", self.frontend), &value);
        }
    }

    fn write_keys<S: Store>(&self, store: &mut S, keys: &[(String, String)]) {
        for (key, value) in keys {
            store.write(&format!("{}/{key}", self.backend), value);
        }
    }

    fn set_state<S: Store>(&mut self, store: &mut S, state: XenbusState) {
        self.state = state;
        store.write(&format!("{}/state", self.backend), &(state as u8).to_string());
    }

    fn stop(&mut self) {
        if self.phase == Phase::Connected {
            self.device.disconnect();
            self.phase = Phase::Stopping;
        }
    }

    /// Brings the backend to where the frontend's state asks it to be. Called at any time, any number of times.
    fn step<S: Store>(&mut self, store: &mut S, domain: &DomainHandle) {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
        let front = XenbusState::parse(store.read(&format!("{}/state", self.frontend)));
        // Closing, Closed, gone, or started anew (a crash kernel): whatever was connected ends.
        if matches!(front, Closing | Closed | Initialising | Unknown) {
            self.stop();
        }
        if front == Closing && self.state != Closing && self.state != Closed {
            self.set_state(store, Closing);
        }
        if self.phase == Phase::Stopping {
            if !self.device.is_stopped() {
                return;
            }
            self.phase = Phase::Stopped;
        }
        if self.phase == Phase::Connected {
            return;
        }
        match front {
            // Once refused, a frontend has to close first: it would be refused again.
            Initialised | Connected if !self.removing && self.state != Closing => self.connect(store, domain),
            Initialising if !self.removing && self.state != InitWait => self.set_state(store, InitWait),
            // Closed without Closing before: the driver let go of the device, as Linux's blkfront does when its
            // module is unloaded. It binds again only to a backend that has stayed Connected, and then publishes
            // its rings at once; so the state is left as it is.
            Closed if self.state == Connected && !self.removing => {}
            Closed | Unknown if self.state != Closed => self.set_state(store, Closed),
            _ => {}
        }
    }

    fn connect<S: Store>(&mut self, store: &mut S, domain: &DomainHandle) {
        let frontend = Frontend { store: &*store, path: &self.frontend };
        match self.device.connect(&frontend, domain) {
            Ok(keys) => {
                self.phase = Phase::Connected;
                self.write_keys(store, &keys);
                self.set_state(store, XenbusState::Connected);
            }
            Err(error) => {
                tracing::warn!(device = self.backend, %error, "the guest's driver cannot be connected");
                let place = self.frontend.replacen("/device/", "/error/device/", 1);
                store.write(&format!("{place}/error"), &error.to_string());
                self.set_state(store, XenbusState::Closing);
            }
        }
    }
}

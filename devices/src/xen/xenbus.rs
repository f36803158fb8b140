//! xenbus, the back half: one state machine for every kind of Xen device (xen/include/public/io/xenbus.h).
//!
//! A backend states its keys and what to do on connect and disconnect ([`BackendDevice`]); the machine here
//! writes the states and survives every order in which a frontend, legal or not, goes through its own.
//!
//! Devices come and go while the guest runs. A device that goes is first asked for ([`Xenbus::request_removal`]:
//! `online` is 0, the backend is Closing); when the frontend has closed, its nodes are removed. A frontend that
//! does not close keeps the device ([`Xenbus::removal_overdue`]) or loses it ([`Xenbus::force_removal`]). In no
//! case does anything go before the last I/O on granted pages has ended. What is left then is a ring whose
//! requests are refused until the frontend lets go of it ([`Remnant`]).

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::event_channel::EventChannels;
use super::grant_table::GrantTable;
use super::types::DomId;
use crate::complaints::Complaints;

/// Bytes of a refusal that a frontend and the log are told. It may quote what the frontend wrote, of any length and
/// longer in the quotation than a node of xenstore can be.
const MAX_REFUSAL: usize = 512;

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

/// Names a device of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// As [`BackendDevice::class`].
    pub class: &'static str,
    /// As [`BackendDevice::index`].
    pub index: u32,
}

impl DeviceId {
    /// The id of this device.
    pub fn of(device: &dyn BackendDevice) -> Self {
        Self { class: device.class(), index: device.index() }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.class, self.index)
    }
}

/// The domain has a device of this id.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the domain has a device {0} already; take that one away first")]
pub struct DeviceExists(pub DeviceId);

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
    /// As [`BackendDevice::disconnect`], of a device that the guest loses. Its frontend may not know that yet, or
    /// wait for answers before it lets go: what it sends is for [`BackendDevice::take_remnant`].
    fn retire(&mut self) {
        self.disconnect();
    }
    /// True when nothing of a former connection is left (and before the first), but what
    /// [`BackendDevice::take_remnant`] takes.
    fn is_stopped(&mut self) -> bool;
    /// After [`BackendDevice::retire`], once the device is stopped: what answers the frontend from now on, if there
    /// is need of that. It uses nothing of the device.
    fn take_remnant(&mut self) -> Option<Box<dyn Remnant>> {
        None
    }
    /// Keys that changed while connected (a resized disk's `sectors`): written, then `state` is written again.
    fn take_update(&mut self) -> Option<Keys> {
        None
    }
    /// Keys of the frontend's directory that it may change while it is connected. See [`BackendDevice::reconfigure`].
    fn live_keys(&self) -> &'static [&'static str] {
        &[]
    }
    /// The connected frontend is Reconfiguring, or changed one of its live keys: reads them again. May be called at
    /// any time, and for nothing.
    fn reconfigure(&mut self, _frontend: &dyn FrontendKeys) {}
    /// True when what [`BackendDevice::reconfigure`] read is in force. [`DomainHandle::kick`] is written when this
    /// becomes true.
    fn is_reconfigured(&mut self) -> bool {
        true
    }
    /// Counters for `xvmm info`: name and value.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The rings of a device that is gone, as long as the frontend holds on to them: each request is refused.
/// Dropping it ends that at once, and no granted page is in use afterwards.
///
/// Linux does not let go of a disk before each request has its answer. It goes on sending for a while, even
/// after it has closed: what its scheduler had before is sent with the next interrupt.
pub trait Remnant: Send {
    /// The frontend has let go of all rings. [`DomainHandle::kick`] is written when this becomes true.
    fn is_over(&self) -> bool;
    /// Sends the frontend an event on each ring, though there may be nothing new: Linux's blkfront then sends what
    /// was waiting when it closed.
    fn notify(&self);
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

    /// The state's name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Initialising => "Initialising",
            Self::InitWait => "InitWait",
            Self::Initialised => "Initialised",
            Self::Connected => "Connected",
            Self::Closing => "Closing",
            Self::Closed => "Closed",
            Self::Reconfiguring => "Reconfiguring",
            Self::Reconfigured => "Reconfigured",
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

/// A device as `xvmm info` shows it.
pub struct DeviceStatus<'a> {
    /// The device.
    pub device: &'a dyn BackendDevice,
    /// The backend's state as the guest reads it.
    pub state: XenbusState,
    /// Its queues run.
    pub connected: bool,
    /// It was asked for, and goes as soon as the frontend closes.
    pub removing: bool,
}

/// A device that the guest does not have any more. Nothing of it is in use; dropping it closes what it is made
/// of on the host, which may take its time.
pub struct Removed {
    /// Which one it was.
    pub id: DeviceId,
    /// The frontend's directory, which was watched.
    pub frontend: String,
    /// The device.
    pub device: Box<dyn BackendDevice>,
}

impl fmt::Debug for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Removed").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What became of a removal that the frontend did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// No frontend used the device: it is removed.
    Removed,
    /// The frontend did not react: the device stays, as if nothing had been asked.
    Ignored,
    /// The frontend is Closing and still uses the device, as Linux before 5.14 does with a mounted disk. A state
    /// once announced cannot be taken back from it, so the device works on and goes when the frontend closes.
    InUse,
    /// The frontend has closed; the host has not finished its I/O. The device goes when that is done.
    Draining,
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
    /// As Stopping, and a remnant is to take over the rings.
    Retiring,
}

struct Slot {
    device: Box<dyn BackendDevice>,
    frontend: String,
    backend: String,
    phase: Phase,
    /// The backend's state as last written.
    state: XenbusState,
    /// The device is on its way out: not connected again.
    removing: bool,
    /// It goes whatever the frontend does.
    forced: bool,
    /// What answers the frontend when the device is retired.
    remnant: Option<Box<dyn Remnant>>,
    /// It can be refused as often as it likes.
    complaints: Complaints,
}

/// All backend devices of a domain.
pub struct Xenbus {
    domid: DomId,
    domain: DomainHandle,
    slots: Vec<Slot>,
    /// Gone, and not yet taken by [`Xenbus::take_removed`].
    removed: Vec<Removed>,
    /// What is left of devices that are gone; see [`Xenbus::sweep`].
    left: Vec<Left>,
}

/// What is left of a device that is gone, until the guest's driver has let go of it.
struct Left {
    id: DeviceId,
    /// The backend's directory, until it is removed.
    backend: Option<String>,
    remnant: Option<Box<dyn Remnant>>,
}

impl fmt::Debug for Xenbus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.slots.iter().map(|s| (&s.backend, s.phase, s.state));
        f.debug_list().entries(paths).finish()
    }
}

impl Xenbus {
    /// No devices yet.
    pub fn new(domid: DomId, domain: DomainHandle) -> Self {
        Self { domid, domain, slots: Vec::new(), removed: Vec::new(), left: Vec::new() }
    }

    /// Offers a device to the guest, which may run already. Watch the returned path of the frontend's directory
    /// and pass what fires to [`Xenbus::frontend_changed`].
    ///
    /// The caller serves the store on this thread alone: to everyone who reads it, the nodes of both sides
    /// appear in one step.
    pub fn add<S: Store>(
        &mut self,
        store: &mut S,
        device: Box<dyn BackendDevice>,
    ) -> Result<String, DeviceExists> {
        let (id, domid) = (DeviceId::of(&*device), self.domid);
        if self.contains(id) {
            return Err(DeviceExists(id));
        }
        let frontend = format!("/local/domain/{domid}/device/{id}");
        let backend = format!("/local/domain/0/backend/{}/{domid}/{}", id.class, id.index);
        // What a device before it left there, or what the guest wrote there since.
        store.remove(&frontend);
        store.remove(&backend);
        self.left.retain(|left| left.id != id);
        let slot = Slot {
            device,
            frontend: frontend.clone(),
            backend,
            phase: Phase::Stopped,
            state: XenbusState::InitWait,
            removing: false,
            forced: false,
            remnant: None,
            complaints: Complaints::default(),
        };
        slot.offer(store, domid);
        self.slots.push(slot);
        Ok(frontend)
    }

    /// Whether the guest has this device, or had it and has not let go of it yet.
    pub fn contains(&self, id: DeviceId) -> bool {
        self.slots.iter().any(|slot| slot.id() == id)
    }

    /// A node below a frontend's directory changed.
    pub fn frontend_changed<S: Store>(&mut self, store: &mut S, path: &str) {
        for slot in &mut self.slots {
            match path.strip_prefix(&*slot.frontend) {
                Some("" | "/state") => slot.step(store, &self.domain),
                Some(key) => slot.key_changed(store, &self.domain, key.trim_start_matches('/')),
                None => {}
            }
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

    /// Asks the frontend to let go of a device; may be repeated. When it has, [`Xenbus::take_removed`] has the
    /// device. False: there is no such device.
    pub fn request_removal<S: Store>(&mut self, store: &mut S, id: DeviceId) -> bool {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id() == id) else { return false };
        if !slot.removing {
            slot.removing = true;
            slot.write(store, "online", "0");
            slot.set_state(store, XenbusState::Closing);
        }
        slot.step(store, &self.domain);
        self.forget_removed(store);
        true
    }

    /// Takes a device from the guest, whatever its frontend does, as soon as the I/O in flight is done.
    /// False: there is no such device.
    pub fn force_removal<S: Store>(&mut self, store: &mut S, id: DeviceId) -> bool {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.id() == id) {
            slot.forced = true;
            slot.retire(slot.frontend_state(store));
        }
        self.request_removal(store, id)
    }

    /// The frontend has had its time. Returns what becomes of the device; `None`: there is no such device, or
    /// its removal was not asked for.
    pub fn removal_overdue<S: Store>(&mut self, store: &mut S, id: DeviceId) -> Option<Overdue> {
        let slot = self.slots.iter_mut().find(|slot| slot.id() == id && slot.removing)?;
        match slot.phase {
            Phase::Stopped => {
                self.force_removal(store, id);
                Some(Overdue::Removed)
            }
            Phase::Stopping | Phase::Retiring => Some(Overdue::Draining),
            Phase::Connected if slot.frontend_state(store) == XenbusState::Closing => Some(Overdue::InUse),
            Phase::Connected => {
                slot.removing = false;
                slot.write(store, "online", "1");
                slot.set_state(store, XenbusState::Connected);
                Some(Overdue::Ignored)
            }
        }
    }

    /// The devices that went since the last call.
    pub fn take_removed(&mut self) -> Vec<Removed> {
        std::mem::take(&mut self.removed)
    }

    /// Removes the backend directories of devices that are gone, when the guest's driver has let go of them:
    /// `watched` says whether the guest watches anything below a path. Until then the driver must read Closed
    /// there. A driver that finds no state does nothing, and Linux would go on to write what its page cache has for
    /// the disk, to a ring that nobody serves. True: the driver has let go of some for good, rings and all.
    pub fn sweep<S: Store>(&mut self, store: &mut S, watched: impl Fn(&S, &str) -> bool) -> bool {
        let before = self.left.len();
        self.left.retain_mut(|left| {
            if let Some(backend) = left.backend.take_if(|backend| !watched(store, backend)) {
                store.remove(&backend);
                // Linux's driver has seen by now that the device is closed, and is about to wait for the last
                // answers: some of them to requests that it has not sent.
                left.remnant.iter().for_each(|remnant| remnant.notify());
            }
            left.remnant.take_if(|remnant| remnant.is_over());
            left.backend.is_some() || left.remnant.is_some()
        });
        self.left.len() < before
    }

    /// Whether the guest's driver still holds on to a device that is gone. Linux would not notice if another one
    /// came in its place now: it looks whether there is a directory, and there is one again.
    pub fn is_leaving(&self, id: DeviceId) -> bool {
        self.left.iter().any(|left| left.id == id)
    }

    /// Stops all queues, when the domain ends. [`Xenbus::all_stopped`] tells when they have.
    pub fn stop_all(&mut self) {
        self.left.clear();
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
    pub fn devices(&self) -> impl Iterator<Item = DeviceStatus<'_>> {
        self.slots.iter().map(|slot| DeviceStatus {
            device: &*slot.device,
            state: slot.state,
            connected: slot.phase == Phase::Connected,
            removing: slot.removing,
        })
    }

    fn forget_removed<S: Store>(&mut self, store: &mut S) {
        let gone = |slot: &mut Slot| {
            slot.removing && slot.phase == Phase::Stopped && slot.state == XenbusState::Closed
        };
        for slot in self.slots.extract_if(.., gone) {
            store.remove(&slot.error_directory());
            store.remove(&slot.frontend);
            let id = DeviceId::of(&*slot.device);
            self.left.push(Left { id, backend: Some(slot.backend), remnant: slot.remnant });
            self.removed.push(Removed { id, frontend: slot.frontend, device: slot.device });
        }
    }
}

impl Slot {
    fn id(&self) -> DeviceId {
        DeviceId::of(&*self.device)
    }

    fn frontend_state<S: Store>(&self, store: &S) -> XenbusState {
        XenbusState::parse(store.read(&format!("{}/state", self.frontend)))
    }

    /// Where a driver, and we for it, tell what went wrong.
    fn error_directory(&self) -> String {
        self.frontend.replacen("/device/", "/error/device/", 1)
    }

    fn write<S: Store>(&self, store: &mut S, key: &str, value: &str) {
        store.write(&format!("{}/{key}", self.backend), value);
    }

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
        self.write(store, "state", &(self.state as u8).to_string());
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
            self.write(store, key, value);
        }
    }

    fn set_state<S: Store>(&mut self, store: &mut S, state: XenbusState) {
        self.state = state;
        self.write(store, "state", &(state as u8).to_string());
    }

    fn stop(&mut self) {
        self.remnant = None;
        if matches!(self.phase, Phase::Connected | Phase::Retiring) {
            self.device.disconnect();
            self.phase = Phase::Stopping;
        }
    }

    /// Stops a device that does not come back. A frontend that was started anew, or is gone, does not know the rings
    /// of the connection: their pages may be used for something else.
    fn retire(&mut self, front: XenbusState) {
        if matches!(front, XenbusState::Initialising | XenbusState::Unknown) {
            self.stop();
        } else if self.phase == Phase::Connected {
            self.device.retire();
            self.phase = Phase::Retiring;
        }
    }

    /// Brings the backend to where the frontend's state asks it to be. Called at any time, any number of times.
    fn step<S: Store>(&mut self, store: &mut S, domain: &DomainHandle) {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
        let front = self.frontend_state(store);
        // Closed, gone, or started anew (a crash kernel): whatever was connected ends. Not yet with Closing: a
        // frontend whose device is in use stays there and goes on sending requests (Linux before 5.14).
        match front {
            Closed if self.removing => self.retire(front),
            Closed | Initialising | Unknown => self.stop(),
            _ => {}
        }
        if front == Closing && self.state != Closing && self.state != Closed {
            self.set_state(store, Closing);
        }
        if matches!(self.phase, Phase::Stopping | Phase::Retiring) {
            if !self.device.is_stopped() {
                return;
            }
            if self.phase == Phase::Retiring {
                self.remnant = self.device.take_remnant();
            }
            self.phase = Phase::Stopped;
        }
        if self.phase == Phase::Connected {
            return self.answer_reconfiguring(store, front);
        }
        if self.forced {
            if self.state != Closed {
                self.set_state(store, Closed);
            }
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

    /// A frontend that wants a setting changed is Reconfiguring until the backend is Reconfigured, and then Connected
    /// again. Linux leaves the backend at Reconfigured for good: its next change would not wait for ours.
    fn answer_reconfiguring<S: Store>(&mut self, store: &mut S, front: XenbusState) {
        use XenbusState::{Connected, Reconfigured, Reconfiguring};
        match (front, self.state) {
            (Reconfiguring, Connected) => {
                self.device.reconfigure(&Frontend { store: &*store, path: &self.frontend });
                if self.device.is_reconfigured() {
                    self.set_state(store, Reconfigured);
                }
            }
            (Connected, Reconfigured) => self.set_state(store, Connected),
            _ => {}
        }
    }

    fn key_changed<S: Store>(&mut self, store: &mut S, domain: &DomainHandle, key: &str) {
        if self.phase != Phase::Connected || !self.device.live_keys().contains(&key) {
            return;
        }
        self.device.reconfigure(&Frontend { store: &*store, path: &self.frontend });
        // Linux's netfront is Reconfiguring first and writes the key then: what was said of the old value does not
        // hold any more.
        if self.state == XenbusState::Reconfigured && !self.device.is_reconfigured() {
            self.set_state(store, XenbusState::Connected);
        }
        self.step(store, domain);
    }

    fn connect<S: Store>(&mut self, store: &mut S, domain: &DomainHandle) {
        let frontend = Frontend { store: &*store, path: &self.frontend };
        match self.device.connect(&frontend, domain) {
            Ok(keys) => {
                self.phase = Phase::Connected;
                self.write_keys(store, &keys);
                self.set_state(store, XenbusState::Connected);
            }
            Err(ConnectError(mut error)) => {
                error.truncate(error.floor_char_boundary(MAX_REFUSAL));
                if self.complaints.may_complain() {
                    tracing::warn!(device = self.backend, %error, "the guest's driver cannot be connected");
                }
                store.write(&format!("{}/error", self.error_directory()), &error);
                self.set_state(store, XenbusState::Closing);
            }
        }
    }
}

#[cfg(test)]
mod tests;

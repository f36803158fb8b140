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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::testing::FakeGuest;

    #[derive(Default)]
    struct MemoryStore(BTreeMap<String, String>);

    impl Store for MemoryStore {
        fn read(&self, path: &str) -> Option<String> {
            self.0.get(path).cloned()
        }
        fn write(&mut self, path: &str, value: &str) {
            self.0.insert(path.into(), value.into());
        }
        fn remove(&mut self, path: &str) {
            self.0.retain(|key, _| key != path && !key.starts_with(&format!("{path}/")));
        }
        fn make_directory(&mut self, _: &str, _: DomId, _: DomId) {}
    }

    /// What happened to a device, in order; and how it behaves.
    #[derive(Default)]
    struct Record {
        calls: Vec<&'static str>,
        slow_to_stop: bool,
        refuse: bool,
        update: Option<Keys>,
    }

    struct TestDevice(Arc<Mutex<Record>>);

    impl BackendDevice for TestDevice {
        fn class(&self) -> &'static str {
            "vbd"
        }
        fn index(&self) -> u32 {
            51712
        }
        fn frontend_keys(&self) -> Keys {
            vec![("virtual-device".into(), "51712".into())]
        }
        fn backend_keys(&self) -> Keys {
            vec![("mode".into(), "w".into())]
        }
        fn connect(&mut self, frontend: &dyn FrontendKeys, _: &DomainHandle) -> Result<Keys, ConnectError> {
            let mut record = self.0.lock().unwrap();
            if record.refuse {
                return Err(ConnectError("no ring".into()));
            }
            record.calls.push("connect");
            Ok(vec![("saw".into(), frontend.read("ring-ref").unwrap_or_default())])
        }
        fn disconnect(&mut self) {
            self.0.lock().unwrap().calls.push("disconnect");
        }
        fn is_stopped(&mut self) -> bool {
            !self.0.lock().unwrap().slow_to_stop
        }
        fn take_update(&mut self) -> Option<Keys> {
            self.0.lock().unwrap().update.take()
        }
    }

    const FRONT: &str = "/local/domain/1/device/vbd/51712";
    const BACK: &str = "/local/domain/0/backend/vbd/1/51712";

    struct Bench {
        store: MemoryStore,
        xenbus: Xenbus,
        record: Arc<Mutex<Record>>,
    }

    impl Bench {
        fn new() -> Self {
            let record = Arc::new(Mutex::new(Record::default()));
            let mut store = MemoryStore::default();
            let mut xenbus = Xenbus::new(DomId(1), FakeGuest::new(1).domain);
            assert_eq!(xenbus.add(&mut store, Box::new(TestDevice(Arc::clone(&record)))), FRONT);
            Self { store, xenbus, record }
        }

        /// The frontend goes to `state`; returns the backend's.
        fn front(&mut self, state: &str) -> String {
            self.store.write(&format!("{FRONT}/state"), state);
            self.xenbus.frontend_changed(&mut self.store, &format!("{FRONT}/state"));
            self.back()
        }

        fn back(&self) -> String {
            self.store.read(&format!("{BACK}/state")).unwrap_or_default()
        }

        fn calls(&self) -> Vec<&'static str> {
            self.record.lock().unwrap().calls.clone()
        }
    }

    #[test]
    fn a_device_is_offered_with_its_keys_and_states() {
        let expected = [
            (format!("{BACK}/frontend"), FRONT),
            (format!("{BACK}/frontend-id"), "1"),
            (format!("{BACK}/mode"), "w"),
            (format!("{BACK}/online"), "1"),
            (format!("{BACK}/state"), "2"),
            (format!("{FRONT}/backend"), BACK),
            (format!("{FRONT}/backend-id"), "0"),
            (format!("{FRONT}/state"), "1"),
            (format!("{FRONT}/virtual-device"), "51712"),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(key, value)| (key, value.to_owned())).into();
        assert_eq!(Bench::new().store.0, expected);
    }

    #[test]
    fn an_orderly_frontend_connects_closes_and_connects_again() {
        let mut bench = Bench::new();
        bench.store.write(&format!("{FRONT}/ring-ref"), "8");
        assert_eq!(bench.front("3"), "4");
        assert_eq!(bench.store.read(&format!("{BACK}/saw")).unwrap(), "8");
        assert_eq!(bench.front("4"), "4");
        assert_eq!(bench.front("5"), "5");
        assert_eq!(bench.front("6"), "6");
        // netfront waits in Closed until its module is loaded again.
        assert_eq!(bench.front("6"), "6");
        assert_eq!(bench.front("1"), "2");
        assert_eq!(bench.front("4"), "4");
        assert_eq!(bench.calls(), ["connect", "disconnect", "connect"]);
    }

    #[test]
    fn a_frontend_that_lets_go_without_closing_finds_the_backend_connected() {
        let mut bench = Bench::new();
        bench.front("3");
        bench.front("4");
        assert_eq!(bench.front("6"), "4");
        assert_eq!(bench.calls(), ["connect", "disconnect"]);
        assert_eq!(bench.front("3"), "4");
        assert_eq!(bench.calls(), ["connect", "disconnect", "connect"]);
    }

    #[test]
    fn nothing_is_connected_while_a_former_connection_holds_pages() {
        let mut bench = Bench::new();
        bench.front("4");
        bench.record.lock().unwrap().slow_to_stop = true;
        assert_eq!(bench.front("5"), "5");
        assert_eq!(bench.front("6"), "5");
        assert_eq!(bench.front("3"), "5");
        assert_eq!(bench.front("1"), "5");
        bench.record.lock().unwrap().slow_to_stop = false;
        bench.xenbus.kicked(&mut bench.store);
        assert_eq!(bench.back(), "2");
        assert_eq!(bench.front("3"), "4");
        assert_eq!(bench.calls(), ["connect", "disconnect", "connect"]);
    }

    #[test]
    fn a_frontend_that_starts_anew_is_disconnected_first() {
        let mut bench = Bench::new();
        bench.front("4");
        assert_eq!(bench.front("1"), "2");
        assert_eq!(bench.calls(), ["connect", "disconnect"]);
    }

    #[test]
    fn a_removed_frontend_directory_closes_the_backend() {
        let mut bench = Bench::new();
        bench.front("4");
        bench.store.remove(FRONT);
        bench.xenbus.frontend_changed(&mut bench.store, FRONT);
        assert_eq!(bench.back(), "6");
        assert_eq!(bench.calls(), ["connect", "disconnect"]);
    }

    #[test]
    fn a_refused_frontend_is_told_why_and_not_tried_again() {
        let mut bench = Bench::new();
        bench.record.lock().unwrap().refuse = true;
        assert_eq!(bench.front("3"), "5");
        let error = bench.store.read("/local/domain/1/error/device/vbd/51712/error");
        assert_eq!(error.unwrap(), "no ring");
        bench.record.lock().unwrap().refuse = false;
        bench.xenbus.kicked(&mut bench.store);
        assert_eq!(bench.back(), "5");
        bench.front("6");
        assert_eq!(bench.front("1"), "2");
        assert_eq!(bench.front("3"), "4");
    }

    #[test]
    fn states_that_are_none_disconnect_and_harm_nothing() {
        let mut bench = Bench::new();
        for state in ["4", "99", "", "-1", "4", "\0", "5", "5", "2", "7", "8", "6", "1", "3"] {
            bench.front(state);
        }
        assert_eq!(bench.back(), "4");
    }

    #[test]
    fn a_changed_size_is_announced_by_writing_the_state_again() {
        let mut bench = Bench::new();
        bench.front("4");
        bench.record.lock().unwrap().update = Some(vec![("sectors".into(), "2048".into())]);
        bench.store.0.remove(&format!("{BACK}/state"));
        bench.xenbus.kicked(&mut bench.store);
        assert_eq!(bench.store.read(&format!("{BACK}/sectors")).unwrap(), "2048");
        assert_eq!(bench.back(), "4");
    }

    #[test]
    fn a_removal_waits_for_the_frontend() {
        let mut bench = Bench::new();
        bench.front("4");
        bench.xenbus.remove(&mut bench.store, "vbd", 51712, false);
        assert_eq!(bench.back(), "5");
        assert_eq!(bench.store.read(&format!("{BACK}/online")).unwrap(), "0");
        bench.front("5");
        bench.front("6");
        assert!(
            !bench.store.0.keys().any(|k| k.starts_with(FRONT) || k.starts_with(BACK)),
            "{:?}",
            bench.store.0
        );
    }

    #[test]
    fn a_forced_removal_does_not_wait() {
        let mut bench = Bench::new();
        bench.front("4");
        bench.xenbus.remove(&mut bench.store, "vbd", 51712, true);
        assert!(bench.store.0.is_empty(), "{:?}", bench.store.0);
        assert_eq!(bench.calls(), ["connect", "disconnect"]);
    }
}

//! A domain without a machine, for tests: its store, its state folder, its devices, and a client of its API.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::memory::SharedPages;
use devices::testing::FakeGuest;
use devices::xen::DomId;
use devices::xen::xenbus::{BackendDevice, ConnectError, DeviceId, DomainHandle, FrontendKeys, Keys};
use devices::xen::xenstore::ConnId;
use serde_json::Value;

use super::hotplug::{Hotplug, Opened};
use super::store_service::{SharedStore, StoreService};
use super::{DomainDir, Registry};
use crate::api::Outbox;
use crate::config::{DiskSource, DiskSpec, DomainConfig};

/// What happened to a device; and how it behaves.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) connected: bool,
    pub(super) closed: bool,
    /// Its I/O in flight does not end.
    pub(super) stuck: bool,
}

/// A device of any class.
pub(super) struct TestDevice {
    id: DeviceId,
    record: Arc<Mutex<Record>>,
}

impl BackendDevice for TestDevice {
    fn class(&self) -> &'static str {
        self.id.class
    }
    fn index(&self) -> u32 {
        self.id.index
    }
    fn frontend_keys(&self) -> Keys {
        Vec::new()
    }
    fn backend_keys(&self) -> Keys {
        Vec::new()
    }
    fn connect(&mut self, _: &dyn FrontendKeys, _: &DomainHandle) -> Result<Keys, ConnectError> {
        self.record.lock().unwrap().connected = true;
        Ok(Vec::new())
    }
    fn disconnect(&mut self) {
        self.record.lock().unwrap().connected = false;
    }
    fn is_stopped(&mut self) -> bool {
        let record = self.record.lock().unwrap();
        !record.connected && !record.stuck
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        self.record.lock().unwrap().closed = true;
    }
}

pub(super) struct TestDomain {
    pub(super) hotplug: Hotplug,
    pub(super) outbox: Arc<Outbox>,
    pub(super) dir: tempfile::TempDir,
    pub(super) folder: Rc<RefCell<DomainDir>>,
    store: SharedStore,
    guest: ConnId,
    _guest: FakeGuest,
}

impl TestDomain {
    pub(super) fn new() -> TestDomain {
        let dir = tempfile::tempdir().unwrap();
        let config = DomainConfig {
            name: Some("web".into()),
            run_dir: dir.path().join("run"),
            images_dir: dir.path().to_owned(),
            ..DomainConfig::default()
        };
        let folder = Registry::open(&config.run_dir).unwrap().create(&config).unwrap();
        let guest = FakeGuest::new(4);
        let special = Arc::new(SharedPages::new("special", 2).unwrap());
        let channel = guest.domain.events.open_reserved().unwrap();
        let socket = folder.xenstored_socket();
        let store = StoreService::new(DomId(1), &special, 1, channel, &socket, guest.domain.clone()).unwrap();
        let store = Rc::new(RefCell::new(store));
        let connection = store.borrow_mut().store().add_connection(DomId(1));
        let folder = Rc::new(RefCell::new(folder));
        let hotplug = Hotplug::new(Rc::clone(&store), Rc::clone(&folder)).unwrap();
        TestDomain {
            hotplug,
            outbox: Outbox::new().unwrap(),
            dir,
            folder,
            store,
            guest: connection,
            _guest: guest,
        }
    }

    /// Disks that the description has from the start, without their devices. Paths are relative to its folder.
    pub(super) fn describe(&self, specs: &[&str]) {
        let specs = specs.iter().map(|spec| DiskSpec::parse(spec).unwrap()).collect();
        let mut disks = DiskSpec::assign(specs).unwrap();
        for disk in &mut disks {
            if let DiskSource::Path(path) = &mut disk.source {
                *path = self.dir.path().join(&path);
            }
        }
        self.folder.borrow_mut().update(|config| config.disks = disks).unwrap();
    }

    /// A device that the guest has from the start.
    pub(super) fn add(&self, id: DeviceId) -> Arc<Mutex<Record>> {
        let record = Arc::<Mutex<Record>>::default();
        self.store.borrow_mut().add(Box::new(TestDevice { id, record: Arc::clone(&record) })).unwrap();
        record
    }

    /// What makes a device.
    pub(super) fn opened(id: DeviceId) -> (Opened, Arc<Mutex<Record>>) {
        let record = Arc::<Mutex<Record>>::default();
        let device = Box::new(TestDevice { id, record: Arc::clone(&record) });
        let describe = Box::new(|config: &mut DomainConfig| config.cmdline += "+");
        (Opened { device, describe }, record)
    }

    /// A node of the frontend's or the backend's directory.
    pub(super) fn node(&self, side: Side, id: DeviceId, key: &str) -> Option<String> {
        self.store.borrow_mut().store().read_str(&side.path(id, key))
    }

    /// The guest's driver begins or ends to watch the backend's state.
    pub(super) fn watch(&mut self, id: DeviceId, watch: bool) {
        let path = Side::Back.path(id, "state");
        let mut service = self.store.borrow_mut();
        let store = service.store();
        if watch {
            store.watch(self.guest, &path, "t").unwrap();
        } else {
            store.unwatch(self.guest, &path, "t").unwrap();
        }
    }

    /// The frontend goes through these states.
    pub(super) fn front(&mut self, id: DeviceId, states: &[&str]) {
        for state in states {
            self.store.borrow_mut().store().write(&Side::Front.path(id, "state"), *state).unwrap();
            self.run();
        }
    }

    /// As the main loop does when something came.
    pub(super) fn run(&mut self) {
        self.hotplug.advance(Instant::now());
    }

    /// A backend's I/O has ended.
    pub(super) fn kick(&mut self) {
        self.store.borrow_mut().kicked();
        self.run();
    }

    /// As if this time had passed.
    pub(super) fn run_after(&mut self, time: Duration) {
        self.hotplug.advance(Instant::now() + time);
    }

    /// The next answers, when there are so many: their statuses and bodies.
    pub(super) fn answers(&mut self, count: usize) -> Vec<(u16, Value)> {
        let mut answers = Vec::new();
        let end = Instant::now() + Duration::from_secs(60);
        while answers.len() < count {
            assert!(Instant::now() < end, "no answer; so far {answers:?}");
            self.run();
            answers.extend(self.outbox.answers());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(answers.len(), count, "{answers:?}");
        answers
    }

    /// The one answer that comes: status of HTTP, and the sentence or the body.
    pub(super) fn answer(&mut self) -> (u16, String) {
        let (status, body) = self.answers(1).remove(0);
        let sentence = body.get("error").and_then(Value::as_str).map(str::to_owned);
        (status, sentence.unwrap_or_else(|| body.to_string()))
    }

    /// Nothing was answered so far.
    pub(super) fn waits(&mut self) {
        self.run();
        assert_eq!(self.outbox.answers(), []);
    }

    /// The description as another process reads it.
    pub(super) fn described(&self) -> DomainConfig {
        let text = fs::read_to_string(self.folder.borrow().path().join("config.json")).unwrap();
        let config = serde_json::from_str(&text).unwrap();
        assert_eq!(self.folder.borrow().config(), &config);
        config
    }
}

/// Whose directory.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Front,
    Back,
}

impl Side {
    fn path(self, id: DeviceId, key: &str) -> String {
        match self {
            Side::Front => format!("/local/domain/1/device/{id}/{key}"),
            Side::Back => format!("/local/domain/0/backend/{}/1/{}/{key}", id.class, id.index),
        }
    }
}

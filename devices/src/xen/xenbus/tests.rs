//! Every order in which frontend, toolstack and backend may go through their states.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::complaints::MAX_COMPLAINTS;
use crate::testing::{FakeGuest, MemoryStore, log_lines};

/// What happened to a device, in order; and how it behaves.
#[derive(Default)]
struct Record {
    calls: Vec<&'static str>,
    slow_to_stop: bool,
    refuse: bool,
    update: Option<Keys>,
    /// The frontend holds on to its rings.
    holds_on: bool,
    /// Added to the index of xvda.
    index: u32,
    slow_to_reconfigure: bool,
    /// The live key as it was read.
    live: Vec<String>,
}

struct TestDevice(Arc<Mutex<Record>>);

impl BackendDevice for TestDevice {
    fn class(&self) -> &'static str {
        "vbd"
    }
    fn index(&self) -> u32 {
        51712 + self.0.lock().unwrap().index
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
            return Err(ConnectError(frontend.read("why").unwrap_or("no ring".into())));
        }
        record.calls.push("connect");
        Ok(vec![("saw".into(), frontend.read("ring-ref").unwrap_or_default())])
    }
    fn disconnect(&mut self) {
        self.0.lock().unwrap().calls.push("disconnect");
    }
    fn retire(&mut self) {
        self.0.lock().unwrap().calls.push("retire");
    }
    fn is_stopped(&mut self) -> bool {
        !self.0.lock().unwrap().slow_to_stop
    }
    fn take_remnant(&mut self) -> Option<Box<dyn Remnant>> {
        self.0.lock().unwrap().calls.push("refuse");
        Some(Box::new(TestRemnant(Arc::clone(&self.0))))
    }
    fn take_update(&mut self) -> Option<Keys> {
        self.0.lock().unwrap().update.take()
    }
    fn live_keys(&self) -> &'static [&'static str] {
        &["headroom"]
    }
    fn reconfigure(&mut self, frontend: &dyn FrontendKeys) {
        self.0.lock().unwrap().live.push(frontend.read("headroom").unwrap_or_default());
    }
    fn is_reconfigured(&mut self) -> bool {
        !self.0.lock().unwrap().slow_to_reconfigure
    }
}

struct TestRemnant(Arc<Mutex<Record>>);

impl Remnant for TestRemnant {
    fn is_over(&self) -> bool {
        !self.0.lock().unwrap().holds_on
    }
    fn notify(&self) {
        self.0.lock().unwrap().calls.push("notify");
    }
}

impl Drop for TestRemnant {
    fn drop(&mut self) {
        self.0.lock().unwrap().calls.push("end");
    }
}

/// What happens to a device that was connected and is removed.
const REMOVED: [&str; 5] = ["connect", "retire", "refuse", "notify", "end"];

const ID: DeviceId = DeviceId { class: "vbd", index: 51712 };
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
        assert_eq!(xenbus.add(&mut store, Box::new(TestDevice(Arc::clone(&record)))).unwrap(), FRONT);
        Self { store, xenbus, record }
    }

    /// The frontend goes to `state`; returns the backend's.
    fn front(&mut self, state: &str) -> String {
        self.store.write(&format!("{FRONT}/state"), state);
        self.xenbus.frontend_changed(&mut self.store, &format!("{FRONT}/state"));
        self.back()
    }

    fn back(&self) -> String {
        self.value("state")
    }

    fn value(&self, key: &str) -> String {
        self.store.read(&format!("{BACK}/{key}")).unwrap_or_default()
    }

    fn request(&mut self) {
        assert!(self.xenbus.request_removal(&mut self.store, ID));
    }

    fn force(&mut self) {
        assert!(self.xenbus.force_removal(&mut self.store, ID));
    }

    fn overdue(&mut self) -> Option<Overdue> {
        self.xenbus.removal_overdue(&mut self.store, ID)
    }

    /// The host's I/O takes its time from now on, or ends.
    fn slow(&mut self, slow: bool) {
        self.record.lock().unwrap().slow_to_stop = slow;
        if !slow {
            self.xenbus.kicked(&mut self.store);
        }
    }

    /// Whether the device went, with all nodes, and was handed out; nothing of it may be in use then.
    fn is_gone(&mut self) -> bool {
        let removed = self.xenbus.take_removed();
        let Some(removed) = removed.first() else {
            assert!(self.xenbus.contains(ID) && self.store.read(&format!("{FRONT}/state")).is_some());
            return false;
        };
        assert!((removed.id, &*removed.frontend) == (ID, FRONT) && !self.xenbus.contains(ID));
        assert!(self.xenbus.is_leaving(ID));
        assert!(self.xenbus.sweep(&mut self.store, |_, _| false) && !self.xenbus.is_leaving(ID));
        assert!(self.store.0.is_empty(), "{:?}", self.store.0);
        true
    }

    fn add_again(&mut self) -> Result<String, DeviceExists> {
        self.xenbus.add(&mut self.store, Box::new(TestDevice(Arc::clone(&self.record))))
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
fn a_frontend_that_is_refused_again_and_again_does_not_fill_the_log() {
    let lines = log_lines(|| {
        let mut bench = Bench::new();
        bench.record.lock().unwrap().refuse = true;
        for _ in 0..1000 {
            for (state, expected) in [("3", "5"), ("6", "6"), ("1", "2")] {
                assert_eq!(bench.front(state), expected);
            }
        }
    });
    assert!((1..=MAX_COMPLAINTS).contains(&lines), "{lines} lines");
}

#[test]
fn a_refusal_that_quotes_a_frontend_without_end_is_cut() {
    let mut bench = Bench::new();
    bench.record.lock().unwrap().refuse = true;
    bench.store.write(&format!("{FRONT}/why"), &"x\u{e9}".repeat(2000));
    bench.front("3");
    let told = &bench.store.0["/local/domain/1/error/device/vbd/51712/error"];
    assert!((510..=512).contains(&told.len()) && told.starts_with("x\u{e9}x"), "{}", told.len());
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

impl Bench {
    /// The frontend writes its live key; returns the backend's state.
    fn change(&mut self, value: &str) -> String {
        self.store.write(&format!("{FRONT}/headroom"), value);
        self.xenbus.frontend_changed(&mut self.store, &format!("{FRONT}/headroom"));
        self.back()
    }

    /// The new setting takes its time from now on, or is in force.
    fn slow_to_reconfigure(&mut self, slow: bool) {
        self.record.lock().unwrap().slow_to_reconfigure = slow;
        if !slow {
            self.xenbus.kicked(&mut self.store);
        }
    }

    fn live(&self) -> Vec<String> {
        std::mem::take(&mut self.record.lock().unwrap().live)
    }
}

#[test]
fn a_reconfiguring_frontend_is_answered_and_connected_again() {
    let mut bench = connected();
    for value in ["256", "0"] {
        bench.store.write(&format!("{FRONT}/headroom"), value);
        assert_eq!(bench.front("7"), "8");
        assert_eq!(bench.live(), [value]);
        assert_eq!(bench.front("4"), "4");
    }
    assert_eq!(bench.calls(), ["connect"]);
}

#[test]
fn a_backend_is_reconfigured_when_the_new_setting_is_in_force() {
    let mut bench = connected();
    bench.slow_to_reconfigure(true);
    assert_eq!(bench.front("7"), "4");
    bench.slow_to_reconfigure(false);
    assert_eq!(bench.back(), "8");
    assert_eq!(bench.front("4"), "4");
}

#[test]
fn a_key_that_comes_after_reconfiguring_counts() {
    let mut bench = connected();
    assert_eq!(bench.front("7"), "8");
    bench.slow_to_reconfigure(true);
    assert_eq!(bench.change("256"), "4", "the old value's answer stands");
    assert_eq!(bench.live().last().unwrap(), "256");
    bench.slow_to_reconfigure(false);
    assert_eq!(bench.back(), "8");
    assert_eq!(bench.front("4"), "4");
}

#[test]
fn a_live_key_is_read_while_connected_and_no_other_key() {
    let mut bench = Bench::new();
    assert_eq!(bench.change("1"), "2");
    bench.front("3");
    assert_eq!(bench.change("2"), "4");
    bench.store.write(&format!("{FRONT}/other"), "3");
    bench.xenbus.frontend_changed(&mut bench.store, &format!("{FRONT}/other"));
    bench.xenbus.frontend_changed(&mut bench.store, &format!("{FRONT}0/headroom"));
    assert_eq!(bench.live(), ["2"]);
    bench.front("6");
    bench.change("4");
    assert_eq!(bench.live(), [""; 0]);
}

#[test]
fn a_frontend_that_closes_while_reconfiguring_is_disconnected() {
    let mut bench = connected();
    bench.slow_to_reconfigure(true);
    bench.front("7");
    assert_eq!(bench.front("5"), "5");
    bench.slow_to_reconfigure(false);
    assert_eq!((bench.front("7").as_str(), bench.change("9").as_str()), ("5", "5"));
    assert_eq!(bench.front("6"), "6");
    assert_eq!(bench.front("1"), "2");
    assert_eq!(bench.front("4"), "4");
    assert_eq!(bench.calls(), ["connect", "disconnect", "connect"]);
}

/// A frontend that connected, by the states that it went through.
fn connected() -> Bench {
    let mut bench = Bench::new();
    bench.front("3");
    bench.front("4");
    assert_eq!(bench.back(), "4");
    bench
}

#[test]
fn a_device_goes_when_the_frontend_has_closed() {
    let mut bench = connected();
    bench.request();
    assert_eq!((bench.back().as_str(), bench.value("online").as_str()), ("5", "0"));
    assert!(!bench.is_gone());
    bench.front("6");
    assert!(bench.is_gone());
    assert_eq!(bench.calls(), REMOVED);
}

#[test]
fn a_device_in_use_works_until_the_frontend_closes() {
    let mut bench = connected();
    bench.request();
    assert_eq!(bench.front("5"), "5");
    assert_eq!(bench.calls(), ["connect"], "a disk that the guest refuses to close must be served");
    assert_eq!(bench.overdue(), Some(Overdue::InUse));
    assert_eq!((bench.back().as_str(), bench.value("online").as_str()), ("5", "0"));
    assert!(!bench.is_gone());
    bench.front("6");
    assert!(bench.is_gone());
}

#[test]
fn a_request_without_an_answer_is_taken_back() {
    let mut bench = connected();
    bench.request();
    assert_eq!(bench.overdue(), Some(Overdue::Ignored));
    assert_eq!((bench.back().as_str(), bench.value("online").as_str()), ("4", "1"));
    assert_eq!(bench.overdue(), None);
    assert_eq!(bench.calls(), ["connect"]);
    // As if nothing had been asked: a later close is one of the frontend's own.
    bench.front("5");
    bench.front("6");
    assert_eq!(bench.front("1"), "2");
    assert!(!bench.is_gone());
    bench.request();
    bench.front("6");
    assert!(bench.is_gone());
}

#[test]
fn a_device_without_a_driver_goes_when_the_time_is_over() {
    let mut bench = Bench::new();
    bench.request();
    assert!(!bench.is_gone());
    assert_eq!(bench.overdue(), Some(Overdue::Removed));
    assert!(bench.is_gone());
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn a_removal_during_connect_does_not_connect() {
    let mut bench = Bench::new();
    bench.request();
    // The driver saw InitWait, and publishes its rings before it sees Closing.
    assert_eq!(bench.front("3"), "5");
    bench.front("6");
    assert!(bench.is_gone());
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn a_device_that_its_driver_has_let_go_of_goes_at_once() {
    for closing in [false, true] {
        let mut bench = connected();
        if closing {
            bench.front("5");
        }
        bench.front("6");
        bench.request();
        assert!(bench.is_gone());
    }
}

#[test]
fn a_frontend_that_dies_in_the_middle_of_a_removal_loses_the_device() {
    // Its directory goes, its state becomes nonsense, or a crash kernel starts anew and then closes.
    for states in [&["gone"][..], &["99"], &["5", "gone"], &["1", "6"], &["5", "1", "3", "6"]] {
        let mut bench = connected();
        bench.request();
        for state in states {
            if *state == "gone" {
                bench.store.remove(FRONT);
                bench.xenbus.frontend_changed(&mut bench.store, FRONT);
            } else {
                bench.front(state);
            }
        }
        assert!(bench.is_gone(), "{states:?}");
        assert_eq!(bench.calls(), ["connect", "disconnect"], "{states:?}");
    }
}

#[test]
fn a_removal_asked_for_twice_is_one() {
    let mut bench = connected();
    bench.request();
    bench.front("5");
    bench.store.0.remove(&format!("{BACK}/state"));
    bench.request();
    assert_eq!(bench.back(), "", "the state was written again");
    bench.front("6");
    assert!(bench.is_gone());
    assert!(!bench.xenbus.request_removal(&mut bench.store, ID));
    assert!(!bench.xenbus.force_removal(&mut bench.store, ID));
    assert_eq!(bench.overdue(), None);
    assert!(bench.store.0.is_empty());
}

#[test]
fn a_device_taken_by_force_goes_in_every_state_of_the_frontend() {
    for states in [&[][..], &["3"], &["3", "4"], &["3", "4", "5"], &["4", "6"], &["4", "5", "6"], &["99"]] {
        let mut bench = Bench::new();
        states.iter().for_each(|state| drop(bench.front(state)));
        bench.force();
        assert!(bench.is_gone(), "{states:?}");
    }
}

#[test]
fn force_helps_where_asking_did_not() {
    let mut bench = connected();
    bench.request();
    bench.front("5");
    bench.force();
    assert!(bench.is_gone());
    assert_eq!(bench.calls(), REMOVED);
}

#[test]
fn nothing_goes_while_pages_are_in_use() {
    for force in [false, true] {
        let mut bench = connected();
        bench.slow(true);
        if force {
            bench.force();
        } else {
            bench.request();
            bench.front("6");
        }
        assert_eq!(bench.overdue(), Some(Overdue::Draining));
        assert_eq!(bench.back(), "5");
        // Nothing that the frontend does meanwhile connects it.
        for state in ["1", "3", "4", "5", "6"] {
            bench.front(state);
        }
        assert!(!bench.is_gone());
        bench.slow(false);
        assert!(bench.is_gone());
        // What started anew does not know the rings of the one before.
        assert_eq!(bench.calls(), ["connect", "retire", "disconnect"]);
    }
}

#[test]
fn a_driver_finds_the_backend_closed_until_it_lets_go() {
    for force in [false, true] {
        let mut bench = connected();
        if force {
            bench.force();
        } else {
            bench.request();
            bench.front("6");
        }
        assert!(!bench.xenbus.contains(ID));
        assert!(!bench.store.0.keys().any(|key| key.starts_with(FRONT)));
        assert!(!bench.xenbus.sweep(&mut bench.store, |_, path| path == BACK));
        assert_eq!(bench.back(), "6");
        assert!(bench.xenbus.is_leaving(ID));
        assert!(bench.xenbus.sweep(&mut bench.store, |_, _| false));
        assert!(bench.store.0.is_empty() && !bench.xenbus.is_leaving(ID));
    }
}

#[test]
fn what_a_frontend_sends_to_a_device_that_is_gone_is_refused_until_it_lets_go() {
    for force in [false, true] {
        let mut bench = connected();
        bench.record.lock().unwrap().holds_on = true;
        if force {
            bench.force();
        } else {
            bench.request();
            bench.front("6");
        }
        assert_eq!(bench.xenbus.take_removed().len(), 1);
        assert_eq!(bench.calls(), REMOVED[..3]);
        // The driver lets go of the backend's state, then waits for the last answers, then lets go of the rings.
        assert!(!bench.xenbus.sweep(&mut bench.store, |_, path| path == BACK));
        assert_eq!(bench.calls(), REMOVED[..3]);
        for _ in 0..3 {
            assert!(!bench.xenbus.sweep(&mut bench.store, |_, _| false));
            assert!(bench.store.0.is_empty() && bench.xenbus.is_leaving(ID));
            assert_eq!(bench.calls(), REMOVED[..4]);
        }
        bench.record.lock().unwrap().holds_on = false;
        assert!(bench.xenbus.sweep(&mut bench.store, |_, _| false) && !bench.xenbus.is_leaving(ID));
        assert_eq!(bench.calls(), REMOVED);
    }
}

#[test]
fn nothing_is_refused_on_the_rings_of_a_frontend_that_is_gone() {
    for (before, after) in [("6", Some("1")), ("6", Some("99")), ("6", None), ("4", Some("1")), ("4", None)] {
        let mut bench = connected();
        bench.slow(true);
        bench.front(before);
        bench.force();
        match after {
            Some(state) => drop(bench.front(state)),
            None => {
                bench.store.remove(FRONT);
                bench.xenbus.frontend_changed(&mut bench.store, FRONT);
            }
        }
        bench.slow(false);
        assert_eq!(bench.xenbus.take_removed().len(), 1);
        assert!(!bench.calls().contains(&"refuse"), "{before} {after:?}: {:?}", bench.calls());
    }
}

#[test]
fn the_end_of_the_domain_ends_what_is_refused() {
    let mut bench = connected();
    bench.record.lock().unwrap().holds_on = true;
    bench.force();
    assert_eq!(bench.xenbus.take_removed().len(), 1);
    bench.xenbus.stop_all();
    assert!(bench.xenbus.all_stopped());
    assert_eq!(bench.calls(), ["connect", "retire", "refuse", "end"]);
}

#[test]
fn a_device_is_refused_while_its_id_is_in_use() {
    let mut bench = connected();
    assert_eq!(bench.add_again(), Err(DeviceExists(ID)));
    bench.request();
    bench.front("5");
    assert_eq!(bench.add_again(), Err(DeviceExists(ID)));
    bench.front("6");
    assert!(bench.is_gone());
    assert_eq!(bench.add_again().unwrap(), FRONT);
    assert_eq!(bench.front("3"), "4");
    assert_eq!(bench.calls(), [&REMOVED[..], &["connect"]].concat());
}

#[test]
fn a_new_device_finds_nothing_of_the_one_before() {
    let mut bench = connected();
    let stale = [format!("{FRONT}/ring-ref"), format!("{BACK}/sectors")];
    stale.iter().for_each(|path| bench.store.write(path, "1"));
    bench.store.write("/local/domain/1/error/device/vbd/51712/error", "16");
    bench.force();
    // Written by a driver that did not know yet.
    bench.store.write(&stale[0], "2");
    bench.add_again().unwrap();
    assert_eq!(bench.store.0, Bench::new().store.0);
    // The directory belongs to the new one now.
    bench.xenbus.sweep(&mut bench.store, |_, _| false);
    assert_eq!(bench.back(), "2");
}

#[test]
fn other_devices_live_on() {
    let mut bench = connected();
    let other = Arc::new(Mutex::new(Record { index: 1, ..Record::default() }));
    bench.xenbus.add(&mut bench.store, Box::new(TestDevice(Arc::clone(&other)))).unwrap();
    let path = "/local/domain/1/device/vbd/51713/state";
    bench.store.write(path, "4");
    bench.xenbus.frontend_changed(&mut bench.store, path);
    bench.force();
    assert_eq!(bench.xenbus.take_removed().len(), 1);
    assert_eq!(other.lock().unwrap().calls, ["connect"]);
    assert_eq!(bench.store.read("/local/domain/0/backend/vbd/1/51713/state").unwrap(), "4");
    assert!(bench.store.read(path).is_some());
}

#[test]
fn the_end_of_the_domain_removes_nothing() {
    let mut bench = connected();
    bench.request();
    bench.xenbus.stop_all();
    assert!(bench.xenbus.all_stopped());
    assert!(!bench.is_gone());
}

#[test]
fn what_the_devices_do_is_told() {
    let mut bench = Bench::new();
    let status = |bench: &Bench| {
        let device = bench.xenbus.devices().next().unwrap();
        assert_eq!(DeviceId::of(device.device), ID);
        (device.state.name(), device.connected, device.removing)
    };
    assert_eq!(status(&bench), ("InitWait", false, false));
    bench.front("3");
    assert_eq!(status(&bench), ("Connected", true, false));
    bench.request();
    assert_eq!(status(&bench), ("Closing", true, true));
}

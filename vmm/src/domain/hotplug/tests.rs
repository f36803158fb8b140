#![allow(clippy::unwrap_used)]
use super::*;
use crate::domain::testing::{Record, Side, TestDomain};

/// A disk and an interface: the machine makes no difference.
const IDS: [DeviceId; 2] = [DeviceId { class: "vbd", index: 51728 }, DeviceId { class: "vif", index: 0 }];
const ID: DeviceId = IDS[0];
const LONG: Duration = Duration::from_secs(3600);

type Shared = Arc<Mutex<Record>>;

fn departure(id: DeviceId, patience: Duration, force: bool) -> Departure {
    let describe = Box::new(|config: &mut DomainConfig| config.cmdline += "-");
    Departure { id, name: "xvdb".into(), patience, force, describe }
}

fn attach(domain: &mut TestDomain, id: DeviceId, before: Option<Departure>) -> Shared {
    let (opened, record) = TestDomain::opened(id);
    attach_with(domain, id, before, Box::new(|| Ok(opened)));
    record
}

fn attach_with(domain: &mut TestDomain, id: DeviceId, before: Option<Departure>, open: Open) {
    let arrival = Arrival { id, name: "xvdb".into(), open, answer: "done".into() };
    let reply = domain.outbox.reply();
    domain.hotplug.attach(arrival, before, reply);
}

fn detach(domain: &mut TestDomain, id: DeviceId, patience: Duration, force: bool) {
    let reply = domain.outbox.reply();
    domain.hotplug.detach(departure(id, patience, force), reply);
}

/// A domain with a connected device.
fn connected(id: DeviceId) -> (TestDomain, Shared) {
    let mut domain = TestDomain::new();
    let record = domain.add(id);
    domain.front(id, &["3", "4"]);
    assert!(record.lock().unwrap().connected);
    (domain, record)
}

fn is_gone(domain: &mut TestDomain, id: DeviceId) -> bool {
    let nodes = [Side::Front, Side::Back].map(|side| domain.node(side, id, "state").is_some());
    assert_eq!(domain.hotplug.is_taken(id), nodes[0] && nodes[1]);
    nodes == [false, false]
}

fn refused(domain: &mut TestDomain, status: ExitStatus) {
    let (_, body) = domain.answers(1).remove(0);
    assert_eq!(body["status"], status.code(), "{body}");
}

#[test]
fn an_attached_device_is_offered_and_described() {
    for id in IDS {
        let mut domain = TestDomain::new();
        let record = attach(&mut domain, id, None);
        assert_eq!(domain.answer(), (200, r#""done""#.into()));
        assert_eq!(domain.node(Side::Front, id, "state").unwrap(), "1");
        assert_eq!(domain.node(Side::Back, id, "state").unwrap(), "2");
        assert_eq!(domain.described().cmdline, "+");
        domain.front(id, &["3", "4"]);
        assert!(record.lock().unwrap().connected);
    }
}

#[test]
fn the_domain_goes_on_while_a_device_is_opened() {
    let mut domain = TestDomain::new();
    let (opened, _) = TestDomain::opened(ID);
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let open = move || {
        gone.recv().unwrap();
        Ok(opened)
    };
    attach_with(&mut domain, ID, None, Box::new(open));
    domain.waits();
    // Its place is taken already.
    attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::DeviceBusy);
    detach(&mut domain, ID, LONG, true);
    refused(&mut domain, ExitStatus::DeviceBusy);
    // Others come meanwhile.
    attach(&mut domain, IDS[1], None);
    assert_eq!(domain.answer().0, 200);
    go.send(()).unwrap();
    assert_eq!(domain.answer().0, 200);
}

#[test]
fn a_device_that_cannot_be_opened_leaves_nothing() {
    let mut domain = TestDomain::new();
    let open = || Err(Failure::new(ExitStatus::DiskEmpty, "it is empty"));
    attach_with(&mut domain, ID, None, Box::new(open));
    let (status, body) = domain.answers(1).remove(0);
    assert_eq!((status, &body["error"], &body["status"]), (409, &"it is empty".into(), &22.into()));
    assert!(is_gone(&mut domain, ID));
    assert_eq!(domain.described().cmdline, "");
    attach(&mut domain, ID, None);
    assert_eq!(domain.answer().0, 200);
}

#[test]
fn a_name_in_use_is_refused() {
    let (mut domain, _) = connected(ID);
    attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::SameVdev);
}

#[test]
fn a_device_that_cannot_be_described_is_not_offered() {
    let mut domain = TestDomain::new();
    std::fs::remove_dir_all(domain.folder.borrow().path()).unwrap();
    let record = attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::RunDirUnusable);
    assert!(is_gone(&mut domain, ID));
    domain.hotplug.finish(LONG);
    assert!(record.lock().unwrap().closed);
}

#[test]
fn a_detached_device_is_closed_before_the_answer() {
    for id in IDS {
        let (mut domain, record) = connected(id);
        detach(&mut domain, id, LONG, false);
        domain.waits();
        assert_eq!(domain.node(Side::Back, id, "state").unwrap(), "5");
        assert!(record.lock().unwrap().connected, "the guest has not closed it yet");
        domain.front(id, &["6"]);
        assert_eq!(domain.answer(), (204, "null".into()));
        assert!(record.lock().unwrap().closed);
        assert!(is_gone(&mut domain, id));
        assert_eq!(domain.described().cmdline, "-");
    }
}

#[test]
fn a_guest_that_does_not_answer_keeps_the_device() {
    let (mut domain, record) = connected(ID);
    detach(&mut domain, ID, LONG, false);
    domain.run_after(LONG / 2);
    domain.waits();
    domain.run_after(LONG * 2);
    refused(&mut domain, ExitStatus::DeviceKept);
    assert_eq!(domain.node(Side::Back, ID, "state").unwrap(), "4");
    assert!(record.lock().unwrap().connected);
    assert_eq!(domain.described().cmdline, "");
    // And may be asked again.
    detach(&mut domain, ID, LONG, false);
    domain.front(ID, &["5", "6"]);
    assert_eq!(domain.answer().0, 204);
}

#[test]
fn a_timeout_beyond_the_clock_is_no_limit() {
    for force in [false, true] {
        let (mut domain, record) = connected(ID);
        detach(&mut domain, ID, Duration::MAX, force);
        domain.run_after(LONG * 24 * 365 * 100);
        domain.waits();
        assert!(record.lock().unwrap().connected);
        domain.front(ID, &["6"]);
        assert_eq!(domain.answer().0, 204);
    }
}

#[test]
fn a_device_in_use_goes_when_the_guest_is_done_with_it() {
    let (mut domain, record) = connected(ID);
    detach(&mut domain, ID, Duration::ZERO, false);
    domain.front(ID, &["5"]);
    detach(&mut domain, ID, LONG, false);
    // The first one was told while the driver had not reacted yet, or after.
    let early = domain.answers(1);
    assert_eq!(early[0].1["status"], ExitStatus::DeviceKept.code());
    domain.run_after(LONG * 2);
    refused(&mut domain, ExitStatus::DeviceKept);
    assert!(record.lock().unwrap().connected);
    // Nobody waits any more.
    domain.front(ID, &["6"]);
    domain.hotplug.finish(LONG);
    assert!(record.lock().unwrap().closed && is_gone(&mut domain, ID));
    assert_eq!(domain.described().cmdline, "-");
}

#[test]
fn a_device_that_no_driver_uses_goes_when_the_time_is_over() {
    let mut domain = TestDomain::new();
    domain.add(ID);
    detach(&mut domain, ID, LONG, false);
    domain.waits();
    domain.run_after(LONG * 2);
    assert_eq!(domain.answer().0, 204);
    assert!(is_gone(&mut domain, ID));
}

#[test]
fn force_takes_a_device_after_the_time_is_over() {
    for states in [&[][..], &["5"]] {
        let (mut domain, record) = connected(ID);
        detach(&mut domain, ID, LONG, true);
        domain.front(ID, states);
        domain.waits();
        domain.run_after(LONG * 2);
        assert_eq!(domain.answer().0, 204);
        assert!(record.lock().unwrap().closed && is_gone(&mut domain, ID));
    }
}

#[test]
fn force_at_once_does_not_wait() {
    let (mut domain, record) = connected(ID);
    detach(&mut domain, ID, Duration::ZERO, true);
    assert_eq!(domain.answer().0, 204);
    assert!(record.lock().unwrap().closed && is_gone(&mut domain, ID));
    assert_eq!(domain.described().cmdline, "-");
}

#[test]
fn force_does_not_free_what_the_host_still_uses() {
    let (mut domain, record) = connected(ID);
    record.lock().unwrap().stuck = true;
    detach(&mut domain, ID, Duration::ZERO, true);
    domain.waits();
    domain.run_after(LONG);
    let (_, body) = domain.answers(1).remove(0);
    assert!(body["error"].as_str().unwrap().contains("has not finished the device's I/O"), "{body}");
    assert!(!is_gone(&mut domain, ID) && !record.lock().unwrap().closed);
    // It cannot be had again, and goes by itself.
    attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::DeviceBusy);
    record.lock().unwrap().stuck = false;
    domain.kick();
    domain.hotplug.finish(LONG);
    assert!(record.lock().unwrap().closed && is_gone(&mut domain, ID));
}

#[test]
fn who_asks_twice_is_answered_twice() {
    let (mut domain, _) = connected(ID);
    detach(&mut domain, ID, LONG, false);
    detach(&mut domain, ID, LONG * 3, false);
    domain.run_after(LONG * 2);
    // The second one waits on, so the guest is still asked.
    refused(&mut domain, ExitStatus::DeviceKept);
    assert_eq!(domain.node(Side::Back, ID, "state").unwrap(), "5");
    detach(&mut domain, ID, LONG, false);
    domain.front(ID, &["6"]);
    assert!(domain.answers(2).iter().all(|(status, _)| *status == 204));
    detach(&mut domain, ID, LONG, false);
    refused(&mut domain, ExitStatus::NoSuchDevice);
}

#[test]
fn a_second_request_with_force_ends_the_wait_of_the_first() {
    let (mut domain, _) = connected(ID);
    detach(&mut domain, ID, LONG, false);
    domain.front(ID, &["5"]);
    detach(&mut domain, ID, Duration::ZERO, true);
    assert!(domain.answers(2).iter().all(|(status, _)| *status == 204));
}

#[test]
fn a_device_on_its_way_out_is_not_attached() {
    let (mut domain, _) = connected(ID);
    detach(&mut domain, ID, LONG, false);
    attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::DeviceBusy);
    domain.front(ID, &["6"]);
    assert_eq!(domain.answer().0, 204);
    attach(&mut domain, ID, None);
    assert_eq!(domain.answer().0, 200);
}

#[test]
fn a_successor_comes_when_the_one_before_is_closed() {
    let (mut domain, before) = connected(ID);
    let after = attach(&mut domain, ID, Some(departure(ID, LONG, false)));
    while domain.node(Side::Back, ID, "state").unwrap() != "5" {
        domain.waits();
    }
    domain.front(ID, &["6"]);
    assert_eq!(domain.answer().0, 200);
    assert!(before.lock().unwrap().closed);
    assert_eq!(domain.node(Side::Front, ID, "state").unwrap(), "1");
    domain.front(ID, &["3"]);
    assert!(after.lock().unwrap().connected);
    assert_eq!(domain.described().cmdline, "-+");
}

#[test]
fn a_place_is_free_when_the_driver_has_let_go_of_it() {
    let (mut domain, record) = connected(ID);
    domain.watch(ID, true);
    detach(&mut domain, ID, LONG, false);
    domain.front(ID, &["6"]);
    while !record.lock().unwrap().closed {
        domain.waits();
    }
    // The guest's xenbus has not looked yet: a new device would be taken for the old one.
    assert!(domain.node(Side::Front, ID, "state").is_none());
    domain.waits();
    attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::DeviceBusy);
    domain.watch(ID, false);
    assert_eq!(domain.answer().0, 204);
    attach(&mut domain, ID, None);
    assert_eq!(domain.answer().0, 200);
}

#[test]
fn a_driver_that_never_lets_go_keeps_nobody_waiting() {
    let (mut domain, record) = connected(ID);
    domain.watch(ID, true);
    detach(&mut domain, ID, Duration::ZERO, true);
    // Until the main thread has heard that it is closed: from then on the time counts.
    while domain.hotplug.removals.iter().all(|removal| removal.closed.is_none()) {
        domain.waits();
    }
    assert!(record.lock().unwrap().closed);
    domain.run_after(LONG);
    assert_eq!(domain.answer().0, 204);
    attach(&mut domain, ID, None);
    refused(&mut domain, ExitStatus::DeviceBusy);
}

#[test]
fn a_successor_waits_for_the_driver_of_the_one_before() {
    let (mut domain, _) = connected(ID);
    domain.watch(ID, true);
    let after = attach(&mut domain, ID, Some(departure(ID, Duration::ZERO, true)));
    while domain.node(Side::Back, ID, "state").unwrap() != "6" {
        domain.waits();
    }
    domain.waits();
    assert!(domain.node(Side::Front, ID, "state").is_none());
    domain.watch(ID, false);
    assert_eq!(domain.answer().0, 200);
    domain.front(ID, &["3"]);
    assert!(after.lock().unwrap().connected);
}

#[test]
fn a_successor_that_cannot_be_opened_changes_nothing() {
    let (mut domain, before) = connected(ID);
    let open = || Err(Failure::new(ExitStatus::DiskMissing, "it is missing"));
    attach_with(&mut domain, ID, Some(departure(ID, LONG, true)), Box::new(open));
    refused(&mut domain, ExitStatus::DiskMissing);
    assert!(before.lock().unwrap().connected);
    assert_eq!(domain.node(Side::Back, ID, "state").unwrap(), "4");
}

#[test]
fn a_successor_is_closed_when_the_guest_keeps_the_one_before() {
    let (mut domain, before) = connected(ID);
    let after = attach(&mut domain, ID, Some(departure(ID, LONG, false)));
    while domain.node(Side::Back, ID, "state").unwrap() != "5" {
        domain.waits();
    }
    domain.run_after(LONG * 2);
    refused(&mut domain, ExitStatus::DeviceKept);
    domain.hotplug.finish(LONG);
    assert!(before.lock().unwrap().connected && after.lock().unwrap().closed);
    assert_eq!(domain.described().cmdline, "");
}

#[test]
fn a_successor_of_nothing_just_comes() {
    let mut domain = TestDomain::new();
    attach(&mut domain, ID, Some(departure(ID, LONG, false)));
    assert_eq!(domain.answer().0, 200);
}

#[test]
fn at_the_end_of_the_guest_everybody_is_told() {
    let (mut domain, record) = connected(ID);
    detach(&mut domain, ID, LONG, false);
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let open = move || {
        let _ = gone.recv();
        Err(Failure::new(ExitStatus::HostError, "too late"))
    };
    attach_with(&mut domain, IDS[1], None, Box::new(open));
    domain.waits();
    domain.hotplug.finish(LONG);
    let answers = domain.outbox.answers();
    assert_eq!(answers.len(), 2);
    for (status, body) in answers {
        assert!(status == 409 && body["error"].as_str().unwrap().contains("has ended"), "{body}");
    }
    drop(go);
    // What was asked for and not done is part of the next run.
    assert_eq!(domain.described().cmdline, "");
    assert!(!record.lock().unwrap().closed);
}

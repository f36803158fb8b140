//! What only a ring has: indexes, errors and the reconnection.

use std::sync::atomic::AtomicBool;

use crate::testing::log_lines;

use super::*;
use crate::xen::xenstore::RingStatus;

const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const FEATURES: usize = 2064;
const CONNECTION: usize = 2068;
const ERROR: usize = 2072;
const QUIET: RingStatus = RingStatus { notify: false, again: false };
const NOTIFY: RingStatus = RingStatus { notify: true, again: false };

fn ring() -> (XenStore, RingClient) {
    let mut store = XenStore::new();
    store.introduce_domain(DomId(1));
    store.mkdir("/data").unwrap();
    store.set_perms("/data", &[super::super::Perm::parse(b"n1").unwrap()]).unwrap();
    let client = RingClient::new(&mut store, 1);
    (store, client)
}

#[test]
fn features_are_told() {
    let (_, client) = ring();
    assert_eq!(client.word(FEATURES).load(SeqCst), 3);
    assert_eq!(client.word(ERROR).load(SeqCst), 0);
}

#[test]
fn a_page_that_is_not_there_is_refused() {
    let mut store = XenStore::new();
    let pages = Arc::new(SharedPages::new("ring", 1).unwrap());
    assert!(XenStoreRing::new(&mut store, DomId(1), pages, 1).is_err());
}

#[test]
fn the_guest_is_notified_when_an_index_moved() {
    let (mut store, mut client) = ring();
    assert_eq!(client.ring.process(&mut store), QUIET);
    let request = message(2, 1, 0, b"/data\0");
    client.put(&request[..5]);
    assert_eq!(client.ring.process(&mut store), NOTIFY, "bytes were taken: there is room again");
    assert_eq!(client.ring.process(&mut store), QUIET);
    client.put(&request[5..]);
    assert_eq!(client.ring.process(&mut store), NOTIFY);
    assert_eq!(client.take(), message(2, 1, 0, b""));
}

#[test]
fn impossible_indexes_end_the_connection() {
    for (offset, base) in [(REQ_PROD, REQ_CONS), (RSP_PROD, RSP_CONS)] {
        let (mut store, mut client) = ring();
        let value = client.word(base).load(SeqCst).wrapping_add(1024);
        client.word(offset).store(value, SeqCst);
        assert!(!client.ring.process(&mut store).again);
        assert_eq!(client.word(ERROR).load(SeqCst), 0, "a full ring is fine");
        let value = client.word(base).load(SeqCst).wrapping_add(1025);
        client.word(offset).store(value, SeqCst);
        assert_eq!(client.ring.process(&mut store), NOTIFY);
        assert_eq!(client.word(ERROR).load(SeqCst), 2);
        client.word(offset).store(client.word(base).load(SeqCst), SeqCst);
        client.put(&message(2, 1, 0, b"/data\0"));
        assert_eq!(client.ring.process(&mut store), QUIET, "stopped");
    }
}

#[test]
fn a_message_too_long_ends_the_connection() {
    let (mut store, mut client) = ring();
    client.put(&Header { kind: 2, req_id: 0, tx_id: 0, len: 4097 }.emit());
    assert_eq!(client.ring.process(&mut store), NOTIFY);
    assert_eq!(client.word(ERROR).load(SeqCst), 3);
}

#[test]
fn a_released_domain_is_cut_off() {
    let (mut store, mut client) = ring();
    store.release_domain(DomId(1));
    assert_eq!(client.ring.process(&mut store), NOTIFY);
    assert_eq!(client.word(ERROR).load(SeqCst), 1);
    client.word(CONNECTION).store(1, SeqCst);
    assert_eq!(client.ring.process(&mut store), QUIET);
}

#[test]
fn a_reconnection_starts_from_nothing() {
    for broken in [false, true] {
        let (mut store, mut client) = ring();
        client.put(&message(4, 1, 0, b"/data\0t\0"));
        client.put(&message(6, 2, 0, b"\0"));
        let _ = client.ring.process(&mut store);
        assert_eq!((store.watches(DomId(1)), store.transactions(DomId(1))), (1, 1));
        // Half a request, and an unread event.
        client.put(&message(2, 3, 0, b"/data\0")[..18]);
        store.write("/data/x", "1").unwrap();
        if broken {
            client.word(RSP_PROD).store(client.word(RSP_CONS).load(SeqCst).wrapping_add(5000), SeqCst);
        }
        let _ = client.ring.process(&mut store);
        assert_eq!(client.word(ERROR).load(SeqCst), if broken { 2 } else { 0 });
        client.word(CONNECTION).store(1, SeqCst);
        assert_eq!(client.ring.process(&mut store), NOTIFY);
        for word in [CONNECTION, ERROR, REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD] {
            assert_eq!(client.word(word).load(SeqCst), 0);
        }
        assert_eq!((store.watches(DomId(1)), store.transactions(DomId(1))), (0, 0));
        client.put(&message(2, 4, 0, b"/data\0"));
        assert_eq!(client.ring.process(&mut store), NOTIFY);
        assert_eq!(client.take(), message(2, 4, 0, b""));
    }
}

#[test]
fn a_ring_that_is_broken_again_and_again_does_not_fill_the_log() {
    let (mut store, mut client) = ring();
    let lines = log_lines(|| {
        for _ in 0..1000 {
            client.word(REQ_PROD).store(client.word(REQ_CONS).load(SeqCst).wrapping_add(5000), SeqCst);
            let _ = client.ring.process(&mut store);
            assert_eq!(client.word(ERROR).load(SeqCst), 2);
            client.word(CONNECTION).store(1, SeqCst);
            let _ = client.ring.process(&mut store);
        }
    });
    assert!((1..=32).contains(&lines), "{lines} lines");
}

#[test]
fn replies_wait_for_room() {
    let (mut store, mut client) = ring();
    store.write("/data", vec![b'v'; 3000]).unwrap();
    client.put(&message(2, 1, 0, b"/data\0"));
    let mut received = Vec::new();
    for _ in 0..3 {
        assert_eq!(client.ring.process(&mut store), NOTIFY);
        assert_eq!(client.ring.process(&mut store), QUIET, "full");
        received.extend_from_slice(&client.take());
    }
    assert_eq!(received.len(), 3016);
    assert_eq!(received[16..], [b'v'; 3000]);
    assert_eq!(client.ring.process(&mut store), QUIET);
}

/// A vCPU that refills the ring without end, while we read it, does not keep us from other work.
#[test]
fn one_call_serves_a_bounded_number_of_requests() {
    let (mut store, mut client) = ring();
    let page = client.page.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let vcpu = std::thread::spawn(move || {
        let requests = message(6, 1, 99, b"").repeat(64);
        let mut next = 0;
        while !stopped.load(SeqCst) {
            next = (next + page.put(&requests[next..])) % requests.len();
            page.take();
        }
    });
    let (mut most, mut total) = (0, 0);
    while total < 64 << 10 {
        let before = client.word(REQ_CONS).load(SeqCst);
        let _ = client.ring.process(&mut store);
        let taken = client.word(REQ_CONS).load(SeqCst).wrapping_sub(before);
        (most, total) = (most.max(taken), total + taken);
    }
    stop.store(true, SeqCst);
    vcpu.join().unwrap();
    assert_eq!(client.word(ERROR).load(SeqCst), 0);
    assert!(most <= 1024, "{most} bytes");
}

use super::*;
use crate::xen::xenstore::{ConnId, Limits};

on_both_transports! {
    fn nodes(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.run(host, "setquota 1 nodes 5");
        b.table(&[
            // "data" is the first.
            (guest, "write data/a/b/c 1", "OK"),
            (guest, "write data/d/e 1", "ENOSPC"),
            (guest, "read data/d", "ENOENT"),
            (guest, "write data/d 1", "OK"),
            (guest, "write data/e 1", "ENOSPC"),
            (guest, "mkdir data/e", "ENOSPC"),
            (guest, "write data/d 2", "OK"),
            (host, "write /local/domain/1/data/f 1", "OK"),
            (guest, "rm data/a", "OK"),
            (guest, "write data/e 1", "OK"),
        ]);
    }

    fn nodes_of_a_transaction(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.run(host, "setquota 1 nodes 4");
        let (first, second) = (b.start(guest), b.start(guest));
        b.run(guest, "mkdir data/x");
        for (tx, name) in [(first, "x/a"), (second, "x/b")] {
            assert_eq!(b.run_in(guest, tx, &format!("write data/{name}/c 1")), "OK");
            assert_eq!(b.run_in(guest, tx, "write data/y 1"), "ENOSPC");
        }
        assert_eq!(b.run_in(guest, first, "end T"), "OK");
        // It fits alone, not after the other.
        assert_ne!(b.run_in(guest, second, "end T"), "OK");
        b.store.rm("/local/domain/1/data/x/a").unwrap();
        b.store.mkdir("/local/domain/1/data/z").unwrap();
        let (first, second) = (b.start(guest), b.start(guest));
        b.run_in(guest, first, "write data/x/a 1");
        b.run_in(guest, second, "write data/z/a 1");
        assert_eq!(b.run_in(guest, first, "end T"), "OK");
        assert_eq!(b.run_in(guest, second, "end T"), "ENOSPC", "together they pass the quota");
    }

    fn watches(b) {
        b.home(1);
        let guest = b.client(1);
        for i in 0..128 {
            assert_eq!(b.run(guest, &format!("watch data t{i}")), "OK");
        }
        b.table(&[
            (guest, "watch data t128", "E2BIG"),
            (guest, "watch data t5", "EEXIST"),
            (guest, "unwatch data t5", "OK"),
            (guest, "watch data t128", "OK"),
        ]);
    }

    fn transactions(b) {
        b.home(1);
        let guest = b.client(1);
        let ids: Vec<u32> = (0..10).map(|_| b.start(guest)).collect();
        assert_eq!(b.run(guest, "start"), "ENOSPC");
        assert_eq!(b.run_in(guest, ids[3], "end F"), "OK");
        assert!(!ids.contains(&b.start(guest)));
    }

    fn nodes_that_a_transaction_touches(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.run(host, "setquota 1 transaction-nodes 3");
        let tx = b.start(guest);
        for name in ["a", "b", "c", "a"] {
            assert_eq!(b.run_in(guest, tx, &format!("read data/{name}")), "ENOENT");
        }
        assert_eq!(b.run_in(guest, tx, "read data/d"), "ENOSPC");
        assert_eq!(b.run_in(guest, tx, "end T"), "ENOSPC");
        assert_eq!(b.run(guest, "write data/x/y/z 1"), "OK");
        assert_eq!(b.run(guest, "rm data/x"), "OK", "one request is not limited");
    }

    fn permissions_per_node(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.table(&[
            (guest, "setperms data n1 r0 r0 r0 r0", "OK"),
            (guest, "setperms data n1 r0 r0 r0 r0 r0", "ENOSPC"),
            (host, "setperms /local/domain/1/data n1 r0 r0 r0 r0 r0", "OK"),
        ]);
    }

    fn size_of_a_node(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        let most = 2048 - 24 - 8;
        assert_eq!(b.run(guest, &format!("write data/v {}", "x".repeat(most))), "OK");
        assert_eq!(b.run(guest, &format!("write data/v {}", "x".repeat(most + 1))), "ENOSPC");
        assert_eq!(b.run(guest, "setperms data/v n1 r0"), "ENOSPC", "entries count");
        assert_eq!(b.run(guest, "write data/v/w 1"), "ENOSPC", "names of children count");
        assert_eq!(b.run(host, &format!("write /local/domain/1/data/v {}", "x".repeat(4000))), "OK");
        b.run(guest, "rm data/v");
        assert_eq!(b.run(guest, &format!("mkdir data/{}", "n".repeat(most - 1))), "OK");
        assert_eq!(b.run(guest, "mkdir data/x"), "ENOSPC");
        assert_eq!(b.run(guest, &format!("rm data/{}", "n".repeat(most - 1))), "OK");
        assert_eq!(b.run(guest, &format!("write data/{}/x 1", "n".repeat(most))), "ENOSPC");
    }

    fn memory(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.run(host, "setquota 1 memory 20000");
        let value = "x".repeat(2000);
        let replies: Vec<String> =
            (0..10).map(|i| b.run(guest, &format!("write data/v{i} {value}"))).collect();
        assert_eq!(replies.iter().filter(|r| *r == "OK").count(), 9);
        assert_eq!(replies[9], "ENOMEM");
        assert_eq!(b.run(guest, &format!("watch data {value}")), "ENOMEM");
        let tx = b.start(guest);
        assert_eq!(b.run_in(guest, tx, "read data/v1"), "ENOMEM", "a transaction holds what it read");
        assert_eq!(b.run_in(guest, tx, "end T"), "ENOMEM");
        assert_eq!(b.run(guest, "rm data/v1"), "OK");
        assert_eq!(b.run(guest, &format!("write data/v10 {value}")), "OK");
    }

    fn domain_0_has_none(b) {
        let host = b.client(0);
        for name in Limits::NAMES {
            assert_eq!(b.run(host, &format!("setquota {name} 1")), "OK");
        }
        b.run(host, "write /a/b/c 1");
        let transactions: Vec<u32> = (0..20).map(|_| b.start(host)).collect();
        for i in 0..200 {
            assert_eq!(b.run(host, &format!("watch /b t{i}")), "OK");
            assert_eq!(b.run_in(host, transactions[0], &format!("write /a/n{i} 1")), "OK");
        }
        assert_eq!(b.run_in(host, transactions[0], "end T"), "OK");
        assert_eq!(b.run(host, "setperms /a n0 r1 r2 r3 r4 r5 r6 r7"), "OK");
    }
}

#[test]
fn defaults_are_those_of_xen() {
    let mut limits = Limits::default();
    let values = Limits::NAMES.map(|name| *limits.by_name(name).unwrap());
    assert_eq!(values, [1000, 128, 10, 1024, 5, 2048, 20, 2_621_440]);
}

fn guest(limit: &str, value: usize) -> (XenStore, ConnId) {
    let mut store = XenStore::new();
    store.introduce_domain(DomId(1));
    store.set_quota(Some(DomId(1)), limit, value).unwrap();
    store.write("/data", "").unwrap();
    store.set_perms("/data", &[super::super::Perm::parse(b"n1").unwrap()]).unwrap();
    let id = store.add_connection(DomId(1));
    (store, id)
}

#[test]
fn requests_wait_while_replies_are_outstanding() {
    let (mut store, id) = guest("outstanding", 20);
    let request = message(2, 1, 0, b"/data\0");
    let all = request.repeat(50);
    assert_eq!(store.receive(id, &all), Ok(20 * request.len()));
    assert_eq!(store.receive(id, &all), Ok(0));
    assert!(!store.accepts_input(id));
    let one = HEADER_SIZE;
    store.sent(id, one - 1);
    assert_eq!(store.receive(id, &all), Ok(0), "a reply sent in part is outstanding");
    store.sent(id, 1);
    assert_eq!(store.receive(id, &all), Ok(request.len()));
    assert_eq!(store.take_output(id).len(), 20 * one);
    assert_eq!(store.receive(id, &all[..request.len()]), Ok(request.len()));
}

#[test]
fn requests_wait_while_unread_replies_use_up_the_memory() {
    let (mut store, id) = guest("memory", 6000);
    store.write("/data/x", vec![b'x'; 4000]).unwrap();
    let request = message(2, 1, 0, b"/data/x\0");
    assert_eq!(store.receive(id, &request.repeat(3)), Ok(request.len()));
    assert!(!store.accepts_input(id));
    store.take_output(id);
    assert!(store.accepts_input(id));
}

/// Domain 0 writes ever new names that the guest watches; the guest never reads (XSA-326).
#[test]
fn unread_events_are_bounded() {
    let (mut store, id) = guest("watches", 128);
    store.set_perms("/data", &[super::super::Perm::parse(b"r0").unwrap()]).unwrap();
    for i in 0..3 {
        store.receive(id, &message(4, 1, 0, format!("/data\0token{i}\0").as_bytes())).unwrap();
    }
    for i in 0..10_000 {
        store.write("/data/x", "1").unwrap();
        store.write(&format!("/data/name{i}"), "1").unwrap();
        store.rm(&format!("/data/name{i}")).unwrap();
    }
    assert!(store.transient_memory(DomId(1)) < 300 << 10, "{}", store.transient_memory(DomId(1)));
    let output = store.take_output(id);
    let count = |text: &str| output.windows(text.len()).filter(|w| *w == text.as_bytes()).count();
    assert_eq!(count("/data/x\0token1\0"), 1, "the same event waits once");
    assert_eq!(count("/data\0token1\0"), 1, "the first event, still unread, stands for all the rest");
    assert!(count("\0token1\0") > 500);
    store.write("/data/y", "1").unwrap();
    assert!(store.take_output(id).ends_with(b"/data/y\0token2\0"), "what was lost is over once it has read");
}

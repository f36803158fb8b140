use super::*;
use crate::xen::xenstore::ReceiveError;

on_both_transports! {
    fn bad_arguments_are_einval(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        let table: &[(u32, &[u8])] = &[
            (2, b""), (2, b"/a"), (2, b"/a\0/b\0"), (2, b"/a/\0"), (2, b"/a b\0"), (2, b"\xff\0"), (1, b"\0"),
            (4, b"/a\0"), (4, b"/a\0t"), (5, b"\0\0\0"), (7, b""), (7, b"Q\0"), (10, b"x\0"), (11, b"/a"),
            (14, b"/\0"), (14, b"/\0z0\0"), (17, b"-1\0"), (22, b"/\0x\0"), (22, b"/\0"),
        ];
        for client in [host, guest] {
            for (kind, payload) in table {
                assert_eq!(b.call(client, *kind, 0, payload), Err("EINVAL".into()), "{kind} {payload:?}");
            }
        }
        let long = [b"/".to_vec(), vec![b'x'; 3072], b"\0".to_vec()].concat();
        assert_eq!(b.call(host, 2, 0, &long), Err("EINVAL".into()));
    }

    fn unknown_operations_are_enosys(b) {
        let c = b.client(0);
        for kind in [15, 16, 20, 24, 27, 1 << 16, u32::MAX] {
            assert_eq!(b.call(c, kind, 0, b"/\0"), Err("ENOSYS".into()), "{kind}");
        }
    }

    fn unknown_transactions_are_enoent(b) {
        let c = b.client(0);
        for request in ["read /", "dir /", "write /x 1", "mkdir /x", "rm /x", "getperms /", "setperms / n0", "part / 0"] {
            assert_eq!(b.run_in(c, 5, request), "ENOENT", "{request}");
        }
        assert_eq!(b.run(c, "dir /"), "tool");
    }

    fn the_largest_message_passes(b) {
        let c = b.client(0);
        let payload = [b"/v\0".to_vec(), vec![7; 4093]].concat();
        assert_eq!(b.call(c, 11, 0, &payload), Ok(b"OK\0".to_vec()));
        assert_eq!(b.call(c, 2, 0, b"/v\0"), Ok(vec![7; 4093]));
    }

    fn messages_may_come_in_any_pieces(b) {
        let c = b.client(0);
        let bytes = [message(11, 1, 0, b"/a\0value"), message(2, 2, 0, b"/a\0")].concat();
        for byte in bytes {
            b.clients[c].out.push(byte);
            b.pump();
        }
        let replies: Vec<String> = b.clients[c].replies.drain(..).map(|(_, p)| show(&p)).collect();
        assert_eq!(replies, ["OK", "value"]);
    }
}

#[test]
fn a_message_too_long_ends_the_connection() {
    let mut store = XenStore::new();
    let id = store.add_connection(DomId(1));
    let header = Header { kind: 2, req_id: 0, tx_id: 0, len: 4097 }.emit();
    assert_eq!(store.receive(id, &header), Err(ReceiveError::TooLong));
}

/// A small generator of nonsense around well-formed messages; what the store does with it is not the point,
/// that it stays sound is.
#[test]
fn noise_leaves_the_store_sound() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let words = [
        "/",
        "a",
        "b",
        "/a",
        "/a/b",
        "/a/b/c",
        "@releaseDomain",
        "n1",
        "r0",
        "b1",
        "T",
        "F",
        "1",
        "0",
        "tok",
        "",
    ];
    let mut store = XenStore::new();
    store.introduce_domain(DomId(1));
    for path in ["/a", "/local/domain/1"] {
        store.mkdir(path).unwrap();
        store.set_perms(path, &[super::super::Perm::parse(b"n1").unwrap()]).unwrap();
    }
    let ids =
        [store.add_connection(DomId(1)), store.add_connection(DomId(0)), store.add_connection(DomId(1))];
    for round in 0..20_000 {
        let mut payload = Vec::new();
        for _ in 0..random(4) {
            payload.extend_from_slice(words[random(words.len())].as_bytes());
            payload.push(0);
        }
        if random(4) == 0 {
            payload.pop();
        }
        // Without RELEASE, which would end the test's connections.
        let kind = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 11, 12, 12, 13, 14, 14, 17, 21, 22, 99][random(20)];
        let bytes = message(kind, 1, random(4) as u32, &payload);
        let id = ids[random(ids.len())];
        store.receive(id, &bytes).unwrap();
        store.take_output(id);
        if round % 500 == 0 {
            assert_eq!(store.check(), Ok(()), "after {round}");
        }
    }
    assert_eq!(store.check(), Ok(()));
}

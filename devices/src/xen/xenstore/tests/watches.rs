use super::*;

on_both_transports! {
    fn a_watch_fires_at_once_and_on_each_kind_of_change(b) {
        let (c, other) = (b.client(0), b.client(0));
        assert_eq!(b.run(c, "watch /w tok"), "OK");
        assert_eq!(b.events(c), ["/w tok"]);
        let table = [
            ("write /w/a/b 1", &["/w/a/b tok"][..]),
            ("write /w 1", &["/w tok"]),
            ("mkdir /w/d", &["/w/d tok"]),
            ("mkdir /w/d", &[]),
            ("setperms /w/d r0", &["/w/d tok"]),
            ("rm /w/a", &["/w/a tok"]),
            ("rm /w/a", &[]),
            ("read /w", &[]),
            ("write /ww 1", &[]),
            ("write /v/w 1", &[]),
            ("rm /w", &["/w tok"]),
        ];
        for (request, events) in table {
            b.run(other, request);
            assert_eq!(b.events(c), events, "{request}");
        }
        assert_eq!(b.run(c, "unwatch /w tok"), "OK");
        b.run(other, "write /w 1");
        assert!(b.events(c).is_empty());
    }

    fn removal_above_tells_of_the_watched_node_itself(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(other, "write /a/b/c/d 1");
        for path in ["/", "/a", "/a/b/c", "/a/b/c/d", "/a/none"] {
            assert_eq!(b.run(c, &format!("watch {path} t")), "OK");
        }
        b.events(c);
        b.run(other, "rm /a");
        let mut events = b.events(c);
        events.sort();
        // Once by the watch on /, once by that on /a: the same path and token, told once.
        assert_eq!(events, ["/a t", "/a/b/c t", "/a/b/c/d t"]);
    }

    fn relative_watches_tell_relative_paths(b) {
        b.home(3);
        let (host, guest) = (b.client(0), b.client(3));
        b.table(&[(guest, "watch data rel", "OK"), (guest, "watch /local/domain/3/data abs", "OK")]);
        assert_eq!(b.events(guest), ["data rel", "/local/domain/3/data abs"]);
        b.run(host, "write /local/domain/3/data/x 1");
        assert_eq!(b.events(guest), ["data/x rel", "/local/domain/3/data/x abs"]);
    }

    fn who_watches_below_a_node_is_known(b) {
        b.home(3);
        let (host, guest) = (b.client(0), b.client(3));
        b.run(host, "watch /back/vbd/state t");
        assert!(!b.store.is_watched(DomId(3), "/back/vbd"));
        for path in ["/back/vbd/state", "/back/vbd"] {
            b.run(guest, &format!("watch {path} t"));
            assert!(b.store.is_watched(DomId(3), "/back/vbd"), "{path}");
            b.run(guest, &format!("unwatch {path} t"));
        }
        for path in ["/back", "/back/vbd1", "/"] {
            b.run(guest, &format!("watch {path} t"));
            assert!(!b.store.is_watched(DomId(3), "/back/vbd"), "{path}");
        }
    }

    fn the_same_watch_exists_once(b) {
        b.home(3);
        let guest = b.client(3);
        b.table(&[
            (guest, "watch data t", "OK"),
            (guest, "watch data t", "EEXIST"),
            (guest, "watch /local/domain/3/data t", "EEXIST"),
            (guest, "watch data u", "OK"),
            (guest, "unwatch data v", "ENOENT"),
            (guest, "unwatch /data t", "ENOENT"),
            (guest, "unwatch data t", "OK"),
            (guest, "unwatch data t", "ENOENT"),
        ]);
    }

    fn only_those_who_may_see_a_node_hear_of_it(b) {
        b.home(1);
        b.home(2);
        let (host, guest) = (b.client(0), b.client(1));
        b.run(guest, "watch / t");
        b.run(host, "write /p/open ");
        b.run(host, "setperms /p/open r0");
        b.events(guest);
        let table = [
            // Neither the node nor its parent is readable.
            ("write /p/secret 1", &[][..]),
            ("write /local/domain/2/data/x 1", &[]),
            // The parent is.
            ("write /p/open/a 1", &["/p/open/a t"]),
            ("setperms /p/open/a n0", &["/p/open/a t"]),
            ("write /p/open/a 2", &["/p/open/a t"]),
            // Becoming readable and ceasing to be are both told, and nothing between.
            ("setperms /p/secret n0 r1", &["/p/secret t"]),
            ("write /p/secret 2", &["/p/secret t"]),
            ("setperms /p/secret n0", &["/p/secret t"]),
            ("write /p/secret 3", &[]),
            ("rm /p/secret", &[]),
            ("rm /p/open", &["/p/open t"]),
        ];
        for (request, events) in table {
            assert_eq!(b.run(host, request), "OK", "{request}");
            assert_eq!(b.events(guest), events, "{request}");
        }
    }

    fn special_events_go_to_those_who_may_read_them(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        for c in [host, guest] {
            for path in ["@introduceDomain", "@releaseDomain", "@other", "/"] {
                assert_eq!(b.run(c, &format!("watch {path} t")), "OK");
            }
            b.events(c);
        }
        b.store.introduce_domain(DomId(5));
        assert_eq!(b.events(host), ["@introduceDomain t"]);
        b.store.introduce_domain(DomId(5));
        assert!(b.events(host).is_empty(), "already introduced");
        b.store.release_domain(DomId(5));
        assert_eq!(b.events(host), ["@releaseDomain t"]);
        assert!(b.events(guest).is_empty());
        b.run(host, "setperms @releaseDomain n0 r1");
        assert_eq!(b.events(guest), ["@releaseDomain t"], "its permissions changed");
        b.store.introduce_domain(DomId(5));
        b.store.release_domain(DomId(5));
        assert_eq!(b.events(guest), ["@releaseDomain t"]);
    }

    fn release_tells_of_the_nodes_that_go(b) {
        b.home(1);
        let host = b.client(0);
        b.run(host, "watch /local/domain/1/data t");
        b.events(host);
        b.store.release_domain(DomId(1));
        assert_eq!(b.events(host), ["/local/domain/1/data t"]);
    }

    fn reset_ends_watches_and_transactions(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(c, "watch /w t");
        let tx = b.start(c);
        b.events(c);
        assert_eq!(b.run(c, "reset"), "OK");
        b.run(other, "write /w 1");
        assert!(b.events(c).is_empty());
        assert_eq!(b.run_in(c, tx, "read /w"), "ENOENT");
        assert_eq!(b.run(c, "unwatch /w t"), "ENOENT");
    }

    fn the_transaction_of_a_watch_is_ignored(b) {
        let c = b.client(0);
        assert_eq!(b.run_in(c, 77, "watch /w t"), "OK");
        assert_eq!(b.run_in(c, 78, "unwatch /w t"), "OK");
    }

    /// The path that was written is longer than the watch's, and with its token past a message (XSA-324).
    fn an_oversized_event_names_the_watch_itself(b) {
        let (c, other) = (b.client(0), b.client(0));
        let token = "t".repeat(3000);
        assert_eq!(b.run(c, &format!("watch /w {token}")), "OK");
        b.events(c);
        let long = format!("/w/{}", "x".repeat(1500));
        assert_eq!(b.run(other, &format!("write {long} 1")), "OK");
        assert_eq!(b.events(c), [format!("/w {token}")]);
    }
}

#[test]
fn host_code_takes_events_from_its_own_connection() {
    let mut store = XenStore::new();
    let id = store.add_connection(DomId::DOM0);
    store.watch(id, "/local", "frontends").unwrap();
    assert_eq!(store.watch(id, "/local", "frontends"), Err(crate::xen::xenstore::XsError::Exists));
    assert_eq!(store.take_ready(), [id]);
    assert_eq!(store.take_watch_events(id), [("/local".to_owned(), "frontends".to_owned())]);
    assert!(store.take_ready().is_empty());
    store.write("/local/x", "1").unwrap();
    store.write("/local/x", "2").unwrap();
    assert_eq!(store.take_ready(), [id]);
    assert_eq!(store.take_watch_events(id), [("/local/x".to_owned(), "frontends".to_owned())]);
    store.unwatch(id, "/local", "frontends").unwrap();
    store.write("/local/x", "3").unwrap();
    assert!(store.take_watch_events(id).is_empty());
    store.remove_connection(id);
    assert!(!store.has_connection(id));
}

#[test]
fn the_reply_comes_before_the_events_it_causes() {
    let mut store = XenStore::new();
    let id = store.add_connection(DomId::DOM0);
    store.receive(id, &message(4, 1, 0, b"/w\0t\0")).unwrap();
    let event = message(XS_WATCH_EVENT, 0, 0, b"/w\0t\0");
    assert_eq!(store.take_output(id), [message(4, 1, 0, b"OK\0"), event.clone()].concat());
    store.receive(id, &message(11, 2, 0, b"/w\0value")).unwrap();
    assert_eq!(store.take_output(id), [message(11, 2, 0, b"OK\0"), event].concat());
}

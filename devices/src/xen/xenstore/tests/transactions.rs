use super::*;

on_both_transports! {
    fn changes_are_seen_inside_until_the_commit(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(other, "write /a old");
        let tx = b.start(c);
        for (request, reply) in [
            ("write /a new", "OK"), ("read /a", "new"), ("write /b/c 1", "OK"), ("dir /b", "c"), ("rm /b/c", "OK"),
            ("dir /b", ""), ("write /b/d 2", "OK"), ("setperms /a r0", "OK"), ("getperms /a", "r0"),
        ] {
            assert_eq!(b.run_in(c, tx, request), reply, "{request}");
        }
        b.table(&[(other, "read /a", "old"), (other, "read /b", "ENOENT"), (c, "read /a", "old")]);
        assert_eq!(b.run_in(c, tx, "end T"), "OK");
        b.table(&[(other, "read /a", "new"), (other, "dir /b", "d"), (other, "getperms /a", "r0")]);
        assert_eq!(b.run_in(c, tx, "end T"), "ENOENT");
    }

    fn an_aborted_transaction_leaves_nothing(b) {
        let c = b.client(0);
        b.run(c, "watch /a t");
        b.events(c);
        let tx = b.start(c);
        b.run_in(c, tx, "write /a/b 1");
        assert_eq!(b.run_in(c, tx, "end F"), "OK");
        assert_eq!(b.run(c, "read /a/b"), "ENOENT");
        assert!(b.events(c).is_empty());
    }

    fn only_touched_nodes_conflict(b) {
        let (c, other) = (b.client(0), b.client(0));
        // Inside, meanwhile outside, outcome.
        let table = [
            ("read /d/a", "write /d/a 2", "EAGAIN"),
            ("write /d/a 1", "write /d/a 2", "EAGAIN"),
            ("read /d/a", "rm /d/a", "EAGAIN"),
            ("read /d/new", "write /d/new 1", "EAGAIN"),
            ("dir /d", "write /d/new 1", "EAGAIN"),
            ("dir /d", "rm /d/b", "EAGAIN"),
            ("getperms /d/a", "setperms /d/a r0", "EAGAIN"),
            ("rm /d", "write /d/b 2", "EAGAIN"),
            ("rm /d", "write /d/b/x 2", "EAGAIN"),
            ("write /d/a/x 1", "rm /d", "EAGAIN"),
            ("read /d/a", "write /d/b 2", "OK"),
            ("write /d/a 1", "write /d/b 2", "OK"),
            ("write /d/a 1", "write /d/new 2", "OK"),
            ("write /d/a/x 1", "write /d/b/y 2", "OK"),
            ("read /d", "write /d/b 2", "OK"),
            ("read /d/a", "read /d/a", "OK"),
            ("rm /d/a", "write /d/b 2", "OK"),
        ];
        for (inside, outside, outcome) in table {
            b.store.rm("/d").unwrap();
            b.store.write("/d/a", "1").unwrap();
            b.store.write("/d/b", "1").unwrap();
            let tx = b.start(c);
            b.run_in(c, tx, inside);
            b.run(other, outside);
            assert_eq!(b.run_in(c, tx, "end T"), outcome, "{inside} against {outside}");
        }
    }

    fn the_later_of_two_conflicting_commits_fails(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(c, "write /n 1");
        let (first, second) = (b.start(c), b.start(other));
        for (client, tx) in [(c, first), (other, second)] {
            b.run_in(client, tx, "read /n");
            b.run_in(client, tx, "write /n 2");
        }
        assert_eq!(b.run_in(other, second, "end T"), "OK");
        assert_eq!(b.run_in(c, first, "end T"), "EAGAIN");
    }

    fn a_node_stays_as_first_seen(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(c, "write /n 1");
        let tx = b.start(c);
        assert_eq!(b.run_in(c, tx, "read /n"), "1");
        b.run(other, "write /n 2");
        assert_eq!(b.run_in(c, tx, "read /n"), "1");
        b.run(other, "rm /n");
        assert_eq!(b.run_in(c, tx, "read /n"), "1");
    }

    fn watches_fire_at_the_commit_in_order(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(other, "write /w/gone/x 1");
        for request in ["watch /w t", "watch /w/gone/x u"] {
            b.run(other, request);
        }
        b.events(other);
        let tx = b.start(c);
        for request in ["write /w/b 1", "rm /w/gone", "write /w/a/c 1", "write /w/b 2", "read /w/b"] {
            b.run_in(c, tx, request);
        }
        assert!(b.events(other).is_empty());
        assert_eq!(b.run_in(c, tx, "end T"), "OK");
        assert_eq!(b.events(other), ["/w/b t", "/w/gone t", "/w/gone/x u", "/w/a/c t"]);
    }

    fn a_refused_request_leaves_the_transaction_usable(b) {
        b.home(1);
        let guest = b.client(1);
        let tx = b.start(guest);
        let big = "x".repeat(2048);
        assert_eq!(b.run_in(guest, tx, &format!("write data/a/b/c {big}")), "ENOSPC");
        assert_eq!(b.run_in(guest, tx, "dir data"), "");
        assert_eq!(b.run_in(guest, tx, "write /x 1"), "EACCES");
        assert_eq!(b.run_in(guest, tx, "write data/ok 1"), "OK");
        assert_eq!(b.run_in(guest, tx, "end T"), "OK");
        assert_eq!(b.run(guest, "dir data"), "ok");
    }

    fn transaction_ids_are_the_clients_own(b) {
        let (c, other) = (b.client(0), b.client(0));
        let tx = b.start(c);
        assert_eq!(b.run_in(other, tx, "end T"), "ENOENT");
        assert_eq!(b.run_in(c, tx, "start"), "EBUSY");
        assert_eq!(b.run(c, "end T"), "ENOENT");
        assert_eq!(b.run_in(c, tx, "end X"), "EINVAL");
        assert_eq!(b.run_in(c, tx, "end F"), "OK");
        assert_eq!(b.run_in(c, tx + 1, "read /"), "ENOENT");
    }

    fn a_node_made_and_removed_inside_was_never_there(b) {
        let (c, other) = (b.client(0), b.client(0));
        b.run(other, "write /d/x 1");
        let tx = b.start(c);
        for request in ["write /d/new/deep 1", "rm /d/new", "write /d/new 2", "rm /d/new"] {
            assert_eq!(b.run_in(c, tx, request), "OK");
        }
        assert_eq!(b.run_in(c, tx, "end T"), "OK");
        b.table(&[(c, "dir /d", "x"), (c, "read /d/new", "ENOENT")]);
    }

    fn release_ends_the_domains_transactions(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        let tx = b.start(guest);
        b.run_in(guest, tx, "write data/x 1");
        b.run(host, "release 1");
        b.table(&[(host, "dir /local/domain/1", ""), (host, "control check", "OK")]);
    }
}

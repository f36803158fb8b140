use super::*;
use crate::xen::xenstore::Perm;

on_both_transports! {
    fn each_request_asks_for_its_access(b) {
        b.home(1);
        b.home(2);
        let guest = b.client(1);
        // Entries of the node and of its parent, then: read, dir, getperms, write, mkdir, create below, setperms, rm.
        let (yes, no, absent) = ("OK", "EACCES", "");
        let table = [
            ("n0", [no, no, no, no, no, no, no, no]),
            ("r0", [absent, absent, "r0", no, no, no, no, no]),
            ("n0 r1", [absent, absent, "n0 r1", no, no, no, no, no]),
            ("n0 w1", [no, no, no, yes, yes, yes, no, yes]),
            ("w0", [no, no, no, yes, yes, yes, no, yes]),
            ("n0 b1", [absent, absent, "n0 b1", yes, yes, yes, no, yes]),
            ("b0 n1", [no, no, no, no, no, no, no, no]),
            ("n1", [absent, absent, "n1", yes, yes, yes, yes, yes]),
            ("n2 r1", [absent, absent, "n2 r1", no, no, no, no, no]),
        ];
        for (perms, expected) in table {
            b.store.rm("/t").unwrap();
            b.store.write("/t/n", "").unwrap();
            let list: Vec<Perm> = perms.split(' ').map(|p| Perm::parse(p.as_bytes()).unwrap()).collect();
            b.store.set_perms("/t/n", &list).unwrap();
            let requests = [
                "read /t/n", "dir /t/n", "getperms /t/n", "write /t/n ", "mkdir /t/n", "write /t/n/m 1",
                "setperms /t/n n1", "rm /t/n",
            ];
            for (request, expected) in requests.iter().zip(expected) {
                assert_eq!(b.run(guest, request), expected, "{request} with {perms}");
            }
        }
    }

    fn absence_is_told_to_those_who_may_see_the_parent(b) {
        b.home(1);
        let guest = b.client(1);
        b.store.write("/secret", "").unwrap();
        b.table(&[
            (guest, "read /secret/a/b", "EACCES"),
            (guest, "rm /secret/a", "EACCES"),
            (guest, "read /nope", "EACCES"),
            (guest, "read data/nope", "ENOENT"),
            (guest, "read data/a/b/c", "ENOENT"),
            (guest, "rm data/nope", "OK"),
            (guest, "write /x 1", "EACCES"),
        ]);
    }

    fn new_nodes_inherit_and_belong_to_the_guest_that_makes_them(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.table(&[
            (host, "write /shared ", "OK"),
            (host, "setperms /shared r0 b1 r2", "OK"),
            (guest, "write /shared/a/b 1", "OK"),
            (guest, "getperms /shared/a", "r1 b1 r2"),
            (guest, "getperms /shared/a/b", "r1 b1 r2"),
            (host, "write /shared/a/c 1", "OK"),
            (host, "getperms /shared/a/c", "r1 b1 r2"),
            (host, "getperms /shared", "r0 b1 r2"),
        ]);
    }

    fn guests_cannot_give_nodes_away(b) {
        b.home(1);
        b.home(2);
        let (host, guest) = (b.client(0), b.client(1));
        b.table(&[
            (guest, "setperms data n2", "EPERM"),
            (guest, "setperms data n0", "EPERM"),
            (guest, "setperms data n1 r2", "OK"),
            (guest, "getperms data", "n1 r2"),
            (host, "setperms /local/domain/1/data n2", "OK"),
            (guest, "getperms data", "EACCES"),
            (guest, "setperms data n1", "EACCES"),
        ]);
    }

    fn entries_for_unknown_domains_are_left_out(b) {
        b.home(1);
        let guest = b.client(1);
        b.table(&[
            (guest, "setperms data n1 r0 b9 r1", "OK"),
            (guest, "getperms data", "n1 r0 r1"),
        ]);
    }

    fn a_target_lends_its_rights(b) {
        b.home(1);
        b.home(2);
        let (host, helper) = (b.client(0), b.client(2));
        b.table(&[
            (helper, "write /local/domain/1/data/x 1", "EACCES"),
            (host, "target 2 1", "OK"),
            (helper, "write /local/domain/1/data/x 1", "OK"),
            (helper, "read /local/domain/1/data/x", "1"),
            (host, "release 1", "OK"),
            (helper, "write /local/domain/1/data/x 1", "EACCES"),
        ]);
    }

    fn nothing_is_left_of_a_released_domain(b) {
        b.home(1);
        b.home(2);
        let (host, guest) = (b.client(0), b.client(1));
        b.table(&[
            (host, "write /shared ", "OK"),
            (host, "setperms /shared r0 b1 r2", "OK"),
            (guest, "write /shared/mine/x 1", "OK"),
            (host, "write /shared/mine/x/y 1", "OK"),
            (guest, "write data/y 1", "OK"),
            (host, "setperms @releaseDomain n1 r2", "OK"),
            (host, "release 1", "OK"),
            (host, "dir /shared", ""),
            (host, "getperms /shared", "r0 r2"),
            (host, "dir /local/domain/1", ""),
            (host, "getperms /local/domain/1", "n0"),
            (host, "getperms @releaseDomain", "n0"),
            (host, "control check", "OK"),
        ]);
        b.store.introduce_domain(DomId(1));
        assert!(b.run(host, "control quota 1").contains("nodes: 0\n"));
        let again = b.client(1);
        assert_eq!(b.run(again, "read /local/domain/1"), "EACCES", "the id alone gives no rights");
    }

    fn special_nodes_have_permissions_only(b) {
        b.home(1);
        let (host, guest) = (b.client(0), b.client(1));
        b.table(&[
            (host, "getperms @releaseDomain", "n0"),
            (guest, "getperms @releaseDomain", "EACCES"),
            (guest, "setperms @releaseDomain n1", "EACCES"),
            (host, "setperms @releaseDomain n0 r1", "OK"),
            (guest, "getperms @releaseDomain", "n0 r1"),
            (host, "read @releaseDomain", "EINVAL"),
            (host, "write @releaseDomain 1", "EINVAL"),
            (host, "rm @releaseDomain", "EINVAL"),
            (host, "mkdir @x", "EINVAL"),
            (host, "getperms @x", "EINVAL"),
        ]);
    }
}

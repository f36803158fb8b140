use super::*;

on_both_transports! {
    fn values_are_read_as_written(b) {
        let c = b.client(0);
        b.table(&[
            (c, "write /a/b/c hello", "OK"),
            (c, "read /a/b/c", "hello"),
            (c, "read /a/b", ""),
            (c, "read /a/x", "ENOENT"),
            (c, "write /a/b changed", "OK"),
            (c, "read /a/b", "changed"),
            (c, "read /a/b/c", "hello"),
            (c, "write /a/empty", "EINVAL"),
        ]);
        assert_eq!(b.call(c, 11, 0, b"/a/bin\0\0\x01\xff\0"), Ok(b"OK\0".to_vec()));
        assert_eq!(b.call(c, 2, 0, b"/a/bin\0"), Ok(b"\0\x01\xff\0".to_vec()));
        assert_eq!(b.call(c, 11, 0, b"/a/none\0"), Ok(b"OK\0".to_vec()));
        assert_eq!(b.call(c, 2, 0, b"/a/none\0"), Ok(vec![]));
    }

    fn mkdir_leaves_what_exists(b) {
        let c = b.client(0);
        b.table(&[
            (c, "write /a value", "OK"),
            (c, "mkdir /a", "OK"),
            (c, "read /a", "value"),
            (c, "mkdir /a/b/c", "OK"),
            (c, "dir /a", "b"),
            (c, "read /a/b/c", ""),
        ]);
    }

    fn children_are_listed_in_order_of_creation(b) {
        let c = b.client(0);
        b.table(&[
            (c, "dir /", "tool"),
            (c, "write /a/z 1", "OK"),
            (c, "write /a/m 1", "OK"),
            (c, "write /a/b 1", "OK"),
            (c, "write /a/m 2", "OK"),
            (c, "dir /a", "z m b"),
            (c, "rm /a/m", "OK"),
            (c, "dir /a", "z b"),
            (c, "dir /a/z", ""),
            (c, "dir /nope", "ENOENT"),
        ]);
    }

    fn rm_takes_the_subtree(b) {
        let c = b.client(0);
        b.table(&[
            (c, "write /a/b/c/d 1", "OK"),
            (c, "write /ab 1", "OK"),
            (c, "rm /a/b", "OK"),
            (c, "read /a/b/c/d", "ENOENT"),
            (c, "read /a/b", "ENOENT"),
            (c, "read /ab", "1"),
            (c, "dir /a", ""),
        ]);
    }

    fn rm_of_a_missing_node_needs_its_parent(b) {
        let c = b.client(0);
        b.table(&[
            (c, "mkdir /a", "OK"),
            (c, "rm /a/b", "OK"),
            (c, "rm /a/b/c", "ENOENT"),
            (c, "rm /", "EINVAL"),
        ]);
    }

    fn relative_paths_start_at_the_callers_home(b) {
        b.home(7);
        let (host, guest) = (b.client(0), b.client(7));
        b.table(&[
            (guest, "write data/x 1", "OK"),
            (host, "read /local/domain/7/data/x", "1"),
            (host, "write x 2", "OK"),
            (host, "read /local/domain/0/x", "2"),
            (guest, "path 12", "/local/domain/12"),
        ]);
    }

    fn long_directories_come_in_parts(b) {
        let c = b.client(0);
        let names: Vec<String> = (0..1500).map(|i| format!("name{i}")).collect();
        for name in &names {
            b.store.mkdir(&format!("/big/{name}")).unwrap();
        }
        assert_eq!(b.run(c, "dir /big"), "E2BIG");
        let (mut list, mut generation) = (Vec::new(), None);
        loop {
            let part = b.call(c, 22, 0, format!("/big\0{}\0", list.len()).as_bytes()).unwrap();
            let end = part.iter().position(|x| *x == 0).unwrap();
            assert_eq!(*generation.get_or_insert(part[..end].to_vec()), part[..end]);
            let part = &part[end + 1..];
            assert!(!part.is_empty() && part.ends_with(b"\0"), "whole names only");
            match part.strip_suffix(b"\0\0") {
                Some(last) => { list.extend_from_slice(last); break }
                None => list.extend_from_slice(part),
            }
        }
        assert_eq!(show(&list), names.join(" "));
        assert!(b.call(c, 22, 0, b"/big\0999999\0").unwrap().ends_with(b"\0\0"), "past the end: an empty name");
        let before = b.run(c, "part /big 0");
        b.store.rm("/big/name3").unwrap();
        assert_ne!(b.run(c, "part /big 0").split(' ').next(), before.split(' ').next());
    }

    fn domains_come_and_go(b) {
        let (host, guest) = (b.client(0), b.client(3));
        b.table(&[
            (host, "introduced 0", "T"),
            (host, "introduced 3", "F"),
            (host, "introduce 3 1 1", "EINVAL"),
            (host, "release 3", "ENOENT"),
            (host, "resume 3", "ENOENT"),
            (host, "target 3 4", "ENOENT"),
        ]);
        b.home(3);
        b.table(&[
            (host, "introduced 3", "T"),
            (guest, "introduced 3", "T"),
            (host, "introduce 3 1 1", "OK"),
            (host, "resume 3", "OK"),
            (host, "release 3", "OK"),
            (host, "introduced 3", "F"),
        ]);
    }

    fn administration_is_for_domain_0(b) {
        b.home(3);
        let (host, guest) = (b.client(0), b.client(3));
        for request in [
            "control check", "introduce 3 1 1", "release 3", "resume 3", "target 3 4", "getquota nodes",
            "getquota 3 nodes", "setquota nodes 5", "getfeature 3",
        ] {
            assert_eq!(b.run(guest, request), "EACCES", "{request}");
        }
        b.table(&[
            (host, "control check", "OK"),
            (host, "control help", "commands: check help log memreport print quota"),
            (host, "control log on", "OK"),
            (host, "control log off", "OK"),
            (host, "control print hello", "OK"),
            (host, "control quota watches 7", "OK"),
            (host, "getquota watches", "7"),
            (host, "getquota 3 watches", "7"),
            (host, "setquota 3 nodes 55", "OK"),
            (host, "getquota 3 nodes", "55"),
            (host, "getquota nodes", "1000"),
            (host, "setquota 9 nodes 55", "ENOENT"),
            (host, "getquota nope", "EINVAL"),
            (host, "control nope", "EINVAL"),
            (host, "getfeature 3", "3"),
            (guest, "getfeature", "3"),
            (host, "setfeature 3 1", "ENOSYS"),
        ]);
        assert!(b.run(host, "control quota 3").contains("nodes: 1\n"));
        assert!(b.run(host, "control memreport").contains("domain 3: "));
    }
}

#[test]
fn host_code_reads_and_writes_without_a_transport() {
    let mut store = XenStore::new();
    store.write("/a/b", "x").unwrap();
    assert_eq!(store.read("/a/b"), Some(b"x".to_vec()));
    assert_eq!(store.read_str("/a/b").as_deref(), Some("x"));
    assert_eq!(store.read("/a/c"), None);
    assert_eq!(store.directory("/a"), Some(vec!["b".to_owned()]));
    assert_eq!(store.directory("/c"), None);
    assert_eq!(store.write("/a//b", "x"), Err(crate::xen::xenstore::XsError::Invalid));
    store.rm("/a").unwrap();
    assert!(!store.exists("/a/b"));
    assert_eq!(store.check(), Ok(()));
}

#[test]
fn the_deepest_path_is_written_and_removed() {
    let mut store = XenStore::new();
    let path = "/a".repeat(1536);
    store.write(&path, "x").unwrap();
    assert_eq!(store.read(&path), Some(b"x".to_vec()));
    assert_eq!(store.check(), Ok(()));
    store.rm("/a").unwrap();
    assert_eq!(store.directory("/"), Some(vec!["tool".to_owned()]));
    assert_eq!(store.check(), Ok(()));
}

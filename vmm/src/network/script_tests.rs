#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::testing::{enter_namespace, ip, namespace_with_bridge, program, until};
use super::super::{NetworkError, plug};
use crate::config::{NetConfig, VifScript};

/// A folder with a script, which writes what it was called with into `log` there and then does `body`.
fn folder(body: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    let log =
        "(echo \"$@\"; env | grep -E '^(vif|XENBUS|netdev|bridge|ip|mac|script)' | sort) >> \"${0%/*}/log\"";
    fs::write(&script, format!("#!/bin/sh\n{log}\n{body}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn net(dir: &tempfile::TempDir, spec: &str) -> NetConfig {
    let net: NetConfig = spec.parse().unwrap();
    NetConfig { script: VifScript::Program(dir.path().join("script")), devid: Some(0), ..net }
}

#[test]
fn a_script_has_the_arguments_and_the_environment_of_xen() {
    namespace_with_bridge("br1");
    let dir = folder("[ $1 = offline ] || ip link set $vif master $bridge mtu 1400 up");
    let net = net(&dir, "br1,mac=00:16:3e:00:00:01,ip=192.0.2.7,gatewaydev=eth9");
    let (config, tap) = plug(&net, 5, dir.path()).unwrap();
    assert!(ip("link show vif5.0").contains("mtu 1400 qdisc"));
    assert!(ip("link show vif5.0").contains("master br1"));
    assert_eq!((config.mtu, config.vifname.as_str()), (1400, "vif5.0"));
    let path = dir.path().join("script").display().to_string();
    assert!(config.toolstack.backend.contains(&("script".into(), path.clone())));
    drop(tap);
    let environment = format!(
        "XENBUS_BASE_PATH=backend\nXENBUS_PATH=backend/vif/5/0\nXENBUS_TYPE=vif\nbridge=br1\nip=192.0.2.7\n\
         mac=00:16:3e:00:00:01\nnetdev=eth9\nscript={path}\nvif=vif5.0\n"
    );
    let expected = format!("online type_if=vif\n{environment}offline type_if=vif\n{environment}");
    assert_eq!(fs::read_to_string(dir.path().join("log")).unwrap(), expected);
    assert_eq!(program("nft", "-j list chains netdev", true).matches("vif/").count(), 0);
}

#[test]
fn a_script_that_fails_leaves_nothing() {
    enter_namespace();
    for (body, why) in [
        ("echo no luck >&2; false", "no luck"),
        ("exit 3", "exit status: 3"),
        ("[ $1 = offline ] || kill -9 $$", "signal: 9"),
    ] {
        let dir = folder(body);
        let error = plug(&net(&dir, "mac-filter"), 5, dir.path()).unwrap_err();
        assert!(matches!(&error, NetworkError::Script { why: said, .. } if said.contains(why)), "{error}");
        until("the tap is gone", || !ip("link show").contains("vif5.0"));
        assert!(!program("nft", "list ruleset", true).contains("vif5.0"));
        // It was asked to undo what it had done.
        assert!(fs::read_to_string(dir.path().join("log")).unwrap().contains("offline type_if=vif"));
        assert!(!dir.path().join("vif0.sock").exists());
    }
}

#[test]
fn a_file_that_is_no_program_is_told() {
    enter_namespace();
    let dir = folder("");
    fs::set_permissions(dir.path().join("script"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = plug(&net(&dir, ""), 5, dir.path()).unwrap_err();
    assert!(matches!(error, NetworkError::NoScript(_)), "{error}");
}

/// A client of xenstore in Python: `xs read PATH`, `xs write PATH VALUE`.
const CLIENT: &str = r#"#!/usr/bin/python3
import os, socket, struct, sys
kind = {"read": 2, "write": 11}[sys.argv[1]]
body = sys.argv[2].encode() + b"\0" + b"".join(a.encode() for a in sys.argv[3:])
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["XENSTORED_PATH"])
s.sendall(struct.pack("=IIII", kind, 0, 0, len(body)) + body)
answer, _, _, length = struct.unpack("=IIII", s.recv(16, socket.MSG_WAITALL))
text = s.recv(length, socket.MSG_WAITALL).decode() if length else ""
print(text)
sys.exit(answer != kind)
"#;

#[test]
fn a_script_reads_and_writes_the_xenstore() {
    enter_namespace();
    let dir = folder(
        "xs=\"${0%/*}/xs\"; for key in mac bridge rate handle frontend-id; do \"$xs\" read $XENBUS_PATH/$key; done \
         > \"${0%/*}/read\"\n\"$xs\" write $XENBUS_PATH/hotplug-error 'the cable is cut' > /dev/null; exit 1",
    );
    let client = dir.path().join("xs");
    fs::write(&client, CLIENT).unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    let net = net(&dir, "mac=00:16:3e:00:00:01,rate=1MB/s");
    let error = plug(&net, 5, dir.path()).unwrap_err().to_string();
    assert!(
        error.ends_with(" online: the cable is cut; correct the script, or leave script= out"),
        "{error}"
    );
    let read = fs::read_to_string(dir.path().join("read")).unwrap();
    assert_eq!(read, "00:16:3e:00:00:01\nxenbr0\n50000,50000\n0\n5\n");
}

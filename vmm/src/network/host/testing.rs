//! A host to be changed: a network namespace of this thread alone, with a network card that has all there is.

#![allow(clippy::unwrap_used)]

use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hands::Witness;
use super::{Host, Tools};

/// The namespace, and a folder with everything that would be below /etc and /run.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) host: Host,
}

impl World {
    /// With `eth0` and, at the other end of its cable, `outside`.
    pub(super) fn new() -> World {
        // SAFETY: only changes the namespace of this thread.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = io::Error::last_os_error();
        assert_eq!(result, 0, "this test needs a network namespace of its own: run it as root ({error})");
        let dir = tempfile::tempdir().unwrap();
        let host = host_in(dir.path());
        let world = World { dir, host };
        ip("link set lo up");
        ip(
            "link add eth0 address 00:13:72:81:3a:3d mtu 1400 txqueuelen 500 type veth peer name outside mtu 1400",
        );
        ip("link set outside up");
        ip("link set eth0 up");
        world
    }

    /// With addresses, routes, rules, neighbours and settings of every kind.
    pub(super) fn furnished() -> World {
        let world = World::new();
        for line in [
            "link add other type veth peer name other-end",
            "link set other up",
            "link set other-end up",
            "address add 10.1.0.1/24 dev other",
            "address add 192.0.2.10/24 broadcast 192.0.2.255 dev eth0",
            "address add 192.0.2.11/24 dev eth0",
            "address add 192.0.2.12/24 dev eth0 valid_lft 3000 preferred_lft 2000",
            "address add 10.9.0.1/16 dev eth0 label eth0:1 metric 77",
            "address add 10.8.0.1 peer 10.8.0.2 dev eth0",
            "address add 2001:db8::10/64 dev eth0 nodad",
            "address add 2001:db8:1::1/64 dev eth0 nodad noprefixroute",
            "address add 2001:db8:2::1/64 dev eth0 valid_lft 3000 preferred_lft 2000 nodad",
            "route add default via 192.0.2.1",
            "route add default via 192.0.2.254 metric 500",
            "route add default via 192.0.2.2 table 100",
            "route add 198.18.0.0/15 nexthop via 192.0.2.3 weight 2 nexthop via 192.0.2.4",
            "route add 198.51.100.0/24 via 192.0.2.5 mtu lock 1200 advmss 1000 src 192.0.2.11",
            "route add 198.51.101.0/24 via 198.51.100.1 dev eth0 onlink proto static",
            "route add blackhole 203.0.113.0/24",
            "route add 10.2.0.0/16 dev other src 192.0.2.10",
            "-6 route add default via 2001:db8::1",
            "-6 route add 2001:db8:8::/48 via fe80::1 dev eth0 metric 30 expires 4000",
            "-6 route add 2001:db8:9::/48 nexthop via 2001:db8::2 nexthop via 2001:db8::3",
            "-6 route add 2001:db8:a::/48 dev other src 2001:db8::10",
            "-6 route add 2001:db8:b::/48 via 2001:db8::4 src 2001:db8::10 metric 7",
            "rule add pref 100 iif eth0 lookup 100",
            "rule add pref 101 oif eth0 fwmark 7 lookup 100",
            "rule add pref 102 from 192.0.2.11 lookup 100",
            "-6 rule add pref 100 iif eth0 lookup 100",
            "neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
        ] {
            ip(line);
        }
        for (key, value) in [("ipv4/conf/eth0/rp_filter", "2"), ("ipv6/conf/eth0/accept_ra", "0")] {
            std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
        }
        world
    }

    /// Everything that is to be as it was, line by line.
    pub(super) fn state(&self) -> String {
        // The kernel tests its own addresses for a second.
        wait("the link-local addresses", || !ip("-6 address show tentative").contains("tentative"));
        let mut lines = Vec::new();
        for command in [
            "-d link",
            "address",
            "-4 route show table all",
            "-6 route show table all",
            "-4 rule",
            "-6 rule",
            "neighbour show nud permanent",
        ] {
            let objects: Value = serde_json::from_str(&ip(&format!("-j {command}"))).unwrap();
            let mut objects = objects.as_array().unwrap().clone();
            objects.iter_mut().for_each(strip);
            lines.extend(objects.iter().map(|object| format!("{command}: {object}")));
        }
        lines.sort();
        for family in ["ipv4", "ipv6"] {
            for key in ["rp_filter", "accept_ra", "accept_dad", "addr_gen_mode", "disable_ipv6", "forwarding"]
            {
                let path = format!("/proc/sys/net/{family}/conf/eth0/{key}");
                lines.extend(std::fs::read_to_string(&path).map(|value| format!("{path} {}", value.trim())));
            }
        }
        for filter in ["iptables", "ip6tables", "arptables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{filter}");
            lines.extend(std::fs::read_to_string(&path).map(|value| format!("{path} {}", value.trim())));
        }
        lines.join("\n")
    }

    /// The state is `expected`, at the latest when carriers have been noticed; and nothing lies around.
    pub(super) fn expect(&self, expected: &str, after: &str) {
        self.settle(expected, after);
        assert_eq!(self.files(), [] as [String; 0], "{after}");
    }

    /// The state is `expected`, at the latest when carriers have been noticed.
    pub(super) fn settle(&self, expected: &str, after: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.state() != expected {
            if Instant::now() > deadline {
                let (state, lines) =
                    (self.state(), |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>());
                let (now, then) = (lines(&state), lines(expected));
                let new: Vec<_> = now.iter().filter(|line| !then.contains(line)).collect();
                let gone: Vec<_> = then.iter().filter(|line| !now.contains(line)).collect();
                panic!("{after}: new: {new:#?} gone: {gone:#?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Files that are left, but the lock.
    pub(super) fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for dir in [self.host.definitions.clone(), self.host.state(), self.host.file("run/systemd/network")] {
            let entries = std::fs::read_dir(dir).into_iter().flatten();
            names.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        }
        names.retain(|name| name != "lock");
        names
    }
}

/// What changes by itself, or is counted anew, apart from timers.
const UNSTEADY: [&str; 6] =
    ["ifindex", "link_index", "valid_life_time", "preferred_life_time", "expires", "used"];

/// Takes that away.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !UNSTEADY.contains(&key.as_str()) && !key.ends_with("_timer"));
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => {
            items.iter_mut().for_each(strip);
            items.sort_by_key(ToString::to_string);
        }
        _ => {}
    }
}

/// With `true` in place of xvmm where that is started in the background.
pub(super) fn host_in(dir: &std::path::Path) -> Host {
    Host {
        definitions: dir.join("etc"),
        run_dir: dir.join("run"),
        root: dir.join("root"),
        tools: Tools::from_env(),
        program: "/bin/true".into(),
    }
}

/// Runs `ip`, which has to succeed.
pub(super) fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What happens at one change of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accident {
    /// The kernel refuses it.
    Error,
    /// The process is killed.
    Kill,
}

/// Lets one change fail, or kills the process before it.
pub(super) struct Saboteur {
    pub(super) at: usize,
    pub(super) accident: Accident,
    pub(super) seen: usize,
}

impl Saboteur {
    pub(super) fn new(at: usize, accident: Accident) -> Saboteur {
        Saboteur { at, accident, seen: 0 }
    }
}

impl Witness for Saboteur {
    fn before(&mut self, _what: &str) -> io::Result<()> {
        self.seen += 1;
        if self.seen - 1 != self.at {
            return Ok(());
        }
        match self.accident {
            Accident::Error => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            Accident::Kill => {
                // SAFETY: raise takes a number.
                unsafe { libc::raise(libc::SIGKILL) };
                unreachable!()
            }
        }
    }
}

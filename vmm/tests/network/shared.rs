//! Shared networks, and all networks together: the watchdog, refusals, many guests.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use xvmm::config::NetConfig;
use xvmm::exit::ExitStatus;

use crate::world::{Host, Namespace, index, ip, networkd, nft, settled_state, state, until_same, wait};

#[test]
fn a_guest_on_the_shared_network_gets_its_address_from_outside() {
    let (host, outside) = Host::with_uplink();
    outside.start(&format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=out0 --bind-interfaces \
         --dhcp-range=192.0.2.100,192.0.2.110 --dhcp-leasefile={} --pid-file= --user=root",
        host.text("outside.leases")
    ));
    host.network("create xenbr0 --uplink eth0 --layout classic");
    let guest = Namespace::plugged_into("xenbr0", "vif7.0", "00:16:3e:00:00:07");
    let address = guest.dhcp(host.dir.path());
    assert!(address.starts_with("192.0.2.10") || address.starts_with("192.0.2.110"), "{address}");
    assert!(guest.pings("192.0.2.1"), "the world outside");
    assert!(guest.pings("192.0.2.10"), "the host");
    assert!(outside.pings("192.0.2.10"), "the host from outside");
    // The host is itself as ever.
    let reached = Command::new("busybox").args(["ping", "-c", "1", "-W", "2", "192.0.2.1"]).output().unwrap();
    assert!(reached.status.success());
    let neighbour = outside.run("ip neighbour show 192.0.2.10");
    assert!(neighbour.contains("00:13:72:81:3a:3d"), "{neighbour}");
}

#[test]
fn what_nobody_confirms_is_taken_back_when_the_caller_was_hung_up() {
    let (host, outside) = Host::with_uplink();
    let before = settled_state();
    // The terminal goes away in the middle of the change.
    let flag = host.text("hung-up");
    networkd(&host, &format!("[ -e {flag} ] || kill -HUP $PPID; touch {flag}"));
    let status = host.command("create xenbr0 --uplink eth0 --layout classic --confirm=2").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGHUP), "{status}");
    assert!(host.path("hung-up").exists());
    // It was completed all the same: the host would be without a network otherwise.
    assert_eq!(host.show("xenbr0")["state"], "unconfirmed");
    assert!(ip("-o address show dev eth0").contains("192.0.2.10"));
    assert!(ip("-o link show peth0").contains("master xenbr0"));
    until_same(&before, state);
    wait("its end", || host.processes("watch").is_empty());
    assert_eq!(host.files(), ["xenbr0.watchdog.log"]);
    let log = fs::read_to_string(host.path("run/networks/xenbr0.watchdog.log")).unwrap();
    assert!(log.contains("not confirmed within 2 s, and taken back"), "{log}");
    assert!(outside.pings("192.0.2.10"));
    host.refuses("confirm xenbr0", ExitStatus::NothingToConfirm, "nothing waits to be confirmed");
}

#[test]
fn what_was_killed_in_the_middle_is_taken_back_by_the_watchdog() {
    let (host, outside) = Host::with_uplink();
    let before = settled_state();
    // systemd-resolved is told at the very end.
    host.write(&format!("run/systemd/resolve/netif/{}", index("eth0")), "SERVERS=192.0.2.53\n");
    host.tool("resolvectl", "kill -KILL $PPID");
    let status = host.command("create xenbr0 --uplink eth0 --confirm=2").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    assert_eq!(host.show("xenbr0")["state"], "interrupted");
    host.refuses("up xenbr0", ExitStatus::NetworkHalfMade, "`xvmm network repair xenbr0` takes it back");
    until_same(&before, state);
    wait("its end", || host.processes("watch").is_empty());
    assert!(outside.pings("192.0.2.10"));
}

#[test]
fn what_was_taken_down_and_is_not_confirmed_comes_up_again() {
    let (host, outside) = Host::with_uplink();
    // The terminal goes away in the middle of the change.
    let flag = host.text("hang-up");
    networkd(&host, &format!("[ ! -e {flag} ] || {{ rm {flag}; kill -HUP $PPID; }}"));
    host.network("create xenbr0 --uplink eth0 --layout classic");
    let before = settled_state();
    fs::write(&flag, "").unwrap();
    let status = host.command("delete xenbr0 --confirm=2").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGHUP), "{status}");
    // It was completed all the same, and its definition waits, too.
    assert_eq!(host.show("xenbr0")["state"], "unconfirmed");
    assert!(!ip("-o link").contains("xenbr0"));
    host.refuses("up xenbr0", ExitStatus::NetworkHalfMade, "`xvmm network repair xenbr0` takes it back");
    until_same(&before, state);
    wait("its end", || host.processes("watch").is_empty());
    assert_eq!(host.show("xenbr0")["state"], "up");
    let log = fs::read_to_string(host.path("run/networks/xenbr0.watchdog.log")).unwrap();
    assert!(log.contains("not confirmed within 2 s, and taken back"), "{log}");
    assert!(outside.pings("192.0.2.10"));
}

#[test]
fn a_killed_down_is_taken_back_by_the_watchdog() {
    let (host, outside) = Host::with_uplink();
    let flag = host.text("kill");
    networkd(&host, &format!("[ ! -e {flag} ] || {{ rm {flag}; kill -KILL $PPID; }}"));
    host.network("create xenbr0 --uplink eth0");
    let before = settled_state();
    fs::write(&flag, "").unwrap();
    let status = host.command("down xenbr0 --confirm=2").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    assert_eq!(host.show("xenbr0")["state"], "interrupted");
    until_same(&before, state);
    wait("its end", || host.processes("watch").is_empty());
    assert_eq!(host.show("xenbr0")["state"], "up");
    assert!(outside.pings("192.0.2.10"));
}

#[test]
fn a_removal_that_is_confirmed_stays() {
    let (host, outside) = Host::with_uplink();
    host.network("create xenbr0 --uplink eth0");
    host.network("create virbr0");
    for name in ["xenbr0", "virbr0"] {
        let said = host.network(&format!("delete {name} --confirm=3"));
        assert_eq!(said, format!("{name}: taken back in 3 s unless you run: xvmm network confirm {name}\n"));
        host.network(&format!("confirm {name}"));
        host.refuses(&format!("confirm {name}"), ExitStatus::NothingToConfirm, "nothing waits");
    }
    wait("the watchdogs' end", || host.processes("watch").is_empty());
    assert_eq!(host.files(), [] as [String; 0]);
    assert!(outside.pings("192.0.2.10"));
    // A private one comes back with its rules and its dnsmasq.
    host.network("create virbr0");
    let rules = nft("list ruleset");
    host.network("down virbr0 --confirm=1");
    assert!(host.processes("supervise").is_empty());
    wait("the network", || host.show("virbr0")["state"] == "up");
    assert_eq!(nft("list ruleset"), rules);
    assert_eq!(host.show("virbr0")["dnsmasq"], true);
}

#[test]
fn what_is_confirmed_stays() {
    let (host, outside) = Host::with_uplink();
    let said = host.network("create xenbr0 --uplink eth0 --confirm=3");
    assert_eq!(said, "xenbr0: taken back in 3 s unless you run: xvmm network confirm xenbr0\n");
    host.network("confirm xenbr0");
    host.refuses("confirm xenbr0", ExitStatus::NothingToConfirm, "nothing waits to be confirmed");
    wait("the watchdog's end", || host.processes("watch").is_empty());
    assert_eq!(host.show("xenbr0")["state"], "up");
    assert!(outside.pings("192.0.2.10"));
}

#[test]
fn bad_input_is_one_sentence_with_a_status_of_its_own() {
    use ExitStatus as E;
    let (host, _outside) = Host::with_uplink();
    for (line, status, words) in [
        ("create xenbr0", E::Usage, "give --uplink INTERFACE for a shared network, or --private"),
        ("create xenbr0 --uplink eth0 --layout odd", E::Usage, "--layout odd: plain or classic"),
        ("create a-name-too-long1 --uplink eth0", E::Usage, "not a name for a bridge"),
        ("create virbr0 --subnet 192.168.122.0/24", E::Usage, "not an address of the host"),
        ("create virbr0 --dhcp-range x", E::Usage, "--dhcp-range x: two addresses"),
        ("create virbr0 --host web=10.0.0.1", E::Usage, "10.0.0.1 for web does not lie in 192.168.122.0/24"),
        ("create xenbr0 --uplink eth0 --confirm=0", E::Usage, "a number of seconds"),
        ("down xenbr0 --confirm=x", E::Usage, "a number of seconds"),
        ("create xenbr0 --uplink eth9", E::UplinkUnusable, "uplink eth9 does not exist"),
        ("create virbr0 --subnet 192.0.2.129/25", E::SubnetTaken, "overlaps with 192.0.2.0/24 on eth0"),
        ("create lo --private", E::NetworkExists, "there is an interface lo already"),
        ("show virbr0", E::NoSuchNetwork, "network virbr0: no network of that name"),
        ("delete virbr0", E::NoSuchNetwork, "no network of that name"),
        ("repair virbr0", E::NoSuchNetwork, "no network of that name"),
    ] {
        host.refuses(line, status, words);
    }
    for (variable, tool, package) in
        [("XVMM_DNSMASQ", "dnsmasq", "dnsmasq-base"), ("XVMM_NFT", "nft", "nftables")]
    {
        host.set(variable, "/nonexistent");
        let words = format!("there is no {tool} on this host; on Debian: apt-get install {package}");
        host.refuses("create virbr0", E::ToolMissing, &words);
    }
}

#[test]
fn all_networks_come_up_together_after_a_restart() {
    let (host, _outside) = Host::with_uplink();
    host.network("create xenbr0 --uplink eth0 --layout classic");
    host.network("create virbr0");
    host.network("down --all");
    assert!(!ip("link").contains("br0"));
    assert_eq!(host.files(), ["virbr0.json", "virbr0.leases", "xenbr0.json"]);
    host.network("up --all");
    let listed = host.network("list");
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[1..],
        [["virbr0", "private", "up", "0", "192.168.122.1/24"], ["xenbr0", "shared", "up", "0", "eth0"]]
    );
    // One that cannot be is told, and does not keep the others from it.
    host.network("down --all");
    fs::write(host.path("networks/bad.json"), "{}").unwrap();
    let output = host.command("up --all").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    fs::remove_file(host.path("networks/bad.json")).unwrap();
    assert_eq!(host.network("list").matches(" up ").count(), 2);
}

#[test]
fn a_hundred_vifs_come_and_go_twenty_times_without_a_trace() {
    let (host, _outside) = Host::with_uplink();
    host.network("create xenbr0 --uplink eth0");
    host.network("create virbr0");
    let trace = || {
        let mut lines = settled_state();
        lines.extend([nft("list ruleset"), host.files().join(" ")]);
        for pid in host.processes("supervise").into_iter().chain(host.processes("dnsmasq.conf")) {
            let count = |kind| fs::read_dir(format!("/proc/{pid}/{kind}")).unwrap().count();
            lines.push(format!("{pid}: {} threads, {} descriptors", count("task"), count("fd")));
        }
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let taps =
            descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|to| to.ends_with("net/tun"));
        lines.push(format!("{} taps", taps.count()));
        lines
    };
    let round = || {
        let vif = |number: u16| {
            let bridge = if number.is_multiple_of(2) { "xenbr0" } else { "virbr0" };
            // One in ten has rules of nftables.
            let ip = if number.is_multiple_of(10) { ",ip=192.0.2.77" } else { "" };
            let net: NetConfig = format!("{bridge}{ip}").parse().unwrap();
            xvmm::network::plug(&NetConfig { devid: Some(0), ..net }, number, host.dir.path()).unwrap()
        };
        let vifs: Vec<_> = (1..=100).map(vif).collect();
        assert_eq!(ip("-o link").matches(": vif").count(), 100);
        drop(vifs);
        // A process that another test starts has a copy of all descriptors, until it is another program.
        wait("the end of the taps", || !ip("-o link").contains(": vif"));
    };
    // Only now the kernel knows that the bridge without a port has no carrier.
    round();
    wait("the carrier's end", || ip("link show virbr0").contains("state DOWN"));
    let before = trace();
    (0..20).for_each(|_| round());
    until_same(&before, trace);
}

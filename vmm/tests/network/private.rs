//! Private networks: addresses, names, translation, and what stands in their way.

use std::fs;

use serde_json::Value;
use xvmm::exit::ExitStatus;
use xvmm::network::MacAddr;

use crate::world::{Host, Namespace, ip, nft, settled_state, until_same, wait};

#[test]
fn guests_of_a_private_network_have_dhcp_dns_and_the_world() {
    let (host, outside) = Host::with_uplink();
    let before = [settled_state(), vec![nft("list ruleset")]].concat();
    host.network("create virbr0 --ipv6 fd00:122::/64 --host web=192.168.122.50");
    let mac = MacAddr::for_domain(Some("web"), 0).to_string();
    let guest = Namespace::plugged_into("virbr0", "vif7.0", &mac);
    assert_eq!(guest.dhcp(host.dir.path()), "192.168.122.50/24");
    assert_eq!(fs::read_to_string(host.path("udhcpc.dns")).unwrap().trim(), "192.168.122.1");
    let answer = guest.run("busybox nslookup web 192.168.122.1");
    assert!(answer.contains("192.168.122.50"), "{answer}");
    // Another one gets another address, and has a name, too.
    let other = Namespace::plugged_into("virbr0", "vif8.0", "00:16:3e:00:00:08");
    assert_ne!(other.dhcp(host.dir.path()), "192.168.122.50/24");
    assert!(other.pings("192.168.122.50"));
    // The outside knows no way to 192.168.122.0/24: only translated packets are answered.
    assert_eq!(outside.run("ip route"), "192.0.2.0/24 dev out0 proto kernel scope link src 192.0.2.1 \n");
    assert!(guest.pings("192.0.2.1"));
    // And it may not begin, even if it knew.
    outside.run("ip route add 192.168.122.0/24 via 192.0.2.10");
    assert!(!outside.pings("192.168.122.50"));
    wait("an address by router advertisement", || {
        guest.run("ip -6 address show dev eth0").contains("fd00:122::")
    });
    wait("the host by IPv6", || guest.pings("fd00:122::1"));
    ip("link set eth0 down");
    assert!(guest.pings("192.168.122.1"), "the host is gone with its uplink");
    ip("link set eth0 up");
    ip("route add default via 192.0.2.1");

    let status = host.show("virbr0");
    assert_eq!((&status["state"], &status["dnsmasq"]), (&"up".into(), &true.into()));
    let leases = status["leases"].to_string();
    assert!(
        leases.contains(&mac) && leases.contains("192.168.122.50") && leases.contains("\"web\""),
        "{leases}"
    );
    host.refuses("delete virbr0", ExitStatus::NetworkInUse, "in use by vif7.0, vif8.0");
    host.network("delete virbr0 --force");
    drop((guest, other));
    wait("the guests' cables", || !ip("link").contains("vif"));
    // It goes on routing: others may rely on it by now.
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
    until_same(&before, || [settled_state(), vec![nft("list ruleset")]].concat());
    assert_eq!(host.files(), [] as [String; 0]);
    assert_eq!((host.processes("supervise"), host.processes("dnsmasq.conf")), (vec![], vec![]));
}

#[test]
fn addresses_are_reserved_while_the_network_is_up() {
    let host = Host::new();
    host.network("create virbr0");
    host.network("reserve virbr0 db 192.168.122.60");
    assert_eq!(host.network("reserve virbr0 db 192.168.122.60"), "virbr0: nothing to do\n");
    let mac = MacAddr::for_domain(Some("db"), 0).to_string();
    let guest = Namespace::plugged_into("virbr0", "vif7.0", &mac);
    assert_eq!(guest.dhcp(host.dir.path()), "192.168.122.60/24");
    host.refuses("reserve virbr0 web 192.168.122.60", ExitStatus::Usage, "db and web have the same address");
    host.network("reserve virbr0 db --remove");
    assert!(!host.show("virbr0").to_string().contains("\"db\",\"interface\""));
}

#[test]
fn a_dnsmasq_that_dies_is_started_again() {
    let host = Host::new();
    host.network("create virbr0");
    let pid = || fs::read_to_string(host.path("run/networks/virbr0.dnsmasq.pid")).unwrap_or_default();
    let first = pid();
    // SAFETY: kill takes numbers.
    unsafe { libc::kill(first.trim().parse().unwrap(), libc::SIGKILL) };
    wait("another dnsmasq", || pid() != first && !pid().is_empty());
    // When its supervisor is gone as well, `up` starts both.
    for process in host.processes("supervise") {
        // SAFETY: as above.
        unsafe { libc::kill(process.try_into().unwrap(), libc::SIGKILL) };
    }
    wait("the supervisor's end", || host.show("virbr0")["dnsmasq"] == false);
    nft("flush ruleset");
    let report: Value = serde_json::from_str(&host.network("up virbr0 --json")).unwrap();
    assert_eq!(report[0]["steps"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(host.show("virbr0")["dnsmasq"], true);
    assert_eq!(host.processes("dnsmasq.conf").len(), 1);
    assert!(nft("list ruleset").contains("xvmm_virbr0"));
    host.network("delete virbr0");
    assert_eq!(host.processes("dnsmasq.conf"), [] as [u32; 0]);
}

#[test]
fn a_taken_port_is_told_before_anything_is_made() {
    let host = Host::new();
    let udp = std::net::UdpSocket::bind("0.0.0.0:67").unwrap();
    host.refuses("create virbr0", ExitStatus::PortTaken, "UDP port 67 of 0.0.0.0 is taken");
    drop(udp);
    let tcp = std::net::TcpListener::bind("0.0.0.0:53").unwrap();
    host.refuses("create virbr0", ExitStatus::PortTaken, "TCP port 53 of 192.168.122.1 is taken");
    host.network("create virbr0 --no-dns");
    drop(tcp);
    // Two of ours do not disturb each other.
    host.network("create virbr1 --subnet 192.168.123.1/24");
    let guest = Namespace::plugged_into("virbr1", "vif7.0", "00:16:3e:00:00:07");
    assert!(guest.dhcp(host.dir.path()).starts_with("192.168.123."));
}

#[test]
fn a_dnsmasq_that_does_not_start_leaves_nothing_behind() {
    let host = Host::new();
    host.tool("dnsmasq", "echo 'dnsmasq: it has a bad day' >&2; exit 2");
    host.set("XVMM_DNSMASQ", &host.text("bin/dnsmasq"));
    let output = host.command("create virbr0").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ExitStatus::NetworkUndone.code().into()), "{said}");
    assert!(said.contains("everything is as it was before"), "{said}");
    assert!(!ip("link").contains("virbr0"));
    assert_eq!(nft("list ruleset"), "");
    assert_eq!(host.files(), [] as [String; 0]);
    assert_eq!(fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count(), 3);
}

#[test]
fn a_firewall_in_the_way_is_named() {
    let host = Host::new();
    let rules = host.path("rules");
    fs::write(
        &rules,
        "table inet filter {\nchain forward {\ntype filter hook forward priority 0; policy drop\n}\n}\n",
    )
    .unwrap();
    nft(&format!("-f {}", rules.display()));
    let before = nft("list ruleset");
    let report: Value = serde_json::from_str(&host.network("create virbr0 --json")).unwrap();
    let warning = report[0]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("chain forward (table inet filter) drops what guests send"), "{warning}");
    host.network("delete virbr0");
    assert_eq!(nft("list ruleset"), before);
}

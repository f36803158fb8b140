//! The networks that `xvmm network` makes: one shared with the world outside, one of the host alone.

use std::process::Command;
use std::time::{Duration, Instant};

use super::{Namespace, ip, iperf};
use crate::cases::Bench;
use crate::guest::{Guest, Spec, xvmm};
use crate::packages::run;
use crate::{Result, check, fail};

/// What the guest's DHCP client is to do with a lease.
const LEASE: &str = "printf '%s\\n' '#!/bin/sh' '[ \"$1\" = bound ] || exit 0' \
    'ip addr add $ip/$mask dev $interface' '[ -z \"$router\" ] || ip route add default via $router' \
    'echo \"nameserver $dns\" > /etc/resolv.conf' > /tmp/lease && chmod +x /tmp/lease";

/// Runs `xvmm network`.
fn network(bench: &Bench, words: &str) -> Result<String> {
    let mut command = xvmm(&bench.folder);
    command
        .env("XVMM_NETWORKS_DIR", bench.folder.join("networks"))
        .env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin");
    run(command.arg("network").args(words.split_whitespace()))
}

/// Has the guest ask for an address; the one it got.
fn ask(guest: &mut Guest) -> Result<String> {
    guest.sh("ip link set eth0 up")?;
    guest.sh(LEASE)?;
    guest.sh_within("udhcpc -i eth0 -n -q -f -t 20 -T 2 -s /tmp/lease", super::LIMIT)?;
    let shown = guest.sh("ip -4 -o addr show dev eth0")?;
    match shown.split_whitespace().skip_while(|word| *word != "inet").nth(1) {
        Some(address) => Ok(address.split('/').next().unwrap_or(address).to_owned()),
        None => fail!("the guest has no address: {shown}"),
    }
}

/// Waits for something that another program does.
fn wait(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while !done()? {
        check!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The network outside, behind the host's network card.
fn outside(card: &str) -> Result<Namespace> {
    let outside = Namespace::new("outside")?;
    ip(&format!("link add {card} type veth peer name eth0 netns {}", outside.0))?;
    ip(&format!("address add 198.51.100.2/24 dev {card}"))?;
    ip(&format!("link set {card} up"))?;
    outside.ip("address add 198.51.100.1/24 dev eth0")?;
    outside.ip("link set eth0 up")?;
    ip("route add default via 198.51.100.1")?;
    Ok(outside)
}

/// virbr0: addresses and names by dnsmasq, the world outside by translation, the host even without it.
pub fn private(bench: &Bench) -> Result<()> {
    let outside = outside("card")?;
    let log = bench.folder.join("iperf3.log");
    let _server = outside.daemon(&format!("/usr/bin/iperf3 -s --forceflush --logfile {}", log.display()))?;
    network(bench, "create virbr0 --host web=192.168.122.50")?;
    let spec = |name| Ok::<Spec, crate::Error>(bench.guest().with_network_tools()?.name(name).net("virbr0"));
    let mut web = spec("web")?.spawn()?;
    let mut other = spec("other")?.start()?;
    web.wait_ready()?;
    let address = ask(&mut web)?;
    check!(address == "192.168.122.50", "web was given {address}, but 192.168.122.50 is reserved for it");
    let address = ask(&mut other)?;
    check!(
        address.starts_with("192.168.122.") && address != "192.168.122.50",
        "the other guest has {address}"
    );
    let found = other.sh("nslookup -type=a web 192.168.122.1")?;
    check!(found.contains("192.168.122.50"), "the name `web` is not known: {found}");
    other.sh("ping -c 3 -W 10 192.168.122.50")?;
    for guest in [&mut web, &mut other] {
        guest.sh("ping -c 3 -W 10 192.168.122.1")?;
        iperf(guest, "198.51.100.1", "-t 1")?;
    }
    // The outside has no way to 192.168.122.0/24, and needs none.
    let said = std::fs::read_to_string(&log)?;
    let peers: Vec<&str> = said.lines().filter(|line| line.contains("Accepted connection")).collect();
    check!(peers.len() == 2 && peers.iter().all(|l| l.contains("198.51.100.2")), "the outside saw {peers:?}");
    ip("link set card down")?;
    web.sh("ping -c 3 -W 10 192.168.122.1")?;
    let refused = network(bench, "delete virbr0");
    check!(refused.is_err(), "a network with guests in it was deleted: {refused:?}");
    for guest in [&mut web, &mut other] {
        guest.send("poweroff -f")?;
        guest.ends_with(0)?;
    }
    network(bench, "delete virbr0")?;
    check!(ip("link show virbr0").is_err(), "virbr0 is left");
    let rules = run(Command::new("/usr/sbin/nft").args(["list", "ruleset"]))?;
    check!(rules.trim().is_empty(), "rules are left: {rules}");
    wait("the end of dnsmasq", || Ok(run(Command::new("pidof").arg("dnsmasq")).is_err()))?;
    bench.nothing_is_left()
}

/// xenbr0 as on a Xen host: a guest gets its address from a server outside, and the host keeps its own.
pub fn shared(bench: &Bench) -> Result<()> {
    let outside = outside("eth0")?;
    let leases = bench.folder.join("leases");
    let _server = outside.daemon(&format!(
        "/usr/sbin/dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --pid-file= --port=0 \
         --interface=eth0 --bind-interfaces --dhcp-authoritative --dhcp-range=198.51.100.100,198.51.100.200 \
         --dhcp-leasefile={}",
        leases.display()
    ))?;
    for layout in ["classic", "plain"] {
        let before = ip("-o address show dev eth0")?;
        network(bench, &format!("create xenbr0 --uplink eth0 --layout {layout}"))?;
        if layout == "classic" {
            for (name, part) in
                [("peth0", "master xenbr0"), ("vif0.0", "master xenbr0"), ("vif0.0", "fe:ff:ff:ff:ff:ff")]
            {
                let shown = ip(&format!("-o -d link show {name}"))?;
                check!(shown.contains(part), "{name} is not as Xen leaves it, {part} is missing: {shown}");
            }
            check!(ip("-o address show dev eth0")?.contains("198.51.100.2/24"), "eth0 has lost its address");
        }
        let bare = ip("-o -4 address show dev xenbr0")?;
        check!(bare.trim().is_empty(), "the bridge has an address: {bare}");
        let mut guest = bench.guest().net("xenbr0").start()?;
        let address = ask(&mut guest)?;
        check!(address.starts_with("198.51.100.1"), "{layout}: the guest has {address}");
        for other in ["198.51.100.1", "198.51.100.2"] {
            guest.sh(&format!("ping -c 3 -W 10 {other}"))?;
        }
        guest.send("poweroff -f")?;
        guest.ends_with(0)?;
        network(bench, "delete xenbr0")?;
        let after = ip("-o address show dev eth0")?;
        let addresses = |text: &str| -> Vec<String> {
            text.split_whitespace().filter(|word| word.contains('/')).map(str::to_owned).collect()
        };
        check!(addresses(&before) == addresses(&after), "before: {before}, after: {after}");
        run(Command::new("ping").args(["-c", "1", "-W", "10", "198.51.100.1"]))?;
    }
    bench.nothing_is_left()
}

//! Both directions, both families, TCP and UDP, one queue and many, frames of two sizes.

use super::{Namespace, addresses, bridge, iperf, no_csum_errors};
use crate::cases::Bench;
use crate::cases::net::transfer;
use crate::{Result, check};

/// What goes over each interface: every value of protocol, family, direction, queues and MTU meets every other.
const RUNS: [[(&str, &str); 4]; 2] = [
    [("4", ""), ("6", "-R"), ("4", "-u -b 20M -l 1400 -R"), ("6", "-u -b 20M -l 1400")],
    [("4", "-R"), ("6", ""), ("4", "-u -b 20M -l 8900"), ("6", "-u -b 20M -l 8900 -R")],
];

/// Two interfaces, one of a queue and 1500 bytes, the other of a queue per vCPU and 9000.
pub fn traffic(bench: &Bench) -> Result<()> {
    let seconds = if bench.full { 5 } else { 2 };
    let mib: u64 = if bench.full { 256 } else { 24 };
    let mut spec = bench.guest().with_network_tools()?.memory("768M");
    let mut outsides = Vec::new();
    for (number, (mtu, queues, name)) in [(1500, 1, "small"), (9000, 4, "large")].into_iter().enumerate() {
        let name_of_bridge = format!("xenbr{number}");
        bridge(&name_of_bridge, mtu, &[&format!("10.0.{number}.1/24")])?;
        let outside = Namespace::new(name)?;
        outside.plug_into(&name_of_bridge, &format!("cable{number}"), mtu)?;
        outside.ip(&format!("address add 10.0.{number}.3/24 dev eth0"))?;
        outside.ip(&format!("address add fd00:{number}::3/64 dev eth0 nodad"))?;
        let server = outside.daemon("/usr/bin/iperf3 -s")?;
        spec = spec.net(format!("bridge={name_of_bridge},queues={queues}"));
        outsides.push((outside, server));
    }
    let mut guest = spec.start()?;
    for (number, (mtu, queues)) in [(1500, 1), (9000, bench.config.vcpus.min(4))].into_iter().enumerate() {
        let interface = format!("eth{number}");
        let seen = guest.sh(&format!("ls -d /sys/class/net/{interface}/queues/tx-* | wc -l"))?;
        check!(seen == queues.to_string(), "{interface} has {seen} queues instead of {queues}");
        // netfront of Linux leaves the MTU to the administrator of the guest.
        guest.sh(&format!("ip link set {interface} mtu {mtu}"))?;
        addresses(&mut guest, &interface, &format!("10.0.{number}.2/24"), &format!("fd00:{number}::2/64"))?;
        for (family, words) in RUNS[number] {
            let server = if family == "4" { format!("10.0.{number}.3") } else { format!("fd00:{number}::3") };
            guest.sh(&format!("ping{} -c 3 -W 10 {server}", if family == "6" { " -6" } else { "" }))?;
            let streams =
                if words.is_empty() || words == "-R" { format!("-P {queues}") } else { String::new() };
            let line = iperf(&mut guest, &server, &format!("{words} {streams} -t {seconds}"))
                .map_err(|error| format!("{interface}, IPv{family} {words}: {error}"))?;
            println!("mtu {mtu}, {queues} queues, IPv{family} {words}: {line}");
        }
    }
    guest.sh(&format!("head -c {} /dev/urandom > /tmp/data", mib << 20))?;
    transfer(bench, &mut guest, "10.0.1.1", mib << 20)?;
    guest.sh("rm /tmp/data")?;
    no_csum_errors(&mut guest)?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

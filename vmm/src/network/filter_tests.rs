#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};

use super::super::testing::{Wire, enter_namespace, ip, namespace_with_bridge, plug_spec, program, until};
use super::*;

const MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0, 0, 2];
const LINK_LOCAL: &str = "fe80::216:3eff:fe00:1";

/// A frame to everybody.
fn ethernet(source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &kind.to_be_bytes(), payload].concat()
}

fn tagged(vlan: u16, source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(source, 0x8100, &[&vlan.to_be_bytes()[..], &kind.to_be_bytes(), payload].concat())
}

fn arp_payload(operation: u8, mac: [u8; 6], sender: &str) -> Vec<u8> {
    let sender: Ipv4Addr = sender.parse().unwrap();
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &sender.octets(), &[0; 6], &[192, 0, 2, 99]].concat()
}

fn arp(operation: u8, mac: [u8; 6], sender: &str) -> Vec<u8> {
    ethernet(MAC, 0x0806, &arp_payload(operation, mac, sender))
}

/// An IPv4 packet with UDP.
fn v4_payload(source: &str, to: &str, ports: (u16, u16)) -> Vec<u8> {
    let (source, to): (Ipv4Addr, Ipv4Addr) = (source.parse().unwrap(), to.parse().unwrap());
    let mut header = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend(source.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = u16::try_from(sum % 0xffff).unwrap();
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    header.extend(ports.0.to_be_bytes());
    header.extend(ports.1.to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

fn v4(source: &str) -> Vec<u8> {
    ethernet(MAC, 0x0800, &v4_payload(source, "192.0.2.99", (1000, 2000)))
}

/// An IPv6 packet.
fn v6_payload(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, to): (Ipv6Addr, Ipv6Addr) = (source.parse().unwrap(), "ff02::1".parse().unwrap());
    let length = u8::try_from(payload.len()).unwrap();
    [&[0x60, 0, 0, 0, 0, length, protocol, 255][..], &source.octets(), &to.octets(), payload].concat()
}

fn v6(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(MAC, 0x86dd, &v6_payload(source, protocol, payload))
}

fn udp6(source: &str, ports: (u16, u16)) -> Vec<u8> {
    let payload = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), [0, 8], [0, 0]].concat();
    v6(source, 17, &payload)
}

/// Neighbour discovery and the like, with a target.
fn icmp6_payload(kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

fn icmp6(source: &str, kind: u8, target: &str) -> Vec<u8> {
    v6(source, 58, &icmp6_payload(kind, target))
}

/// A fragment: the header of it before `payload`.
fn fragment(source: &str, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let place = (offset << 3) | u16::from(more);
    v6(source, 44, &[&[58, 0][..], &place.to_be_bytes(), &[0, 0, 0, 1], payload].concat())
}

/// A guest behind a filter, and what comes out of the bridge.
struct Bench {
    guest: Wire,
    out: Wire,
    /// An honest frame that tells the others from those behind it.
    mark: Vec<u8>,
}

impl Bench {
    fn new(spec: &str, mark: Vec<u8>) -> Bench {
        namespace_with_bridge("xenbr0");
        let spec = format!("mac={},{spec}", MacAddr::new(MAC).unwrap());
        let guest = Wire::new(plug_spec(&spec, 1).unwrap().1);
        let out = Wire::new(plug_spec("vifname=out", 2).unwrap().1);
        let bench = Bench { guest, out, mark };
        bench.settle();
        bench
    }

    /// Until the bridge forwards.
    fn settle(&self) {
        while !self.out.received(std::time::Duration::from_millis(50)).contains(&self.mark) {
            self.guest.send(&self.mark);
        }
        while !self.out.received(std::time::Duration::from_millis(50)).is_empty() {}
    }

    /// Whether the frame comes out.
    fn passes(&self, frame: &[u8]) -> bool {
        assert_ne!(frame, self.mark);
        self.guest.send(frame);
        self.guest.send(&self.mark);
        let mut passed = false;
        loop {
            for received in self.out.received(std::time::Duration::from_secs(1)) {
                passed |= received == frame;
                if received == self.mark {
                    return passed;
                }
            }
        }
    }

    fn check(&self, table: &[(&str, Vec<u8>, bool)]) {
        for (what, frame, expected) in table {
            assert_eq!(self.passes(frame), *expected, "{what}");
        }
    }
}

fn honest() -> Vec<u8> {
    ethernet(MAC, 0x0800, &v4_payload("192.0.2.7", "192.0.2.98", (7, 7)))
}

#[test]
fn only_the_guest_s_own_ipv4_addresses_pass() {
    let bench = Bench::new("ip=192.0.2.7 198.51.100.16/28", honest());
    bench.check(&[
        ("its address", v4("192.0.2.7"), true),
        ("one of its network", v4("198.51.100.17"), true),
        ("a neighbour's", v4("192.0.2.8"), false),
        ("one behind its network", v4("198.51.100.32"), false),
        ("none", v4("0.0.0.0"), false),
        (
            "its address in a VLAN",
            tagged(5, MAC, 0x0800, &v4_payload("192.0.2.7", "192.0.2.9", (1, 2))),
            true,
        ),
        (
            "a forged one in a VLAN",
            tagged(5, MAC, 0x0800, &v4_payload("192.0.2.8", "192.0.2.9", (1, 2))),
            false,
        ),
        ("ARP as itself", arp(1, MAC, "192.0.2.7"), true),
        ("an ARP answer as itself", arp(2, MAC, "192.0.2.7"), true),
        ("an ARP probe", arp(1, MAC, "0.0.0.0"), true),
        ("an ARP answer as nobody", arp(2, MAC, "0.0.0.0"), false),
        ("ARP as a neighbour", arp(1, MAC, "192.0.2.8"), false),
        ("an ARP answer as a neighbour", arp(2, MAC, "192.0.2.8"), false),
        ("forged ARP in a VLAN", tagged(5, MAC, 0x0806, &arp_payload(2, MAC, "192.0.2.8")), false),
        ("a short ARP", ethernet(MAC, 0x0806, &arp_payload(1, MAC, "192.0.2.7")[..12]), false),
        (
            "DHCP before it has an address",
            ethernet(MAC, 0x0800, &v4_payload("0.0.0.0", "255.255.255.255", (68, 67))),
            true,
        ),
        ("a DHCP answer", ethernet(MAC, 0x0800, &v4_payload("0.0.0.0", "255.255.255.255", (67, 68))), false),
        ("another protocol", ethernet(MAC, 0x88cc, &[0; 46]), false),
        ("a frame of spanning tree", ethernet(MAC, 38, &[0x42; 46]), false),
        (
            "two VLAN tags",
            tagged(
                5,
                MAC,
                0x8100,
                &[&[0, 6, 8, 0][..], &v4_payload("192.0.2.7", "1.2.3.4", (1, 1))].concat(),
            ),
            false,
        ),
    ]);
}

#[test]
fn only_the_guest_s_own_ipv6_addresses_pass() {
    let bench = Bench::new("ip=192.0.2.7 2001:db8::7 2001:db8:1::/64", honest());
    let long = [&icmp6_payload(136, "fe80::99")[..], &[0; 40]].concat();
    bench.check(&[
        ("its address", udp6("2001:db8::7", (1, 2)), true),
        ("one of its network", udp6("2001:db8:1::99", (1, 2)), true),
        ("a neighbour's", udp6("2001:db8::8", (1, 2)), false),
        ("its link-local address", udp6(LINK_LOCAL, (546, 547)), true),
        ("a neighbour's link-local address", udp6("fe80::99", (546, 547)), false),
        ("none", udp6("::", (546, 547)), false),
        ("who has", icmp6("2001:db8::7", 135, "2001:db8::99"), true),
        ("who has, as a neighbour", icmp6("2001:db8::8", 135, "2001:db8::99"), false),
        ("is its address free", icmp6("::", 135, "2001:db8::7"), true),
        ("is its link-local address free", icmp6("::", 135, LINK_LOCAL), true),
        ("is one of its network free", icmp6("::", 135, "2001:db8:1::5"), true),
        ("is a neighbour's address free", icmp6("::", 135, "2001:db8::8"), false),
        ("it is here", icmp6("2001:db8::7", 136, "2001:db8::7"), true),
        ("it is here, from another own address", icmp6(LINK_LOCAL, 136, "2001:db8:1::5"), true),
        ("a neighbour is here", icmp6("2001:db8::7", 136, "2001:db8::8"), false),
        ("the router is here", icmp6(LINK_LOCAL, 136, "fe80::1"), false),
        ("is there a router", icmp6(LINK_LOCAL, 133, "::"), true),
        ("is there a router, before it has an address", icmp6("::", 133, "::"), true),
        ("it is a router", icmp6(LINK_LOCAL, 134, "::"), false),
        ("go another way", icmp6(LINK_LOCAL, 137, "2001:db8::9"), false),
        ("it listens", icmp6("::", 143, "::"), true),
        ("ping", icmp6("2001:db8::7", 128, "::"), true),
        ("the beginning of a long ping", fragment("2001:db8::7", 0, true, &icmp6_payload(128, "::")), true),
        ("the end of a long ping", fragment("2001:db8::7", 3, false, &[136; 24]), true),
        ("the router is here, in pieces", fragment(LINK_LOCAL, 0, true, &long[..8]), false),
        ("a header that is cut", ethernet(MAC, 0x86dd, &v6_payload("2001:db8::7", 58, &[])[..30]), false),
    ]);
}

#[test]
fn a_guest_with_ipv6_addresses_alone_has_no_others() {
    let bench = Bench::new("ip=2001:db8::7", udp6("2001:db8::7", (7, 7)));
    bench.check(&[
        ("IPv4", v4("192.0.2.7"), false),
        ("ARP", arp(1, MAC, "192.0.2.7"), false),
        ("IPv6", udp6("2001:db8::7", (1, 2)), true),
    ]);
}

#[test]
fn only_the_guest_s_own_mac_address_passes() {
    let bench = Bench::new("mac-filter", honest());
    let forged = |frame: Vec<u8>| [&frame[..6], &OTHER_MAC, &frame[12..]].concat();
    bench.check(&[
        ("any IP address", v4("192.0.2.8"), true),
        ("another source", forged(v4("192.0.2.7")), false),
        (
            "another source in a VLAN",
            forged(tagged(5, MAC, 0x0800, &v4_payload("192.0.2.7", "1.2.3.4", (1, 1)))),
            false,
        ),
        ("ARP as itself", arp(2, MAC, "192.0.2.8"), true),
        ("ARP with another hardware address", arp(2, OTHER_MAC, "192.0.2.7"), false),
        ("ARP of another source", forged(arp(2, MAC, "192.0.2.7")), false),
        ("another protocol", ethernet(MAC, 0x88cc, &[0; 46]), true),
    ]);
}

#[test]
fn both_filters_stand_together() {
    let bench = Bench::new("mac-filter,ip=192.0.2.7", honest());
    let forged = |frame: Vec<u8>| [&frame[..6], &OTHER_MAC, &frame[12..]].concat();
    bench.check(&[
        ("honest", v4("192.0.2.7"), true),
        ("another IP address", v4("192.0.2.8"), false),
        ("another source", forged(v4("192.0.2.7")), false),
        ("ARP with another hardware address", arp(1, OTHER_MAC, "192.0.2.7"), false),
        ("DHCP", ethernet(MAC, 0x0800, &v4_payload("0.0.0.0", "255.255.255.255", (68, 67))), true),
        (
            "DHCP of another",
            forged(ethernet(MAC, 0x0800, &v4_payload("0.0.0.0", "255.255.255.255", (68, 67)))),
            false,
        ),
    ]);
}

#[test]
fn without_a_filter_all_passes() {
    let bench = Bench::new("trusted", honest());
    bench.check(&[
        ("another IP address", v4("192.0.2.8"), true),
        ("another hardware address", arp(2, OTHER_MAC, "192.0.2.8"), true),
    ]);
    assert_eq!(chains(), [""; 0]);
}

/// The chains of ours on the host.
fn chains() -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(&program("nft", "-j list chains", true)).unwrap();
    let objects = listed["nftables"].as_array().unwrap().clone();
    let chains = objects.iter().filter_map(|object| object["chain"]["name"].as_str().map(str::to_owned));
    chains.filter(|name| name.starts_with("vif/")).collect()
}

#[test]
fn rules_go_with_the_interface() {
    namespace_with_bridge("xenbr0");
    let all = ["ip=192.0.2.7", "mac-filter", "ip=2001:db8::7,mac-filter", "script=vif-nat,ip=10.0.0.1"];
    for spec in all {
        let vif = plug_spec(spec, 1).unwrap();
        assert!(chains()[0].starts_with("vif/vif1.0/"), "{spec}");
        drop(vif);
        until(spec, || !ip("link show").contains("vif1.0"));
        assert_eq!(chains(), [""; 0], "{spec}");
    }
}

#[test]
fn any_name_that_the_grammar_takes_can_have_rules() {
    namespace_with_bridge("xenbr0");
    for name in ["web-1", "0", "drop", "-", "_", "ip", "1.2.3.4", "a-.-_b"] {
        let vif = plug_spec(&format!("mac-filter,vifname={name}"), 1);
        let vif = vif.unwrap_or_else(|error| unreachable!("{name}: {error}"));
        assert_eq!(chains().len(), 1, "{name}");
        drop(vif);
        assert_eq!(chains(), [""; 0], "{name}");
    }
}

/// A tap that belongs to another process, as far as this one knows: it goes without its rules being removed.
fn abandoned(spec: &str) -> OwnedFd {
    let (_, tap) = plug_spec(spec, 1).unwrap();
    // SAFETY: the descriptor is open.
    let file = unsafe { BorrowedFd::borrow_raw(tap.fd(0).unwrap()) }.try_clone_to_owned().unwrap();
    std::mem::forget(tap);
    file
}

#[test]
fn rules_that_a_killed_process_left_are_removed_and_those_of_others_stay() {
    namespace_with_bridge("xenbr0");
    let living = plug_spec("ip=192.0.2.7,vifname=lives", 2).unwrap();
    let before = chains();
    drop(abandoned("ip=192.0.2.8"));
    // The tap was held by the forgotten value, too.
    ip("link delete vif1.0");
    super::super::clean_up().unwrap();
    assert_eq!(chains(), before);
    drop(living);
    assert_eq!(chains(), [""; 0]);
}

#[test]
fn an_interface_with_the_name_of_one_before_has_its_own_rules_alone() {
    namespace_with_bridge("xenbr0");
    drop(abandoned("ip=192.0.2.8"));
    ip("link delete vif1.0");
    let bench = Bench::new_here("ip=192.0.2.7", honest());
    bench.check(&[("its own", v4("192.0.2.7"), true), ("the one before", v4("192.0.2.8"), false)]);
}

impl Bench {
    fn new_here(spec: &str, mark: Vec<u8>) -> Bench {
        let guest = Wire::new(plug_spec(spec, 1).unwrap().1);
        let out = Wire::new(plug_spec("vifname=out", 2).unwrap().1);
        let bench = Bench { guest, out, mark };
        bench.settle();
        bench
    }
}

#[test]
fn a_renamed_interface_keeps_its_rules() {
    namespace_with_bridge("xenbr0");
    let vif = plug_spec("ip=192.0.2.7", 1).unwrap();
    let before = chains();
    ip("link set vif1.0 down");
    ip("link set vif1.0 name other");
    super::super::clean_up().unwrap();
    assert_eq!(chains(), before);
    drop(vif);
}

#[test]
fn interfaces_come_and_go_at_the_same_time() {
    namespace_with_bridge("xenbr0");
    // All threads are in the namespace of the one that makes them.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..5 {
                    let spec = format!("ip=192.0.2.7,vifname=t{thread}-{round}");
                    drop(plug_spec(&spec, 1).unwrap());
                }
            });
        }
    });
    assert_eq!(chains(), [""; 0]);
}

#[test]
fn without_nft_the_package_is_named() {
    enter_namespace();
    let error = NetworkError::NoNft("ip=".into()).to_string();
    assert_eq!(
        error,
        "--net: ip= needs the program nft; install the package nftables, or set XVMM_NFT to its path"
    );
}

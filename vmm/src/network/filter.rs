//! What a guest may send: frames from its own addresses (`ip=`, `mac-filter`).
//!
//! The rules are in a chain at the ingress of the interface, before any bridge or router sees the frame. With `ip=`
//! what is not allowed is dropped: other senders, other protocols. Allowed besides IP packets from its addresses are
//! ARP with these as sender, or none as in a probe (RFC 5227), DHCP by a client that has no address yet, and
//! neighbour discovery for its own addresses, to which the link-local one made of its MAC (RFC 4291) belongs. A router
//! it is not: no router advertisements, no redirects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netback::MacAddr;

use super::NetworkError;
use super::nft::{Chain, Family};
use crate::config::{GuestIp, NetConfig};

/// Before all others at this place.
const HOOK: &str = "type filter hook ingress device \"NAME\" priority -500; policy POLICY;";

/// Rules on the host; removed with the value.
#[derive(Debug)]
pub(super) struct Filter(#[expect(dead_code, reason = "it is held")] Chain);

impl Filter {
    /// Makes the rules for the interface `name` of a guest with the address `mac`, if it is to have any.
    pub(super) fn install(name: &str, mac: MacAddr, net: &NetConfig) -> Result<Option<Filter>, NetworkError> {
        if !net.is_filtered() {
            return Ok(None);
        }
        let policy = if net.ips.is_empty() { "accept" } else { "drop" };
        let hook = HOOK.replace("NAME", name).replace("POLICY", policy);
        let (mut rules, mut beneath) = (Vec::new(), Vec::new());
        if net.mac_filter {
            rules.extend(mac_rules(mac));
        }
        if !net.ips.is_empty() {
            rules.extend(v4_rules(&net.ips));
            let own = own_v6(mac, &net.ips);
            rules.extend(v6_rules(&own));
            beneath = from_own_v6(&own);
        }
        Chain::install(Family::Netdev, name, &hook, &rules, &beneath).map(|chain| Some(Filter(chain)))
    }
}

/// The sender in the Ethernet header, and the one that ARP tells.
fn mac_rules(mac: MacAddr) -> Vec<String> {
    vec![
        format!("ether saddr != {mac} drop"),
        "meta protocol arp arp hlen != 6 drop".to_owned(),
        format!("meta protocol arp arp saddr ether != {mac} drop"),
    ]
}

fn v4_rules(ips: &[GuestIp]) -> Vec<String> {
    let own: Vec<String> = ips.iter().filter(|ip| ip.address().is_ipv4()).map(ToString::to_string).collect();
    let mut rules = Vec::new();
    for ip in &own {
        rules.push(format!("meta protocol ip ip saddr {ip} accept"));
        rules.push(format!(
            "meta protocol arp arp ptype 0x0800 arp plen 4 arp hlen 6 arp saddr ip {ip} accept"
        ));
    }
    let none = Ipv4Addr::UNSPECIFIED;
    if !own.is_empty() {
        rules.push(format!(
            "meta protocol arp arp ptype 0x0800 arp plen 4 arp hlen 6 arp operation request arp saddr ip {none} accept"
        ));
    }
    rules.push(format!(
        "meta protocol ip ip saddr {none} ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept"
    ));
    rules
}

/// An IPv6 address and the bits of it that count.
type Network = (Ipv6Addr, u8);

fn own_v6(mac: MacAddr, ips: &[GuestIp]) -> Vec<Network> {
    let given = ips.iter().filter_map(|ip| match ip.address() {
        IpAddr::V6(v6) => Some((v6, ip.prefix())),
        IpAddr::V4(_) => None,
    });
    given.chain([(link_local(mac), 128)]).collect()
}

/// The link-local address that belongs to a MAC (RFC 4291, appendix A).
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The target of a neighbour solicitation or advertisement: 16 bytes behind the first 8 (RFC 4861, 4.3).
fn target_is((address, prefix): Network) -> String {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    let target = address.to_bits();
    if prefix == 128 {
        format!("@th,64,128 {target:#x}")
    } else {
        format!("@th,64,128 & {mask:#x} == {target:#x}")
    }
}

fn v6_rules(own: &[Network]) -> Vec<String> {
    let mut rules = Vec::new();
    for network in own {
        rules.push(format!("meta protocol ip6 ip6 saddr {}/{} goto BENEATH", network.0, network.1));
        // Is the address free?
        rules.push(format!(
            "meta protocol ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit {} accept",
            target_is(*network)
        ));
    }
    // Before it has an address: is there a router, and which groups it listens to.
    rules.push("meta protocol ip6 ip6 saddr :: icmpv6 type { 131, 132, 133, 143 } accept".to_owned());
    rules
}

/// What comes from an own address is allowed, but for claims about others'. A part that cannot be looked at is no
/// claim, for receivers ignore neighbour discovery in fragments (RFC 6980).
fn from_own_v6(own: &[Network]) -> Vec<String> {
    // By their numbers: the names of protocols are in a file that small hosts do not have.
    let mut rules = vec![
        "meta l4proto != 58 accept".to_owned(),
        "frag frag-off != 0 accept".to_owned(),
        "icmpv6 type { nd-router-advert, nd-redirect } drop".to_owned(),
        "icmpv6 type != nd-neighbor-advert accept".to_owned(),
    ];
    rules.extend(
        own.iter().map(|network| format!("icmpv6 type nd-neighbor-advert {} accept", target_is(*network))),
    );
    rules
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;

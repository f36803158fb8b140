//! What an interface has, and how to give it to another one or back to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use serde::{Deserialize, Serialize};

use super::error::StepError;
use super::hands::{Done, Hands, LinkChange, read_sysctl, sysctl_path};
use super::netlink::{Attribute, FLAGS, Link, Message, NESTED, Netlink};

/// An interface with everything on it that gets lost when it goes down or becomes a port, and what depends
/// on it elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) link: Link,
    /// When it was taken: seconds since the host started, with the time in sleep.
    taken_at: u64,
    /// Of IPv4 and IPv6, in the kernel's order.
    pub(super) addresses: Vec<Message>,
    /// Those that lead to the interface, and those of others that have a source address, which may be one of
    /// the interface. Without the table `local`, which is the kernel's own.
    routes: Vec<Message>,
    /// All of them.
    rules: Vec<Message>,
    /// Permanent ones of this interface.
    neighbours: Vec<Message>,
    /// `net/ipv4/conf/eth0/` and so on, without the name: "ipv4/rp_filter".
    sysctls: BTreeMap<String, String>,
}

/// The interface in whose place another one steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) index: u32,
    pub(super) name: &'a str,
}

// linux/rtnetlink.h, linux/if_addr.h, linux/fib_rules.h
const RTM_F_CLONED: u32 = 0x200;
/// RTNH_F_DEAD, PERVASIVE, OFFLOAD, LINKDOWN, UNRESOLVED, TRAP and RTM_F_OFFLOAD, TRAP: what the kernel says.
const ROUTE_STATE: u32 = 0x0000_007b | 0x0000_c000;
const RTNH_F_STATE: u8 = 0x7b;
/// IFA_F_TEMPORARY with IPv6, IFA_F_SECONDARY with IPv4: the kernel decides on both.
const IFA_F_SECONDARY: u32 = 0x01;
/// IFA_F_DADFAILED, DEPRECATED, TENTATIVE, PERMANENT, STABLE_PRIVACY and SECONDARY.
const ADDRESS_STATE: u32 = 0x08 | 0x20 | 0x40 | 0x80 | 0x800 | IFA_F_SECONDARY;
const FIB_RULE_STATE: u32 = 0x08 | 0x10;
const NUD_PERMANENT: u16 = 0x80;
const FRA_IIFNAME: u16 = 3;
const FRA_OIFNAME: u16 = 17;
const RTA_EXPIRES: u16 = 23;
const RTA_NH_ID: u16 = 30;
const IFA_PROTO: u16 = 11;
/// Ticks per second in what the kernel tells of expiry (USER_HZ).
const USER_HZ: u32 = 100;
/// Sysctls that are no setting, or that cannot be set back.
const NO_SETTINGS: [&str; 3] = ["mtu", "mc_forwarding", "stable_secret"];

impl Snapshot {
    pub(super) fn take(netlink: &mut Netlink, link: Link) -> io::Result<Snapshot> {
        let mut addresses = addresses(netlink, link.index)?;
        addresses.retain(|address| !is_temporary(address));
        let neighbours = netlink.dump(libc::RTM_GETNEIGH, 0)?.into_iter().filter(|neighbour| {
            let state = u16::from_ne_bytes([neighbour.header_u8(8), neighbour.header_u8(9)]);
            let ip = matches!(i32::from(neighbour.header_u8(0)), libc::AF_INET | libc::AF_INET6);
            ip && neighbour.header_u32(4) == link.index && state == NUD_PERMANENT
        });
        Ok(Snapshot {
            taken_at: seconds(),
            addresses,
            routes: routes(netlink, link.index)?,
            rules: rules(netlink)?,
            neighbours: neighbours.collect(),
            sysctls: sysctls(&link.name),
            link,
        })
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place { index: self.link.index, name: &self.link.name }
    }

    /// What cannot be carried over: an object that routes refer to by a number.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        let objects = self.routes.iter().any(|route| route.get(RTA_NH_ID).is_some());
        objects.then_some("nexthop objects")
    }

    /// Whether an IPv4 address is on loan: the kernel removes it when nobody renews the lease.
    pub(super) fn has_lease(&self) -> bool {
        self.addresses.iter().any(|address| {
            let valid = address.get(libc::IFA_CACHEINFO).and_then(|info| info.get(4..8)?.try_into().ok());
            i32::from(address.header_u8(0)) == libc::AF_INET
                && valid.is_some_and(|valid| u32::from_ne_bytes(valid) != u32::MAX)
        })
    }

    /// The same on another interface.
    pub(super) fn moved(&self, to: Place<'_>) -> Snapshot {
        let from = self.place();
        let mut moved = self.clone();
        moved.link.index = to.index;
        moved.link.name = to.name.to_owned();
        for address in &mut moved.addresses {
            address.set_header(4, &to.index.to_ne_bytes());
            if let Some(label) = address.text(libc::IFA_LABEL) {
                address.set_text(libc::IFA_LABEL, &relabelled(&label, from.name, to.name));
            }
        }
        for route in &mut moved.routes {
            redirect(route, from.index, to.index);
        }
        for rule in &mut moved.rules {
            for attribute in [FRA_IIFNAME, FRA_OIFNAME] {
                if rule.text(attribute).is_some_and(|name| name == from.name) {
                    rule.set_text(attribute, to.name);
                }
            }
        }
        for neighbour in &mut moved.neighbours {
            neighbour.set_header(4, &to.index.to_ne_bytes());
        }
        moved
    }

    /// Takes the addresses from the interface; the kernel takes the routes with them.
    pub(super) fn strip(&self, hands: &mut Hands<'_>) -> Done {
        let index = self.link.index;
        for mut address in hands.read("list addresses", |netlink| addresses(netlink, index))? {
            address.kind = libc::RTM_DELADDR;
            let result = hands.send(&format!("take an address from {}", self.link.name), &address, 0);
            // Secondary ones may go with their primary one.
            ignore(result, &[libc::EADDRNOTAVAIL])?;
        }
        Ok(())
    }

    /// Gives the interface what the snapshot has, and takes what it has not: the interface is there under
    /// its name, and down.
    pub(super) fn apply(&self, hands: &mut Hands<'_>) -> Done {
        let Snapshot { link, .. } = self;
        // Until the end: no address that the kernel makes, and no second test of addresses that were in use
        // a moment ago.
        let quiet = [("ipv6/addr_gen_mode", "1"), ("ipv6/accept_dad", "0"), ("ipv6/disable_ipv6", "0")];
        let quiet = quiet.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let has_ipv6 = self.sysctls.get("ipv6/disable_ipv6").is_some_and(|value| value == "0");
        let mut first = self.sysctls.clone();
        if has_ipv6 {
            first.extend(quiet);
        }
        set_sysctls(hands, &link.name, &first)?;
        if link.is_up() {
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            hands.set_link(link.index, &format!("bring up {}", link.name), &up)?;
        }
        self.apply_addresses(hands)?;
        if link.is_up() {
            for neighbour in &self.neighbours {
                let mut neighbour = neighbour.clone();
                neighbour.attributes.retain(|a| matches!(a.0 & !FLAGS, libc::NDA_DST | libc::NDA_LLADDR));
                hands.send(&format!("give {} a neighbour", link.name), &neighbour, NLM_F_CREATE)?;
            }
        }
        self.apply_routes(hands)?;
        self.apply_rules(hands)?;
        set_sysctls(hands, &link.name, &self.sysctls)?;
        // A setting may have made the kernel add one of its own.
        self.apply_addresses(hands)
    }

    fn apply_addresses(&self, hands: &mut Hands<'_>) -> Done {
        let Snapshot { link, .. } = self;
        let wanted: Vec<_> = self.addresses.iter().map(address_key).collect();
        let mut present = hands.read("list addresses", |netlink| addresses(netlink, link.index))?;
        present.retain(|address| !is_temporary(address));
        for address in &present {
            if !wanted.contains(&address_key(address)) {
                let extra = Message { kind: libc::RTM_DELADDR, ..address.clone() };
                let result = hands.send(&format!("take an address from {}", link.name), &extra, 0);
                ignore(result, &[libc::EADDRNOTAVAIL])?;
            }
        }
        let present: Vec<_> = present.iter().map(address_key).collect();
        let elapsed = u32::try_from(seconds().saturating_sub(self.taken_at)).unwrap_or(u32::MAX);
        for address in &self.addresses {
            if !present.contains(&address_key(address)) {
                let address = aged(address, elapsed);
                let flags = NLM_F_CREATE | NLM_F_EXCL;
                let result = hands.send(&format!("give {} an address", link.name), &address, flags);
                ignore(result, &[libc::EEXIST])?;
            }
        }
        Ok(())
    }

    /// Adds the routes of the snapshot that are missing, wherever they lead, and deletes those of the
    /// interface that the kernel made and that it has not.
    fn apply_routes(&self, hands: &mut Hands<'_>) -> Done {
        let Snapshot { link, .. } = self;
        let list = |netlink: &mut Netlink| routes(netlink, link.index);
        let wanted: BTreeSet<_> = self.routes.iter().map(route_key).collect();
        for route in hands.read("list routes", list)? {
            if route.u32(libc::RTA_OIF) == Some(link.index) && !wanted.contains(&route_key(&route)) {
                let route = Message { kind: libc::RTM_DELROUTE, ..route };
                ignore(hands.send("delete a route", &route, 0), &[libc::ESRCH])?;
            }
        }
        if !link.is_up() {
            return Ok(());
        }
        // A gateway has to be reachable by the routes before, in whatever order they were listed.
        loop {
            let present = hands.read("list routes", list)?;
            let present: BTreeSet<_> = present.iter().map(route_key).collect();
            let missing = self.routes.iter().filter(|route| !present.contains(&route_key(route)));
            let mut failure = None;
            let mut progress = false;
            for route in missing {
                let v6 = i32::from(route.header_u8(0)) == libc::AF_INET6;
                // Appended routes of IPv6 would become one with several ways.
                let flags = if v6 { NLM_F_CREATE } else { NLM_F_CREATE | NLM_F_APPEND };
                let what = format!("give {} a route", link.name);
                let mut result = hands.send(&what, &as_request(route), flags);
                if v6 && matches!(&result, Err(error) if error.error.raw_os_error() == Some(libc::EEXIST)) {
                    // One that has lost its source address is still the same for the kernel.
                    result = hands.send(&what, &as_request(route), flags | NLM_F_REPLACE);
                }
                match result {
                    Ok(()) => progress = true,
                    Err(error) if error.error.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                None => return Ok(()),
                Some(failure) if !progress => return Err(failure),
                Some(_) => {}
            }
        }
    }

    /// Makes the rules those of the snapshot.
    fn apply_rules(&self, hands: &mut Hands<'_>) -> Done {
        let present = hands.read("list rules", rules)?;
        let present_keys: Vec<_> = present.iter().map(rule_key).collect();
        let wanted: Vec<_> = self.rules.iter().map(rule_key).collect();
        for (rule, key) in self.rules.iter().zip(&wanted) {
            if !present_keys.contains(key) {
                let result = hands.send("add a rule", &as_rule(rule), NLM_F_CREATE | NLM_F_EXCL);
                ignore(result, &[libc::EEXIST])?;
            }
        }
        for (rule, key) in present.iter().zip(&present_keys) {
            // Only rules about interfaces are affected by what we do.
            let names = rule.get(FRA_IIFNAME).is_some() || rule.get(FRA_OIFNAME).is_some();
            if names && !wanted.contains(key) && !self.is_foreign(rule) {
                let rule = Message { kind: libc::RTM_DELRULE, ..as_rule(rule) };
                ignore(hands.send("delete a rule", &rule, 0), &[libc::ENOENT])?;
            }
        }
        Ok(())
    }

    /// Whether the rule, apart from the names in it, is none of the snapshot's: somebody else's then.
    fn is_foreign(&self, rule: &Message) -> bool {
        let nameless = |rule: &Message| {
            let mut rule = rule.clone();
            rule.remove(FRA_IIFNAME);
            rule.remove(FRA_OIFNAME);
            rule_key(&rule)
        };
        let rule = nameless(rule);
        !self.rules.iter().any(|wanted| nameless(wanted) == rule)
    }
}

/// Succeeds when the error is one of these.
pub(super) fn ignore(result: Done, errors: &[i32]) -> Done {
    match result {
        Err(StepError { error, .. }) if error.raw_os_error().is_some_and(|code| errors.contains(&code)) => {
            Ok(())
        }
        other => other,
    }
}

fn addresses(netlink: &mut Netlink, index: u32) -> io::Result<Vec<Message>> {
    let mut addresses = netlink.dump(libc::RTM_GETADDR, 0)?;
    addresses.retain(|address| address.header_u32(4) == index);
    Ok(addresses)
}

/// The routes that a change of the interface may affect.
fn routes(netlink: &mut Netlink, index: u32) -> io::Result<Vec<Message>> {
    let mut routes = both_families(netlink, libc::RTM_GETROUTE)?;
    routes.retain(|route| {
        let table = route.u32(libc::RTA_TABLE).unwrap_or(u32::from(route.header_u8(4)));
        table != u32::from(libc::RT_TABLE_LOCAL)
            && route.header_u32(8) & RTM_F_CLONED == 0
            && (leads_to(route, index) || route.get(libc::RTA_PREFSRC).is_some())
    });
    Ok(routes)
}

fn leads_to(route: &Message, index: u32) -> bool {
    let mut found = route.u32(libc::RTA_OIF) == Some(index);
    let mut ways = route.get(libc::RTA_MULTIPATH).unwrap_or_default().to_vec();
    each_way(&mut ways, |way| found |= way.get(4..8) == Some(index.to_ne_bytes().as_slice()));
    found
}

fn both_families(netlink: &mut Netlink, kind: u16) -> io::Result<Vec<Message>> {
    let mut messages = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6].map(|family| u8::try_from(family).unwrap_or(0)) {
        let found = netlink.dump(kind, family)?;
        // A kernel without IPv6 answers with what it has.
        messages.extend(found.into_iter().filter(|message| message.header_u8(0) == family));
    }
    Ok(messages)
}

fn rules(netlink: &mut Netlink) -> io::Result<Vec<Message>> {
    both_families(netlink, libc::RTM_GETRULE)
}

fn sysctls(name: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        let Ok(entries) = fs::read_dir(sysctl_path(&format!("net/{family}/conf/{name}"))) else { continue };
        for key in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if NO_SETTINGS.contains(&key.as_str()) {
                continue;
            }
            if let Some(value) = read_sysctl(&format!("net/{family}/conf/{name}/{key}")) {
                settings.insert(format!("{family}/{key}"), value);
            }
        }
    }
    settings
}

fn set_sysctls(hands: &mut Hands<'_>, name: &str, settings: &BTreeMap<String, String>) -> Done {
    // disable_ipv6 at last: what else is set must be so when the kernel begins to use it.
    let mut settings: Vec<_> = settings.iter().collect();
    settings.sort_by_key(|(key, _)| key.as_str() == "ipv6/disable_ipv6");
    for (key, value) in settings {
        let (family, key) = key.split_once('/').unwrap_or(("ipv4", key));
        let path = format!("net/{family}/conf/{name}/{key}");
        if read_sysctl(&path).is_some_and(|present| present != *value) {
            match hands.sysctl(&path, value) {
                // A value that can be read but not written, of a kernel to come: the host works without.
                Err(StepError { error, .. })
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINVAL | libc::EPERM | libc::EACCES | libc::EROFS)
                    ) =>
                {
                    tracing::warn!("{path} keeps its value: {error}");
                }
                result => result?,
            }
        }
    }
    Ok(())
}

/// Seconds since the host started.
fn seconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to the structure, which outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    if result == 0 { u64::try_from(time.tv_sec).unwrap_or(0) } else { 0 }
}

fn address_flags(address: &Message) -> u32 {
    address.u32(libc::IFA_FLAGS).unwrap_or(u32::from(address.header_u8(2)))
}

/// An address that hides the host, made by the kernel beside another one.
fn is_temporary(address: &Message) -> bool {
    i32::from(address.header_u8(0)) == libc::AF_INET6 && address_flags(address) & IFA_F_SECONDARY != 0
}

fn address_key(address: &Message) -> (Vec<u8>, Vec<Attribute>) {
    let mut attributes = address.attributes.clone();
    attributes.retain(|a| !matches!(a.0, libc::IFA_CACHEINFO | libc::IFA_FLAGS | IFA_PROTO));
    attributes.sort();
    let mut header = address.header.clone();
    if let Some(flags) = header.get_mut(2) {
        *flags = 0;
    }
    (header, attributes)
}

/// The address as a request, its lifetimes shorter by what has passed since.
fn aged(address: &Message, elapsed: u32) -> Message {
    let mut address = address.clone();
    let flags = address_flags(&address) & !ADDRESS_STATE;
    address.set_header(2, &[0]);
    address.set(libc::IFA_FLAGS, flags.to_ne_bytes());
    // struct ifa_cacheinfo: preferred u32 @0, valid u32 @4, in seconds, all ones for ever; two times follow.
    if let Some(info) = address.get(libc::IFA_CACHEINFO).map(<[u8]>::to_vec) {
        let mut info = info;
        for (at, least) in [(0, 0), (4, 1)] {
            let Some(field) = info.get_mut(at..at + 4) else { continue };
            let value = field.try_into().map_or(u32::MAX, u32::from_ne_bytes);
            if value != u32::MAX {
                field.copy_from_slice(&value.saturating_sub(elapsed).max(least).to_ne_bytes());
            }
        }
        address.set(libc::IFA_CACHEINFO, info);
    }
    address
}

fn relabelled(label: &str, from: &str, to: &str) -> String {
    let Some(rest) = label.strip_prefix(from) else { return label.to_owned() };
    let new = format!("{to}{rest}");
    if new.len() < libc::IFNAMSIZ { new } else { to.to_owned() }
}

/// What makes a route the same one, without what the kernel says of its state.
fn route_key(route: &Message) -> (Vec<u8>, Vec<Attribute>) {
    let route = as_request(route);
    let mut attributes = route.attributes;
    attributes.retain(|a| a.0 != RTA_EXPIRES);
    attributes.sort();
    (route.header, attributes)
}

/// The route as a request.
fn as_request(route: &Message) -> Message {
    let mut request = route.clone();
    let flags = request.header_u32(8) & !ROUTE_STATE;
    request.set_header(8, &flags.to_ne_bytes());
    // struct rta_cacheinfo: clntref u32 @0, lastuse u32 @4, expires i32 @8 in ticks, ...
    let expires = request.get(libc::RTA_CACHEINFO).and_then(|info| info.get(8..12)?.try_into().ok());
    let expires = expires.map_or(0, i32::from_ne_bytes);
    request.remove(libc::RTA_CACHEINFO);
    if let Ok(ticks @ 1..) = u32::try_from(expires) {
        request.set(RTA_EXPIRES, (ticks / USER_HZ).max(1).to_ne_bytes());
    }
    let ways = request.get(libc::RTA_MULTIPATH).map(<[u8]>::to_vec);
    if let Some(mut ways) = ways {
        each_way(&mut ways, |way| {
            if let Some(flags) = way.get_mut(2) {
                *flags &= !RTNH_F_STATE;
            }
        });
        request.set(libc::RTA_MULTIPATH, ways);
    }
    request
}

/// Points the route to another interface.
fn redirect(route: &mut Message, from: u32, to: u32) {
    if route.u32(libc::RTA_OIF) == Some(from) {
        route.set(libc::RTA_OIF, to.to_ne_bytes());
    }
    if let Some(mut ways) = route.get(libc::RTA_MULTIPATH).map(<[u8]>::to_vec) {
        each_way(&mut ways, |way| {
            if let Some(index) = way.get_mut(4..8)
                && *index == from.to_ne_bytes()
            {
                index.copy_from_slice(&to.to_ne_bytes());
            }
        });
        route.set(libc::RTA_MULTIPATH, ways);
    }
}

/// Each `struct rtnexthop`: length u16 @0, flags u8 @2, hops u8 @3, index i32 @4.
fn each_way(mut ways: &mut [u8], mut visit: impl FnMut(&mut [u8])) {
    while let Some(length) = ways.get(..2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes) {
        let length = usize::from(length).max(8);
        let Some((way, rest)) = ways.split_at_mut_checked(length.next_multiple_of(4).min(ways.len())) else {
            return;
        };
        visit(way);
        ways = rest;
    }
}

fn rule_key(rule: &Message) -> (Vec<u8>, Vec<Attribute>) {
    let rule = as_rule(rule);
    let mut attributes = rule.attributes;
    attributes.sort();
    (rule.header, attributes)
}

/// The rule as a request. `struct fib_rule_hdr`: flags u32 @8.
fn as_rule(rule: &Message) -> Message {
    let mut request = rule.clone();
    let flags = request.header_u32(8) & !FIB_RULE_STATE;
    request.set_header(8, &flags.to_ne_bytes());
    for attribute in &mut request.attributes {
        attribute.0 &= !NESTED;
    }
    request
}

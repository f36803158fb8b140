//! Route netlink (rtnetlink(7)), as much as interfaces of guests need: addresses, routes, VLANs of a bridge's port.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::FromRawFd;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// `struct nlmsghdr`: length u32 @0, type u16 @4, flags u16 @6, sequence u32 @8, port u32 @12.
const HEADER: usize = 16;
/// Bytes of the longest answer; a link has less than 4 KiB.
const ANSWER: usize = 64 << 10;

/// linux/if_link.h and linux/if_bridge.h
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 2;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 4;
/// NLA_F_NESTED
const NESTED: u16 = 0x8000;

/// A socket in the network namespace of the thread that made it.
pub(super) struct Rtnl {
    socket: File,
}

/// How a bridge treats VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BridgeVlans {
    /// It keeps them apart.
    pub(super) filtering: bool,
    /// What a new port belongs to; 0: to none.
    pub(super) default_pvid: u16,
}

impl Rtnl {
    pub(super) fn new() -> io::Result<Rtnl> {
        // SAFETY: the call takes numbers, and makes a new descriptor.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else has it.
        Ok(Rtnl { socket: unsafe { File::from_raw_fd(fd) } })
    }

    /// Gives the interface an address of its own, without a network around it.
    pub(super) fn add_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        // struct ifaddrmsg: family u8, prefix u8, flags u8, scope u8, index u32.
        let mut body = vec![family(address.into()), 32, 0, 0];
        body.extend(index.to_ne_bytes());
        push(&mut body, libc::IFA_LOCAL, &address.octets());
        push(&mut body, libc::IFA_ADDRESS, &address.octets());
        self.change(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    /// A route through the interface to the addresses behind a prefix; packets of the host itself have `source`.
    pub(super) fn add_route(
        &mut self,
        index: u32,
        (to, prefix): (IpAddr, u8),
        source: Option<Ipv4Addr>,
        metric: Option<u32>,
    ) -> io::Result<()> {
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type: u8 each; flags u32.
        let (table, protocol, scope) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_LINK);
        let mut body = vec![family(to), prefix, 0, 0, table, protocol, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
        match to {
            IpAddr::V4(to) => push(&mut body, libc::RTA_DST, &to.octets()),
            IpAddr::V6(to) => push(&mut body, libc::RTA_DST, &to.octets()),
        }
        push(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
        if let (Some(source), IpAddr::V4(_)) = (source, to) {
            push(&mut body, libc::RTA_PREFSRC, &source.octets());
        }
        if let Some(metric) = metric {
            push(&mut body, libc::RTA_PRIORITY, &metric.to_ne_bytes());
        }
        self.change(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
    }

    /// How the bridge treats VLANs; a kernel that cannot does not filter.
    pub(super) fn bridge_vlans(&mut self, bridge: u32) -> io::Result<BridgeVlans> {
        let answer = self.exchange(libc::RTM_GETLINK, NLM_F_REQUEST, &link(libc::AF_UNSPEC, bridge))?;
        let attributes = answer.get(HEADER + 16..).unwrap_or_default();
        let data = find(attributes, libc::IFLA_LINKINFO).and_then(|info| find(info, libc::IFLA_INFO_DATA));
        let data = data.unwrap_or_default();
        let filtering = find(data, IFLA_BR_VLAN_FILTERING).is_some_and(|value| value == [1]);
        let pvid = find(data, IFLA_BR_VLAN_DEFAULT_PVID).and_then(|value| value.try_into().ok());
        Ok(BridgeVlans { filtering, default_pvid: pvid.map_or(0, u16::from_ne_bytes) })
    }

    /// Frames from the port belong to the VLAN, and those of the VLAN leave it untagged.
    pub(super) fn add_vlan(&mut self, port: u32, vlan: u16) -> io::Result<()> {
        self.change_vlan(libc::RTM_SETLINK, port, BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED, vlan)
    }

    /// The port belongs to the VLAN no more.
    pub(super) fn remove_vlan(&mut self, port: u32, vlan: u16) -> io::Result<()> {
        self.change_vlan(libc::RTM_DELLINK, port, 0, vlan)
    }

    fn change_vlan(&mut self, kind: u16, port: u32, flags: u16, vlan: u16) -> io::Result<()> {
        // struct bridge_vlan_info: flags u16, vid u16.
        let info: Vec<u8> = flags.to_ne_bytes().into_iter().chain(vlan.to_ne_bytes()).collect();
        let mut spec = Vec::new();
        push(&mut spec, IFLA_BRIDGE_VLAN_INFO, &info);
        let mut body = link(libc::AF_BRIDGE, port);
        push(&mut body, libc::IFLA_AF_SPEC | NESTED, &spec);
        self.change(kind, 0, &body)
    }

    fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.exchange(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body).map(drop)
    }

    /// Sends a request, and returns the message that answers it.
    fn exchange(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut request: Vec<u8> = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        self.socket.write_all(&request)?;
        let mut answer = vec![0; ANSWER];
        let length = self.socket.read(&mut answer)?;
        answer.truncate(length);
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let kind =
            answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(short)?;
        if kind != NLMSG_ERROR {
            return if kind == NLMSG_DONE { Err(short()) } else { Ok(answer) };
        }
        // struct nlmsgerr: error i32, negative or 0.
        let code = answer.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        match code.ok_or_else(short)? {
            0 => Ok(answer),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        }
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

/// `struct ifinfomsg`: family u8 @0, layer u16 @2, index i32 @4, flags u32 @8, change u32 @12.
fn link(family: libc::c_int, index: u32) -> Vec<u8> {
    let mut body = vec![u8::try_from(family).unwrap_or(0), 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend([0; 8]);
    body
}

/// Appends an attribute: length u16, type u16, value, zeros up to a multiple of 4.
fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The value of an attribute.
fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length: usize = u16::from_ne_bytes(*bytes.first_chunk()?).into();
        let found = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        if found & !0xc000 == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::{enter_namespace, ip};
    use super::*;
    use crate::network::nft::index_of;

    #[test]
    fn addresses_and_routes_are_those_that_ip_shows() {
        enter_namespace();
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        let (mut rtnl, index) = (Rtnl::new().unwrap(), index_of("v0").unwrap());
        let source = Ipv4Addr::new(192, 0, 2, 1);
        rtnl.add_address(index, source).unwrap();
        rtnl.add_route(index, ("198.51.100.7".parse().unwrap(), 32), Some(source), Some(2)).unwrap();
        rtnl.add_route(index, ("2001:db8::".parse().unwrap(), 64), None, None).unwrap();
        assert!(ip("address show v0").contains("inet 192.0.2.1/32 scope global v0"));
        let routes = ip("route show");
        assert_eq!(routes.trim(), "198.51.100.7 dev v0 scope link src 192.0.2.1 metric 2");
        assert!(ip("-6 route show").contains("2001:db8::/64 dev v0"));
        let twice = rtnl.add_address(index, source).unwrap_err();
        assert_eq!(twice.raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn a_port_leaves_its_vlan_and_joins_another() {
        enter_namespace();
        ip("link add br0 type bridge");
        let (mut rtnl, bridge) = (Rtnl::new().unwrap(), index_of("br0").unwrap());
        let vlans = rtnl.bridge_vlans(bridge).unwrap();
        assert!(!vlans.filtering);
        ip("link add v0 type veth peer name v1");
        ip("link set v0 master br0");
        let port = index_of("v0").unwrap();
        // A kernel without CONFIG_BRIDGE_VLAN_FILTERING tells no default, and refuses.
        if vlans.default_pvid == 0 {
            assert_eq!(rtnl.add_vlan(port, 5).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
            return;
        }
        ip("link set br0 type bridge vlan_filtering 1");
        assert_eq!(rtnl.bridge_vlans(bridge).unwrap(), BridgeVlans { filtering: true, default_pvid: 1 });
        rtnl.add_vlan(port, 5).unwrap();
        rtnl.remove_vlan(port, 1).unwrap();
        let shown =
            std::process::Command::new("bridge").args(["vlan", "show", "dev", "v0"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("5 PVID Egress Untagged") && !shown.contains(" 1 "), "{shown}");
    }
}

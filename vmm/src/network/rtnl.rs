//! What interfaces of guests need of route netlink (rtnetlink(7)): addresses, routes, VLANs of a bridge's port.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::netlink::{FLAGS, Message, NESTED, Netlink, attributes, nested};

/// linux/if_link.h and linux/if_bridge.h
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 2;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 4;

/// A socket in the network namespace of the thread that made it.
pub(super) struct Rtnl(Netlink);

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
        Netlink::new().map(Rtnl)
    }

    /// Gives the interface an address of its own, without a network around it.
    pub(super) fn add_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR);
        message.set_header(0, &[family(address.into()), 32]);
        message.set_header(4, &index.to_ne_bytes());
        message.set(libc::IFA_LOCAL, address.octets());
        message.set(libc::IFA_ADDRESS, address.octets());
        self.0.create(&message)
    }

    /// A route through the interface to the addresses behind a prefix; packets of the host itself have `source`.
    pub(super) fn add_route(
        &mut self,
        index: u32,
        (to, prefix): (IpAddr, u8),
        source: Option<Ipv4Addr>,
        metric: Option<u32>,
    ) -> io::Result<()> {
        let (table, protocol, scope) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_LINK);
        let mut message = Message::new(libc::RTM_NEWROUTE);
        message.set_header(0, &[family(to), prefix, 0, 0, table, protocol, scope, libc::RTN_UNICAST]);
        match to {
            IpAddr::V4(to) => message.set(libc::RTA_DST, to.octets()),
            IpAddr::V6(to) => message.set(libc::RTA_DST, to.octets()),
        }
        message.set(libc::RTA_OIF, index.to_ne_bytes());
        if let (Some(source), IpAddr::V4(_)) = (source, to) {
            message.set(libc::RTA_PREFSRC, source.octets());
        }
        if let Some(metric) = metric {
            message.set(libc::RTA_PRIORITY, metric.to_ne_bytes());
        }
        self.0.create(&message)
    }

    /// How the bridge treats VLANs; a kernel that cannot does not filter.
    pub(super) fn bridge_vlans(&mut self, bridge: u32) -> io::Result<BridgeVlans> {
        let links = self.0.dump(libc::RTM_GETLINK, 0)?;
        let link = links.iter().find(|link| link.header_u32(4) == bridge).ok_or(io::ErrorKind::NotFound)?;
        let inner = |bytes: &[u8], kind: u16| {
            attributes(bytes)?.into_iter().find(|a| a.0 & !FLAGS == kind).map(|a| a.1)
        };
        let info = link.get(libc::IFLA_LINKINFO).and_then(|info| inner(info, libc::IFLA_INFO_DATA));
        let info = info.unwrap_or_default();
        let filtering = inner(&info, IFLA_BR_VLAN_FILTERING).is_some_and(|value| value == [1]);
        let pvid = inner(&info, IFLA_BR_VLAN_DEFAULT_PVID).and_then(|value| value.try_into().ok());
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
        let mut message = Message::new(kind);
        message.set_header(0, &[u8::try_from(libc::AF_BRIDGE).unwrap_or(0)]);
        message.set_header(4, &port.to_ne_bytes());
        message.set(libc::IFLA_AF_SPEC | NESTED, nested(&[(IFLA_BRIDGE_VLAN_INFO, &info)]));
        self.0.request(&message, 0)
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
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

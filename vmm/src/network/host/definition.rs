//! What a network of the host is made of: one JSON file each, `/etc/xvmm/networks/NAME.json`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use netback::MacAddr;
use serde::{Deserialize, Serialize};

use super::error::HostNetError;
use super::files;
use super::prefix::Prefix;

/// Where definitions are kept.
pub const DEFAULT_NETWORKS_DIR: &str = "/etc/xvmm/networks";
/// The address of the private network, unless another one is asked for: libvirt's.
pub const DEFAULT_SUBNET: &str = "192.168.122.1/24";
/// The most characters in the name of a shared network: `NAME-host` is an interface, too.
const SHARED_NAME: usize = 10;
/// The most characters in any other name.
const NAME: usize = libc::IFNAMSIZ - 1;

/// A network of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Name of the network and of its bridge.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
}

/// The two kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// A bridge with a network card in it, as xenbr0.
    Shared(Shared),
    /// A bridge of the host alone, as virbr0.
    Private(Private),
}

/// A bridge with a port to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// The network card, bond or VLAN, by the name that it has without the bridge.
    pub uplink: String,
    /// How the interfaces are called.
    #[serde(default)]
    pub layout: Layout,
}

/// How the interfaces of a shared network are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// The uplink keeps its name; the host's end is `BRIDGE-host`, and `BRIDGE-port` is in the bridge.
    #[default]
    Plain,
    /// As on a Xen host: the uplink eth0 becomes peth0, the host's end is eth0, and vif0.0 is in the bridge.
    Classic,
}

/// A bridge of the host and its guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Private {
    /// The host's address and the length of the prefix.
    pub subnet: Prefix,
    /// A prefix of at most 64 bits; the host is its address 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Prefix>,
    /// First and last address for guests; without it there is no DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Whether the host answers DNS queries.
    pub dns: bool,
    /// Whether guests reach the outside under the host's address.
    pub nat: bool,
    /// Addresses that belong to domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Reservation>,
}

/// An address that a domain always gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// Name of the domain, or an Ethernet address.
    pub domain: String,
    /// Number of its interface.
    #[serde(default)]
    pub interface: u32,
    /// The address.
    pub address: Ipv4Addr,
}

impl Reservation {
    /// `DOMAIN=ADDRESS`, `DOMAIN/INTERFACE=ADDRESS`, or an Ethernet address in place of the domain.
    pub fn parse(text: &str) -> Result<Reservation, String> {
        let wrong = || format!("{text:?} is not DOMAIN=ADDRESS, like web=192.168.122.10");
        let (who, address) = text.rsplit_once('=').ok_or_else(wrong)?;
        let (domain, interface) = who.split_once('/').unwrap_or((who, "0"));
        let interface = interface.parse().map_err(|_| wrong())?;
        let address = address.parse().map_err(|_| wrong())?;
        let good =
            !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_graphic() && !b",\"'#\\".contains(&b));
        good.then(|| Reservation { domain: domain.to_owned(), interface, address }).ok_or_else(wrong)
    }

    /// The Ethernet address that it is for: the one that the domain has unless `--net` gives another one.
    pub fn mac(&self) -> MacAddr {
        self.domain.parse().unwrap_or_else(|_| MacAddr::for_domain(Some(&self.domain), self.interface))
    }

    /// The domain's name, if it can be a label of DNS.
    pub(super) fn label(&self) -> Option<&str> {
        let label = self.domain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let label = label && !self.domain.starts_with('-') && !self.domain.ends_with('-');
        (label && self.domain.len() <= 63 && self.interface == 0).then_some(self.domain.as_str())
    }
}

impl Private {
    /// The network 192.168.122.0/24 with everything.
    pub fn standard() -> Private {
        let subnet = Prefix::new(Ipv4Addr::new(192, 168, 122, 1).into(), 24);
        // Unreachable: 24 is not above 32.
        let subnet = subnet.unwrap_or_else(|| unreachable!());
        Private { subnet, ipv6: None, dhcp: pool(subnet), dns: true, nat: true, hosts: Vec::new() }
    }

    /// The host's own IPv6 address.
    pub(super) fn address6(&self) -> Option<Prefix> {
        let prefix = self.ipv6?;
        let IpAddr::V6(network) = prefix.network() else { return None };
        Prefix::new(std::net::Ipv6Addr::from_bits(network.to_bits() | 1).into(), prefix.bits())
    }
}

/// All addresses of the network but the first, the last and the host's own, as one range: behind the host's
/// address, or before it where that has more.
pub fn pool(subnet: Prefix) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (IpAddr::V4(host), IpAddr::V4(first)) = (subnet.address(), subnet.network()) else { return None };
    let (host, first, last) = (host.to_bits(), first.to_bits(), subnet.broadcast()?.to_bits());
    let behind = (host.saturating_add(1), last.saturating_sub(1));
    let before = (first.saturating_add(1), host.saturating_sub(1));
    let size = |range: (u32, u32)| (range.1 + 1).saturating_sub(range.0);
    let best = if size(behind) >= size(before) { behind } else { before };
    (size(best) > 0).then(|| (Ipv4Addr::from_bits(best.0), Ipv4Addr::from_bits(best.1)))
}

impl Definition {
    /// Checks what can be checked without the host.
    pub fn check(&self) -> Result<(), HostNetError> {
        let most = if matches!(self.kind, Kind::Shared(_)) { SHARED_NAME } else { NAME };
        check_name(&self.name, most)?;
        let invalid = |problem: String| Err(HostNetError::Invalid { name: self.name.clone(), problem });
        match &self.kind {
            Kind::Shared(shared) => {
                let uplink = &shared.uplink;
                if !netback::is_interface_name(uplink) {
                    return invalid(format!(
                        "{uplink:?} is no name of an interface; give --uplink one of `ip -br link`"
                    ));
                }
                if shared.layout == Layout::Classic && uplink.len() >= NAME {
                    return invalid(format!("p{uplink} would be too long for a name; use --layout plain"));
                }
                Ok(())
            }
            Kind::Private(private) => private.check().or_else(invalid),
        }
    }

    /// The file of the network `name`.
    pub(super) fn path(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("{name}.json"))
    }

    /// Reads the definition of the network `name`.
    pub fn load(dir: &Path, name: &str) -> Result<Definition, HostNetError> {
        check_name(name, NAME)?;
        let path = Definition::path(dir, name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HostNetError::Unknown(name.to_owned()));
            }
            Err(error) => return Err(HostNetError::File { path, error }),
        };
        let damaged = |problem: String| HostNetError::Damaged { path: path.clone(), problem };
        let definition: Definition =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if definition.name != name {
            return Err(damaged(format!("it calls itself {:?}", definition.name)));
        }
        definition.check()?;
        Ok(definition)
    }

    /// The file's text.
    pub(super) fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Names of all definitions, sorted.
    pub fn names(dir: &Path) -> Result<Vec<String>, HostNetError> {
        files::stems(dir, ".json")
    }
}

impl Private {
    fn check(&self) -> Result<(), String> {
        let subnet = self.subnet;
        let host = match subnet.address() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => return Err("--subnet is for IPv4; a prefix of IPv6 goes behind --ipv6".into()),
        };
        let ends = [Some(subnet.network()), subnet.broadcast().map(IpAddr::V4)];
        if subnet.bits() > 30
            || subnet.bits() < 8
            || ends.contains(&Some(IpAddr::V4(host)))
            || host.is_multicast()
            || host.is_loopback()
        {
            return Err(format!(
                "{subnet} is not an address of the host in a subnet of 8 to 30 bits; take one like {DEFAULT_SUBNET}"
            ));
        }
        let inside = |address: Ipv4Addr| {
            subnet.contains(address.into()) && address != host && !ends.contains(&Some(address.into()))
        };
        if let Some((first, last)) = self.dhcp
            && !(inside(first) && inside(last) && first <= last && !(first..=last).contains(&host))
        {
            return Err(format!(
                "the DHCP range {first}-{last} does not lie in {} beside {host}; correct --dhcp-range",
                subnet.subnet()
            ));
        }
        if let Some(prefix) = self.ipv6
            && (prefix.address().is_ipv4() || prefix.bits() > 64 || prefix.bits() < 16)
        {
            return Err(format!("{prefix} is no IPv6 prefix of 16 to 64 bits; take one like fd00:122::/64"));
        }
        if !self.hosts.is_empty() && self.dhcp.is_none() {
            return Err("addresses of domains are given by DHCP; leave out --no-dhcp".into());
        }
        for (number, one) in self.hosts.iter().enumerate() {
            if !inside(one.address) {
                return Err(format!(
                    "{} for {} does not lie in {} beside {host}",
                    one.address,
                    one.domain,
                    subnet.subnet()
                ));
            }
            let earlier = self.hosts.iter().take(number);
            if let Some(other) =
                earlier.clone().find(|other| other.address == one.address || other.mac() == one.mac())
            {
                return Err(format!(
                    "{} and {} have the same address {}; give one of them another one",
                    other.domain,
                    one.domain,
                    if other.address == one.address {
                        one.address.to_string()
                    } else {
                        one.mac().to_string()
                    }
                ));
            }
        }
        Ok(())
    }
}

fn check_name(name: &str, most: usize) -> Result<(), HostNetError> {
    let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let good = characters && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.len() <= most;
    if good { Ok(()) } else { Err(HostNetError::Name { name: name.to_owned(), most }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn private(change: impl FnOnce(&mut Private)) -> Definition {
        let mut private = Private::standard();
        change(&mut private);
        Definition { name: "virbr0".into(), kind: Kind::Private(private) }
    }

    #[test]
    fn a_definition_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared { uplink: "eth0".into(), layout: Layout::Classic };
        for definition in [
            Definition { name: "xenbr0".into(), kind: Kind::Shared(shared) },
            private(|private| {
                private.ipv6 = Some("fd00:122::/64".parse().unwrap());
                private.hosts.push(Reservation::parse("web=192.168.122.10").unwrap());
            }),
        ] {
            std::fs::write(Definition::path(dir.path(), &definition.name), definition.text()).unwrap();
            assert_eq!(Definition::load(dir.path(), &definition.name).unwrap(), definition);
        }
        assert_eq!(Definition::names(dir.path()).unwrap(), ["virbr0", "xenbr0"]);
        assert!(matches!(Definition::load(dir.path(), "other"), Err(HostNetError::Unknown(_))));
        assert!(matches!(Definition::load(dir.path(), "../x"), Err(HostNetError::Name { .. })));
    }

    #[test]
    fn the_pool_leaves_the_host_out() {
        for (subnet, first, last) in [
            ("192.168.122.1/24", "192.168.122.2", "192.168.122.254"),
            ("10.0.0.254/24", "10.0.0.1", "10.0.0.253"),
            ("10.0.0.1/30", "10.0.0.2", "10.0.0.2"),
        ] {
            let expected = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(pool(subnet.parse().unwrap()), Some(expected), "{subnet}");
        }
    }

    #[test]
    fn contradictions_are_one_sentence() {
        type Change = fn(&mut Private);
        let cases: [(Change, &str); 8] = [
            (
                |p| p.subnet = "192.168.122.0/24".parse().unwrap(),
                "192.168.122.0/24 is not an address of the host",
            ),
            (
                |p| p.subnet = "192.168.122.1/31".parse().unwrap(),
                "192.168.122.1/31 is not an address of the host",
            ),
            (|p| p.subnet = "fd00::1/64".parse().unwrap(), "--subnet is for IPv4"),
            (|p| p.dhcp = Some(("10.0.0.2".parse().unwrap(), "10.0.0.9".parse().unwrap())), "the DHCP range"),
            (|p| p.ipv6 = Some("fd00::/80".parse().unwrap()), "fd00::/80 is no IPv6 prefix"),
            (|p| p.hosts.push(Reservation::parse("web=10.0.0.2").unwrap()), "10.0.0.2 for web does not lie"),
            (
                |p| {
                    p.hosts.push(Reservation::parse("web=192.168.122.2").unwrap());
                    p.hosts.push(Reservation::parse("db=192.168.122.2").unwrap());
                },
                "web and db have the same address 192.168.122.2",
            ),
            (
                |p| {
                    p.dhcp = None;
                    p.hosts.push(Reservation::parse("web=192.168.122.2").unwrap());
                },
                "addresses of domains are given by DHCP",
            ),
        ];
        for (change, message) in cases {
            let error = private(change).check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("network virbr0: {message}")), "{error}");
        }
    }

    #[test]
    fn names_fit_into_names_of_interfaces() {
        let shared = |name: &str, uplink: &str, layout| Definition {
            name: name.into(),
            kind: Kind::Shared(Shared { uplink: uplink.into(), layout }),
        };
        assert!(shared("xenbr-eth0", "eth0", Layout::Plain).check().is_ok());
        assert!(shared("xenbr-eth00", "eth0", Layout::Plain).check().is_err());
        assert!(shared("a/b", "eth0", Layout::Plain).check().is_err());
        assert!(shared("xenbr0", "eth 0", Layout::Plain).check().is_err());
        assert!(shared("xenbr0", "enx001122334455", Layout::Plain).check().is_ok());
        assert!(shared("xenbr0", "enx001122334455", Layout::Classic).check().is_err());
    }

    #[test]
    fn a_reservation_knows_the_domains_address() {
        let web = Reservation::parse("web=192.168.122.10").unwrap();
        assert_eq!(web.mac(), MacAddr::for_domain(Some("web"), 0));
        assert_eq!(web.label(), Some("web"));
        let second = Reservation::parse("web/1=192.168.122.11").unwrap();
        assert_eq!(second.mac(), MacAddr::for_domain(Some("web"), 1));
        let mac = Reservation::parse("00:16:3e:00:00:01=192.168.122.12").unwrap();
        assert_eq!(mac.mac().to_string(), "00:16:3e:00:00:01");
        assert_eq!(mac.label(), None);
        for text in ["web", "=192.168.122.1", "web=x", "web/x=10.0.0.1", "a,b=10.0.0.1"] {
            assert!(Reservation::parse(text).is_err(), "{text}");
        }
    }
}

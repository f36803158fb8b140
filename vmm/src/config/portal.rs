//! The names of iSCSI targets and portals. They become arguments of `iscsiadm` and names of files: what could be
//! an option there, or lead out of a folder, is no name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The port of iSCSI targets (RFC 7143, section 4.2.7.1).
pub const DEFAULT_PORT: u16 = 3260;
/// Bytes of the longest iSCSI name (RFC 7143, section 4.2.7.2).
const NAME_MAX: usize = 223;
/// Bytes of the longest host name (RFC 1035).
const HOST_MAX: usize = 253;

/// Whether this is the name of a target: `iqn.`, `eui.` or `naa.`, then letters, digits and `.:-_`.
pub fn is_target_name(name: &str) -> bool {
    let rest = ["iqn.", "eui.", "naa."].iter().find_map(|start| name.strip_prefix(start));
    let good = |b: u8| b.is_ascii_alphanumeric() || b".:-_".contains(&b);
    rest.is_some_and(|rest| !rest.is_empty() && name.len() <= NAME_MAX && rest.bytes().all(good))
}

/// Where a target is: an address or a name, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portal {
    /// Who.
    pub host: PortalHost,
    /// The TCP port, not 0.
    pub port: u16,
}

/// Who is asked for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortalHost {
    /// An address.
    Address(IpAddr),
    /// A name, for the resolver.
    Name(String),
}

/// The text is none of `ADDRESS`, `ADDRESS:PORT`, `[IPV6]`, `[IPV6]:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPortal;

impl FromStr for Portal {
    type Err = NoPortal;

    /// Parses `ADDRESS`, `ADDRESS:PORT`, `[IPV6]`, `[IPV6]:PORT`, or a host name in place of the address. An IPv6
    /// address without brackets is none: its last group might be meant as the port.
    fn from_str(text: &str) -> Result<Portal, NoPortal> {
        let invalid = || NoPortal;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or_else(invalid)?;
                let address: Ipv6Addr = address.parse().map_err(|_| invalid())?;
                (PortalHost::Address(address.into()), (!port.is_empty()).then_some(port))
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let host = match host.parse::<Ipv4Addr>() {
                    Ok(address) => PortalHost::Address(address.into()),
                    Err(_) if is_host_name(host) => PortalHost::Name(host.to_owned()),
                    Err(_) => return Err(invalid()),
                };
                (host, (!port.is_empty()).then_some(port))
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => {
                let digits = port.strip_prefix(':').ok_or_else(invalid)?;
                // `parse` would take a sign too.
                if !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(invalid());
                }
                digits.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?
            }
        };
        Ok(Portal { host, port })
    }
}

/// Labels of letters, digits and hyphens (RFC 1123). The last one is not a number: `10.1` is an address to
/// old resolvers.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= HOST_MAX && name.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn portals_and_their_addresses() {
        let table = [
            ("10.0.0.1", "10.0.0.1", 3260),
            ("10.0.0.1:860", "10.0.0.1", 860),
            ("[fe80::1]", "fe80::1", 3260),
            ("[2001:DB8::0:1]", "2001:db8::1", 3260),
            ("[2001:db8::1]:3261", "2001:db8::1", 3261),
            ("127.0.0.1:65535", "127.0.0.1", 65535),
        ];
        for (text, address, port) in table {
            let host = PortalHost::Address(address.parse().unwrap());
            assert_eq!(text.parse::<Portal>(), Ok(Portal { host, port }), "{text}");
        }
    }

    #[test]
    fn portals_with_the_name_of_a_host() {
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61));
        for (text, name, port) in [
            ("san.example.org", "san.example.org", 3260),
            ("san1:65535", "san1", 65535),
            ("a-b:1", "a-b", 1),
            ("1a", "1a", 3260),
            (&*longest, &*longest, 3260),
        ] {
            assert_eq!(
                text.parse::<Portal>(),
                Ok(Portal { host: PortalHost::Name(name.into()), port }),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_portal() {
        let table = [
            "",
            ":",
            ":3260",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.1:3260,1",
            "10.0.0",
            "10.0.0.256",
            "-p",
            "--login",
            "-h.example",
            "a..b",
            "a.",
            "a/b",
            "../x",
            "a b",
            "a\nb",
            "[::1",
            "[::1]3260",
            "[10.0.0.1]",
            "[::1]:",
            "fe80::1%eth0",
            "[fe80::1%eth0]:3260",
            "ä.example",
            "::1",
            "2001:db8::1",
            "fe80::1:3260",
            "[a]:1",
            "a;b",
            ".",
            "a_b",
            &"a".repeat(64),
            &"a.".repeat(127),
        ];
        for text in table {
            assert_eq!(text.parse::<Portal>(), Err(NoPortal), "{text}");
        }
    }

    #[test]
    fn names_of_targets() {
        let long = format!("iqn.{}", "a".repeat(219));
        for good in ["iqn.2026-01.org.example:disk_1", "eui.02004567A425678D", "naa.52004567BA64678D", &long]
        {
            assert!(is_target_name(good), "{good}");
        }
        let longer = format!("{long}a");
        let table = [
            "",
            "iqn",
            "iqn.",
            "-T",
            "--login",
            "disk",
            "IQN.2026-01.org.example",
            "iqn./etc/passwd",
            "iqn.a b",
            "iqn.a\nb",
            "iqn.a,b",
            "../iqn.a",
            "iqn.ä",
            &longer,
        ];
        for bad in table {
            assert!(!is_target_name(bad), "{bad}");
        }
    }
}

//! `ip=`: the addresses that a guest may use.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::text::as_text;

/// Addresses of one interface at most.
const MAX: usize = 64;

/// An address of a guest, or the addresses behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestIp {
    address: IpAddr,
    prefix: u8,
}

impl GuestIp {
    /// The address; the first one where there are several.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Bits that all addresses have in common.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The IPv4 address, if it is one and a single one.
    pub fn single_v4(self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) if self.prefix == 32 => Some(address),
            _ => None,
        }
    }

    fn bits(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
}

/// The list of `ip=`: addresses with spaces between them. The error is a sentence.
pub(super) fn parse_list(text: &str) -> Result<Vec<GuestIp>, String> {
    let list: Vec<GuestIp> = text.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    if list.is_empty() {
        return Err("ip is empty; give an address, or leave it out".to_owned());
    }
    if list.len() > MAX {
        return Err(format!(
            "ip has {} addresses; give at most {MAX}, or a prefix like 192.0.2.0/28",
            list.len()
        ));
    }
    if let Some(twice) = list.iter().enumerate().find(|(at, ip)| list.iter().take(*at).any(|o| o == *ip)) {
        return Err(format!("ip {} is given twice; once is enough", twice.1));
    }
    Ok(list)
}

impl FromStr for GuestIp {
    type Err = String;

    fn from_str(text: &str) -> Result<GuestIp, String> {
        let syntax = || {
            format!(
                "ip `{text}` is not an address; write addresses like 192.0.2.7, 192.0.2.16/28 or 2001:db8::7"
            )
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let bits = Self::bits(address);
        let prefix = match prefix {
            None => bits,
            Some(prefix) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
                prefix.parse().ok().filter(|prefix| (1..=bits).contains(prefix)).ok_or_else(syntax)?
            }
            Some(_) => return Err(syntax()),
        };
        let special = address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || address == Ipv4Addr::BROADCAST
            || matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        if special {
            return Err(format!("ip {text} is no address that a guest sends from; give its own"));
        }
        let first = first_of(address, prefix);
        if first != address {
            return Err(format!(
                "ip {text} is an address of the network {first}/{prefix}; write one or the other"
            ));
        }
        Ok(GuestIp { address, prefix })
    }
}

/// The address with zeros behind the prefix.
fn first_of(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for GuestIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.prefix == Self::bits(self.address) { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

as_text!(GuestIp);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in ["192.0.2.7", "192.0.2.16/28", "10.0.0.0/8", "2001:db8::7", "2001:db8::/64", "fe80::1"] {
            assert_eq!(text.parse::<GuestIp>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.7/32".parse::<GuestIp>().unwrap().to_string(), "192.0.2.7");
        let list = parse_list(" 192.0.2.7  2001:db8::7 ").unwrap();
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.7", "2001:db8::7"]);
    }

    #[test]
    fn wrong_addresses_and_their_sentences() {
        const SYNTAX: &str =
            "is not an address; write addresses like 192.0.2.7, 192.0.2.16/28 or 2001:db8::7";
        for text in [
            "192.0.2",
            "192.0.2.256",
            "192.0.2.7/33",
            "192.0.2.7/",
            "192.0.2.7/+8",
            "1::2::3",
            "web",
            "1.2.3.4/0",
        ] {
            assert_eq!(parse_list(text), Err(format!("ip `{text}` {SYNTAX}")));
        }
        for text in
            ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1", "::", "::1", "ff02::1", "::ffff:1.2.3.4"]
        {
            let expected = format!("ip {text} is no address that a guest sends from; give its own");
            assert_eq!(parse_list(text), Err(expected));
        }
        let one_or_other = "is an address of the network 192.0.2.0/24; write one or the other";
        assert_eq!(parse_list("192.0.2.7/24"), Err(format!("ip 192.0.2.7/24 {one_or_other}")));
        assert_eq!(parse_list(" "), Err("ip is empty; give an address, or leave it out".into()));
        assert_eq!(parse_list("10.0.0.1 10.0.0.1"), Err("ip 10.0.0.1 is given twice; once is enough".into()));
        let many: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}")).collect();
        assert!(parse_list(&many.join(" ")).unwrap_err().starts_with("ip has 65 addresses; "));
    }
}

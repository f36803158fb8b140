//! An address with the length of its network's prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::text::as_text;

/// `192.168.122.1/24`: an address and the bits of it that name its network, 32 or 128 at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// None when there are more bits than the address has.
    pub fn new(address: IpAddr, len: u8) -> Option<Prefix> {
        (len <= bits(address)).then_some(Prefix { address, len })
    }

    /// The address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Bits of the network.
    pub fn bits(self) -> u8 {
        self.len
    }

    /// The network's first address.
    pub fn network(self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & self.mask_v4()).into(),
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - self.len)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        }
    }

    /// The network as `192.168.122.0/24`.
    pub fn subnet(self) -> Prefix {
        Prefix { address: self.network(), len: self.len }
    }

    /// The highest address of an IPv4 network.
    pub fn broadcast(self) -> Option<Ipv4Addr> {
        match self.network() {
            IpAddr::V4(address) => Some(Ipv4Addr::from_bits(address.to_bits() | !self.mask_v4())),
            IpAddr::V6(_) => None,
        }
    }

    /// The mask of an IPv4 network.
    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask_v4())
    }

    fn mask_v4(self) -> u32 {
        u32::MAX.checked_shl(u32::from(32u8.saturating_sub(self.len))).unwrap_or(0)
    }

    /// Whether the network has the address.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Prefix { address, len: self.len }.network() == self.network()
    }

    /// Whether the two networks have an address in common.
    pub fn overlaps(self, other: Prefix) -> bool {
        let (wide, narrow) = if self.len <= other.len { (self, other) } else { (other, self) };
        wide.contains(narrow.address)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let wrong = || format!("{text:?} is not an address with a prefix length like 192.168.122.1/24");
        let (address, len) = text.split_once('/').ok_or_else(wrong)?;
        let plain = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
        let len = plain.then(|| len.parse().ok()).flatten().ok_or_else(wrong)?;
        Prefix::new(address.parse().map_err(|_| wrong())?, len).ok_or_else(wrong)
    }
}

as_text!(Prefix);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_computed() {
        let private = prefix("192.168.122.1/24");
        assert_eq!(private.subnet().to_string(), "192.168.122.0/24");
        assert_eq!(private.broadcast().unwrap().to_string(), "192.168.122.255");
        assert_eq!(private.netmask().to_string(), "255.255.255.0");
        assert_eq!(prefix("fd00:1::7/64").subnet().to_string(), "fd00:1::/64");
        assert_eq!(prefix("10.0.0.1/0").subnet().to_string(), "0.0.0.0/0");
        assert_eq!(prefix("::1/0").subnet().to_string(), "::/0");
        assert_eq!(prefix("10.0.0.1/32").broadcast().unwrap().to_string(), "10.0.0.1");
    }

    #[test]
    fn overlaps_are_found_both_ways() {
        for (one, other, overlap) in [
            ("192.168.122.1/24", "192.168.122.200/25", true),
            ("192.168.122.1/24", "192.168.0.0/16", true),
            ("192.168.122.1/24", "192.168.123.1/24", false),
            ("10.0.0.1/8", "fd00::/8", false),
            ("fd00:1::/64", "fd00:1::/48", true),
        ] {
            assert_eq!(prefix(one).overlaps(prefix(other)), overlap, "{one} {other}");
            assert_eq!(prefix(other).overlaps(prefix(one)), overlap, "{other} {one}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "10.0.0.1", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0.1/", "fd00::/129", "x/8", "10.0.0.1/300"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }
}

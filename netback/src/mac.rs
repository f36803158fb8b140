//! Ethernet addresses of interfaces.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The Ethernet address of a guest's interface: never multicast, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr([u8; 6]);

/// Xen's own prefix (IEEE OUI 00-16-3E), under which guests' addresses are made.
const XEN_OUI: [u8; 3] = [0x00, 0x16, 0x3e];

/// Why a text is not the address of an interface.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error("MAC address {0:?} is not six pairs of hexadecimal digits like 00:16:3e:12:34:56")]
    Format(String),
    /// A group address, which no interface can own.
    #[error(
        "MAC address {0} is a multicast address; take one whose first byte is even, like 00:16:3e:12:34:56"
    )]
    Multicast(String),
    /// All bits zero.
    #[error("MAC address 00:00:00:00:00:00 stands for no interface; take one like 00:16:3e:12:34:56")]
    Zero,
}

impl MacAddr {
    /// The address of every tap: the highest unicast address, so that a bridge never takes it as its own and
    /// never changes its address when guests come and go.
    pub const TAP: MacAddr = MacAddr([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);

    /// The address with these bytes, first on the wire first.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let mac = Self(bytes);
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes.first().is_some_and(|first| first & 1 != 0) {
            return Err(MacError::Multicast(mac.to_string()));
        }
        Ok(mac)
    }

    /// The address of interface `index` of a domain that gives none: under 00:16:3E, always the same for a
    /// named domain (its leases and firewall rules stay valid), random for an unnamed one.
    pub fn for_domain(name: Option<&str>, index: u32) -> Self {
        let [a, b, c] = match name {
            Some(name) => fold(fnv1a(name.bytes().chain([0]).chain(index.to_le_bytes()))),
            None => random(index),
        };
        let [x, y, z] = XEN_OUI;
        Self([x, y, z, a, b, c])
    }

    /// The bytes, first on the wire first.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// FNV-1a, 64 bits: published, without a seed, so that an address outlives releases of xvmm.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Three bytes that depend on all eight.
fn fold(hash: u64) -> [u8; 3] {
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    [a ^ d ^ g, b ^ e ^ h, c ^ f]
}

fn random(index: u32) -> [u8; 3] {
    let mut bytes = [0u8; 3];
    // SAFETY: the buffer is valid for its length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 3 {
        return bytes;
    }
    // Without a random source (a kernel before 3.17): two domains started at the same time differ in pid.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = now.as_nanos().to_le_bytes();
    fold(fnv1a(seed.into_iter().chain(std::process::id().to_le_bytes()).chain(index.to_le_bytes())))
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let format = || MacError::Format(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(format)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| format())?;
        }
        if parts.next().is_some() {
            return Err(format());
        }
        Self::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_parsed_and_shown() {
        let mac: MacAddr = "00:16:3E:0a:B1:ff".parse().unwrap();
        assert_eq!(mac.bytes(), [0, 0x16, 0x3e, 0x0a, 0xb1, 0xff]);
        assert_eq!(mac.to_string(), "00:16:3e:0a:b1:ff");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "00:16:3e:0a:b1",
            "00:16:3e:0a:b1:ff:00",
            "00:16:3e:0a:b1:f",
            "00:16:3e:0a:b1:+f",
            "00-16-3e-0a-b1-ff",
            "gg:16:3e:0a:b1:ff",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacError::Format(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_group_address_and_zero_are_told_apart() {
        assert_eq!("00:00:00:00:00:00".parse::<MacAddr>(), Err(MacError::Zero));
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacError::Multicast(text.to_owned())));
        }
    }

    #[test]
    fn a_named_domain_keeps_its_addresses() {
        // Written down: a changed hash would change the addresses of every domain in use.
        assert_eq!(MacAddr::for_domain(Some("web"), 0).to_string(), "00:16:3e:c2:0e:0f");
        assert_eq!(MacAddr::for_domain(Some("web"), 0), MacAddr::for_domain(Some("web"), 0));
        assert_ne!(MacAddr::for_domain(Some("web"), 0), MacAddr::for_domain(Some("web"), 1));
        assert_ne!(MacAddr::for_domain(Some("web"), 0), MacAddr::for_domain(Some("web2"), 0));
    }

    #[test]
    fn an_unnamed_domain_gets_a_random_address_under_the_xen_prefix() {
        let macs: Vec<_> = (0..4).map(|_| MacAddr::for_domain(None, 0)).collect();
        assert!(macs.iter().all(|mac| mac.to_string().starts_with("00:16:3e:")));
        assert!(macs.iter().any(|mac| *mac != macs[0]));
    }
}

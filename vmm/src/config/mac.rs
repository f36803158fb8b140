//! Ethernet addresses: `00:16:3e:12:34:56`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The first three bytes of the addresses that Xen guests have: the OUI of the Xen project.
pub const XEN_OUI: [u8; 3] = [0x00, 0x16, 0x3e];

/// An Ethernet address, in the order of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// What every backend interface has on the host's side. A bridge never takes it for its own address,
    /// because it is the highest of all.
    pub const HOST_SIDE: MacAddr = MacAddr([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);

    /// True for group addresses, broadcast among them: no interface can have one.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The address of interface `index` of the domain `name` on the host `host`: always the same one, so
    /// that leases and firewall rules outlive the domain.
    pub fn derived(host: &str, name: &str, index: usize) -> MacAddr {
        let index = index.to_string();
        let parts = [host.as_bytes(), name.as_bytes(), index.as_bytes()];
        // FNV-1a, with a separator that no part contains: the value must never change between releases,
        // which std's hashers do not promise.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in parts.iter().flat_map(|part| part.iter().copied().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        MacAddr::xen([a ^ d ^ g, b ^ e ^ h, c ^ f])
    }

    /// An address under the Xen OUI.
    pub fn xen(tail: [u8; 3]) -> MacAddr {
        MacAddr([XEN_OUI[0], XEN_OUI[1], XEN_OUI[2], tail[0], tail[1], tail[2]])
    }
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

/// Why a text is not the address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// not an Ethernet address
    #[error("is not an Ethernet address; write six bytes in hex, as in 00:16:3e:12:34:56")]
    Syntax,
    /// a group address
    #[error("is a multicast address, which no interface can have; the first byte must be even")]
    Multicast,
    /// all zeros
    #[error("is all zeros, which no interface can have; write another one")]
    Zero,
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<MacAddr, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacError::Syntax)?;
            // from_str_radix alone would take "+f".
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError::Syntax);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Syntax)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Syntax);
        }
        let mac = MacAddr(bytes);
        if mac.is_multicast() {
            return Err(MacError::Multicast);
        }
        if mac.0 == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(mac)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MacAddr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_and_addresses() {
        let table: &[(&str, Result<[u8; 6], MacError>)] = &[
            ("00:16:3e:12:34:56", Ok([0, 0x16, 0x3e, 0x12, 0x34, 0x56])),
            ("00:16:3E:AB:cd:EF", Ok([0, 0x16, 0x3e, 0xab, 0xcd, 0xef])),
            ("fe:ff:ff:ff:ff:ff", Ok([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff])),
            ("", Err(MacError::Syntax)),
            ("00:16:3e:12:34", Err(MacError::Syntax)),
            ("00:16:3e:12:34:56:78", Err(MacError::Syntax)),
            ("00:16:3e:12:34:56:", Err(MacError::Syntax)),
            ("0:16:3e:12:34:56", Err(MacError::Syntax)),
            ("+0:16:3e:12:34:56", Err(MacError::Syntax)),
            ("00:16:3e:12:34:5g", Err(MacError::Syntax)),
            ("00-16-3e-12-34-56", Err(MacError::Syntax)),
            ("00163e123456", Err(MacError::Syntax)),
            ("é0:16:3e:12:34:56", Err(MacError::Syntax)),
            ("01:00:5e:00:00:01", Err(MacError::Multicast)),
            ("ff:ff:ff:ff:ff:ff", Err(MacError::Multicast)),
            ("00:00:00:00:00:00", Err(MacError::Zero)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<MacAddr>().map(|mac| mac.0), *expected, "{text}");
        }
    }

    #[test]
    fn an_address_survives_text() {
        let mac = MacAddr([0x00, 0x16, 0x3e, 0x00, 0xff, 0x0a]);
        assert_eq!(mac.to_string(), "00:16:3e:00:ff:0a");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn a_derived_address_depends_on_host_name_and_index_alone() {
        let mac = MacAddr::derived("host", "web", 0);
        assert_eq!(mac, MacAddr::derived("host", "web", 0));
        assert_eq!(mac.0[..3], XEN_OUI);
        assert_ne!(mac, MacAddr::derived("host", "web", 1));
        assert_ne!(mac, MacAddr::derived("host", "web1", 0));
        assert_ne!(mac, MacAddr::derived("other", "web", 0));
        assert_ne!(MacAddr::derived("host", "web", 10), MacAddr::derived("host", "web1", 0));
    }

    #[test]
    fn a_derived_address_is_the_same_in_every_release() {
        assert_eq!(MacAddr::derived("", "web", 0).to_string(), "00:16:3e:79:73:90");
    }
}

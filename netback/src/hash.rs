//! The hash by which a frontend has its packets spread over its queues (netif.h, "Hash types").
//!
//! The frontend chooses the kinds of packets, the key and a table of queues through the control ring
//! ([`crate::control`]). It gets the hash of each packet in an extra info, as a network card's driver would.

use crate::headers::{self, HeaderError, IpVersion};
use crate::protocol::RX_ENTRY;

/// Bytes of a key: enough for the 36 bytes of a TCP packet over IPv6 and the 4 that slide over them.
pub const KEY_LEN: usize = 40;
/// Entries of the largest table of queues, as of Linux netback (XEN_NETBK_MAX_HASH_MAPPING_SIZE).
pub const MAX_MAPPING: usize = 128;
/// Addresses and ports over IPv6: the largest thing that is hashed.
const MAX_INPUT: usize = 36;
/// XEN_NETIF_EXTRA_TYPE_HASH.
const EXTRA_HASH: u8 = 4;
/// XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ.
pub(crate) const TOEPLITZ: u8 = 1;

/// What was hashed (`_XEN_NETIF_CTRL_HASH_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HashKind {
    /// The addresses of an IPv4 packet.
    Ipv4 = 0,
    /// Addresses and ports of a TCP packet over IPv4.
    Ipv4Tcp = 1,
    /// The addresses of an IPv6 packet.
    Ipv6 = 2,
    /// Addresses and ports of a TCP packet over IPv6.
    Ipv6Tcp = 3,
}

impl HashKind {
    fn flag(self) -> u32 {
        1 << self as u8
    }
}

/// All kinds, as a frontend chooses them: a bit each.
pub const ALL_KINDS: u32 = 15;

/// The hash of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHash {
    /// What was hashed.
    pub kind: HashKind,
    /// The hash.
    pub value: u32,
}

impl PacketHash {
    /// Writes the extra info of a packet for the guest: type u8 @0, flags u8 @1, kind u8 @2, algorithm u8 @3, value
    /// u32 @4.
    pub fn emit(&self) -> [u8; RX_ENTRY] {
        let [a, b, c, d] = self.value.to_le_bytes();
        [EXTRA_HASH, 0, self.kind as u8, TOEPLITZ, a, b, c, d]
    }
}

/// What the frontend chose. At first: nothing is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashConfig {
    pub(crate) toeplitz: bool,
    /// Kinds to hash, a bit each.
    pub(crate) kinds: u32,
    pub(crate) key: [u8; KEY_LEN],
    /// The queue of each hash, modulo the length; empty: the hash modulo the number of queues.
    pub(crate) mapping: Vec<u16>,
}

impl Default for HashConfig {
    fn default() -> Self {
        Self { toeplitz: false, kinds: 0, key: [0; KEY_LEN], mapping: Vec::new() }
    }
}

impl HashConfig {
    /// Whether packets are hashed, and their queues chosen by that.
    pub fn is_on(&self) -> bool {
        self.toeplitz && self.kinds != 0
    }

    /// The table of queues, at most [`MAX_MAPPING`] entries.
    pub fn mapping(&self) -> &[u16] {
        &self.mapping
    }

    /// Hashes a packet, whose first bytes are in `head`, a frame of `total` bytes. `None` if it is of no kind that
    /// the frontend chose.
    pub fn hash(&self, head: &[u8], total: usize) -> Option<PacketHash> {
        if !self.is_on() {
            return None;
        }
        let flow = Flow::find(head, total)?;
        let chosen = |kind: HashKind| self.kinds & kind.flag() != 0;
        let (whole, addresses) = match flow.ip {
            IpVersion::V4 => (HashKind::Ipv4Tcp, HashKind::Ipv4),
            IpVersion::V6 => (HashKind::Ipv6Tcp, HashKind::Ipv6),
        };
        let kind = if flow.ports.is_some() && chosen(whole) { whole } else { addresses };
        if !chosen(kind) {
            return None;
        }
        let ports = flow.ports.filter(|_| kind == whole).unwrap_or_default();
        let mut input = [0; MAX_INPUT];
        let (first, rest) = input.split_at_mut_checked(flow.addresses.len())?;
        first.copy_from_slice(flow.addresses);
        rest.get_mut(..ports.len())?.copy_from_slice(ports);
        let input = input.get(..flow.addresses.len() + ports.len())?;
        Some(PacketHash { kind, value: toeplitz(&self.key, input) })
    }

    /// The queue that a packet is for; `None`: the frontend leaves that to us. A packet without a hash goes where
    /// the hash 0 does, as with Linux netback: a queue that is not in the table gets nothing.
    pub fn queue(&self, hash: Option<PacketHash>, queues: usize) -> Option<usize> {
        if !self.is_on() {
            return None;
        }
        let value = usize::try_from(hash.map_or(0, |hash| hash.value)).unwrap_or(0);
        match self.mapping.len() {
            0 => value.checked_rem(queues),
            len => self.mapping.get(value % len).map(|queue| usize::from(*queue)),
        }
    }
}

/// What identifies a flow, inside the first bytes of a frame.
struct Flow<'a> {
    ip: IpVersion,
    /// Source and destination.
    addresses: &'a [u8],
    /// Source and destination of TCP; none in a fragment.
    ports: Option<&'a [u8]>,
}

impl<'a> Flow<'a> {
    fn find(head: &'a [u8], total: usize) -> Option<Self> {
        let head = head.get(..total.min(head.len()))?;
        let (kind, l3) = headers::network(head).ok()?;
        let (ip, found, addresses) = match kind {
            headers::IPV4 => (IpVersion::V4, headers::ipv4(head, l3, total), l3 + 12..l3 + 20),
            headers::IPV6 => (IpVersion::V6, headers::ipv6(head, l3, total), l3 + 8..l3 + 40),
            _ => return None,
        };
        let ports = match found {
            Ok((headers::TCP, l4, end)) if l4 + 4 <= end => head.get(l4..l4 + 4),
            Ok(_) | Err(HeaderError::Fragment) => None,
            Err(_) => return None,
        };
        Some(Self { ip, addresses: head.get(addresses)?, ports })
    }
}

/// The Toeplitz hash: for each bit of `input` that is set, the 32 bits of the key from there on, all XORed.
pub fn toeplitz(key: &[u8; KEY_LEN], input: &[u8]) -> u32 {
    let mut key = key.iter().copied();
    // The upper half is what is XORed next.
    let mut window = key.by_ref().take(8).fold(0u64, |window, byte| window << 8 | u64::from(byte));
    let mut hash = 0u64;
    for byte in input {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= window;
            }
            window <<= 1;
        }
        window |= u64::from(key.next().unwrap_or(0));
    }
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use std::net::{IpAddr, SocketAddr};

    use super::*;

    /// The key and the cases of Microsoft's "Verifying the RSS Hash Calculation": destination, source, hash of the
    /// addresses, hash with the ports.
    const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    const CASES: [(&str, &str, u32, u32); 8] = [
        ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178),
        ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
        ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
        ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
        ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
        ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
        ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
        (
            "[fe80::200:f8ff:fe21:67cf]:38024",
            "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    fn config(kinds: u32) -> HashConfig {
        HashConfig { toeplitz: true, kinds, key: KEY, mapping: Vec::new() }
    }

    /// A frame with a transport header of `protocol` that has these ports; `chain` is between IP and transport.
    fn frame(destination: &str, source: &str, protocol: u8, chain: &[u8], next: u8) -> Vec<u8> {
        let (to, from): (SocketAddr, SocketAddr) = (destination.parse().unwrap(), source.parse().unwrap());
        let mut l4 = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        l4.extend([0; 16]);
        let mut frame = vec![2; 12];
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([8, 0, 0x45, 0]);
                frame.extend((20 + l4.len() as u16).to_be_bytes());
                frame.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(((chain.len() + l4.len()) as u16).to_be_bytes());
                frame.extend([if chain.is_empty() { protocol } else { next }, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(chain);
            }
            _ => panic!("addresses of two kinds"),
        }
        frame.extend(l4);
        frame
    }

    fn hash(config: &HashConfig, frame: &[u8]) -> Option<(HashKind, u32)> {
        config.hash(frame, frame.len()).map(|hash| (hash.kind, hash.value))
    }

    fn kinds_of(destination: &str) -> (HashKind, HashKind) {
        if destination.starts_with('[') {
            (HashKind::Ipv6, HashKind::Ipv6Tcp)
        } else {
            (HashKind::Ipv4, HashKind::Ipv4Tcp)
        }
    }

    #[test]
    fn microsofts_test_vectors_have_their_hashes() {
        for (to, from, addresses, whole) in CASES {
            let frame = frame(to, from, 6, &[], 0);
            let (plain, tcp) = kinds_of(to);
            assert_eq!(hash(&config(ALL_KINDS), &frame), Some((tcp, whole)), "{to}");
            assert_eq!(hash(&config(plain.flag()), &frame), Some((plain, addresses)), "{to}");
            assert_eq!(hash(&config(tcp.flag()), &frame), Some((tcp, whole)), "{to}");
        }
    }

    #[test]
    fn what_is_not_tcp_is_hashed_by_its_addresses() {
        for (to, from, addresses, _) in CASES {
            let udp = frame(to, from, 17, &[], 0);
            let (plain, tcp) = kinds_of(to);
            assert_eq!(hash(&config(ALL_KINDS), &udp), Some((plain, addresses)));
            assert_eq!(hash(&config(tcp.flag()), &udp), None, "not of the kind that was chosen");
        }
    }

    #[test]
    fn a_fragment_is_hashed_by_its_addresses() {
        let (to, from, addresses, _) = CASES[0];
        for field in [[0x20, 0], [0, 5]] {
            let mut fragment = frame(to, from, 6, &[], 0);
            fragment[20..22].copy_from_slice(&field);
            assert_eq!(hash(&config(ALL_KINDS), &fragment), Some((HashKind::Ipv4, addresses)));
        }
        let (to, from, addresses, _) = CASES[5];
        let fragment = frame(to, from, 6, &[6, 0, 0, 1, 0, 0, 0, 0], 44);
        assert_eq!(hash(&config(ALL_KINDS), &fragment), Some((HashKind::Ipv6, addresses)));
    }

    #[test]
    fn ports_are_found_behind_options_extension_headers_and_tags() {
        let (to, from, _, whole) = CASES[5];
        let chain = [60, 0, 0, 0, 0, 0, 0, 0, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let found = hash(&config(ALL_KINDS), &frame(to, from, 6, &chain, 0));
        assert_eq!(found, Some((HashKind::Ipv6Tcp, whole)));
        let (to, from, _, whole) = CASES[1];
        let plain = frame(to, from, 6, &[], 0);
        let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
        assert_eq!(hash(&config(ALL_KINDS), &tagged), Some((HashKind::Ipv4Tcp, whole)));
        let mut options = [&plain[..34], &[1; 8], &plain[34..]].concat();
        options[14] = 0x47;
        options[17] += 8;
        assert_eq!(hash(&config(ALL_KINDS), &options), Some((HashKind::Ipv4Tcp, whole)));
    }

    #[test]
    fn what_is_not_ip_or_cut_off_has_no_hash() {
        let mut arp = vec![2; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(hash(&config(ALL_KINDS), &arp), None);
        for (to, from, ..) in [CASES[0], CASES[5]] {
            let whole = frame(to, from, 6, &[], 0);
            let l4 = whole.len() - 20;
            for cut in 0..whole.len() {
                assert_eq!(hash(&config(ALL_KINDS), &whole[..cut]), None, "{cut}");
                // The frame is whole, but only its first bytes were copied.
                let kind = config(ALL_KINDS).hash(&whole[..cut], whole.len()).map(|hash| hash.kind);
                assert_eq!(kind.is_some(), cut >= l4, "{cut}");
            }
        }
    }

    #[test]
    fn nothing_is_hashed_until_the_frontend_asks_for_it() {
        let packet = frame(CASES[0].0, CASES[0].1, 6, &[], 0);
        for off in [HashConfig::default(), config(0), HashConfig { toeplitz: false, ..config(ALL_KINDS) }] {
            assert_eq!(hash(&off, &packet), None);
            assert_eq!(off.queue(None, 4), None);
        }
        // Without a key each packet's hash is 0.
        let empty = HashConfig { key: [0; KEY_LEN], ..config(ALL_KINDS) };
        assert_eq!(hash(&empty, &packet), Some((HashKind::Ipv4Tcp, 0)));
    }

    #[test]
    fn the_table_names_the_queue_and_without_one_the_remainder_does() {
        let hash = |value| Some(PacketHash { kind: HashKind::Ipv4, value });
        let mut config = config(ALL_KINDS);
        for value in [0, 1, 5, u32::MAX] {
            assert_eq!(config.queue(hash(value), 4), Some(value as usize % 4));
        }
        config.mapping = vec![2, 1, 3];
        let queues: Vec<_> = (0..4).map(|value| config.queue(hash(value), 4)).collect();
        assert_eq!(queues, [Some(2), Some(1), Some(3), Some(2)]);
        assert_eq!(config.queue(hash(u32::MAX), 4), Some(2));
        assert_eq!(config.queue(None, 4), Some(2), "as the hash 0");
    }

    #[test]
    fn the_extra_info_has_the_layout_of_netif_h() {
        let hash = PacketHash { kind: HashKind::Ipv6Tcp, value: 0x1234_5678 };
        assert_eq!(hash.emit(), [4, 0, 3, 1, 0x78, 0x56, 0x34, 0x12]);
    }
}

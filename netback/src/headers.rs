//! The protocol headers of a frame, as far as checksum and segmentation offload need them.
//!
//! Neither ring says where the transport header is, but the tap wants to know; so it is found here, in a copy
//! that the guest cannot change any more. Linux does the same in skb_checksum_setup(), and a frontend does it
//! for received packets: what is not found here must not reach a frontend with its checksum blank.

use thiserror::Error;

/// Bytes of a frame that are copied for [`Headers::parse`]: Ethernet and two tags (22), IPv6 (40) with 120
/// bytes of extension headers, TCP with options (60).
pub const HEADER_MAX: usize = 256;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Transport protocol with a checksum that can be offloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Why a frame's transport checksum cannot be found.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The headers are longer than the frame or the copy.
    #[error("the headers do not fit the frame")]
    Cut,
    /// Neither IPv4 nor IPv6.
    #[error("the frame of type {0:#06x} is not IP")]
    NotIp(u16),
    /// A length field contradicts the frame.
    #[error("the IP header does not fit the frame")]
    BadIp,
    /// A fragment has only a part of what the checksum covers.
    #[error("the frame is an IP fragment")]
    Fragment,
    /// Neither TCP nor UDP.
    #[error("IP protocol {0} has no checksum to offload")]
    Protocol(u8),
}

/// Where things are in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// IP version.
    pub ip: IpVersion,
    /// Transport protocol.
    pub transport: Transport,
    /// Whether the frame has a VLAN tag.
    pub tagged: bool,
    /// First byte of the IP header.
    pub l3: u16,
    /// First byte of the TCP or UDP header: the checksum covers all from here.
    pub l4: u16,
    /// First byte of the payload.
    pub payload: u16,
    /// Bytes from `l4` to the end of the IP packet.
    l4_len: u16,
}

/// IP protocol of TCP.
pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
/// EtherType of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub(crate) const IPV6: u16 = 0x86dd;

impl Headers {
    /// Finds the headers in `head`, the first bytes of a frame of `total` bytes.
    pub fn parse(head: &[u8], total: usize) -> Result<Self, HeaderError> {
        let head = head.get(..total.min(head.len())).unwrap_or(head);
        let (kind, l3) = network(head)?;
        let (ip, protocol, l4, end) = match kind {
            IPV4 => {
                let (protocol, l4, end) = ipv4(head, l3, total)?;
                (IpVersion::V4, protocol, l4, end)
            }
            IPV6 => {
                let (protocol, l4, end) = ipv6(head, l3, total)?;
                (IpVersion::V6, protocol, l4, end)
            }
            other => return Err(HeaderError::NotIp(other)),
        };
        let (transport, length) = match protocol {
            TCP => (Transport::Tcp, usize::from(byte(head, l4 + 12)? >> 4) * 4),
            UDP => (Transport::Udp, 8),
            other => return Err(HeaderError::Protocol(other)),
        };
        let payload = l4 + length;
        if length < transport.min_header() || payload > end || payload > head.len() {
            return Err(HeaderError::Cut);
        }
        let [l3_, l4_, payload, l4_len] = [l3, l4, payload, end - l4].map(u16::try_from);
        let (Ok(l3_), Ok(l4_), Ok(payload), Ok(l4_len)) = (l3_, l4_, payload, l4_len) else {
            return Err(HeaderError::BadIp);
        };
        Ok(Self { ip, transport, tagged: l3 > 14, l3: l3_, l4: l4_, payload, l4_len })
    }

    /// Offset of the checksum from `l4`.
    pub fn csum_offset(&self) -> u16 {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// Puts the sum of the pseudo-header into the checksum field, where the rest is to be added (what Linux
    /// calls CHECKSUM_PARTIAL). Frontends that offload usually did it; some leave the field as it was.
    pub fn set_pseudo_checksum(&self, head: &mut [u8]) {
        let (addresses, protocol) = match (self.ip, self.transport) {
            (IpVersion::V4, Transport::Tcp) => (12..20, TCP),
            (IpVersion::V4, Transport::Udp) => (12..20, UDP),
            (IpVersion::V6, Transport::Tcp) => (8..40, TCP),
            (IpVersion::V6, Transport::Udp) => (8..40, UDP),
        };
        let l3 = usize::from(self.l3);
        let mut sum = Checksum::default();
        sum.add(head.get(l3 + addresses.start..l3 + addresses.end).unwrap_or_default());
        sum.add(&[0, protocol]);
        sum.add(&self.l4_len.to_be_bytes());
        let at = usize::from(self.l4 + self.csum_offset());
        if let Some(field) = head.get_mut(at..at + 2) {
            field.copy_from_slice(&sum.folded().to_be_bytes());
        }
    }
}

impl Transport {
    fn min_header(self) -> usize {
        match self {
            Transport::Tcp => 20,
            Transport::Udp => 8,
        }
    }
}

fn byte(head: &[u8], at: usize) -> Result<u8, HeaderError> {
    head.get(at).copied().ok_or(HeaderError::Cut)
}

fn be16(head: &[u8], at: usize) -> Result<u16, HeaderError> {
    head.get(at..).and_then(<[u8]>::first_chunk).map(|b| u16::from_be_bytes(*b)).ok_or(HeaderError::Cut)
}

/// EtherType, behind up to two tags, and the first byte of what it carries.
pub(crate) fn network(head: &[u8]) -> Result<(u16, usize), HeaderError> {
    let mut l3 = 14;
    let mut kind = be16(head, 12)?;
    // 802.1Q and 802.1ad, one inside the other.
    for _ in 0..2 {
        if kind == 0x8100 || kind == 0x88a8 {
            kind = be16(head, l3 + 2)?;
            l3 += 4;
        }
    }
    Ok((kind, l3))
}

/// Protocol, first byte of what it carries, and the end of the packet.
pub(crate) fn ipv4(head: &[u8], l3: usize, total: usize) -> Result<(u8, usize, usize), HeaderError> {
    let first = byte(head, l3)?;
    let header = usize::from(first & 15) * 4;
    let end = l3 + usize::from(be16(head, l3 + 2)?);
    if first >> 4 != 4 || header < 20 || end > total || end < l3 + header {
        return Err(HeaderError::BadIp);
    }
    // More fragments, or not the first one.
    if be16(head, l3 + 6)? & 0x3fff != 0 {
        return Err(HeaderError::Fragment);
    }
    Ok((byte(head, l3 + 9)?, l3 + header, end))
}

/// As [`ipv4`].
pub(crate) fn ipv6(head: &[u8], l3: usize, total: usize) -> Result<(u8, usize, usize), HeaderError> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let end = l3 + 40 + usize::from(be16(head, l3 + 4)?);
    if byte(head, l3)? >> 4 != 6 || end > total {
        return Err(HeaderError::BadIp);
    }
    let mut next = byte(head, l3 + 6)?;
    let mut at = l3 + 40;
    // Each step is at least 8 bytes further in a copy of HEADER_MAX bytes: the chain ends.
    while let HOP_BY_HOP | ROUTING | DESTINATION = next {
        next = byte(head, at)?;
        at += (usize::from(byte(head, at + 1)?) + 1) * 8;
    }
    if next == FRAGMENT {
        return Err(HeaderError::Fragment);
    }
    if at > end {
        return Err(HeaderError::BadIp);
    }
    Ok((next, at, end))
}

/// The internet checksum (RFC 1071), piece by piece; pieces may have odd lengths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checksum {
    sum: u64,
    odd: bool,
}

impl Checksum {
    /// Adds the next bytes. At most 2^40 of them in all.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd
            && let Some((first, rest)) = bytes.split_first()
        {
            self.sum += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        let (pairs, rest) = bytes.as_chunks::<2>();
        self.sum += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
        if let [last] = rest {
            self.sum += u64::from(*last) << 8;
            self.odd = true;
        }
    }

    /// The sum so far, not complemented.
    pub(crate) fn folded(&self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// The value of a checksum field; 0xffff instead of 0, which in UDP means "no checksum".
    pub(crate) fn complement(&self) -> u16 {
        match !self.folded() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;

    fn ethernet(kind: u16, tags: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend(kind.to_be_bytes());
        frame
    }

    fn ipv4_frame(protocol: u8, options: usize, l4: &[u8], tags: usize) -> Vec<u8> {
        let mut frame = ethernet(0x800, tags);
        let len = (20 + options + l4.len()) as u16;
        frame.extend([0x45 + (options / 4) as u8, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(vec![1; options]);
        frame.extend(l4);
        frame
    }

    fn ipv6_frame(next: u8, chain: &[u8], l4: &[u8]) -> Vec<u8> {
        let mut frame = ethernet(0x86dd, 0);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((chain.len() + l4.len()) as u16).to_be_bytes());
        frame.extend([next, 64]);
        frame.extend([0xfe; 32]);
        frame.extend(chain);
        frame.extend(l4);
        frame
    }

    const TCP_HEADER: [u8; 20] = [0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    const UDP_HEADER: [u8; 8] = [0, 53, 0, 53, 0, 8, 0, 0];

    fn parse(frame: &[u8]) -> Result<Headers, HeaderError> {
        Headers::parse(&frame[..frame.len().min(HEADER_MAX)], frame.len())
    }

    #[test]
    fn tcp_and_udp_are_found_behind_tags_options_and_extension_headers() {
        let at = |frame: Vec<u8>| parse(&frame).map(|h| (h.ip, h.transport, h.l4, h.payload, h.tagged));
        let (v4, v6, tcp, udp) = (IpVersion::V4, IpVersion::V6, Transport::Tcp, Transport::Udp);
        assert_eq!(at(ipv4_frame(6, 0, &TCP_HEADER, 0)), Ok((v4, tcp, 34, 54, false)));
        assert_eq!(at(ipv4_frame(17, 0, &UDP_HEADER, 0)), Ok((v4, udp, 34, 42, false)));
        assert_eq!(at(ipv4_frame(17, 40, &UDP_HEADER, 2)), Ok((v4, udp, 82, 90, true)));
        assert_eq!(at(ipv6_frame(6, &[], &TCP_HEADER)), Ok((v6, tcp, 54, 74, false)));
        let chain = [60, 0, 0, 0, 0, 0, 0, 0, 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(at(ipv6_frame(0, &chain, &UDP_HEADER)), Ok((v6, udp, 78, 86, false)));
    }

    #[test]
    fn frames_without_a_checksum_to_offload_are_refused() {
        assert_eq!(parse(&ethernet(0x806, 0)), Err(HeaderError::NotIp(0x806)));
        assert_eq!(parse(&ipv4_frame(1, 0, &[0; 40], 0)), Err(HeaderError::Protocol(1)));
        for offset in [0x20, 0x01] {
            let mut fragment = ipv4_frame(17, 0, &UDP_HEADER, 0);
            fragment[20] = offset;
            assert_eq!(parse(&fragment), Err(HeaderError::Fragment));
        }
        let fragment = [17, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(parse(&ipv6_frame(44, &fragment, &UDP_HEADER)), Err(HeaderError::Fragment));
    }

    #[test]
    fn lengths_that_contradict_the_frame_are_refused() {
        let mut long = ipv4_frame(17, 0, &UDP_HEADER, 0);
        long[17] += 1;
        assert_eq!(parse(&long), Err(HeaderError::BadIp));
        let mut short = ipv4_frame(17, 0, &UDP_HEADER, 0);
        short[14] = 0x44;
        assert_eq!(parse(&short), Err(HeaderError::BadIp));
        let mut tcp = ipv4_frame(6, 0, &TCP_HEADER, 0);
        tcp[34 + 12] = 0x60;
        assert_eq!(parse(&tcp), Err(HeaderError::Cut));
        tcp[34 + 12] = 0x40;
        assert_eq!(parse(&tcp), Err(HeaderError::Cut));
        let endless = ipv6_frame(0, &[0; 400], &UDP_HEADER);
        assert_eq!(parse(&endless), Err(HeaderError::Cut));
    }

    #[test]
    fn every_prefix_of_a_frame_is_refused_without_a_panic() {
        for frame in [ipv4_frame(6, 8, &TCP_HEADER, 1), ipv6_frame(6, &[], &TCP_HEADER)] {
            for cut in 0..frame.len() {
                assert!(Headers::parse(&frame[..cut], frame.len()).is_err(), "{cut}");
                assert!(Headers::parse(&frame[..cut], cut).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn the_pseudo_header_and_the_rest_make_the_right_checksum() {
        // A DNS query's UDP header with four bytes, its checksum worked out by hand below.
        let mut l4 = UDP_HEADER.to_vec();
        l4[5] = 12;
        l4.extend([0xde, 0xad, 0xbe, 0xef]);
        let mut frame = ipv4_frame(17, 0, &l4, 0);
        // Padding of a short frame is not part of the packet.
        frame.extend([0; 14]);
        let headers = parse(&frame).unwrap();
        headers.set_pseudo_checksum(&mut frame);
        let mut sum = Checksum::default();
        sum.add(&frame[34..]);
        // 0a00+0001+0a00+0002 + 0011 + 000c + 0035+0035+000c + dead+beef = 1b232 -> b233 -> ~ = 4dcc
        assert_eq!(sum.complement(), 0x4dcc);
    }

    #[test]
    fn a_checksum_does_not_depend_on_how_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..255).collect();
        let whole = {
            let mut sum = Checksum::default();
            sum.add(&bytes);
            sum.folded()
        };
        for step in [1, 3, 7, 64] {
            let mut sum = Checksum::default();
            bytes.chunks(step).for_each(|piece| sum.add(piece));
            assert_eq!(sum.folded(), whole);
        }
    }
}

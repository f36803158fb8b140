//! The network ring's entries (xen/include/public/io/netif.h), as types that were checked at the door.
//!
//! A transmit slot ("tx": the guest sends) holds a request of 12 bytes, an extra info of 8 or a response of 4:
//!
//! | request | extra info | response |
//! |---|---|---|
//! | gref u32 @0, offset u16 @4, flags u16 @6, id u16 @8, size u16 @10 | type u8 @0, flags u8 @1, 6 bytes | id u16 @0, status i16 @2 |
//!
//! A receive slot ("rx") holds a request or a response, 8 bytes each:
//!
//! | request | response | extra info |
//! |---|---|---|
//! | id u16 @0, pad u16, gref u32 @4 | id u16 @0, offset u16 @2, flags u16 @4, status i16 @6 | as above |

use devices::xen::types::GrantRef;

use crate::hash::PacketHash;
use crate::multicast::Membership;

/// Bytes of a slot of the transmit ring: of a request, the largest entry.
pub const TX_ENTRY: usize = 12;
/// Bytes of a slot of the receive ring.
pub const RX_ENTRY: usize = 8;
/// Slots of a packet that every backend takes (XEN_NETIF_NR_SLOTS_MIN).
pub const MAX_SLOTS: usize = 18;
/// A frontend that chains more slots than this is not a driver of this protocol: its ring is closed.
pub const FATAL_SLOTS: usize = 20;
/// Bytes of an Ethernet header without tags: the smallest packet.
pub const ETH_HLEN: usize = 14;

/// Transmit request: the transport checksum is not filled in.
pub const TXF_CSUM_BLANK: u16 = 1;
/// Transmit request: the data needs no check, it never left the guest.
pub const TXF_DATA_VALIDATED: u16 = 2;
/// Transmit request: the packet goes on in the next slot.
pub const TXF_MORE_DATA: u16 = 4;
/// Transmit request: the next slot is an extra info.
pub const TXF_EXTRA_INFO: u16 = 8;
/// Receive response: the transport checksum is known to be right.
pub const RXF_DATA_VALIDATED: u16 = 1;
/// Receive response: the transport checksum is not filled in.
pub const RXF_CSUM_BLANK: u16 = 2;
/// Receive response: the packet goes on in the next slot.
pub const RXF_MORE_DATA: u16 = 4;
/// Receive response: the next slot is an extra info.
pub const RXF_EXTRA_INFO: u16 = 8;

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u16::from_le_bytes(*b))
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

/// A transmit request: one piece of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxRequest {
    /// The page.
    pub gref: GrantRef,
    /// First byte in the page.
    pub offset: u16,
    /// `TXF_*`.
    pub flags: u16,
    /// Comes back in the response.
    pub id: u16,
    /// Bytes of this piece; in a packet's first request, of the whole packet.
    pub size: u16,
}

impl TxRequest {
    /// Reads a request.
    pub fn parse(bytes: &[u8; TX_ENTRY]) -> Self {
        Self {
            gref: GrantRef(u32_at(bytes, 0)),
            offset: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            id: u16_at(bytes, 8),
            size: u16_at(bytes, 10),
        }
    }

    /// Writes a request, as a frontend does.
    pub fn emit(&self) -> [u8; TX_ENTRY] {
        let mut bytes = [0; TX_ENTRY];
        let (gref, rest) = bytes.split_at_mut(4);
        gref.copy_from_slice(&self.gref.0.to_le_bytes());
        for (field, value) in rest.chunks_exact_mut(2).zip([self.offset, self.flags, self.id, self.size]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Whether `flag` is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// How a packet of the guest went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum TxStatus {
    /// Sent.
    Okay = 0,
    /// The request was wrong.
    Error = -1,
    /// The host did not take it.
    Dropped = -2,
    /// No answer: of the slot of an extra info.
    Null = 1,
}

/// Bytes of a transmit response.
pub fn tx_response(id: u16, status: TxStatus) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_le_bytes(), (status as i16).to_le_bytes());
    [a, b, c, d]
}

/// A receive request: a page to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// Comes back in the response.
    pub id: u16,
    /// The page.
    pub gref: GrantRef,
}

impl RxRequest {
    /// Reads a request.
    pub fn parse(bytes: &[u8; RX_ENTRY]) -> Self {
        Self { id: u16_at(bytes, 0), gref: GrantRef(u32_at(bytes, 4)) }
    }

    /// Writes a request, as a frontend does.
    pub fn emit(&self) -> [u8; RX_ENTRY] {
        let ([a, b], [e, f, g, h]) = (self.id.to_le_bytes(), self.gref.0.to_le_bytes());
        [a, b, 0, 0, e, f, g, h]
    }
}

/// A receive response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxResponse {
    /// Of the request.
    pub id: u16,
    /// First byte of the data in the page.
    pub offset: u16,
    /// `RXF_*`.
    pub flags: u16,
    /// Bytes in the page, or a negative [`TxStatus`].
    pub status: i16,
}

impl RxResponse {
    /// Writes a response.
    pub fn emit(&self) -> [u8; RX_ENTRY] {
        let ([a, b], [c, d]) = (self.id.to_le_bytes(), self.offset.to_le_bytes());
        let ([e, f], [g, h]) = (self.flags.to_le_bytes(), self.status.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }

    /// Reads a response, as a frontend does.
    pub fn parse(bytes: &[u8; RX_ENTRY]) -> Self {
        let status = i16::from_le_bytes(u16_at(bytes, 6).to_le_bytes());
        Self { id: u16_at(bytes, 0), offset: u16_at(bytes, 2), flags: u16_at(bytes, 4), status }
    }
}

/// IP version of a large TCP segment that the receiver cuts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4 (XEN_NETIF_GSO_TYPE_TCPV4).
    TcpV4,
    /// TCP over IPv6 (XEN_NETIF_GSO_TYPE_TCPV6).
    TcpV6,
}

/// A packet to be cut into TCP segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Payload bytes of each segment.
    pub size: u16,
    /// IP version.
    pub kind: GsoKind,
}

/// Flag of an extra info: another one follows.
pub const EXTRA_MORE: u8 = 1;

/// An extra info.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Cut the packet up. `None`: of a kind or size that is not possible.
    Gso(Option<Gso>),
    /// Join or leave a multicast group: a request by itself, not a packet.
    Multicast(Membership),
    /// The flow hash of the packet, or the room before its data; of no use to a tap.
    Other,
}

/// No TCP cuts its segments smaller (the smallest MSS of RFC 879's hosts less 40 bytes of options; Linux's
/// TCP_MIN_GSO_SIZE). A guest that asks for segments of one byte would have the host make 65,000 packets of
/// one.
const MIN_GSO_SIZE: u16 = 8;

impl Extra {
    /// Reads an extra info and whether another one follows. Its type is returned as the error if there is no
    /// such type: then the ring is out of step.
    pub fn parse(bytes: &[u8; TX_ENTRY]) -> Result<(Self, bool), u8> {
        let [kind, flags] = u16_at(bytes, 0).to_le_bytes();
        let extra = match kind {
            1 => {
                let size = u16_at(bytes, 2);
                let kind = match bytes.get(4) {
                    Some(1) => Some(GsoKind::TcpV4),
                    Some(2) => Some(GsoKind::TcpV6),
                    _ => None,
                };
                Extra::Gso(kind.filter(|_| size >= MIN_GSO_SIZE).map(|kind| Gso { size, kind }))
            }
            2 | 3 => {
                let address = bytes.get(2..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
                let change = if kind == 2 { Membership::Join } else { Membership::Leave };
                Extra::Multicast(change(address))
            }
            4 | 5 => Extra::Other,
            other => return Err(other),
        };
        Ok((extra, flags & EXTRA_MORE != 0))
    }
}

impl Gso {
    /// Writes the extra info of a packet for the guest.
    pub fn emit(&self) -> [u8; RX_ENTRY] {
        let [a, b] = self.size.to_le_bytes();
        let kind = match self.kind {
            GsoKind::TcpV4 => 1,
            GsoKind::TcpV6 => 2,
        };
        [1, 0, a, b, kind, 0, 0, 0]
    }
}

/// What a frontend is told about a frame besides its flags: extra infos behind the first slot, each in a slot of its
/// own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxExtras {
    /// It is to be segmented.
    pub gso: Option<Gso>,
    /// Its hash.
    pub hash: Option<PacketHash>,
    /// Bytes of room before the data in each page, where the frontend wants some for XDP.
    pub headroom: u16,
}

impl RxExtras {
    /// Slots that they need, at most 3.
    pub fn count(&self) -> usize {
        usize::from(self.gso.is_some()) + usize::from(self.hash.is_some()) + usize::from(self.headroom > 0)
    }

    /// Writes them, in the order of their types, into as many as `slots`, at least one each: the last one is said
    /// again and again. Without any, none is written.
    pub fn emit(&self, slots: usize) -> impl Iterator<Item = [u8; RX_ENTRY]> + use<> {
        let [a, b] = self.headroom.to_le_bytes();
        let xdp = (self.headroom > 0).then_some([5, 0, a, b, 0, 0, 0, 0]);
        let list = [self.gso.map(|gso| gso.emit()), self.hash.map(|hash| hash.emit()), xdp];
        let last = list.into_iter().flatten().last();
        let slots = slots.max(self.count());
        let all = list.into_iter().flatten().chain(std::iter::repeat_n(last, slots).flatten());
        all.take(slots).enumerate().map(move |(index, mut extra)| {
            let [_, flags, ..] = &mut extra;
            *flags = if index + 1 < slots { EXTRA_MORE } else { 0 };
            extra
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::hash::HashKind;

    #[test]
    fn a_tx_request_has_the_layout_of_netif_h() {
        let bytes = [0x78, 0x56, 0x34, 0x12, 0x22, 0x01, 0x05, 0, 0x07, 0, 0xea, 0x05];
        let request = TxRequest {
            gref: GrantRef(0x1234_5678),
            offset: 0x122,
            flags: TXF_CSUM_BLANK | TXF_MORE_DATA,
            id: 7,
            size: 1514,
        };
        assert_eq!(TxRequest::parse(&bytes), request);
        assert_eq!(request.emit(), bytes);
    }

    #[test]
    fn rx_entries_have_the_layout_of_netif_h() {
        let request = RxRequest { id: 0x102, gref: GrantRef(0x0a0b_0c0d) };
        assert_eq!(request.emit(), [2, 1, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(RxRequest::parse(&request.emit()), request);
        let response = RxResponse { id: 0x102, offset: 0x304, flags: 5, status: -1 };
        assert_eq!(response.emit(), [2, 1, 4, 3, 5, 0, 0xff, 0xff]);
        assert_eq!(RxResponse::parse(&response.emit()), response);
    }

    #[test]
    fn a_gso_extra_is_read_and_written() {
        let gso = Gso { size: 1448, kind: GsoKind::TcpV6 };
        let mut slot = [0; TX_ENTRY];
        slot.first_chunk_mut::<8>().unwrap().copy_from_slice(&gso.emit());
        assert_eq!(Extra::parse(&slot), Ok((Extra::Gso(Some(gso)), false)));
        assert_eq!(gso.emit(), [1, 0, 0xa8, 0x05, 2, 0, 0, 0]);
    }

    #[test]
    fn a_gso_of_no_kind_or_of_tiny_segments_is_marked_as_impossible() {
        for slot in [[1, 0, 0xa8, 5, 3, 0, 0, 0, 0, 0, 0, 0], [1, 0, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Extra::parse(&slot), Ok((Extra::Gso(None), false)));
        }
    }

    #[test]
    fn an_unknown_extra_is_refused_and_a_chained_one_says_so() {
        for kind in [0, 6, 255] {
            let slot = [kind, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Extra::parse(&slot), Err(kind));
        }
        let slot = [4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Extra::parse(&slot), Ok((Extra::Other, true)));
    }

    #[test]
    fn a_multicast_extra_has_an_address() {
        let address = [1, 0, 0x5e, 7, 8, 9];
        let slot = |kind| [kind, 0, 1, 0, 0x5e, 7, 8, 9, 0, 0, 0, 0];
        assert_eq!(Extra::parse(&slot(2)), Ok((Extra::Multicast(Membership::Join(address)), false)));
        assert_eq!(Extra::parse(&slot(3)), Ok((Extra::Multicast(Membership::Leave(address)), false)));
    }

    #[test]
    fn extra_infos_for_the_guest_are_chained() {
        let gso = Some(Gso { size: 1448, kind: GsoKind::TcpV4 });
        let hash = Some(PacketHash { kind: HashKind::Ipv4Tcp, value: 9 });
        let (g, h, x) = ([1, 0, 0xa8, 5, 1, 0, 0, 0], [4, 0, 1, 1, 9, 0, 0, 0], [5, 0, 0, 1, 0, 0, 0, 0]);
        let more = |mut extra: [u8; 8]| {
            extra[1] = 1;
            extra
        };
        let cases = [
            (RxExtras::default(), vec![]),
            (RxExtras { gso, ..RxExtras::default() }, vec![g]),
            (RxExtras { hash, headroom: 256, gso: None }, vec![more(h), x]),
            (RxExtras { gso, hash, headroom: 256 }, vec![more(g), more(h), x]),
        ];
        for (extras, expected) in cases {
            assert_eq!(extras.emit(0).collect::<Vec<_>>(), expected);
            assert_eq!(extras.count(), expected.len());
        }
    }

    #[test]
    fn slots_without_an_extra_info_of_their_own_have_the_last_one() {
        let extras = RxExtras { headroom: 256, ..RxExtras::default() };
        let filled: Vec<_> = extras.emit(3).collect();
        assert_eq!(filled, [[5, 1, 0, 1, 0, 0, 0, 0], [5, 1, 0, 1, 0, 0, 0, 0], [5, 0, 0, 1, 0, 0, 0, 0]]);
        assert_eq!(RxExtras::default().emit(3).count(), 0);
    }
}

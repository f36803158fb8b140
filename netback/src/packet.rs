//! Packets of the guest, put together from the slots of its transmit ring.
//!
//! A packet is a chain: the first request (with the size of the whole), its extra infos, the further pieces.
//! The guest writes anything it likes; what comes out of here was copied once and is consistent: pieces lie in
//! their pages and add up to the packet. A wrong packet is taken whole and answered; a chain that has no end
//! closes the ring, as in Linux netback, because what follows cannot be told from its middle.

use devices::xen::shared_ring::{BackRing, RingError};
use devices::xen::types::GrantRef;
use thiserror::Error;

use crate::multicast::Membership;
use crate::protocol::{
    ETH_HLEN, Extra, FATAL_SLOTS, Gso, MAX_SLOTS, TX_ENTRY, TXF_CSUM_BLANK, TXF_EXTRA_INFO, TXF_MORE_DATA,
    TxRequest,
};

/// Bytes of a page of the guest.
const PAGE: usize = devices::memory::PAGE_SIZE;
/// Extra infos of one packet: there are five types, and none makes sense twice.
const MAX_EXTRAS: usize = 5;

/// A part of a packet: bytes in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub gref: GrantRef,
    /// First byte in the page.
    pub offset: usize,
    /// Bytes, all inside the page; never 0.
    pub len: usize,
}

/// Why a packet is not sent. Its slots are answered with an error.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadPacket {
    /// More than 18 slots.
    #[error("a packet of {0} slots, more than the 18 that the protocol promises")]
    TooManySlots(usize),
    /// A piece crosses the end of its page.
    #[error("a piece of {len} bytes at offset {offset} is not inside a page")]
    OutsidePage {
        /// First byte in the page.
        offset: u16,
        /// Bytes.
        len: usize,
    },
    /// The pieces are larger than the packet.
    #[error("the pieces of a packet are larger than its {0} bytes")]
    SizesDisagree(u16),
    /// Shorter than an Ethernet header.
    #[error("a packet of {0} bytes is shorter than an Ethernet header")]
    TooShort(u16),
    /// Segmentation of an unknown kind or into segments of no size.
    #[error("a packet asks for segmentation of an impossible kind or size")]
    Gso,
}

/// Why a transmit ring is closed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TxFatal {
    /// The ring is not possible.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A chain without end.
    #[error("a packet of more than {FATAL_SLOTS} slots")]
    Endless,
    /// The last slot of the ring says that another one follows.
    #[error("a packet whose last slots are missing")]
    Cut,
    /// Extra infos without end.
    #[error("a packet with more than {MAX_EXTRAS} extra infos")]
    TooManyExtras,
    /// Not a type of extra info.
    #[error("an extra info of the unknown type {0}")]
    UnknownExtra(u8),
}

/// Where slots come from: a ring, or arbitrary bytes in a test.
pub trait TxSlots {
    /// Copies the next slot out and takes it; false if there is none.
    fn next_slot(&mut self, slot: &mut [u8; TX_ENTRY]) -> Result<bool, RingError>;
}

impl TxSlots for BackRing {
    fn next_slot(&mut self, slot: &mut [u8; TX_ENTRY]) -> Result<bool, RingError> {
        self.next_request(slot)
    }
}

/// Slots from memory: for tests and fuzz targets.
impl TxSlots for std::slice::Iter<'_, [u8; TX_ENTRY]> {
    fn next_slot(&mut self, slot: &mut [u8; TX_ENTRY]) -> Result<bool, RingError> {
        Ok(self.next().map(|next| *slot = *next).is_some())
    }
}

/// One packet of the guest. Kept and filled again, so that packets cost no allocation.
#[derive(Debug, Default)]
pub struct TxPacket {
    /// Of each slot taken, in order: the id to answer to, `None` for an extra info.
    ids: Vec<Option<u16>>,
    pieces: Vec<Piece>,
    /// What is wrong with a piece after the first.
    bad_piece: Option<BadPacket>,
    gso: Option<Gso>,
    csum_blank: bool,
    len: usize,
}

/// What [`TxPacket::take`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// The ring is empty.
    Nothing,
    /// A packet to send.
    Packet,
    /// A packet that cannot be sent; its slots are to be answered.
    Bad(BadPacket),
    /// No packet: the frontend changes its list of multicast groups. Its slots are to be answered.
    Group(Membership),
}

impl TxPacket {
    /// Takes the next packet out of the ring. After an error the ring must not be read again.
    pub fn take(&mut self, ring: &mut impl TxSlots) -> Result<Taken, TxFatal> {
        self.ids.clear();
        self.pieces.clear();
        self.bad_piece = None;
        self.gso = None;
        let mut slot = [0; TX_ENTRY];
        if !ring.next_slot(&mut slot)? {
            return Ok(Taken::Nothing);
        }
        let head = TxRequest::parse(&slot);
        self.ids.push(Some(head.id));
        // How long it is follows from the others.
        self.pieces.push(Piece { gref: head.gref, offset: head.offset.into(), len: 0 });
        self.csum_blank = head.has(TXF_CSUM_BLANK);
        self.len = usize::from(head.size);

        let (mut bad, group) = self.take_extras(head, ring)?;
        let (mut requests, mut rest) = (1, 0);
        let mut more = head.has(TXF_MORE_DATA);
        while more {
            if requests >= FATAL_SLOTS {
                return Err(TxFatal::Endless);
            }
            if !ring.next_slot(&mut slot)? {
                return Err(TxFatal::Cut);
            }
            let request = TxRequest::parse(&slot);
            more = request.has(TXF_MORE_DATA);
            self.ids.push(Some(request.id));
            requests += 1;
            rest += usize::from(request.size);
            self.push(request);
        }
        if let Some(group) = group {
            return Ok(Taken::Group(group));
        }
        if requests > MAX_SLOTS {
            bad = bad.or(Some(BadPacket::TooManySlots(requests)));
        }
        let bad = bad.or_else(|| self.add_up(head, rest).err());
        Ok(bad.map_or(Taken::Packet, Taken::Bad))
    }

    /// A piece after the first one. An empty slot is legal and carries nothing (XSA-448: it must not become an empty
    /// fragment).
    fn push(&mut self, request: TxRequest) {
        let (offset, len) = (usize::from(request.offset), usize::from(request.size));
        if offset + len > PAGE && self.bad_piece.is_none() {
            self.bad_piece = Some(BadPacket::OutsidePage { offset: request.offset, len });
        }
        if len > 0 {
            self.pieces.push(Piece { gref: request.gref, offset, len });
        }
    }

    /// What is wrong with them, and the request that they make.
    fn take_extras(
        &mut self,
        head: TxRequest,
        ring: &mut impl TxSlots,
    ) -> Result<(Option<BadPacket>, Option<Membership>), TxFatal> {
        let (mut bad, mut group) = (None, None);
        let mut more = head.has(TXF_EXTRA_INFO);
        let mut slot = [0; TX_ENTRY];
        while more {
            if self.ids.len() > MAX_EXTRAS {
                return Err(TxFatal::TooManyExtras);
            }
            if !ring.next_slot(&mut slot)? {
                return Err(TxFatal::Cut);
            }
            self.ids.push(None);
            let extra;
            (extra, more) = Extra::parse(&slot).map_err(TxFatal::UnknownExtra)?;
            match extra {
                Extra::Gso(Some(gso)) => self.gso = Some(gso),
                Extra::Gso(None) => bad = Some(BadPacket::Gso),
                Extra::Multicast(change) => group = Some(change),
                Extra::Other => {}
            }
        }
        Ok((bad, group))
    }

    /// The first piece is what the others leave of the whole. Then all are known to be inside their pages.
    fn add_up(&mut self, head: TxRequest, rest: usize) -> Result<(), BadPacket> {
        if self.len < ETH_HLEN {
            return Err(BadPacket::TooShort(head.size));
        }
        let len = self.len.checked_sub(rest).ok_or(BadPacket::SizesDisagree(head.size))?;
        if usize::from(head.offset) + len > PAGE {
            return Err(BadPacket::OutsidePage { offset: head.offset, len });
        }
        if let Some(bad) = self.bad_piece {
            return Err(bad);
        }
        if len == 0 {
            self.pieces.remove(0);
        } else if let Some(first) = self.pieces.first_mut() {
            first.len = len;
        }
        Ok(())
    }

    /// The packet's bytes, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Bytes of the packet, 14 to 65,535.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the packet is empty, which a packet to send never is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the transport checksum is to be filled in.
    pub fn csum_blank(&self) -> bool {
        self.csum_blank
    }

    /// How the packet is to be segmented.
    pub fn gso(&self) -> Option<Gso> {
        self.gso
    }

    /// Of each slot taken, in ring order: the id to answer to, `None` for an extra info.
    pub fn ids(&self) -> &[Option<u16>] {
        &self.ids
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;

    fn slot(size: u16, offset: u16, flags: u16) -> [u8; TX_ENTRY] {
        TxRequest { gref: GrantRef(9), offset, flags, id: 3, size }.emit()
    }

    fn take(slots: &[[u8; TX_ENTRY]]) -> (Result<Taken, TxFatal>, TxPacket) {
        let mut packet = TxPacket::default();
        (packet.take(&mut slots.iter()), packet)
    }

    fn lens(packet: &TxPacket) -> Vec<usize> {
        packet.pieces().iter().map(|piece| piece.len).collect()
    }

    #[test]
    fn the_first_piece_is_what_the_others_leave_of_the_whole() {
        let (taken, packet) =
            take(&[slot(5000, 16, TXF_MORE_DATA), slot(4096, 0, TXF_MORE_DATA), slot(804, 3292, 0)]);
        assert_eq!(taken, Ok(Taken::Packet));
        assert_eq!(lens(&packet), [100, 4096, 804]);
        assert_eq!(packet.len(), 5000);
        assert_eq!(packet.ids(), [Some(3); 3]);
    }

    #[test]
    fn extra_infos_are_between_the_first_piece_and_the_rest() {
        let gso = [1, 1, 0xa8, 5, 1, 0, 0, 0, 0, 0, 0, 0];
        let hash = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let flags = TXF_EXTRA_INFO | TXF_MORE_DATA | TXF_CSUM_BLANK;
        let (taken, packet) = take(&[slot(3000, 0, flags), gso, hash, slot(2000, 0, 0)]);
        assert_eq!(taken, Ok(Taken::Packet));
        assert_eq!(packet.gso(), Some(Gso { size: 1448, kind: crate::protocol::GsoKind::TcpV4 }));
        assert!(packet.csum_blank());
        assert_eq!(packet.ids(), [Some(3), None, None, Some(3)]);
        assert_eq!(lens(&packet), [1000, 2000]);
    }

    #[test]
    fn eighteen_slots_are_sent_nineteen_refused_and_twenty_one_close_the_ring() {
        let chain = |n: usize| {
            let mut slots = vec![slot(100, 0, TXF_MORE_DATA); n];
            slots[0] = slot(100 * n as u16, 0, TXF_MORE_DATA);
            *slots.last_mut().unwrap() = slot(100, 0, 0);
            slots
        };
        assert_eq!(take(&chain(18)).0, Ok(Taken::Packet));
        for n in [19, 20] {
            let (taken, packet) = take(&chain(n));
            assert_eq!(taken, Ok(Taken::Bad(BadPacket::TooManySlots(n))));
            assert_eq!(packet.ids().len(), n);
        }
        assert_eq!(take(&chain(21)).0, Err(TxFatal::Endless));
    }

    #[test]
    fn a_chain_that_runs_out_of_slots_closes_the_ring() {
        assert_eq!(take(&[slot(100, 0, TXF_MORE_DATA)]).0, Err(TxFatal::Cut));
        assert_eq!(take(&[slot(100, 0, TXF_EXTRA_INFO)]).0, Err(TxFatal::Cut));
    }

    #[test]
    fn extra_infos_without_end_close_the_ring() {
        let mut slots = vec![[4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; 9];
        slots[0] = slot(100, 0, TXF_EXTRA_INFO);
        assert_eq!(take(&slots).0, Err(TxFatal::TooManyExtras));
        slots[1][0] = 6;
        assert_eq!(take(&slots).0, Err(TxFatal::UnknownExtra(6)));
    }

    #[test]
    fn a_packet_that_does_not_add_up_is_taken_whole_and_refused() {
        let mut slots = [slot(100, 0, TXF_MORE_DATA), slot(101, 0, 0), slot(60, 0, 0)];
        let mut packet = TxPacket::default();
        let mut ring = slots.iter();
        assert_eq!(packet.take(&mut ring), Ok(Taken::Bad(BadPacket::SizesDisagree(100))));
        assert_eq!(packet.ids().len(), 2);
        assert_eq!(packet.take(&mut ring), Ok(Taken::Packet));
        assert_eq!(packet.take(&mut ring), Ok(Taken::Nothing));

        slots[0] = slot(13, 0, 0);
        assert_eq!(take(&slots).0, Ok(Taken::Bad(BadPacket::TooShort(13))));
    }

    #[test]
    fn a_piece_ends_in_its_page() {
        assert_eq!(take(&[slot(100, 3996, 0)]).0, Ok(Taken::Packet));
        for (size, offset) in [(100, 3997), (60, 65535), (65535, 0)] {
            let bad = BadPacket::OutsidePage { offset, len: size.into() };
            assert_eq!(take(&[slot(size, offset, 0)]).0, Ok(Taken::Bad(bad)));
        }
        let second = [slot(200, 0, TXF_MORE_DATA), slot(100, 3997, 0)];
        assert_eq!(take(&second).0, Ok(Taken::Bad(BadPacket::OutsidePage { offset: 3997, len: 100 })));
    }

    #[test]
    fn an_empty_slot_becomes_no_piece() {
        let (taken, packet) =
            take(&[slot(100, 0, TXF_MORE_DATA), slot(0, 4096, TXF_MORE_DATA), slot(100, 0, 0)]);
        assert_eq!(taken, Ok(Taken::Packet));
        assert_eq!(lens(&packet), [100]);
        assert_eq!(packet.ids().len(), 3);
    }

    #[test]
    fn a_multicast_request_is_no_packet_whatever_its_slot_says() {
        let address = [1, 0, 0x5e, 0, 0, 1];
        let join = [2, 0, 1, 0, 0x5e, 0, 0, 1, 0, 0, 0, 0];
        for size in [0, 100, 65_535] {
            let (taken, packet) = take(&[slot(size, 4095, TXF_EXTRA_INFO), join]);
            assert_eq!(taken, Ok(Taken::Group(Membership::Join(address))));
            assert_eq!(packet.ids(), [Some(3), None]);
        }
        // What is chained to it is taken with it.
        let chain = [
            slot(0, 0, TXF_EXTRA_INFO | TXF_MORE_DATA),
            [3, 0, 1, 0, 0x5e, 0, 0, 1, 0, 0, 0, 0],
            slot(9, 0, 0),
        ];
        let (taken, packet) = take(&chain);
        assert_eq!(taken, Ok(Taken::Group(Membership::Leave(address))));
        assert_eq!(packet.ids(), [Some(3), None, Some(3)]);
    }

    #[test]
    fn whatever_the_slots_say_a_packet_adds_up() {
        // xorshift64: the same slots in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut packets, mut bad, mut fatal) = (0, 0, 0);
        for _ in 0..20_000 {
            let slots: Vec<[u8; TX_ENTRY]> = (0..random() % 40)
                .map(|_| {
                    let mut slot = slot(random() as u16, random() as u16 & 0x1fff, random() as u16 & 15);
                    if random() % 4 != 0 {
                        // Small fields, so that not everything fails at the first check.
                        slot = self::slot(
                            random() as u16 % 300 + 14,
                            random() as u16 % 3800,
                            random() as u16 & 5,
                        );
                    }
                    slot
                })
                .collect();
            let mut ring = slots.iter();
            let mut packet = TxPacket::default();
            loop {
                let before = ring.len();
                let taken = packet.take(&mut ring);
                match taken {
                    Ok(Taken::Nothing) => break,
                    Ok(Taken::Packet) => {
                        packets += 1;
                        assert!(packet.pieces().len() <= MAX_SLOTS);
                        assert_eq!(lens(&packet).iter().sum::<usize>(), packet.len());
                        assert!(packet.pieces().iter().all(|p| p.len > 0 && p.offset + p.len <= PAGE));
                        assert!(packet.len() >= ETH_HLEN);
                    }
                    Ok(Taken::Bad(_) | Taken::Group(_)) => bad += 1,
                    Err(_) => {
                        fatal += 1;
                        break;
                    }
                }
                // Each slot taken is answered, once.
                assert_eq!(packet.ids().len(), before - ring.len());
            }
        }
        assert!(packets > 1000 && bad > 1000 && fatal > 1000, "{packets} {bad} {fatal}");
    }
}

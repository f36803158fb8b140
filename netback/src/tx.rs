//! The transmit ring: frames of the guest go to the tap.

use std::io;
use std::time::{Duration, Instant};

use devices::xen::grant_table::{Access, PinnedPage};
use devices::xen::shared_ring::{BackRing, RingError};

use crate::engine::{Engine, IoVec, Op};
use crate::headers::{HEADER_MAX, HeaderError, Headers, IpVersion, Transport};
use crate::packet::{BadPacket, Taken, TxFatal, TxPacket, TxSlots};
use crate::protocol::{GsoKind, TX_ENTRY, TxStatus, tx_response};
use crate::queue::{Link, count};
use crate::tap::{PartialCsum, VNET_HDR, VnetHeader};

/// Packets under way at a time: of one system call.
pub(crate) const BATCH: usize = 64;

/// Why a packet was answered with an error.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Packet(#[from] BadPacket),
    #[error(transparent)]
    Grant(#[from] devices::xen::grant_table::GrantError),
    #[error("checksum or segmentation offload is not possible: {0}")]
    Headers(#[from] HeaderError),
    #[error("segmentation offload is for TCP, and of the packet's IP version")]
    NotTcp,
    #[error("the tap refuses the frame: {0}")]
    Tap(io::Error),
}

/// A packet under way: what the kernel reads stays where it is until its completion.
#[derive(Debug, Default)]
struct Slot {
    packet: TxPacket,
    pages: Vec<PinnedPage>,
    header: [u8; VNET_HDR],
    head: Head,
    buffers: Vec<IoVec>,
}

/// The first bytes of a packet, copied to be looked at.
#[derive(Debug)]
struct Head([u8; HEADER_MAX]);

impl Default for Head {
    fn default() -> Self {
        Self([0; HEADER_MAX])
    }
}

/// What is left to do after [`Tx::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The ring is empty.
    Nothing,
    /// There may be more.
    More,
    /// The next packet has to wait so long.
    After(Duration),
}

/// Requests that were seen in the ring, so that its index is not read for each of them.
struct Seen<'a> {
    ring: &'a mut BackRing,
    left: &'a mut u32,
}

impl TxSlots for Seen<'_> {
    fn next_slot(&mut self, slot: &mut [u8; TX_ENTRY]) -> Result<bool, RingError> {
        if *self.left == 0 {
            *self.left = self.ring.pending()?;
        }
        let Some(left) = self.left.checked_sub(1) else { return Ok(false) };
        *self.left = left;
        self.ring.next_pending(slot);
        Ok(true)
    }
}

/// The transmit half of a queue.
#[derive(Debug)]
pub(crate) struct Tx {
    ring: BackRing,
    /// By token. There are as many as were ever under way at once.
    #[expect(clippy::vec_box, reason = "the kernel has their addresses while the list grows")]
    slots: Vec<Box<Slot>>,
    /// The last one given back is the next one taken.
    free: Vec<u16>,
    /// Packets that have ended, and how; not answered yet.
    ended: Vec<(u16, TxStatus)>,
    sent: Sent,
    complained: bool,
}

/// What was sent since the counters were told.
#[derive(Debug, Default)]
struct Sent {
    packets: u64,
    bytes: u64,
    copied: u64,
}

impl Tx {
    pub(crate) fn new(ring: BackRing) -> Self {
        Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            ended: Vec::new(),
            sent: Sent::default(),
            complained: false,
        }
    }

    /// Packets under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.ended.len()
    }

    /// Whether the frontend has sent packets.
    pub(crate) fn is_filled(&self) -> bool {
        self.ring.pending().is_ok_and(|count| count > 0)
    }

    /// Starts to send up to [`BATCH`] packets, of half the ring: the guest fills one half while the other is sent.
    pub(crate) fn run(
        &mut self,
        link: &Link,
        engine: &mut impl Engine,
        now: Instant,
    ) -> Result<Left, TxFatal> {
        self.answer(link);
        let (mut slots, mut seen) = (0, 0);
        for _ in 0..BATCH {
            if slots >= self.ring.nr_entries() as usize / 2 {
                break;
            }
            if let Some(credit) = &link.credit
                && let Some(delay) = credit.delay(now)
                && self.ring.pending()? > 0
            {
                return Ok(Left::After(delay));
            }
            let Some(token) = self.free.pop().or_else(|| self.grow()) else { return Ok(Left::More) };
            let Some(slot) = self.slots.get_mut(usize::from(token)) else { return Ok(Left::More) };
            let taken = slot.packet.take(&mut Seen { ring: &mut self.ring, left: &mut seen });
            if !matches!(taken, Ok(Taken::Packet | Taken::Bad(_) | Taken::Group(_))) {
                self.free.push(token);
            }
            let taken = taken?;
            if taken == Taken::Nothing {
                return Ok(Left::Nothing);
            }
            slots += slot.packet.ids().len();
            if let Some(credit) = &link.credit {
                credit.charge(slot.packet.len());
            }
            let prepared = match taken {
                Taken::Bad(bad) => Err(bad.into()),
                Taken::Group(change) => {
                    let status =
                        if link.settings.multicast.change(change) { TxStatus::Okay } else { TxStatus::Error };
                    self.ended.push((token, status));
                    continue;
                }
                _ => slot.prepare(link),
            };
            match prepared {
                Ok(copied) => {
                    self.sent.copied += copied;
                    // SAFETY: the slot is boxed and stays as it is until its completion, and so do the pages, which
                    // are pinned: TxPacket vouches that each piece lies in its page.
                    unsafe { engine.start(token, Op::Write, &slot.buffers) };
                }
                Err(refused) => self.refuse(link, token, &refused),
            }
        }
        Ok(Left::More)
    }

    fn grow(&mut self) -> Option<u16> {
        let token = u16::try_from(self.slots.len()).ok().filter(|token| usize::from(*token) < BATCH)?;
        self.slots.push(Box::default());
        Some(token)
    }

    /// A packet was sent, or not.
    pub(crate) fn complete(&mut self, link: &Link, token: u16, result: Result<usize, i32>) {
        let Some(slot) = self.slots.get(usize::from(token)) else { return };
        match result {
            Ok(_) => {
                self.sent.packets += 1;
                self.sent.bytes += slot.packet.len() as u64;
                self.ended.push((token, TxStatus::Okay));
            }
            // The kernel finds the frame wrong.
            Err(libc::EINVAL) => {
                let error = io::Error::from_raw_os_error(libc::EINVAL);
                self.refuse(link, token, &Refused::Tap(error));
            }
            // The interface is down or gone, or the host is short of memory: as if the cable were out.
            Err(_) => {
                count(&link.counters.tx_drops, 1);
                self.ended.push((token, TxStatus::Dropped));
            }
        }
    }

    fn refuse(&mut self, link: &Link, token: u16, refused: &Refused) {
        count(&link.counters.tx_errors, 1);
        if !std::mem::replace(&mut self.complained, true) && link.counters.complaints.may_complain() {
            tracing::warn!("{}: a frame of the guest is refused: {refused} (said once)", link.tap.name());
        }
        self.ended.push((token, TxStatus::Error));
    }

    /// Gives back the pages of all packets that have ended, then answers all their slots.
    pub(crate) fn answer(&mut self, link: &Link) {
        if self.ended.is_empty() {
            return;
        }
        let Sent { packets, bytes, copied } = std::mem::take(&mut self.sent);
        for (counter, n) in [
            (&link.counters.tx_packets, packets),
            (&link.counters.tx_bytes, bytes),
            (&link.counters.tx_copied_bytes, copied),
        ] {
            count(counter, n);
        }
        // The pages first: the guest's processor may be writing to what holds the next slots of the ring.
        let mut grants = link.grants.batch();
        for (token, _) in &self.ended {
            let Some(slot) = self.slots.get_mut(usize::from(*token)) else { continue };
            slot.pages.drain(..).for_each(|page| grants.unpin(page));
        }
        drop(grants);
        for (token, status) in self.ended.drain(..) {
            let Some(slot) = self.slots.get(usize::from(token)) else { continue };
            for id in slot.packet.ids() {
                let response = match id {
                    Some(id) => tx_response(*id, status),
                    None => tx_response(0, TxStatus::Null),
                };
                self.ring.push_response(&response);
            }
            self.free.push(token);
        }
    }

    /// Answers what has ended and shows it, and notes that there was something; true: the guest wants an event.
    pub(crate) fn publish(&mut self, link: &Link, shown: &mut bool) -> bool {
        self.answer(link);
        *shown |= self.ring.has_unpublished();
        self.ring.publish()
    }

    /// Before sleeping: true if packets came meanwhile.
    pub(crate) fn arm(&mut self) -> Result<bool, TxFatal> {
        Ok(self.ring.final_check()?)
    }

    /// The engine can no longer tell when the kernel is done with the memory: it is never used again.
    pub(crate) fn abandon(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        self.free.clear();
        self.ended.clear();
    }
}

impl Slot {
    /// Lists what is to be sent: straight from the guest's pages, which stay pinned. Bytes that were copied.
    fn prepare(&mut self, link: &Link) -> Result<u64, Refused> {
        let Self { packet, pages, header, head, buffers } = self;
        let mut grants = link.grants.batch();
        for piece in packet.pieces() {
            pages.push(grants.pin(piece.gref, Access::Read)?);
        }
        drop(grants);
        let mut copied: &mut [u8] = &mut [];
        *header = VnetHeader::default().emit();
        if packet.csum_blank() || packet.gso().is_some() {
            // What is checked here must be what is sent, while the guest may change its pages at any time
            // (XSA-155): the headers go out from this copy.
            copied = copy_head(packet, pages, link, &mut head.0);
            let headers = Headers::parse(copied, packet.len())?;
            *header = offload(packet, &headers, copied)?.emit();
            copied = copied.get_mut(..headers.payload.into()).unwrap_or_default();
        }
        buffers.clear();
        buffers.push(IoVec::new(header.as_mut_ptr(), header.len()));
        let mut skip = copied.len();
        if skip > 0 {
            buffers.push(IoVec::new(copied.as_mut_ptr(), skip));
        }
        for (piece, page) in packet.pieces().iter().zip(pages.iter()) {
            let skipped = skip.min(piece.len);
            skip -= skipped;
            if skipped < piece.len {
                let start = page.as_ptr().wrapping_add(piece.offset + skipped);
                let len = piece.len - skipped;
                // The first two are of our own memory.
                let own = 1 + usize::from(!copied.is_empty());
                let neighbour =
                    buffers.get_mut(own..).and_then(<[_]>::last_mut).is_some_and(|b| b.extend(start, len));
                if !neighbour {
                    buffers.push(IoVec::new(start, len));
                }
            }
        }
        Ok(copied.len() as u64)
    }
}

/// Copies the first bytes of the packet; returns what was copied.
fn copy_head<'a>(
    packet: &TxPacket,
    pages: &[PinnedPage],
    link: &Link,
    head: &'a mut [u8; HEADER_MAX],
) -> &'a mut [u8] {
    let mut done = 0;
    for (piece, page) in packet.pieces().iter().zip(pages) {
        let room = head.get_mut(done..).unwrap_or_default();
        let len = piece.len.min(room.len());
        let Some(slice) = link.grants.slice(page, piece.offset, len) else { break };
        slice.copy_to(room);
        done += len;
    }
    head.get_mut(..done).unwrap_or_default()
}

/// What the tap is told about a packet, whose first bytes are in `head`.
fn offload(packet: &TxPacket, headers: &Headers, head: &mut [u8]) -> Result<VnetHeader, Refused> {
    headers.set_pseudo_checksum(head);
    let mut header = VnetHeader {
        csum: Some(PartialCsum { start: headers.l4, offset: headers.csum_offset() }),
        ..VnetHeader::default()
    };
    if let Some(gso) = packet.gso() {
        let kind = match headers.ip {
            IpVersion::V4 => GsoKind::TcpV4,
            IpVersion::V6 => GsoKind::TcpV6,
        };
        if headers.transport != Transport::Tcp || gso.kind != kind {
            return Err(Refused::NotTcp);
        }
        // What fits one segment is no large segment; Linux would drop it.
        if packet.len() > usize::from(headers.payload) + usize::from(gso.size) {
            header.gso = Some(gso);
            header.hdr_len = headers.payload;
        }
    }
    Ok(header)
}

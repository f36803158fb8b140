//! The receive ring: frames from the tap go into the guest's pages.
//!
//! The kernel writes a frame straight into pages that the guest posted, so a frame is only taken from the tap
//! when there are pages for the largest one. Until then it waits in the tap, whose queue drops what is too
//! much: nothing is stored here (XSA-392).

use std::collections::VecDeque;
use std::io;

use devices::memory::PAGE_SIZE;
use devices::xen::grant_table::{Access, PinnedPage};
use devices::xen::shared_ring::{BackRing, RingError};

use crate::headers::{Checksum, HEADER_MAX, Headers, IpVersion};
use crate::protocol::{
    ETH_HLEN, GsoKind, RX_ENTRY, RXF_CSUM_BLANK, RXF_DATA_VALIDATED, RXF_EXTRA_INFO, RXF_MORE_DATA,
    RxRequest, RxResponse, TxStatus,
};
use crate::queue::{BATCH, Features, Link, count};
use crate::tap::{PartialCsum, VNET_HDR, Vectors, VnetHeader};

/// Slots of the largest frame: 65,535 bytes of IP packet behind an Ethernet header with two tags.
const LARGEST: usize = (65_535 + ETH_HLEN + 8).div_ceil(PAGE_SIZE);

/// A page that the guest posted and that no frame is in yet.
#[derive(Debug)]
struct Posted {
    id: u16,
    page: PinnedPage,
}

/// The receive half of a queue.
#[derive(Debug)]
pub(crate) struct Rx {
    ring: BackRing,
    /// Pages for the next frame, in ring order: responses must come in the order of their requests.
    posted: VecDeque<Posted>,
    /// Pages that the largest frame needs.
    wanted: usize,
    features: Features,
    /// The tap may have frames.
    tap_ready: bool,
    /// The tap has frames, but the guest posted no pages for them.
    starved: bool,
    complained: bool,
}

/// What the guest is told about a frame.
struct Frame {
    len: usize,
    header: VnetHeader,
    flags: u16,
}

impl Rx {
    pub(crate) fn new(ring: BackRing, features: Features, mtu: u16) -> Self {
        let wanted = match (features.sg, features.any_gso()) {
            (false, _) => 1,
            (true, false) => (usize::from(mtu) + ETH_HLEN + 8).div_ceil(PAGE_SIZE),
            // And the slot of the extra info.
            (true, true) => LARGEST + 1,
        };
        let posted = VecDeque::with_capacity(wanted);
        Self { ring, posted, wanted, features, tap_ready: true, starved: false, complained: false }
    }

    /// The tap became readable.
    pub(crate) fn tap_is_ready(&mut self) {
        self.tap_ready = true;
    }

    /// Whether frames wait for pages: then news of more frames is of no use.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Hands up to [`BATCH`] frames to the guest; true if there may be more to do.
    pub(crate) fn run(&mut self, link: &Link) -> Result<bool, RingError> {
        for _ in 0..BATCH {
            if !self.tap_ready {
                return Ok(false);
            }
            self.starved = !self.refill(link)?;
            if self.starved {
                return Ok(false);
            }
            match self.read(link) {
                Ok(Some(frame)) => self.deliver(link, &frame),
                Ok(None) => count(&link.counters.rx_drops, 1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.tap_ready = false;
                    if error.kind() != io::ErrorKind::WouldBlock && !self.complained {
                        self.complained = true;
                        tracing::warn!("{}: the tap cannot be read: {error}", link.tap.name());
                    }
                }
            }
        }
        Ok(true)
    }

    /// Takes posted pages until there are enough for the largest frame; false if the guest posted too few.
    fn refill(&mut self, link: &Link) -> Result<bool, RingError> {
        let mut bytes = [0; RX_ENTRY];
        // At most a ring full: the guest may post bad requests as fast as they are answered.
        for _ in 0..self.ring.nr_entries() {
            if self.posted.len() >= self.wanted {
                return Ok(true);
            }
            if !self.ring.next_request(&mut bytes)? {
                return Ok(false);
            }
            let RxRequest { id, gref } = RxRequest::parse(&bytes);
            match link.grants.pin(gref, Access::Write) {
                Ok(page) => self.posted.push_back(Posted { id, page }),
                Err(error) => {
                    count(&link.counters.rx_errors, 1);
                    if !self.complained {
                        self.complained = true;
                        tracing::warn!(
                            "{}: the guest posted a page that cannot be used: {error} (said once)",
                            link.tap.name()
                        );
                    }
                    // Responses keep the order of the requests, so those before it are given back as well.
                    while let Some(posted) = self.posted.pop_front() {
                        self.refuse(posted.id);
                        link.grants.unpin(posted.page);
                    }
                    self.refuse(id);
                }
            }
        }
        Ok(self.posted.len() >= self.wanted)
    }

    fn refuse(&mut self, id: u16) {
        let response = RxResponse { id, offset: 0, flags: 0, status: TxStatus::Error as i16 };
        self.ring.push_response(&response.emit());
    }

    /// Whether the second page is left out when a frame is read, because a frame that is to be segmented has
    /// its extra info in that slot.
    fn leaves_gap(&self) -> bool {
        self.features.any_gso()
    }

    /// Reads a frame into the posted pages. `None`: a frame that the guest cannot take.
    fn read(&mut self, link: &Link) -> io::Result<Option<Frame>> {
        let mut header = [0u8; VNET_HDR];
        let mut spill = [0u8; 1];
        let mut vectors = Vectors::default();
        vectors.push(header.as_mut_ptr(), VNET_HDR);
        let mut room = 0;
        for (index, posted) in self.posted.iter().enumerate() {
            if index != 1 || !self.leaves_gap() {
                vectors.push(posted.page.as_ptr(), PAGE_SIZE);
                room += PAGE_SIZE;
            }
        }
        // The kernel cuts a frame that is too long; then there is a byte in here.
        vectors.push(spill.as_mut_ptr(), 1);
        // SAFETY: local buffers, and pages that the guest granted for writing and that stay mapped while the
        // grant table does.
        let got = unsafe { link.tap.readv(link.queue, &vectors) }?;
        let Some(len) = got.checked_sub(VNET_HDR) else { return Ok(None) };
        let Some(header) = VnetHeader::parse(&header) else {
            link.requests.ask_for_small_frames();
            return Ok(None);
        };
        if len < ETH_HLEN || len > room {
            return Ok(None);
        }
        if self.leaves_gap() && header.gso.is_none() && len > PAGE_SIZE {
            self.close_gap(link, len);
        }
        Ok(self.accept(link, header, len))
    }

    /// Moves what was read behind the left-out page one page forward.
    fn close_gap(&self, link: &Link, len: usize) {
        let pages = len.div_ceil(PAGE_SIZE);
        for (to, from) in self.posted.iter().skip(1).zip(self.posted.iter().skip(2)).take(pages - 1) {
            let (to, from) = (&to.page, &from.page);
            if let (Some(to), Some(from)) =
                (link.grants.slice(to, 0, PAGE_SIZE), link.grants.slice(from, 0, PAGE_SIZE))
            {
                from.copy_to_volatile_slice(to);
            }
        }
    }

    /// Decides what the guest is told of a frame that was read, and fills in a checksum that it would not find.
    fn accept(&self, link: &Link, header: VnetHeader, len: usize) -> Option<Frame> {
        let Some(csum) = header.csum else {
            let flags = if header.data_valid { RXF_DATA_VALIDATED } else { 0 };
            // A large segment always has a blank checksum.
            return header.gso.is_none().then_some(Frame { len, header, flags });
        };
        // A frontend looks for the checksum itself. The copy of the headers may differ from what it will see
        // only if the guest changes its own pages.
        let found = self.copy_headers(link, len).is_some_and(|headers| {
            let at = PartialCsum { start: headers.l4, offset: headers.csum_offset() };
            let able = match headers.ip {
                IpVersion::V4 => self.features.csum4,
                IpVersion::V6 => self.features.csum6,
            };
            // Frontends do not look behind VLAN tags.
            able && at == csum && !headers.tagged
        });
        let gso_ok = match header.gso.map(|gso| gso.kind) {
            None => true,
            Some(GsoKind::TcpV4) => self.features.gso4 && found,
            Some(GsoKind::TcpV6) => self.features.gso6 && found,
        };
        if !gso_ok {
            // Sent again, it will come in segments.
            link.requests.ask_for_small_frames();
            return None;
        }
        let flags = if found {
            RXF_CSUM_BLANK | RXF_DATA_VALIDATED
        } else {
            self.fill_in(link, csum, len)?;
            RXF_DATA_VALIDATED
        };
        Some(Frame { len, header, flags })
    }

    fn copy_headers(&self, link: &Link, len: usize) -> Option<Headers> {
        let mut head = [0; HEADER_MAX];
        let head = head.get_mut(..len.min(HEADER_MAX))?;
        link.grants.slice(&self.posted.front()?.page, 0, head.len())?.copy_to(head);
        Headers::parse(head, len).ok()
    }

    /// Fills in a checksum in the pages. Only for frames without a gap: those to be segmented never come here.
    fn fill_in(&self, link: &Link, csum: PartialCsum, len: usize) -> Option<()> {
        let start = usize::from(csum.start);
        let at = start + usize::from(csum.offset);
        if at + 2 > len {
            return None;
        }
        let mut sum = Checksum::default();
        let mut bytes = [0u8; PAGE_SIZE];
        for (index, posted) in self.posted.iter().enumerate().take(len.div_ceil(PAGE_SIZE)) {
            let first = start.saturating_sub(index * PAGE_SIZE).min(PAGE_SIZE);
            let end = (len - index * PAGE_SIZE).min(PAGE_SIZE);
            let part = bytes.get_mut(..end.saturating_sub(first))?;
            link.grants.slice(&posted.page, first, part.len())?.copy_to(part);
            sum.add(part);
        }
        for (byte, at) in sum.complement().to_be_bytes().iter().zip(at..) {
            let posted = self.posted.get(at / PAGE_SIZE)?;
            link.grants.slice(&posted.page, at % PAGE_SIZE, 1)?.copy_from(std::slice::from_ref(byte));
        }
        Some(())
    }

    /// Answers the requests that a frame fills.
    fn deliver(&mut self, link: &Link, frame: &Frame) {
        count(&link.counters.rx_packets, 1);
        count(&link.counters.rx_bytes, frame.len as u64);
        let mut left = frame.len;
        let mut flags = frame.flags;
        if frame.header.gso.is_some() {
            flags |= RXF_EXTRA_INFO;
        }
        loop {
            let part = left.min(PAGE_SIZE);
            left -= part;
            let more = if left > 0 { RXF_MORE_DATA } else { 0 };
            let Some(Posted { id, page }) = self.posted.pop_front() else { return };
            link.grants.unpin(page);
            let status = i16::try_from(part).unwrap_or(0);
            let response = RxResponse { id, offset: 0, flags: flags | more, status };
            self.ring.push_response(&response.emit());
            if flags & RXF_EXTRA_INFO != 0
                && let (Some(gso), Some(posted)) = (frame.header.gso, self.posted.pop_front())
            {
                link.grants.unpin(posted.page);
                self.ring.push_response(&gso.emit());
            }
            if left == 0 {
                return;
            }
            flags = 0;
        }
    }

    /// Shows the responses; true: the guest wants an event.
    pub(crate) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Before sleeping: true if the pages that frames wait for came meanwhile. While none waits, no event is
    /// asked for.
    pub(crate) fn arm(&mut self) -> Result<bool, RingError> {
        let missing = self.wanted.saturating_sub(self.posted.len());
        Ok(self.starved && self.ring.final_check_for(u32::try_from(missing).unwrap_or(1))?)
    }

    /// Gives the pages back that no frame came for.
    pub(crate) fn release(&mut self, link: &Link) {
        for posted in self.posted.drain(..) {
            link.grants.unpin(posted.page);
        }
    }
}

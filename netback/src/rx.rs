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
    ETH_HLEN, GsoKind, MAX_RX_EXTRAS, RX_ENTRY, RXF_CSUM_BLANK, RXF_DATA_VALIDATED, RXF_EXTRA_INFO,
    RXF_MORE_DATA, RxExtras, RxRequest, RxResponse, TxStatus,
};
use crate::queue::{BATCH, Features, Link, count};
use crate::steering::{Mail, Mailbox, Verdict, View};
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
    features: Features,
    mtu: u16,
    view: View,
    /// The tap may have frames.
    tap_ready: bool,
    /// The tap has frames, but the guest posted no pages for them.
    starved: bool,
    complained: bool,
}

/// What the guest is told about a frame.
struct Frame {
    len: usize,
    flags: u16,
    extras: RxExtras,
}

impl Rx {
    pub(crate) fn new(ring: BackRing, features: Features, mtu: u16, view: View) -> Self {
        let posted = VecDeque::with_capacity(LARGEST + MAX_RX_EXTRAS);
        Self { ring, posted, features, mtu, view, tap_ready: true, starved: false, complained: false }
    }

    /// First byte of the data in each page, and bytes of it.
    fn layout(&self) -> (usize, usize) {
        let headroom = usize::from(self.view.headroom());
        (headroom, PAGE_SIZE - headroom)
    }

    /// Pages that the largest frame needs, with the slots of its extra infos. Behind a headroom there are no large
    /// segments.
    fn wanted(&self) -> usize {
        let (headroom, room) = self.layout();
        let largest = match (self.features.sg, self.features.any_gso()) {
            (false, _) => 1,
            (true, true) if headroom == 0 => LARGEST,
            (true, _) => (usize::from(self.mtu) + ETH_HLEN + 8).div_ceil(room),
        };
        largest + self.gap()
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
        if self.view.refresh() {
            link.requests.kick();
        }
        for _ in 0..BATCH {
            let mail = self.view.mailbox().is_some_and(Mailbox::is_filled);
            if !self.tap_ready && !mail {
                return Ok(false);
            }
            self.starved = !self.refill(link)?;
            if self.starved {
                return Ok(false);
            }
            if let Some(mail) = self.view.mailbox().and_then(Mailbox::take) {
                let frame = self.unpack(link, &mail);
                self.deliver(link, frame);
                continue;
            }
            match self.read(link) {
                Ok(frame) => self.deliver(link, frame),
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
        let wanted = self.wanted();
        let mut bytes = [0; RX_ENTRY];
        // At most a ring full: the guest may post bad requests as fast as they are answered.
        for _ in 0..self.ring.nr_entries() {
            if self.posted.len() >= wanted {
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
        Ok(self.posted.len() >= wanted)
    }

    fn refuse(&mut self, id: u16) {
        let response = RxResponse { id, offset: 0, flags: 0, status: TxStatus::Error as i16 };
        self.ring.push_response(&response.emit());
    }

    /// Slots left out behind the first page when a frame is read, for the extra infos that it may have.
    fn gap(&self) -> usize {
        let (headroom, _) = self.layout();
        usize::from(self.features.any_gso()) + usize::from(self.view.hashes()) + usize::from(headroom > 0)
    }

    /// Reads a frame into the posted pages. `None`: there is nothing for this queue's guest.
    fn read(&mut self, link: &Link) -> io::Result<Option<Frame>> {
        let mut header = [0u8; VNET_HDR];
        let mut spill = [0u8; 1];
        let mut vectors = Vectors::default();
        vectors.push(header.as_mut_ptr(), VNET_HDR);
        let (headroom, page_room) = self.layout();
        let gap = self.gap();
        let mut room = 0;
        for (index, posted) in self.posted.iter().enumerate() {
            if index == 0 || index > gap {
                vectors.push(posted.page.as_ptr().wrapping_add(headroom), page_room);
                room += page_room;
            }
        }
        // The kernel cuts a frame that is too long; then there is a byte in here.
        vectors.push(spill.as_mut_ptr(), 1);
        // SAFETY: local buffers, and pages that the guest granted for writing and that stay mapped while the
        // grant table does; View::headroom() is less than a page.
        let got = unsafe { link.tap.readv(link.queue, &vectors) }?;
        let dropped = || {
            count(&link.counters.rx_drops, 1);
            Ok(None)
        };
        let Some(len) = got.checked_sub(VNET_HDR) else { return dropped() };
        let Some(header) = VnetHeader::parse(&header) else {
            link.requests.ask_for_small_frames();
            return dropped();
        };
        if len < ETH_HLEN || len > room {
            return dropped();
        }
        let hash = match self.judge(link, len) {
            Verdict::Here(hash) => hash,
            Verdict::Drop => {
                count(&link.counters.rx_filtered, 1);
                return Ok(None);
            }
            Verdict::There(queue, hash) => {
                let frame = self.copy_out(link, len, gap);
                count(&link.counters.rx_steered, 1);
                return if self.view.hand_over(queue, Mail { header, frame, hash }) {
                    Ok(None)
                } else {
                    dropped()
                };
            }
        };
        let extras = RxExtras { gso: header.gso, hash, headroom: self.view.headroom() };
        self.close_gap(link, len, gap.saturating_sub(extras.count()));
        match self.accept(link, header, len, extras) {
            None => dropped(),
            some => Ok(some),
        }
    }

    fn judge(&self, link: &Link, len: usize) -> Verdict {
        if !self.view.looks() {
            return Verdict::Here(None);
        }
        let mut head = [0; HEADER_MAX];
        let head = head.get_mut(..len.min(HEADER_MAX)).unwrap_or_default();
        self.copy_head(link, head);
        self.view.judge(head, len)
    }

    /// Puts a frame that another queue handed over into the posted pages.
    fn unpack(&self, link: &Link, mail: &Mail) -> Option<Frame> {
        let len = mail.frame.len();
        let extras = RxExtras { gso: mail.header.gso, hash: mail.hash, headroom: self.view.headroom() };
        let (headroom, room) = self.layout();
        let mut frame = mail.frame.chunks(room);
        for (index, posted) in self.posted.iter().enumerate() {
            if (index == 0 || index > extras.count())
                && let Some(chunk) = frame.next()
                && let Some(slice) = link.grants.slice(&posted.page, headroom, chunk.len())
            {
                slice.copy_from(chunk);
            }
        }
        let frame = if frame.next().is_none() { self.accept(link, mail.header, len, extras) } else { None };
        if frame.is_none() {
            count(&link.counters.rx_drops, 1);
        }
        frame
    }

    /// Copies a frame that was read with `gap` pages left out.
    fn copy_out(&self, link: &Link, len: usize, gap: usize) -> Vec<u8> {
        let (headroom, room) = self.layout();
        let mut frame = vec![0; len];
        let pages = self.posted.iter().enumerate().filter(|(index, _)| *index == 0 || *index > gap);
        for (chunk, (_, posted)) in frame.chunks_mut(room).zip(pages) {
            if let Some(slice) = link.grants.slice(&posted.page, headroom, chunk.len()) {
                slice.copy_to(chunk);
            }
        }
        frame
    }

    /// Moves what was read behind the left-out pages forward by `by` pages.
    fn close_gap(&self, link: &Link, len: usize, by: usize) {
        let (headroom, room) = self.layout();
        let pages = len.div_ceil(room);
        if pages < 2 || by == 0 {
            return;
        }
        let first = 1 + self.gap() - by;
        for (to, from) in
            self.posted.iter().skip(first).zip(self.posted.iter().skip(first + by)).take(pages - 1)
        {
            let (to, from) = (&to.page, &from.page);
            if let (Some(to), Some(from)) =
                (link.grants.slice(to, headroom, room), link.grants.slice(from, headroom, room))
            {
                from.copy_to_volatile_slice(to);
            }
        }
    }

    /// Decides what the guest is told of a frame that is in its pages, and fills in a checksum that it would not find.
    fn accept(&self, link: &Link, header: VnetHeader, len: usize, extras: RxExtras) -> Option<Frame> {
        let Some(csum) = header.csum else {
            let flags = if header.data_valid { RXF_DATA_VALIDATED } else { 0 };
            // A large segment always has a blank checksum.
            return header.gso.is_none().then_some(Frame { len, flags, extras });
        };
        // A frontend looks for the checksum itself. The copy of the headers may differ from what it will see
        // only if the guest changes its own pages.
        let found = self.headers(link, len).is_some_and(|headers| {
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
            self.fill_in(link, csum, len, extras.count())?;
            RXF_DATA_VALIDATED
        };
        Some(Frame { len, flags, extras })
    }

    fn headers(&self, link: &Link, len: usize) -> Option<Headers> {
        let mut head = [0; HEADER_MAX];
        let head = head.get_mut(..len.min(HEADER_MAX))?;
        self.copy_head(link, head);
        Headers::parse(head, len).ok()
    }

    /// Copies the first bytes of the frame in the posted pages. The first page has room for [`HEADER_MAX`] of them.
    fn copy_head(&self, link: &Link, head: &mut [u8]) {
        let (headroom, _) = self.layout();
        let slice =
            self.posted.front().and_then(|posted| link.grants.slice(&posted.page, headroom, head.len()));
        if let Some(slice) = slice {
            slice.copy_to(head);
        }
    }

    /// Fills in a checksum in the pages, behind the first of which there are `extras` slots without data.
    fn fill_in(&self, link: &Link, csum: PartialCsum, len: usize, extras: usize) -> Option<()> {
        let (headroom, room) = self.layout();
        let start = usize::from(csum.start);
        let at = start + usize::from(csum.offset);
        if at + 2 > len {
            return None;
        }
        let page = |index: usize| {
            self.posted.get(if index == 0 { 0 } else { index + extras }).map(|posted| &posted.page)
        };
        let mut sum = Checksum::default();
        let mut bytes = [0u8; PAGE_SIZE];
        for index in 0..len.div_ceil(room) {
            let first = start.saturating_sub(index * room).min(room);
            let end = (len - index * room).min(room);
            let part = bytes.get_mut(..end.saturating_sub(first))?;
            link.grants.slice(page(index)?, headroom + first, part.len())?.copy_to(part);
            sum.add(part);
        }
        for (byte, at) in sum.complement().to_be_bytes().iter().zip(at..) {
            link.grants
                .slice(page(at / room)?, headroom + at % room, 1)?
                .copy_from(std::slice::from_ref(byte));
        }
        Some(())
    }

    /// Answers the requests that a frame fills.
    fn deliver(&mut self, link: &Link, frame: Option<Frame>) {
        let Some(frame) = frame else { return };
        count(&link.counters.rx_packets, 1);
        count(&link.counters.rx_bytes, frame.len as u64);
        let (_, room) = self.layout();
        let mut left = frame.len;
        let mut flags = frame.flags;
        if frame.extras.count() > 0 {
            flags |= RXF_EXTRA_INFO;
        }
        loop {
            let part = left.min(room);
            left -= part;
            let more = if left > 0 { RXF_MORE_DATA } else { 0 };
            let Some(Posted { id, page }) = self.posted.pop_front() else { return };
            link.grants.unpin(page);
            let status = i16::try_from(part).unwrap_or(0);
            let response = RxResponse { id, offset: self.view.headroom(), flags: flags | more, status };
            self.ring.push_response(&response.emit());
            if flags & RXF_EXTRA_INFO != 0 {
                for extra in frame.extras.emit() {
                    let Some(posted) = self.posted.pop_front() else { return };
                    link.grants.unpin(posted.page);
                    self.ring.push_response(&extra);
                }
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
        let missing = self.wanted().saturating_sub(self.posted.len());
        Ok(self.starved && self.ring.final_check_for(u32::try_from(missing).unwrap_or(1))?)
    }

    /// Gives the pages back that no frame came for.
    pub(crate) fn release(&mut self, link: &Link) {
        for posted in self.posted.drain(..) {
            link.grants.unpin(posted.page);
        }
    }
}

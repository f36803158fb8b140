//! Frames that were read become responses.

use super::{FILLER, Frame, HEAD, Posted, Read, Rx};
use crate::protocol::{ETH_HLEN, MAX_SLOTS, RX_ENTRY, RXF_EXTRA_INFO, RXF_MORE_DATA, RxResponse};
use crate::queue::{Link, count};
use crate::steering::Verdict;
use crate::tap::{VNET_HDR, VnetHeader};

impl Rx {
    /// Hands a frame to the guest, of which `got` bytes with its header were read. Since the reads were started, `used`
    /// pages were used up. False: the guest cannot take it.
    pub(super) fn deliver(&mut self, link: &Link, read: &mut Read, got: usize, used: usize) -> bool {
        let Some(len) = got.checked_sub(VNET_HDR) else { return false };
        let Some(header) = VnetHeader::parse(&read.header) else {
            link.requests.ask_for_small_frames();
            return false;
        };
        self.large = len > HEAD;
        if len < ETH_HLEN || len > read.room {
            // No more of these are lost.
            self.oversized |= len > HEAD && header.gso.is_none();
            return false;
        }
        let from = read.window.saturating_sub(used);
        let hash = match self.judge(link, read, from, len) {
            Verdict::Here(hash) => hash,
            Verdict::There(queue, hash) => {
                let Some(mut frame) = self.accept(link, read, &header, len) else { return false };
                frame.extras.hash = hash;
                return self.hand_over(link, read, from, frame, queue);
            }
            Verdict::Drop => {
                count(&link.counters.rx_filtered, 1);
                return true;
            }
        };
        let Some(mut frame) = self.accept(link, read, &header, len) else { return false };
        frame.extras.hash = hash;
        let gap = from.saturating_sub(1);
        let first = if self.layout.by_head { HEAD } else { self.layout.page() };
        if len <= first {
            self.deliver_small(link, read, &frame)
        } else {
            self.deliver_large(link, read, &frame, first, gap)
        }
    }

    /// A frame of one slot.
    pub(super) fn deliver_small(&mut self, link: &Link, read: &Read, frame: &Frame) -> bool {
        if self.layout.by_head {
            let Some(bytes) = read.head.get(..frame.len) else { return false };
            self.copy_to_first(link, bytes);
            self.received.copied += 1;
        } else {
            self.received.straight += 1;
        }
        let extras = if frame.extras.count() > 0 { RXF_EXTRA_INFO } else { 0 };
        self.respond(frame.len, frame.flags | extras);
        self.respond_extras(frame.extras.emit(0));
        self.count_frame(frame.len);
        true
    }

    /// A frame of which `first` bytes are in the first slot's page, or in the head, and the others behind `gap` slots.
    pub(super) fn deliver_large(
        &mut self,
        link: &Link,
        read: &Read,
        frame: &Frame,
        first: usize,
        gap: usize,
    ) -> bool {
        let filled = frame.extras.count() > 0;
        // Few slots hold a part of the first bytes, if there is no extra info that may be in them.
        let fillers = if filled { 0 } else { gap };
        let rest = first.saturating_sub(fillers * FILLER);
        let tail = (frame.len - first).div_ceil(self.layout.page());
        if 1 + fillers + tail > MAX_SLOTS || rest < ETH_HLEN || gap < frame.extras.count() {
            self.oversized |= !filled;
            return false;
        }
        if self.layout.by_head {
            let Some(bytes) = read.head.get(..rest) else { return false };
            self.copy_to_first(link, bytes);
        }
        for filler in 0..fillers {
            self.fill(link, read, rest + filler * FILLER, 1 + filler);
        }
        let extras = if filled { RXF_EXTRA_INFO } else { 0 };
        self.respond(rest, frame.flags | extras | RXF_MORE_DATA);
        self.respond_extras(frame.extras.emit(gap));
        for _ in 0..fillers {
            self.respond(FILLER, RXF_MORE_DATA);
        }
        let mut left = frame.len - first;
        while left > 0 {
            let part = left.min(self.layout.page());
            left -= part;
            self.respond(part, if left > 0 { RXF_MORE_DATA } else { 0 });
        }
        self.received.straight += 1;
        self.count_frame(frame.len);
        true
    }

    pub(super) fn count_frame(&mut self, len: usize) {
        self.received.packets += 1;
        self.received.bytes += len as u64;
    }

    pub(super) fn copy_to_first(&mut self, link: &Link, bytes: &[u8]) {
        if let Some(posted) = self.posted.front()
            && let Some(to) = link.grants.slice(&posted.page, self.layout.headroom, bytes.len())
        {
            to.copy_from(bytes);
            self.received.copied_bytes += bytes.len() as u64;
        }
    }

    /// Copies [`FILLER`] of the first bytes, from `at` on, to the page of a slot.
    pub(super) fn fill(&mut self, link: &Link, read: &Read, at: usize, slot: usize) {
        let mut bytes = [0; FILLER];
        if self.layout.by_head {
            bytes.copy_from_slice(read.head.get(at..at + FILLER).unwrap_or(&[0; FILLER]));
        } else if let Some(posted) = self.posted.front()
            && let Some(from) = link.grants.slice(&posted.page, self.layout.headroom + at, FILLER)
        {
            from.copy_to(&mut bytes);
        }
        if let Some(posted) = self.posted.get(slot)
            && let Some(to) = link.grants.slice(&posted.page, self.layout.headroom, FILLER)
        {
            to.copy_from(&bytes);
            self.received.copied_bytes += FILLER as u64;
        }
    }

    /// Answers the next request; its page is given back before the guest sees that.
    pub(super) fn respond(&mut self, len: usize, flags: u16) {
        let Some(Posted { id, page }) = self.posted.pop_front() else { return };
        self.used.push(page);
        let (offset, status) = (u16::try_from(self.layout.headroom), i16::try_from(len));
        let response = RxResponse { id, offset: offset.unwrap_or(0), flags, status: status.unwrap_or(0) };
        self.ring.push_response(&response.emit());
    }

    pub(super) fn respond_extras(&mut self, extras: impl Iterator<Item = [u8; RX_ENTRY]>) {
        for extra in extras {
            let Some(posted) = self.posted.pop_front() else { return };
            self.used.push(posted.page);
            self.ring.push_response(&extra);
        }
    }
}

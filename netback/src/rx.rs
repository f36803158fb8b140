//! The receive ring: frames from the tap go into the guest's pages.
//!
//! A frame is only taken from the tap when there are pages for the largest one. Until then it waits in the tap, whose
//! queue drops what is too much: nothing is stored here (XSA-392).
//!
//! Responses come in the order of the requests, and a frame's pages are those of its slots. So where a frame goes
//! depends on the size of the one before, which nobody knows before it was read. There are two ways to read:
//!
//! - **One straight into pages**, while large frames come: the first page of it is that of the first slot, the others are
//!   those behind the slots that extra infos may need.
//! - **Many at once**, while small frames come: each into memory of ours ([`HEAD`] bytes), and what is beyond that into
//!   pages of its own. Small frames, which are all but always all, are copied from there into one slot each. Of a large
//!   one the rest is where it belongs, as extra infos may fill any number of slots after the first.

mod accept;
mod deliver;
mod handover;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use devices::memory::PAGE_SIZE;
use devices::xen::grant_table::{Access, PinnedPage};
use devices::xen::shared_ring::{BackRing, RingError};

use crate::engine::{Engine, IoVec, Op};
use crate::protocol::{ETH_HLEN, MAX_SLOTS, RX_ENTRY, RxExtras, RxRequest, RxResponse, TxStatus};
use crate::queue::{Features, Link, count};
use crate::stall::Stall;
use crate::steering::{Mailbox, View};
use crate::tap::VNET_HDR;

/// Bytes of the largest frame: 65,535 of IP packet behind an Ethernet header with two tags.
const LARGEST: usize = 65_535 + ETH_HLEN + 8;
/// Bytes of a frame that are copied at most: less than a page, and more than a frame of the usual MTU has.
const HEAD: usize = 2048;
/// Frames read at once.
pub(crate) const MAX_READS: usize = 32;
/// Frames that may wait in a queue of the tap (tx_queue_len of Linux).
const MAX_WAITING: usize = 1024;
/// The first token of reads.
pub(crate) const TOKENS: u16 = 0x100;
/// Bytes that go to each slot that an extra info may have needed, and that none is in.
const FILLER: usize = 64;

/// A page that the guest posted and that no frame is in yet.
#[derive(Debug)]
struct Posted {
    id: u16,
    page: PinnedPage,
}

/// One frame that is read: what the kernel writes stays where it is until its completion.
#[derive(Debug)]
struct Read {
    header: [u8; VNET_HDR],
    head: [u8; HEAD],
    /// The kernel cuts a frame that is too long; then there is a byte in here.
    spill: [u8; 1],
    buffers: Vec<IoVec>,
    /// Bytes that there is room for.
    room: usize,
    /// The first page behind the head, counted from the first one posted when the reads were started.
    window: usize,
    result: Option<Result<usize, i32>>,
}

/// How frames are laid out in pages.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    /// Bytes left free at the start of each page.
    headroom: usize,
    /// The first slot, and those of extra infos.
    lead: usize,
    /// Further pages of the largest frame.
    tail: usize,
    /// Frames are read by way of [`Read::head`].
    by_head: bool,
}

impl Read {
    fn new() -> Self {
        Self {
            header: [0; VNET_HDR],
            head: [0; HEAD],
            spill: [0],
            buffers: Vec::new(),
            room: 0,
            window: 0,
            result: None,
        }
    }
}

impl Layout {
    /// Bytes of a page that a frame may be in.
    fn page(&self) -> usize {
        PAGE_SIZE - self.headroom
    }

    /// Pages for the largest frame.
    fn wanted(&self) -> usize {
        self.lead + self.tail
    }
}

/// What the guest is told about a frame.
struct Frame {
    len: usize,
    flags: u16,
    extras: RxExtras,
}

/// What was received since the counters were told.
#[derive(Debug, Default)]
struct Received {
    packets: u64,
    bytes: u64,
    copied: u64,
    straight: u64,
    copied_bytes: u64,
}

/// The receive half of a queue.
#[derive(Debug)]
pub(crate) struct Rx {
    ring: BackRing,
    /// Pages for the next frames, in ring order: responses must come in the order of their requests.
    posted: VecDeque<Posted>,
    /// Pages whose responses the guest was not shown yet.
    used: Vec<PinnedPage>,
    received: Received,
    /// A request behind them whose page cannot be used.
    bad: Option<u16>,
    features: Features,
    mtu: usize,
    view: View,
    /// By token. There are as many as were ever read at once.
    reads: Vec<Option<Box<Read>>>,
    /// Reads that were started together, how many of them have not ended, and their layout.
    started: usize,
    in_flight: usize,
    layout: Layout,
    /// The last frame was larger than [`HEAD`].
    large: bool,
    /// Frames are larger than the MTU allows.
    oversized: bool,
    /// Frames that are likely to be there, and those that were since the tap was empty.
    expected: usize,
    burst: usize,
    /// The tap may have frames.
    tap_ready: bool,
    /// The tap is gone.
    gone: bool,
    /// The tap has frames, but the guest posted no pages for them.
    starved: bool,
    stall: Stall,
    complained: bool,
}

impl Rx {
    pub(crate) fn new(ring: BackRing, features: Features, mtu: u16, view: View) -> Self {
        Self {
            ring,
            posted: VecDeque::new(),
            used: Vec::new(),
            received: Received::default(),
            bad: None,
            features,
            mtu: mtu.into(),
            view,
            reads: Vec::new(),
            started: 0,
            in_flight: 0,
            layout: Layout::default(),
            large: false,
            oversized: false,
            expected: 2,
            burst: 0,
            tap_ready: true,
            gone: false,
            starved: false,
            stall: Stall::default(),
            complained: false,
        }
    }

    /// The tap became readable.
    pub(crate) fn tap_is_ready(&mut self) {
        self.tap_ready = true;
    }

    /// The tap will never have frames again.
    pub(crate) fn tap_is_gone(&mut self) {
        self.gone = true;
    }

    /// Whether news of frames is of use.
    pub(crate) fn listens(&self) -> bool {
        !self.starved && !self.gone
    }

    /// How long until something is to be done even if nothing comes.
    pub(crate) fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.starved { self.stall.timeout(now) } else { None }
    }

    /// Reads under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn layout(&self) -> Layout {
        let headroom = usize::from(self.view.headroom());
        let gso = self.features.any_gso();
        let extras = usize::from(headroom > 0) + usize::from(gso) + usize::from(self.view.hashes());
        let mut layout = Layout { headroom, lead: 1 + extras, ..Layout::default() };
        let usual = self.mtu + ETH_HLEN + 8;
        let largest = match (self.features.sg, gso) {
            (false, _) => 0,
            (true, false) => usual,
            (true, true) => LARGEST,
        };
        // The first slot has data, too.
        layout.tail = largest.saturating_sub(layout.page()).div_ceil(layout.page()).min(MAX_SLOTS - 1);
        layout.by_head = usual <= HEAD && !self.large && !self.oversized;
        if layout.by_head {
            // Without large segments, all frames fit the head.
            let beyond = if gso { LARGEST - HEAD } else { 0 };
            layout.tail = beyond.div_ceil(layout.page()).min(MAX_SLOTS - 1);
        }
        layout
    }

    /// Starts to read frames; true if there may be more to do at once.
    pub(crate) fn run(
        &mut self,
        link: &Link,
        engine: &mut impl Engine,
        now: Instant,
    ) -> Result<bool, RingError> {
        if self.in_flight > 0 {
            return Ok(false);
        }
        if self.view.refresh() {
            link.requests.kick();
        }
        if !self.tap_ready && !self.view.has_mail() {
            return Ok(false);
        }
        let layout = self.layout();
        self.layout = layout;
        self.starved = !self.refill(link, layout.wanted())?;
        if self.starved {
            let verdict = self.stall.starved(now);
            if verdict.unplug {
                link.requests.stall(true);
            }
            if verdict.drop {
                count(&link.counters.rx_drops, link.tap.drain(link.queue, MAX_WAITING));
                count(&link.counters.rx_drops, self.view.mailbox().map_or(0, Mailbox::clear));
                // The pages are still waited for: while the cable is out nothing else is.
                (self.tap_ready, self.starved) = (self.stall.is_stalled(), self.stall.is_stalled());
                return Ok(!self.starved);
            }
            return Ok(false);
        }
        if self.stall.fed() {
            link.requests.stall(false);
        }
        let mut delivered = false;
        while self.posted.len() >= layout.wanted()
            && let Some(mail) = self.view.mailbox().and_then(Mailbox::take)
        {
            delivered = true;
            if !self.deliver_mail(link, mail) {
                count(&link.counters.rx_drops, 1);
            }
        }
        if delivered || !self.tap_ready {
            return Ok(delivered);
        }
        let most = if layout.by_head { self.expected.min(MAX_READS) } else { 1 };
        self.started = (self.posted.len() / layout.wanted()).clamp(1, most.max(1));
        for index in 0..self.started {
            self.start(index, engine);
        }
        Ok(true)
    }

    fn start(&mut self, index: usize, engine: &mut impl Engine) {
        let layout = self.layout;
        if self.reads.len() <= index {
            self.reads.push(Some(Box::new(Read::new())));
        }
        let Some(Some(read)) = self.reads.get_mut(index) else { return };
        read.window = index * layout.wanted() + layout.lead;
        read.buffers.clear();
        read.buffers.push(IoVec::new(read.header.as_mut_ptr(), VNET_HDR));
        let page =
            |posted: &Posted| IoVec::new(posted.page.as_ptr().wrapping_add(layout.headroom), layout.page());
        if layout.by_head {
            read.buffers.push(IoVec::new(read.head.as_mut_ptr(), HEAD));
            read.room = HEAD;
        } else {
            read.buffers.extend(self.posted.front().map(page));
            read.room = layout.page();
        }
        for posted in self.posted.range(read.window..).take(layout.tail) {
            let next = page(posted);
            read.room += next.size();
            let own = read.buffers.len() <= 2;
            let last = read.buffers.last_mut().filter(|_| !own);
            if !last.is_some_and(|last| last.extend(next.base(), next.size())) {
                read.buffers.push(next);
            }
        }
        read.buffers.push(IoVec::new(read.spill.as_mut_ptr(), 1));
        read.result = None;
        self.in_flight += 1;
        // SAFETY: the read is boxed and stays as it is until its completion; so do the pages, which the guest granted
        // for writing, which are pinned, and whose mapping stays as long as the grant table.
        unsafe { engine.start(TOKENS + u16::try_from(index).unwrap_or(0), Op::Read, &read.buffers) };
    }

    /// A frame was read, or not. With the last one of those that were started together, all are handed to the guest.
    pub(crate) fn complete(&mut self, link: &Link, token: u16, result: Result<usize, i32>) {
        let index = usize::from(token.wrapping_sub(TOKENS));
        let Some(Some(read)) = self.reads.get_mut(index) else { return };
        if index >= self.started || read.result.replace(result).is_some() {
            return;
        }
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.deliver_all(link);
        }
    }

    fn deliver_all(&mut self, link: &Link) {
        let posted = self.posted.len();
        for index in 0..std::mem::take(&mut self.started) {
            // Taken out while its frame is delivered.
            let Some(mut read) = self.reads.get_mut(index).and_then(Option::take) else { return };
            match read.result {
                Some(Ok(got)) => {
                    self.burst += 1;
                    self.tap_ready = true;
                    if !self.deliver(link, &mut read, got, posted - self.posted.len()) {
                        count(&link.counters.rx_drops, 1);
                    }
                }
                None | Some(Err(libc::EINTR)) => {}
                Some(Err(errno)) => self.no_frame(link, errno),
            }
            if let Some(slot) = self.reads.get_mut(index) {
                *slot = Some(read);
            }
        }
        if self.tap_ready {
            self.expected = (self.expected * 2).min(MAX_READS);
        } else {
            // And one more, to see that there are no more.
            self.expected = (std::mem::take(&mut self.burst) + 1).clamp(2, MAX_READS);
        }
    }

    fn no_frame(&mut self, link: &Link, errno: i32) {
        self.tap_ready = false;
        if errno == libc::EAGAIN {
            return;
        }
        // EBADFD: the interface was deleted.
        self.gone = errno == libc::EBADFD;
        if !std::mem::replace(&mut self.complained, true) && link.counters.complaints.may_complain() {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!("{}: the tap cannot be read: {error}", link.tap.name());
        }
    }

    /// Takes posted pages; false if there are too few for the largest frame.
    fn refill(&mut self, link: &Link, wanted: usize) -> Result<bool, RingError> {
        let mut bytes = [0; RX_ENTRY];
        let mut grants = link.grants.batch();
        let mut seen = self.ring.pending()?;
        // At most a ring full: the guest may post bad requests as fast as they are answered.
        for _ in 0..self.ring.nr_entries() {
            if let Some(id) = self.bad {
                // What is before it is used as long as that is possible.
                if self.posted.len() >= wanted {
                    break;
                }
                self.bad = None;
                self.refuse_posted();
                self.refuse(id);
            }
            if seen == 0 {
                break;
            }
            seen -= 1;
            self.ring.next_pending(&mut bytes);
            let RxRequest { id, gref } = RxRequest::parse(&bytes);
            match grants.pin(gref, Access::Write) {
                Ok(page) => self.posted.push_back(Posted { id, page }),
                Err(error) => {
                    count(&link.counters.rx_errors, 1);
                    if !std::mem::replace(&mut self.complained, true)
                        && link.counters.complaints.may_complain()
                    {
                        tracing::warn!(
                            "{}: the guest posted a page that cannot be used: {error} (said once)",
                            link.tap.name()
                        );
                    }
                    self.bad = Some(id);
                }
            }
        }
        Ok(self.posted.len() >= wanted)
    }

    /// Responses keep the order of the requests: pages before a bad one that are too few go back with it.
    fn refuse_posted(&mut self) {
        while let Some(Posted { id, page }) = self.posted.pop_front() {
            self.used.push(page);
            self.refuse(id);
        }
    }

    fn refuse(&mut self, id: u16) {
        let response = RxResponse { id, offset: 0, flags: 0, status: TxStatus::Error as i16 };
        self.ring.push_response(&response.emit());
    }

    /// Gives the pages of the responses back and shows these, and notes that there were some; true: the guest wants an
    /// event.
    pub(crate) fn publish(&mut self, link: &Link, shown: &mut bool) -> bool {
        if self.ring.has_unpublished() {
            *shown = true;
            self.settle(link);
        }
        self.ring.publish()
    }

    /// Gives back the pages that were answered, and tells the counters.
    fn settle(&mut self, link: &Link) {
        let mut grants = link.grants.batch();
        self.used.drain(..).for_each(|page| grants.unpin(page));
        drop(grants);
        let Received { packets, bytes, copied, straight, copied_bytes } = std::mem::take(&mut self.received);
        for (counter, n) in [
            (&link.counters.rx_packets, packets),
            (&link.counters.rx_bytes, bytes),
            (&link.counters.rx_copied, copied),
            (&link.counters.rx_straight, straight),
            (&link.counters.rx_copied_bytes, copied_bytes),
        ] {
            count(counter, n);
        }
    }

    /// Whether pages came that frames wait for.
    pub(crate) fn is_filled(&self) -> bool {
        self.starved && self.ring.pending().is_ok_and(|count| count >= self.missing())
    }

    fn missing(&self) -> u32 {
        u32::try_from(self.layout.wanted().saturating_sub(self.posted.len())).unwrap_or(1).max(1)
    }

    /// Before sleeping: true if the pages that frames wait for came meanwhile. While none waits, no event is
    /// asked for.
    pub(crate) fn arm(&mut self) -> Result<bool, RingError> {
        if !self.starved {
            return Ok(false);
        }
        self.ring.final_check_for(self.missing())
    }

    /// Gives the pages back that no frame came for. No read is under way.
    pub(crate) fn release(&mut self, link: &Link) {
        self.used.extend(self.posted.drain(..).map(|posted| posted.page));
        self.settle(link);
    }

    /// The engine can no longer tell when the kernel is done with the memory: it is never used again.
    pub(crate) fn abandon(&mut self) {
        std::mem::forget((std::mem::take(&mut self.reads), std::mem::take(&mut self.posted)));
        self.in_flight = 0;
    }
}

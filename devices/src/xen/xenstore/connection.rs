//! One client of the store: what it has sent so far, what waits to be sent to it, its watches and
//! transactions. Transports move the bytes.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use super::path::{WatchPath, is_child};
use super::perms::{Caller, Need};
use super::server::ReceiveError;
use super::transaction::{Changes, Fired};
use super::wire::{HEADER_SIZE, Header, PAYLOAD_MAX, XS_WATCH_EVENT, message};
use crate::xen::DomId;

/// What a watch costs besides path and token.
const WATCH_SIZE: usize = 96;
/// What a waiting message costs besides its bytes: without it small events would hold several times their quota.
const MESSAGE_SIZE: usize = 96;
/// Bytes of unread events after which a watch of a guest fires for its own path only: a guest that does not
/// read its ring, while its nodes change, must not fill our memory (XSA-326).
const GUEST_EVENT_BYTES: usize = 256 << 10;
/// The same for the host's side, whose backlog is bounded by the event loop, and where sockets are closed.
const HOST_EVENT_BYTES: usize = 1 << 20;
/// Bytes that wait for a client of the host's side, after which its requests are not read.
const HOST_OUTPUT_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) path: WatchPath,
    pub(super) token: Box<[u8]>,
}

impl Watch {
    pub(super) fn cost(path: &WatchPath, token: &[u8]) -> usize {
        WATCH_SIZE + path.full().len() + token.len()
    }
}

#[derive(Debug)]
enum Outgoing {
    Reply(Vec<u8>),
    /// Shared with the set of events that wait.
    Event(Arc<[u8]>),
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Outgoing::Reply(bytes) => bytes,
            Outgoing::Event(bytes) => bytes,
        }
    }
}

/// Messages that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    queue: VecDeque<Outgoing>,
    /// Bytes of the first message that are sent already.
    sent: usize,
    bytes: usize,
    replies: usize,
    events: HashSet<Arc<[u8]>>,
    event_bytes: usize,
    overflowed: bool,
}

impl Output {
    pub(super) fn push_reply(&mut self, reply: Vec<u8>) {
        self.bytes += reply.len();
        self.replies += 1;
        self.queue.push_back(Outgoing::Reply(reply));
    }

    /// Queues an event unless the same one waits already: a client that reads it will look at the newest state.
    fn push_event(&mut self, event: Vec<u8>) {
        if self.events.contains(event.as_slice()) {
            return;
        }
        let event: Arc<[u8]> = event.into();
        self.bytes += event.len();
        self.event_bytes += event.len() + MESSAGE_SIZE;
        self.events.insert(Arc::clone(&event));
        self.queue.push_back(Outgoing::Event(event));
    }

    /// What is to be sent next; empty: nothing.
    pub(super) fn next(&self) -> &[u8] {
        self.queue.front().and_then(|m| m.bytes().get(self.sent..)).unwrap_or_default()
    }

    /// The first `count` bytes of [`Output::next`] have been sent.
    pub(super) fn advance(&mut self, count: usize) {
        self.sent += count;
        self.bytes = self.bytes.saturating_sub(count);
        if self.queue.front().is_some_and(|m| self.sent >= m.bytes().len()) {
            self.sent = 0;
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Outgoing> {
        let message = self.queue.pop_front()?;
        match &message {
            Outgoing::Reply(_) => self.replies -= 1,
            Outgoing::Event(event) => {
                self.event_bytes -= event.len() + MESSAGE_SIZE;
                self.events.remove(event);
            }
        }
        Some(message)
    }

    /// Takes the payload of the next event whole; replies before it are dropped.
    pub(super) fn take_event(&mut self) -> Option<Vec<u8>> {
        while let Some(message) = self.pop() {
            self.bytes = self.bytes.saturating_sub(message.bytes().len());
            if let Outgoing::Event(event) = message {
                return Some(event.get(HEADER_SIZE..).unwrap_or_default().to_vec());
            }
        }
        None
    }

    /// Bytes to send.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Memory that the messages hold.
    fn memory(&self) -> usize {
        self.bytes + MESSAGE_SIZE * self.queue.len()
    }

    pub(super) fn replies(&self) -> usize {
        self.replies
    }

    pub(super) fn overflowed(&self) -> bool {
        self.overflowed
    }
}

/// A complete message: its header and its payload.
pub(super) type Message = (Header, Vec<u8>);

/// A message on its way in.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
}

impl Input {
    /// Takes bytes up to the end of the message: how many, and the message if it is complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Message>), ReceiveError> {
        let mut taken = self.fill(bytes, HEADER_SIZE);
        let Some(header) = self.bytes.first_chunk().map(Header::parse) else { return Ok((taken, None)) };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(ReceiveError::TooLong);
        }
        taken += self.fill(bytes.get(taken..).unwrap_or_default(), HEADER_SIZE + len);
        if self.bytes.len() < HEADER_SIZE + len {
            return Ok((taken, None));
        }
        let payload = self.bytes.split_off(HEADER_SIZE);
        self.bytes = Vec::new();
        Ok((taken, Some((header, payload))))
    }

    fn fill(&mut self, bytes: &[u8], upto: usize) -> usize {
        let count = upto.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(bytes.get(..count).unwrap_or_default());
        count
    }
}

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) caller: Caller,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) watches: Vec<Watch>,
    pub(super) transactions: BTreeMap<u32, Changes>,
    pub(super) last_transaction: u32,
    /// Waits in the store's list of connections with output.
    pub(super) ready: bool,
}

impl Connection {
    pub(super) fn new(domid: DomId) -> Self {
        Self {
            caller: Caller { domid, target: None },
            input: Input::default(),
            output: Output::default(),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
            ready: false,
        }
    }

    /// Forgets everything but who it is.
    pub(super) fn reset(&mut self) {
        let (target, ready) = (self.caller.target, self.ready);
        *self = Self::new(self.caller.domid);
        (self.caller.target, self.ready) = (target, ready);
    }

    /// Memory that it holds.
    pub(super) fn bytes(&self) -> usize {
        let watches: usize = self.watches.iter().map(|w| Watch::cost(&w.path, &w.token)).sum();
        let transactions: usize = self.transactions.values().map(Changes::bytes).sum();
        watches + transactions + self.output.memory() + self.input.bytes.len()
    }

    /// Whether a client of the host's side has left too much unread.
    pub(super) fn backlogged(&self) -> bool {
        self.caller.privileged() && self.output.bytes() >= HOST_OUTPUT_BYTES
    }

    /// Queues the events of the watches that `fired` concerns; true: there are some.
    pub(super) fn fire(&mut self, fired: &[Fired]) -> bool {
        let before = self.output.queue.len();
        if self.watches.is_empty() {
            return false;
        }
        // A commit of 1000 nodes times 128 watches is no work worth doing once there is room for one event a watch.
        let mut merged = vec![false; self.watches.len()];
        for event in fired {
            if !event.perms.iter().any(|p| p.allow(self.caller, Need::Read)) {
                continue;
            }
            for (index, merged) in merged.iter_mut().enumerate().filter(|(_, merged)| !**merged) {
                let hit = self.watches.get(index).is_some_and(|w| {
                    let base = w.path.full().as_str();
                    if event.exact { *event.path == *base } else { is_child(&event.path, base) }
                });
                if hit {
                    *merged = self.output.event_bytes >= self.event_limit();
                    self.push_event(index, &event.path);
                }
            }
        }
        self.output.queue.len() > before
    }

    fn event_limit(&self) -> usize {
        if self.caller.privileged() { HOST_EVENT_BYTES } else { GUEST_EVENT_BYTES }
    }

    /// Queues an event of one watch. One that would pass the limit of a message (XSA-324), or for which there is
    /// no room any more, names the watch's own path: look at everything below it.
    pub(super) fn push_event(&mut self, watch: usize, path: &str) {
        let Some(watch) = self.watches.get(watch) else { return };
        let owner = self.caller.domid;
        let mut shown = watch.path.shown(path, owner);
        if self.output.event_bytes >= self.event_limit() {
            self.output.overflowed = true;
            shown = watch.path.shown(watch.path.full(), owner);
        } else if shown.len() + watch.token.len() + 2 > PAYLOAD_MAX {
            shown = watch.path.shown(watch.path.full(), owner);
        }
        let payload = [shown.as_bytes(), b"\0", &watch.token, b"\0"].concat();
        self.output.push_event(message(XS_WATCH_EVENT, 0, 0, &payload));
    }
}

//! The ring page between a guest and the store (docs/misc/xenstore-ring.txt): req u8[1024] @0, rsp u8[1024]
//! @1024, req_cons u32 @2048, req_prod @2052, rsp_cons @2056, rsp_prod @2060, server_features @2064,
//! connection @2068, error @2072. Indexes run free, modulo 2^32.
//!
//! Indexes are read from the page each time, our own too: guests that start over (a boot loader's driver, then
//! the kernel's, then a crash kernel's) may have set them anew. Whatever they hold, a distance past the ring's
//! size ends the connection, and nothing else depends on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

use super::server::{ConnId, ReceiveError, XenStore};
use crate::complaints::Complaints;
use crate::memory::{PAGE_SIZE, SharedPages};
use crate::xen::DomId;

/// server_features bit: the guest may ask for a new connection.
pub const FEATURE_RECONNECTION: u32 = 1;
/// server_features bit: the error field tells why the server stopped.
pub const FEATURE_ERROR: u32 = 2;

const RING_SIZE: u32 = 1024;
const REQ: usize = 0;
const RSP: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const FEATURES: usize = 2064;
const CONNECTION: usize = 2068;
const ERROR: usize = 2072;

const CONNECTED: u32 = 0;
const RECONNECT: u32 = 1;

const ERROR_COMMUNICATION: u32 = 1;
const ERROR_INDEX: u32 = 2;
const ERROR_PROTOCOL: u32 = 3;

/// Bytes of requests served in one call: another vCPU may refill the ring for ever while we read it, and the
/// largest requests (a removal of 1000 nodes with paths of 2 KiB) take some 20 ms each.
const INPUT_BUDGET: u32 = RING_SIZE;
/// Bytes of replies written in one call, for the same reason.
const OUTPUT_BUDGET: u32 = 64 * RING_SIZE;

/// The page is not one of the shared pages.
#[derive(Debug, Error)]
#[error("the xenstore ring cannot be set up: there is no shared page {0}")]
pub struct NoPage(pub usize);

/// What the event loop does after [`XenStoreRing::process`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct RingStatus {
    /// Raise the guest's event channel: an index moved.
    pub notify: bool,
    /// Call again soon, after the other work of the loop: the guest gave more than one call serves.
    pub again: bool,
}

/// The server's end of a guest's ring page.
#[derive(Debug)]
pub struct XenStoreRing {
    pages: Arc<SharedPages>,
    base: usize,
    connection: ConnId,
    broken: bool,
    /// It can be broken as often as the guest likes.
    complaints: Complaints,
}

impl XenStoreRing {
    /// Connects domain `domid` through page `index` of `pages`, which holds zeroes or an idle ring.
    pub fn new(
        store: &mut XenStore,
        domid: DomId,
        pages: Arc<SharedPages>,
        index: usize,
    ) -> Result<Self, NoPage> {
        if index >= pages.pages() {
            return Err(NoPage(index));
        }
        let connection = store.add_connection(domid);
        let ring = Self {
            pages,
            base: index * PAGE_SIZE,
            connection,
            broken: false,
            complaints: Complaints::default(),
        };
        ring.set(ERROR, 0);
        ring.set(FEATURES, FEATURE_RECONNECTION | FEATURE_ERROR);
        Ok(ring)
    }

    /// The store's name for this guest's connection.
    pub fn connection(&self) -> ConnId {
        self.connection
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        self.pages.u32_at(self.base + offset)
    }

    fn get(&self, offset: usize) -> u32 {
        self.word(offset).map_or(0, |w| w.load(Ordering::Acquire))
    }

    fn set(&self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Serves what the guest asks and hands over what there is room for. To be called when the guest raised
    /// the event channel and when the store has output for it. Never waits.
    pub fn process(&mut self, store: &mut XenStore) -> RingStatus {
        let mut status = RingStatus::default();
        if self.get(CONNECTION) == RECONNECT && store.has_connection(self.connection) {
            self.reconnect(store);
            status.notify = true;
        }
        if self.broken {
            return status;
        }
        let (mut input, mut output) = (INPUT_BUDGET, OUTPUT_BUDGET);
        loop {
            let moved = self.take_requests(store, &mut input).and_then(|requests| {
                let replies = self.put_replies(store, &mut output)?;
                Ok(requests + replies)
            });
            match moved {
                Ok(0) => break,
                Ok(_) => status.notify = true,
                Err(reason) => {
                    self.stop(store, reason);
                    status.notify = true;
                    return status;
                }
            }
        }
        // Without room for replies, or over quota, it is the guest's turn: it raises an event when it has read.
        let more_requests =
            input == 0 && store.accepts_input(self.connection) && self.get(REQ_PROD) != self.get(REQ_CONS);
        status.again = more_requests || output == 0;
        status
    }

    /// Ends the connection until the guest reconnects, and tells it why.
    fn stop(&mut self, store: &mut XenStore, reason: u32) {
        if self.complaints.may_complain() {
            tracing::warn!("xenstore: the guest's ring is unusable (error {reason}), it must reconnect");
        }
        self.broken = true;
        store.reset_connection(self.connection);
        self.set(ERROR, reason);
    }

    fn reconnect(&mut self, store: &mut XenStore) {
        store.reset_connection(self.connection);
        for index in [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, ERROR] {
            self.set(index, 0);
        }
        self.broken = false;
        self.set(CONNECTION, CONNECTED);
    }

    /// Bytes between two indexes.
    fn filled(&self, prod: usize, cons: usize) -> Result<(u32, u32, u32), u32> {
        let (cons, prod) = (self.get(cons), self.get(prod));
        let filled = prod.wrapping_sub(cons);
        if filled > RING_SIZE { Err(ERROR_INDEX) } else { Ok((prod, cons, filled)) }
    }

    fn take_requests(&self, store: &mut XenStore, budget: &mut u32) -> Result<u32, u32> {
        let (_, cons, filled) = self.filled(REQ_PROD, REQ_CONS)?;
        let start = cons % RING_SIZE;
        let count = filled.min(RING_SIZE - start).min(*budget);
        let mut buffer = [0; RING_SIZE as usize];
        let Some(piece) = buffer.get_mut(..count as usize) else { return Ok(0) };
        // Copied once; what is not taken now is read anew later, and not looked at before.
        if self.pages.read(self.base + REQ + start as usize, piece).is_none() {
            return Ok(0);
        }
        let taken = match store.receive(self.connection, piece) {
            Ok(taken) => u32::try_from(taken).unwrap_or(count),
            Err(ReceiveError::TooLong) => return Err(ERROR_PROTOCOL),
            Err(ReceiveError::Gone) => return Err(ERROR_COMMUNICATION),
        };
        if taken > 0 {
            self.set(REQ_CONS, cons.wrapping_add(taken));
            *budget -= taken;
        }
        Ok(taken)
    }

    fn put_replies(&self, store: &mut XenStore, budget: &mut u32) -> Result<u32, u32> {
        let (prod, _, filled) = self.filled(RSP_PROD, RSP_CONS)?;
        let start = prod % RING_SIZE;
        let room = (RING_SIZE - filled).min(RING_SIZE - start).min(*budget);
        let waiting = store.output(self.connection);
        let piece = waiting.get(..room as usize).unwrap_or(waiting);
        let Ok(count) = u32::try_from(piece.len()) else { return Ok(0) };
        if count == 0 || self.pages.write(self.base + RSP + start as usize, piece).is_none() {
            return Ok(0);
        }
        self.set(RSP_PROD, prod.wrapping_add(count));
        store.sent(self.connection, count as usize);
        *budget -= count;
        Ok(count)
    }
}

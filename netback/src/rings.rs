//! The rings of a queue without its thread and its tap: fuzz targets take them step by step.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::xen::shared_ring::{BackRing, RingError};
use devices::xen::types::GrantRef;
use devices::xen::xenbus::DomainHandle;

use crate::control::CTRL_ENTRY;
use crate::control_ring::ControlRing;
use crate::engine::{Calls, Files, Sleep};
use crate::protocol::{RX_ENTRY, TX_ENTRY};
use crate::queue::{Clock, Features, Link, Pair, Requests};
use crate::rx::Rx;
use crate::steering::{MAX_HEADROOM, Settings, View};
use crate::tap::Tap;
use crate::tx::Tx;

/// Both rings of a queue.
#[derive(Debug)]
pub struct Rings {
    pair: Pair<Calls>,
}

/// What a frontend writes of a queue: its transmit ring and its receive ring.
pub type RingRefs = (GrantRef, GrantRef);

impl Rings {
    /// Attaches to a frontend's rings. `socket`, of datagrams and non-blocking, stands in for the tap. The bits
    /// of `features`, from the lowest: sg, csum4, csum6, gso4, gso6.
    pub fn new(
        domain: &DomainHandle,
        socket: OwnedFd,
        refs: RingRefs,
        features: u8,
        mtu: u16,
    ) -> io::Result<Self> {
        let settings = Arc::new(Settings::new(1)?);
        Self::queue(domain, socket, refs, &settings, 0, (features, mtu))
    }

    /// As [`Rings::new`], of a frontend with a queue for each socket.
    pub fn several(
        domain: &DomainHandle,
        queues: Vec<(OwnedFd, RingRefs)>,
        features: u8,
        mtu: u16,
    ) -> io::Result<Vec<Self>> {
        let settings = Arc::new(Settings::new(queues.len())?);
        let queues = queues.into_iter().enumerate();
        queues
            .map(|(index, (socket, refs))| {
                Self::queue(domain, socket, refs, &settings, index, (features, mtu))
            })
            .collect()
    }

    fn queue(
        domain: &DomainHandle,
        socket: OwnedFd,
        (tx, rx): RingRefs,
        settings: &Arc<Settings>,
        queue: usize,
        (features, mtu): (u8, u16),
    ) -> io::Result<Self> {
        let bit = |n: u8| features >> n & 1 == 1;
        let (sg, csum4, csum6) = (bit(0), bit(1), bit(2));
        let features =
            Features { sg, csum4, csum6, gso4: sg && csum4 && bit(3), gso6: sg && csum6 && bit(4) };
        let ring =
            |gref, entry| BackRing::new(Arc::clone(&domain.grants), &[gref], entry).map_err(io::Error::other);
        let view = View::new(Arc::clone(settings), queue);
        let link = Link {
            tap: Arc::new(Tap::stand_in(socket)),
            queue,
            grants: Arc::clone(&domain.grants),
            counters: Arc::default(),
            requests: Arc::new(Requests::new(Arc::clone(&domain.kick))),
            settings: Arc::clone(settings),
            credit: None,
            clock: Clock::default(),
        };
        let tap = link.tap.fd(0).unwrap_or(-1);
        let engine = Calls::new(&Files { tap, events: Vec::new() })?;
        let (tx, rx) = (Tx::new(ring(tx, TX_ENTRY)?), Rx::new(ring(rx, RX_ENTRY)?, features, mtu, view));
        Ok(Self { pair: Pair::new(link, tx, rx, engine) })
    }

    /// What the thread does between two sleeps; false: the rings are closed.
    pub fn pass(&mut self) -> bool {
        self.pair.hear_the_tap();
        // As often as the thread does before it sends a batch of each kind, and answers it.
        for _ in 0..4 {
            let Ok(sleep) = self.pair.start() else { return false };
            let _ = self.pair.wait(Sleep::Never);
            self.pair.collect();
            self.pair.publish();
            if self.pair.idle() && sleep != Sleep::Never {
                break;
            }
        }
        true
    }

    /// Bytes of room before received data, for all queues of the frontend; at most 256.
    pub fn set_headroom(&self, bytes: u16) {
        self.pair.link().settings.set_headroom(bytes.min(MAX_HEADROOM));
    }

    /// Whether only multicasts of the frontend's list pass.
    pub fn filter_multicasts(&self, on: bool) {
        self.pair.link().settings.multicast.set_filter(on);
    }

    /// Attaches to the control ring of the frontend.
    pub fn control(&self, gref: GrantRef) -> Result<Control, RingError> {
        let Link { grants, settings, .. } = self.pair.link();
        let ring = BackRing::new(Arc::clone(grants), &[gref], CTRL_ENTRY)?;
        Ok(Control(ControlRing::new(ring, Arc::clone(grants), Arc::clone(settings))))
    }
}

/// A control ring without its thread.
#[derive(Debug)]
pub struct Control(ControlRing);

impl Control {
    /// Answers what waits; false: the ring is closed.
    pub fn pass(&mut self) -> bool {
        self.0.pass().is_ok() && self.0.arm().is_ok()
    }
}

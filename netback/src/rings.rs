//! The rings of a queue without its thread and its tap: fuzz targets take them step by step.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::xen::shared_ring::BackRing;
use devices::xen::types::GrantRef;
use devices::xen::xenbus::DomainHandle;

use crate::engine::{Calls, Files, Sleep};
use crate::protocol::{RX_ENTRY, TX_ENTRY};
use crate::queue::{Clock, Features, Link, Pair, Requests};
use crate::rx::Rx;
use crate::steering::{Settings, View};
use crate::tap::Tap;
use crate::tx::Tx;

/// Both rings of a queue.
#[derive(Debug)]
pub struct Rings {
    pair: Pair<Calls>,
}

impl Rings {
    /// Attaches to a frontend's rings. `socket`, of datagrams and non-blocking, stands in for the tap. The bits
    /// of `features`, from the lowest: sg, csum4, csum6, gso4, gso6.
    pub fn new(
        domain: &DomainHandle,
        socket: OwnedFd,
        (tx, rx): (GrantRef, GrantRef),
        features: u8,
        mtu: u16,
    ) -> io::Result<Self> {
        let bit = |n: u8| features >> n & 1 == 1;
        let (sg, csum4, csum6) = (bit(0), bit(1), bit(2));
        let features =
            Features { sg, csum4, csum6, gso4: sg && csum4 && bit(3), gso6: sg && csum6 && bit(4) };
        let ring =
            |gref, entry| BackRing::new(Arc::clone(&domain.grants), &[gref], entry).map_err(io::Error::other);
        let settings = Arc::new(Settings::new(1)?);
        let view = View::new(Arc::clone(&settings), 0);
        let link = Link {
            tap: Arc::new(Tap::stand_in(socket)),
            queue: 0,
            grants: Arc::clone(&domain.grants),
            counters: Arc::default(),
            requests: Arc::new(Requests::new(Arc::clone(&domain.kick))),
            settings: Arc::clone(&settings),
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
}

//! The rings of a queue without its thread and its tap: fuzz targets take them step by step.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::xen::shared_ring::{BackRing, RingError};
use devices::xen::types::GrantRef;
use devices::xen::xenbus::DomainHandle;

use crate::protocol::{RX_ENTRY, TX_ENTRY};
use crate::queue::{Features, Link, Requests};
use crate::rx::Rx;
use crate::steering::{Settings, View};
use crate::tap::Tap;
use crate::tx::Tx;

/// Both rings of a queue.
#[derive(Debug)]
pub struct Rings {
    link: Link,
    tx: Tx,
    rx: Rx,
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
    ) -> Result<Self, RingError> {
        let bit = |n: u8| features >> n & 1 == 1;
        let (sg, csum4, csum6) = (bit(0), bit(1), bit(2));
        let features =
            Features { sg, csum4, csum6, gso4: sg && csum4 && bit(3), gso6: sg && csum6 && bit(4) };
        let ring = |gref, entry| BackRing::new(Arc::clone(&domain.grants), &[gref], entry);
        let settings = Arc::new(Settings::new(1).map_err(|_| RingError::Pages(0))?);
        let view = View::new(Arc::clone(&settings), 0);
        let link = Link {
            tap: Arc::new(Tap::stand_in(socket)),
            queue: 0,
            grants: Arc::clone(&domain.grants),
            counters: Arc::default(),
            requests: Arc::new(Requests::new(Arc::clone(&domain.kick))),
            settings,
        };
        Ok(Self {
            tx: Tx::new(ring(tx, TX_ENTRY)?),
            rx: Rx::new(ring(rx, RX_ENTRY)?, features, mtu, view),
            link,
        })
    }

    /// What the thread does between two sleeps; false: the rings are closed.
    pub fn pass(&mut self) -> bool {
        self.rx.tap_is_ready();
        let served = self.tx.run(&self.link).is_ok() && self.rx.run(&self.link).is_ok();
        self.tx.publish();
        self.rx.publish();
        served && self.tx.arm().is_ok() && self.rx.arm().is_ok()
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.rx.release(&self.link);
    }
}

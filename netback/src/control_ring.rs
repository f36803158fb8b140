//! The control ring of a connection, and the thread that serves it.
//!
//! A thread of its own, as its requests come from nowhere near a queue: a frontend sends a handful when it starts. One
//! without a control ring costs none.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use devices::xen::event_channel::BackendChannel;
use devices::xen::grant_table::GrantTable;
use devices::xen::shared_ring::{BackRing, RingError};
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::control::{self, CTRL_ENTRY, CtrlRequest};
use crate::hash::HashConfig;
use crate::steering::Settings;

/// Why a control ring ended by itself.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error("the control ring is closed: {0}")]
    Ring(#[from] RingError),
    #[error("the control ring cannot be waited for: {0}")]
    Host(#[from] io::Error),
}

/// A control ring.
#[derive(Debug)]
pub(crate) struct ControlRing {
    ring: BackRing,
    grants: Arc<GrantTable>,
    settings: Arc<Settings>,
    hash: HashConfig,
}

impl ControlRing {
    pub(crate) fn new(ring: BackRing, grants: Arc<GrantTable>, settings: Arc<Settings>) -> Self {
        Self { ring, grants, settings, hash: HashConfig::default() }
    }

    /// Answers what waits, at most a ring full. Returns whether the frontend wants an event.
    pub(crate) fn pass(&mut self) -> Result<bool, RingError> {
        let mut bytes = [0; CTRL_ENTRY];
        let before = self.hash.clone();
        for _ in 0..self.ring.nr_entries() {
            if !self.ring.next_request(&mut bytes)? {
                break;
            }
            let request = CtrlRequest::parse(&bytes);
            let response = control::answer(&request, &mut self.hash, self.settings.queues(), &*self.grants);
            self.ring.push_response(&response.emit());
        }
        // Before the responses are seen: what was answered is in force for frames that come then.
        if self.hash != before {
            self.settings.set_hash(self.hash.clone());
        }
        Ok(self.ring.publish())
    }

    /// Before sleeping: true if requests came meanwhile.
    pub(crate) fn arm(&mut self) -> Result<bool, RingError> {
        self.ring.final_check()
    }

    /// Serves the ring until `stop` is written.
    pub(crate) fn run(&mut self, channel: &BackendChannel, stop: RawFd) -> Result<(), ControlError> {
        const STOP: u64 = 1;
        let epoll = Epoll::new()?;
        let listen = |event, token| {
            let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
            epoll.ctl(ControlOperation::Add, event, interest)
        };
        listen(channel.event().as_raw_fd(), 0)?;
        listen(stop, STOP)?;
        let mut events = [EpollEvent::default(); 2];
        loop {
            if self.pass()? {
                channel.notify();
            }
            // With more to do the order to stop is looked for all the same.
            let timeout = if self.arm()? { 0 } else { -1 };
            let count = match epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if events.iter().take(count).any(|event| event.data() == STOP) {
                return Ok(());
            }
        }
    }
}

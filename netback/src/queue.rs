//! A queue pair and the thread that serves it.
//!
//! The thread sleeps in one place, epoll_wait, for the guest's events, the tap and the order to stop. All are
//! edge-triggered: an event costs the one system call that reports it. There is no timer, and while frames
//! wait for pages of the guest the tap is not listened to.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use devices::xen::event_channel::BackendChannel;
use devices::xen::grant_table::GrantTable;
use devices::xen::shared_ring::RingError;
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::packet::TxFatal;
use crate::rx::Rx;
use crate::steering::{Mailbox, Settings};
use crate::tap::Tap;
use crate::tx::Tx;

/// Packets of one direction before the other one has its turn and responses are shown.
pub(crate) const BATCH: usize = 64;

/// What the frontend can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Frames over several pages.
    pub(crate) sg: bool,
    /// Blank checksums of IPv4 packets.
    pub(crate) csum4: bool,
    /// Blank checksums of IPv6 packets.
    pub(crate) csum6: bool,
    /// Large TCP segments over IPv4; implies `sg` and `csum4`.
    pub(crate) gso4: bool,
    /// Large TCP segments over IPv6; implies `sg` and `csum6`.
    pub(crate) gso6: bool,
}

impl Features {
    pub(crate) fn any_gso(self) -> bool {
        self.gso4 || self.gso6
    }
}

/// Counters of an interface. "tx" is what the guest transmits.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tx_packets: AtomicU64,
    pub(crate) tx_bytes: AtomicU64,
    /// The host did not take them.
    pub(crate) tx_drops: AtomicU64,
    /// The guest's requests were wrong.
    pub(crate) tx_errors: AtomicU64,
    pub(crate) rx_packets: AtomicU64,
    pub(crate) rx_bytes: AtomicU64,
    /// The guest could not take them.
    pub(crate) rx_drops: AtomicU64,
    /// The guest's requests were wrong.
    pub(crate) rx_errors: AtomicU64,
    /// Multicasts that the guest does not want.
    pub(crate) rx_filtered: AtomicU64,
    /// Frames handed from the queue whose tap had them to the one that the guest's table names.
    pub(crate) rx_steered: AtomicU64,
    /// Events sent to the guest.
    pub(crate) notifications: AtomicU64,
    /// Times that a queue thread woke up.
    pub(crate) wakeups: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// The order to stop, to all queues of a connection.
#[derive(Debug)]
pub(crate) struct Stop {
    ordered: AtomicBool,
    event: EventFd,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { ordered: AtomicBool::new(false), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Told of the order.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Gives the order. The event is never read, so that each queue sees it.
    pub(crate) fn order(&self) {
        self.ordered.store(true, SeqCst);
        let _ = self.event.write(1);
    }
}

/// What the queue threads ask of the main thread. They change nothing of the tap themselves: they may do no
/// more than read, write and wait.
#[derive(Debug)]
pub(crate) struct Requests {
    kick: Arc<EventFd>,
    small_frames: AtomicBool,
}

impl Requests {
    pub(crate) fn new(kick: Arc<EventFd>) -> Self {
        Self { kick, small_frames: AtomicBool::new(false) }
    }

    /// Asks for frames that are cut up already. Wakes the main thread the first time only.
    pub(crate) fn ask_for_small_frames(&self) {
        if !self.small_frames.swap(true, SeqCst) {
            let _ = self.kick.write(1);
        }
    }

    /// Whether small frames were asked for.
    pub(crate) fn wants_small_frames(&self) -> bool {
        self.small_frames.load(SeqCst)
    }

    /// Wakes the main thread.
    pub(crate) fn kick(&self) {
        let _ = self.kick.write(1);
    }
}

/// What both halves of a queue use.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) tap: Arc<Tap>,
    /// Queue of the tap.
    pub(crate) queue: usize,
    pub(crate) grants: Arc<GrantTable>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) settings: Arc<Settings>,
}

/// The event channels of a queue: one for both rings, or (feature-split-event-channels) one for each.
#[derive(Debug)]
pub(crate) enum Channels {
    Shared(BackendChannel),
    Split { tx: BackendChannel, rx: BackendChannel },
}

/// Why a queue ended by itself.
#[derive(Debug, Error)]
pub(crate) enum QueueError {
    #[error("the transmit ring is closed: {0}")]
    Tx(#[from] TxFatal),
    #[error("the receive ring is closed: {0}")]
    Rx(#[from] RingError),
    #[error("the queue cannot wait for events: {0}")]
    Host(#[from] io::Error),
}

const TOKEN_EVENT: u64 = 0;
const TOKEN_TAP: u64 = 1;

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) link: Link,
    pub(crate) tx: Tx,
    pub(crate) rx: Rx,
    pub(crate) channels: Channels,
    pub(crate) stop: Arc<Stop>,
}

impl Queue {
    /// Serves the rings until the order to stop.
    pub(crate) fn run(&mut self) -> Result<(), QueueError> {
        let epoll = self.listen()?;
        let mut listens_to_tap = true;
        let mut events = [EpollEvent::default(); 4];
        while !self.stop.ordered.load(SeqCst) {
            let mut busy = self.tx.run(&self.link)?;
            busy |= self.rx.run(&self.link)?;
            self.publish();
            if busy || self.tx.arm()? || self.rx.arm()? {
                continue;
            }
            if listens_to_tap == self.rx.is_starved() {
                listens_to_tap = !listens_to_tap;
                self.listen_to_tap(&epoll, ControlOperation::Modify, listens_to_tap)?;
            }
            let count_events = match epoll.wait(-1, &mut events) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            count(&self.link.counters.wakeups, 1);
            if events.iter().take(count_events).any(|event| event.data() == TOKEN_TAP) {
                self.rx.tap_is_ready();
            }
        }
        Ok(())
    }

    fn listen(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let (first, second) = match &self.channels {
            Channels::Shared(both) => (both, None),
            Channels::Split { tx, rx } => (tx, Some(rx)),
        };
        let channels = [Some(first), second].into_iter().flatten().map(BackendChannel::event);
        let doorbell = self.link.settings.mailbox(self.link.queue).map(Mailbox::doorbell);
        for event in channels.chain([&self.stop.event]).chain(doorbell) {
            let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TOKEN_EVENT);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        self.listen_to_tap(&epoll, ControlOperation::Add, true)?;
        Ok(epoll)
    }

    /// Listening again reports a tap that is readable already.
    fn listen_to_tap(&self, epoll: &Epoll, operation: ControlOperation, on: bool) -> io::Result<()> {
        let fd = self.link.tap.fd(self.link.queue).ok_or(io::ErrorKind::NotFound)?;
        // Errors are always reported; edge-triggered, once.
        let interest = if on { EventSet::IN | EventSet::EDGE_TRIGGERED } else { EventSet::EDGE_TRIGGERED };
        epoll.ctl(operation, fd, EpollEvent::new(interest, TOKEN_TAP))
    }

    fn publish(&mut self) {
        let (tx_wanted, rx_wanted) = (self.tx.publish(), self.rx.publish());
        let notify = |channel: &BackendChannel, wanted: bool| {
            if wanted {
                channel.notify();
                count(&self.link.counters.notifications, 1);
            }
        };
        match &self.channels {
            Channels::Shared(both) => notify(both, tx_wanted || rx_wanted),
            Channels::Split { tx, rx } => {
                notify(tx, tx_wanted);
                notify(rx, rx_wanted);
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.rx.release(&self.link);
    }
}

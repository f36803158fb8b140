//! A queue pair and the thread that serves it.
//!
//! The thread sleeps in one place, its engine: for the guest's events, the tap, the order to stop, and the end of what is
//! under way. There is a timer only while something waits that must not wait for ever: packets for the credit of a
//! limited interface, or frames for pages. While they do, the tap is not listened to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;

use devices::complaints::Complaints;
use devices::guess::Guess;
use devices::xen::event_channel::BackendChannel;
use devices::xen::grant_table::GrantTable;
use devices::xen::shared_ring::RingError;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::engine::{Completion, Engine, Sleep};
use crate::packet::TxFatal;
use crate::rate::Credit;
use crate::rx::{self, Rx};
use crate::steering::Settings;
use crate::tap::Tap;
use crate::tx::{Left, Tx};

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
    /// Lines in the log that the guest caused, over all connections.
    pub(crate) complaints: Complaints,
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
    /// System calls of the queue threads.
    pub(crate) system_calls: AtomicU64,
    /// Bytes that were copied on their way to the host: of headers, which are looked at.
    pub(crate) tx_copied_bytes: AtomicU64,
    /// Frames to the guest that were copied as a whole, each below a page.
    pub(crate) rx_copied: AtomicU64,
    /// Frames to the guest that the kernel wrote to its pages.
    pub(crate) rx_straight: AtomicU64,
    /// Bytes that were copied on their way to the guest: those frames, and the beginnings of some large ones.
    pub(crate) rx_copied_bytes: AtomicU64,
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

    /// Written with the order.
    pub(crate) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
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
    /// Queues whose frontend posts no pages.
    stalled: AtomicUsize,
}

impl Requests {
    pub(crate) fn new(kick: Arc<EventFd>) -> Self {
        Self { kick, small_frames: AtomicBool::new(false), stalled: AtomicUsize::new(0) }
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

    /// A queue has stalled, or goes on: said once each.
    pub(crate) fn stall(&self, on: bool) {
        if on {
            self.stalled.fetch_add(1, SeqCst);
        } else {
            self.stalled.fetch_sub(1, SeqCst);
        }
        self.kick();
    }

    /// Whether a queue has stalled. As with Linux, one is enough to pull the cable out.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(SeqCst) > 0
    }

    /// Wakes the main thread.
    pub(crate) fn kick(&self) {
        let _ = self.kick.write(1);
    }
}

/// The clock of the queues: that of the host, unless a test moves one.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    #[cfg(test)]
    pub(crate) fn new(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(clock))
    }

    fn now(&self) -> Instant {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Instant::now))
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
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
    /// What the guest may still send, if there is a limit.
    pub(crate) credit: Option<Arc<Credit>>,
    pub(crate) clock: Clock,
}

/// An event channel, and the eventfd that notifies the guest too, if there is one.
#[derive(Debug)]
pub(crate) struct Channel {
    channel: BackendChannel,
    notifier: Option<RawFd>,
}

impl From<BackendChannel> for Channel {
    fn from(channel: BackendChannel) -> Self {
        Self { notifier: channel.notifier(), channel }
    }
}

/// The event channels of a queue: one for both rings, or (feature-split-event-channels) one for each.
#[derive(Debug)]
pub(crate) enum Channels {
    Shared(Channel),
    Split { tx: Channel, rx: Channel },
}

impl Channels {
    /// The eventfds that the guest's events come from.
    pub(crate) fn events(&self) -> Vec<RawFd> {
        let channels = match self {
            Channels::Shared(both) => [Some(both), None],
            Channels::Split { tx, rx } => [Some(tx), Some(rx)],
        };
        channels.into_iter().flatten().map(|channel| channel.channel.event().as_raw_fd()).collect()
    }
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

/// Both rings of a queue, and what moves the frames.
#[derive(Debug)]
pub(crate) struct Pair<E: Engine> {
    link: Link,
    tx: Tx,
    rx: Rx,
    engine: E,
    done: Vec<Completion>,
    /// Responses were shown that the frontend may not have had time for yet; and it is likely to answer at once.
    answered: bool,
    quick: Guess,
}

impl<E: Engine> Pair<E> {
    pub(crate) fn new(link: Link, tx: Tx, rx: Rx, engine: E) -> Self {
        Self { link, tx, rx, engine, done: Vec::new(), answered: false, quick: Guess::default() }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// As if a poll had said so.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn hear_the_tap(&mut self) {
        self.rx.tap_is_ready();
    }

    /// Whether nothing is under way.
    pub(crate) fn idle(&self) -> bool {
        self.tx.in_flight() == 0 && self.rx.in_flight() == 0
    }

    /// Takes what has ended.
    pub(crate) fn collect(&mut self) {
        self.engine.completions(&mut self.done);
        for Completion { token, result } in self.done.drain(..) {
            if token < rx::TOKENS {
                self.tx.complete(&self.link, token, result);
            } else {
                self.rx.complete(&self.link, token, result);
            }
        }
        let heard = self.engine.heard();
        if heard.readable {
            self.rx.tap_is_ready();
        }
        if heard.gone {
            self.rx.tap_is_gone();
        }
    }

    /// Starts what can be started. How long to sleep then.
    pub(crate) fn start(&mut self) -> Result<Sleep, QueueError> {
        let now = self.link.clock.now();
        let left = self.tx.run(&self.link, &mut self.engine, now)?;
        let busy = self.rx.run(&self.link, &mut self.engine, now)?;
        if !self.idle() {
            // Until the first of it ends.
            return Ok(Sleep::Forever);
        }
        if busy || left == Left::More || left == Left::Nothing && self.tx.arm()? || self.rx.arm()? {
            return Ok(Sleep::Never);
        }
        if std::mem::take(&mut self.answered)
            && left == Left::Nothing
            && self.quick.glance(|| self.tx.is_filled() || self.rx.is_filled())
        {
            return Ok(Sleep::Never);
        }
        self.engine.listen(self.rx.listens());
        let limited = if let Left::After(delay) = left { Some(delay) } else { None };
        let end = [limited, self.rx.timeout(now)].into_iter().flatten().min();
        Ok(end.map_or(Sleep::Forever, Sleep::For))
    }

    /// Shows responses: whether the guest wants an event for the transmit ring, and for the receive ring.
    pub(crate) fn publish(&mut self) -> (bool, bool) {
        (self.tx.publish(&self.link, &mut self.answered), self.rx.publish(&self.link, &mut self.answered))
    }

    /// Sends off what was started, and sleeps.
    pub(crate) fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        let rests = self.idle() && sleep != Sleep::Never;
        let result = self.engine.wait(sleep);
        count(&self.link.counters.system_calls, self.engine.system_calls());
        if rests {
            count(&self.link.counters.wakeups, 1);
        }
        result
    }
}

impl<E: Engine> Drop for Pair<E> {
    /// Waits for what is under way, then gives the pages back.
    fn drop(&mut self) {
        while !self.idle() {
            if self.engine.wait(Sleep::Forever).is_err() {
                self.tx.abandon();
                self.rx.abandon();
            }
            self.collect();
        }
        self.tx.answer(&self.link);
        self.rx.release(&self.link);
    }
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Queue<E: Engine> {
    // Dropped first: what is under way may still notify.
    pub(crate) pair: Pair<E>,
    pub(crate) channels: Channels,
    pub(crate) stop: Arc<Stop>,
}

impl<E: Engine> Queue<E> {
    /// Serves the rings until the order to stop. What was started is finished and answered.
    pub(crate) fn run(&mut self) -> Result<(), QueueError> {
        loop {
            self.pair.collect();
            // Before new packets are started: the guest has work to do meanwhile.
            self.publish();
            let mut sleep = Sleep::Forever;
            if !self.stop.ordered.load(SeqCst) {
                sleep = self.pair.start()?;
            } else if self.pair.idle() {
                // What the engine was told to notify.
                return Ok(self.pair.wait(Sleep::Never)?);
            }
            self.publish();
            self.pair.wait(sleep)?;
        }
    }

    fn publish(&mut self) {
        let (tx_wanted, rx_wanted) = self.pair.publish();
        match &self.channels {
            Channels::Shared(both) => notify(&mut self.pair, both, tx_wanted || rx_wanted),
            Channels::Split { tx, rx } => {
                notify(&mut self.pair, tx, tx_wanted);
                notify(&mut self.pair, rx, rx_wanted);
            }
        }
    }
}

fn notify<E: Engine>(pair: &mut Pair<E>, channel: &Channel, wanted: bool) {
    if !wanted {
        return;
    }
    let counters = &pair.link.counters;
    if !channel.notifier.is_some_and(|fd| pair.engine.notify(fd)) {
        channel.channel.notify();
        count(&counters.system_calls, 1);
    }
    count(&counters.notifications, 1);
}

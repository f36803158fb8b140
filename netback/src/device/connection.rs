//! The making of a connection: rings, event channels and engines, the tap, and the threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use devices::xen::shared_ring::BackRing;
use devices::xen::types::{GrantRef, Port};
use devices::xen::xenbus::{ConnectError, DomainHandle, FrontendKeys};

use super::{NetDevice, number};
use crate::control::CTRL_ENTRY;
use crate::control_ring::ControlRing;
use crate::engine::{Calls, Engine, Files, Uring};
use crate::protocol::{RX_ENTRY, TX_ENTRY};
use crate::queue::{Channel, Channels, Features, Link, Pair, Queue, Requests, Stop};
use crate::rx::{self, Rx};
use crate::steering::{Mailbox, Settings, View};
use crate::tap::Offload;
use crate::tx::{self, Tx};

/// Frames of an earlier connection that may wait in a queue of the tap (tx_queue_len of Linux).
const MAX_STALE: usize = 1024;

/// A queue with the engine that the host permits.
type AnyQueue = Queue<Box<dyn Engine + Send>>;

/// The queue threads of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    stop: Arc<Stop>,
    /// Threads that still use the domain.
    running: Arc<AtomicUsize>,
    pub(super) threads: Vec<JoinHandle<()>>,
    features: Features,
    pub(super) requests: Arc<Requests>,
    /// The tap was told to cut frames up, as a queue asked.
    pub(super) small_frames: bool,
    /// The cable is out, as a queue's frontend posts no pages.
    pub(super) stalled: bool,
    pub(super) settings: Arc<Settings>,
}

impl Connection {
    pub(super) fn new(features: Features, queues: usize, domain: &DomainHandle) -> io::Result<Self> {
        Ok(Self {
            stop: Arc::new(Stop::new()?),
            running: Arc::default(),
            threads: Vec::new(),
            features,
            requests: Arc::new(Requests::new(Arc::clone(&domain.kick))),
            small_frames: false,
            stalled: false,
            settings: Arc::new(Settings::new(queues)?),
        })
    }

    /// Whether a thread still uses the domain.
    pub(super) fn runs(&self) -> bool {
        self.running.load(SeqCst) > 0
    }

    pub(super) fn order_stop(&self) {
        self.stop.order();
    }

    pub(super) fn join(self) {
        self.order_stop();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a network queue panicked");
            }
        }
    }
}

impl NetDevice {
    pub(super) fn queue(
        &self,
        index: usize,
        prefix: &str,
        frontend: &dyn FrontendKeys,
        domain: &DomainHandle,
        connection: &Connection,
    ) -> Result<AnyQueue, ConnectError> {
        let key = |name: &str| format!("{prefix}{name}");
        let ring = |name: &str, entry| {
            let key = key(name);
            let gref = number(frontend, &key)
                .ok_or_else(|| self.error(format_args!("the frontend wrote no grant reference to {key}")))?;
            BackRing::new(Arc::clone(&domain.grants), &[GrantRef(gref)], entry)
                .map_err(|error| self.error(format_args!("{key}: {error}")))
        };
        let channel = |key: &str, port| -> Result<Channel, ConnectError> {
            domain
                .events
                .bind_backend(Port(port))
                .map(Channel::from)
                .map_err(|error| self.error(format_args!("{key} {port}: {error}")))
        };
        let (tx, rx) = (ring("tx-ring-ref", TX_ENTRY)?, ring("rx-ring-ref", RX_ENTRY)?);
        let (both, tx_key, rx_key) = (key("event-channel"), key("event-channel-tx"), key("event-channel-rx"));
        let channels = match (number(frontend, &tx_key), number(frontend, &rx_key)) {
            (Some(tx), Some(rx)) => Channels::Split { tx: channel(&tx_key, tx)?, rx: channel(&rx_key, rx)? },
            _ => {
                let port = number(frontend, &both).ok_or_else(|| {
                    self.error(format_args!("the frontend wrote no event channel to {both} or {tx_key}"))
                })?;
                Channels::Shared(channel(&both, port)?)
            }
        };
        let link = Link {
            tap: Arc::clone(&self.tap),
            queue: index,
            grants: Arc::clone(&domain.grants),
            counters: Arc::clone(&self.counters),
            requests: Arc::clone(&connection.requests),
            settings: Arc::clone(&connection.settings),
            credit: self.credit.clone(),
            clock: self.clock.clone(),
        };
        let stop = Arc::clone(&connection.stop);
        let mut events = channels.events();
        events.push(stop.event());
        events.extend(connection.settings.mailbox(index).map(Mailbox::doorbell));
        let tap = self.tap.fd(index).unwrap_or(-1);
        let engine = self.engine(Files { tap, events });
        let engine = engine
            .map_err(|error| self.error(format_args!("the host cannot make an I/O engine: {error}")))?;
        let view = View::new(Arc::clone(&connection.settings), index);
        let rx = Rx::new(rx, connection.features, self.config.mtu, view);
        Ok(Queue { pair: Pair::new(link, Tx::new(tx), rx, engine), channels, stop })
    }

    fn engine(&self, files: Files) -> io::Result<Box<dyn Engine + Send>> {
        if !self.only_calls {
            let ring = if self.tap.knows_nowait() {
                u32::try_from(tx::BATCH + rx::MAX_READS)
                    .map_err(io::Error::other)
                    .and_then(|slots| Uring::new(files.clone(), slots))
            } else {
                Err(io::Error::other("its taps do not know RWF_NOWAIT"))
            };
            match ring {
                Ok(ring) => return Ok(Box::new(ring)),
                Err(_) if self.told.swap(true, SeqCst) => {}
                Err(error) => tracing::warn!(
                    "{}: io_uring cannot be used ({error}), each packet is a system call of its own; it needs Linux 6.4 and kernel.io_uring_disabled=0",
                    self.tap.name()
                ),
            }
        }
        Ok(Box::new(Calls::new(&files)?))
    }

    /// Sets the tap up for what the frontend can do and empties it.
    pub(super) fn prepare_tap(&self, connection: &Connection) -> io::Result<()> {
        self.tap.set_active_queues(connection.settings.queues())?;
        self.set_offload(connection)?;
        for queue in 0..self.tap.queues() {
            self.tap.drain(queue, MAX_STALE);
        }
        self.tap.set_carrier(true)
    }

    pub(super) fn spawn(&self, mut queue: AnyQueue, connection: &Connection) -> io::Result<JoinHandle<()>> {
        let name = format!("vif-{}-{}", self.config.index, queue.pair.link().queue);
        self.spawn_thread(name, connection, move || queue.run().map_err(|error| error.to_string()))
    }

    /// A thread that uses the domain until `run` has ended and was dropped.
    pub(super) fn spawn_thread(
        &self,
        name: String,
        connection: &Connection,
        run: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let requests = Arc::clone(&connection.requests);
        let (stop, running) = (Arc::clone(&connection.stop), Arc::clone(&connection.running));
        let (tap, counters) = (Arc::clone(&self.tap), Arc::clone(&self.counters));
        running.fetch_add(1, SeqCst);
        let counted = Arc::clone(&running);
        let body = move || {
            // The rings and event channels are given back with the end of this, before the main thread is told.
            if let Err(error) = run() {
                if counters.complaints.may_complain() {
                    tracing::error!(
                        "{}: {error}; the interface is dead until its driver reconnects",
                        tap.name()
                    );
                }
                // The others as well: the kernel goes on handing frames to all queues.
                stop.order();
            }
            counted.fetch_sub(1, SeqCst);
            requests.kick();
        };
        thread::Builder::new().name(name).spawn(body).inspect_err(|_| {
            running.fetch_sub(1, SeqCst);
        })
    }

    /// The control ring, if the frontend has one: what its thread does.
    pub(super) fn control_ring(
        &self,
        frontend: &dyn FrontendKeys,
        domain: &DomainHandle,
        connection: &Connection,
    ) -> Result<Option<impl FnOnce() -> Result<(), String> + Send + use<>>, ConnectError> {
        let (ring_key, port_key) = ("ctrl-ring-ref", "event-channel-ctrl");
        let Some(gref) = number(frontend, ring_key) else { return Ok(None) };
        let port = number(frontend, port_key)
            .ok_or_else(|| self.error(format_args!("the frontend wrote {ring_key} but no {port_key}")))?;
        let ring = BackRing::new(Arc::clone(&domain.grants), &[GrantRef(gref)], CTRL_ENTRY)
            .map_err(|error| self.error(format_args!("{ring_key}: {error}")))?;
        let channel = domain
            .events
            .bind_backend(Port(port))
            .map_err(|error| self.error(format_args!("{port_key} {port}: {error}")))?;
        let mut ring = ControlRing::new(ring, Arc::clone(&domain.grants), Arc::clone(&connection.settings));
        let stop = Arc::clone(&connection.stop);
        Ok(Some(move || ring.run(&channel, stop.event()).map_err(|error| error.to_string())))
    }

    /// Has the tap do what the frontend cannot take now. Behind a headroom there is no room for large segments, and
    /// Linux drops what is not in a single page while it runs an XDP program.
    pub(super) fn set_offload(&self, connection: &Connection) -> io::Result<()> {
        let all = offload(connection.features);
        let small = connection.small_frames || connection.settings.headroom() > 0;
        self.tap.set_offload(if small { Offload { tso4: false, tso6: false, ..all } } else { all })
    }
}

/// What the tap need not do for such a frontend. A checksum of the IP version that it cannot take is filled in
/// by the queue.
fn offload(features: Features) -> Offload {
    Offload { csum: features.csum4 || features.csum6, tso4: features.gso4, tso6: features.gso6 }
}

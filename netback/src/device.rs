//! A vif: the configuration of an interface, and its connection to a frontend.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use devices::xen::shared_ring::BackRing;
use devices::xen::types::{GrantRef, Port};
use devices::xen::xenbus::{BackendDevice, ConnectError, DomainHandle, FrontendKeys, Keys};

use crate::control::CTRL_ENTRY;
use crate::control_ring::ControlRing;
use crate::engine::{Calls, Engine, Files, Uring};
use crate::mac::MacAddr;
use crate::protocol::{RX_ENTRY, TX_ENTRY};
use crate::queue::{Channel, Channels, Clock, Counters, Features, Link, Pair, Queue, Requests, Stop};
use crate::rate::{Credit, Rate};
use crate::rx::{self, Rx};
use crate::steering::{MAX_HEADROOM, Mailbox, Settings, View};
use crate::tap::{Offload, Tap};
use crate::tx::{self, Tx};

/// Frames of an earlier connection that may wait in a queue of the tap (tx_queue_len of Linux).
const MAX_STALE: usize = 1024;

/// An interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifConfig {
    /// Number of the interface: 0, 1, 2 ...
    pub index: u32,
    /// The guest's address.
    pub mac: MacAddr,
    /// Name of the tap.
    pub vifname: String,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// What the guest may send.
    pub rate: Option<Rate>,
    /// What else the toolstack writes.
    pub toolstack: ToolstackKeys,
}

/// Keys of an interface that the toolstack writes and nothing here depends on: `ip`, `script`, `trusted` and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolstackKeys {
    /// For the backend's directory.
    pub backend: Keys,
    /// For the frontend's directory.
    pub frontend: Keys,
}

/// The back half of one interface.
#[derive(Debug)]
pub struct NetDevice {
    config: VifConfig,
    tap: Arc<Tap>,
    counters: Arc<Counters>,
    credit: Option<Arc<Credit>>,
    clock: Clock,
    /// Without io_uring, as on a host that does not permit it.
    only_calls: bool,
    /// The log says that io_uring cannot be used: a frontend may connect as often as it likes.
    told: AtomicBool,
    connection: Option<Connection>,
}

/// A queue with the engine that the host permits.
type AnyQueue = Queue<Box<dyn Engine + Send>>;

/// The queue threads of a connection.
#[derive(Debug)]
struct Connection {
    stop: Arc<Stop>,
    /// Threads that still use the domain.
    running: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    features: Features,
    requests: Arc<Requests>,
    /// The tap was told to cut frames up, as a queue asked.
    small_frames: bool,
    /// The cable is out, as a queue's frontend posts no pages.
    stalled: bool,
    settings: Arc<Settings>,
}

impl Connection {
    fn join(self) {
        self.stop.order();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a network queue panicked");
            }
        }
    }
}

impl NetDevice {
    /// An interface at `tap`, offering as many queues as the tap has.
    pub fn new(config: VifConfig, tap: Tap) -> Self {
        let credit = config.rate.map(|rate| Arc::new(Credit::new(rate)));
        Self {
            config,
            tap: Arc::new(tap),
            counters: Arc::default(),
            credit,
            clock: Clock::default(),
            only_calls: false,
            told: AtomicBool::new(false),
            connection: None,
        }
    }

    /// Has the queues use a system call for each frame, as on a host that does not permit io_uring: for tests and
    /// benchmarks.
    #[cfg(any(test, feature = "testing"))]
    pub fn without_io_uring(mut self) -> Self {
        self.only_calls = true;
        self
    }

    /// Has the queues look at another clock.
    #[cfg(test)]
    pub(crate) fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &VifConfig {
        &self.config
    }

    fn error(&self, what: impl std::fmt::Display) -> ConnectError {
        ConnectError(format!("vif {}: {what}", self.config.index))
    }

    fn features(frontend: &dyn FrontendKeys) -> Features {
        let flag = |key| number(frontend, key) == Some(1);
        let sg = flag("feature-sg");
        let csum4 = !flag("feature-no-csum-offload");
        let csum6 = flag("feature-ipv6-csum-offload");
        Features {
            sg,
            csum4,
            csum6,
            gso4: sg && csum4 && flag("feature-gso-tcpv4"),
            gso6: sg && csum6 && flag("feature-gso-tcpv6"),
        }
    }

    /// Number of queues that the frontend chose; without the key, one.
    fn queues(&self, frontend: &dyn FrontendKeys) -> Result<usize, ConnectError> {
        let Some(text) = frontend.read("multi-queue-num-queues") else { return Ok(1) };
        let most = self.tap.queues();
        match text.trim().parse() {
            Ok(queues) if (1..=most).contains(&queues) => Ok(queues),
            _ => Err(self.error(format_args!(
                "the frontend wants {text:?} queues, but 1 to {most} were offered in multi-queue-max-queues"
            ))),
        }
    }

    fn queue(
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

    fn engine(&self, files: Files) -> std::io::Result<Box<dyn Engine + Send>> {
        if !self.only_calls {
            let ring = if self.tap.knows_nowait() {
                u32::try_from(tx::BATCH + rx::MAX_READS)
                    .map_err(std::io::Error::other)
                    .and_then(|slots| Uring::new(files.clone(), slots))
            } else {
                Err(std::io::Error::other("its taps do not know RWF_NOWAIT"))
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
    fn prepare_tap(&self, connection: &Connection) -> std::io::Result<()> {
        self.tap.set_active_queues(connection.settings.queues())?;
        self.set_offload(connection)?;
        for queue in 0..self.tap.queues() {
            self.tap.drain(queue, MAX_STALE);
        }
        self.tap.set_carrier(true)
    }

    fn spawn(&self, mut queue: AnyQueue, connection: &Connection) -> std::io::Result<JoinHandle<()>> {
        let name = format!("vif-{}-{}", self.config.index, queue.pair.link().queue);
        self.spawn_thread(name, connection, move || queue.run().map_err(|error| error.to_string()))
    }

    /// A thread that uses the domain until `run` has ended and was dropped.
    fn spawn_thread(
        &self,
        name: String,
        connection: &Connection,
        run: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let requests = Arc::clone(&connection.requests);
        let (stop, running) = (Arc::clone(&connection.stop), Arc::clone(&connection.running));
        let tap = Arc::clone(&self.tap);
        running.fetch_add(1, SeqCst);
        let counted = Arc::clone(&running);
        let body = move || {
            // The rings and event channels are given back with the end of this, before the main thread is told.
            if let Err(error) = run() {
                tracing::error!("{}: {error}; the interface is dead until its driver reconnects", tap.name());
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
    fn control_ring(
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
    fn set_offload(&self, connection: &Connection) -> std::io::Result<()> {
        let all = offload(connection.features);
        let small = connection.small_frames || connection.settings.headroom() > 0;
        self.tap.set_offload(if small { Offload { tso4: false, tso6: false, ..all } } else { all })
    }
}

/// What the frontend may change while it is connected.
fn read_live_keys(settings: &Settings, frontend: &dyn FrontendKeys) {
    settings.multicast.set_filter(number(frontend, MULTICAST_KEY) == Some(1));
    // One that wants more than there is gets what there is: it can tell by the offset of each frame.
    let headroom = number(frontend, HEADROOM_KEY).map_or(0, |bytes| bytes.min(MAX_HEADROOM.into()));
    settings.set_headroom(u16::try_from(headroom).unwrap_or(0));
}

/// Key of a frontend that has its list of multicast groups applied.
const MULTICAST_KEY: &str = "request-multicast-control";
/// Key of a frontend that wants bytes of room before received data.
const HEADROOM_KEY: &str = "xdp-headroom";

/// What the tap need not do for such a frontend. A checksum of the IP version that it cannot take is filled in
/// by the queue.
fn offload(features: Features) -> Offload {
    Offload { csum: features.csum4 || features.csum6, tso4: features.gso4, tso6: features.gso6 }
}

/// A decimal number that the frontend wrote.
fn number(frontend: &dyn FrontendKeys, key: &str) -> Option<u32> {
    frontend.read(key)?.trim().parse().ok()
}

impl BackendDevice for NetDevice {
    fn class(&self) -> &'static str {
        "vif"
    }

    fn index(&self) -> u32 {
        self.config.index
    }

    fn frontend_keys(&self) -> Keys {
        let VifConfig { index, mac, mtu, toolstack, .. } = &self.config;
        let keys = [("handle", index.to_string()), ("mac", mac.to_string()), ("mtu", mtu.to_string())];
        let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value));
        keys.chain(toolstack.frontend.iter().cloned()).collect()
    }

    fn backend_keys(&self) -> Keys {
        let VifConfig { index, mac, vifname, mtu, rate, toolstack } = &self.config;
        let config = [
            ("handle", index.to_string()),
            ("mac", mac.to_string()),
            ("vifname", vifname.clone()),
            ("mtu", mtu.to_string()),
            ("multi-queue-max-queues", self.tap.queues().to_string()),
            ("hotplug-status", "connected".to_owned()),
        ];
        let features = [
            ("feature-sg", "1"),
            ("feature-gso-tcpv4", "1"),
            ("feature-gso-tcpv6", "1"),
            ("feature-ipv6-csum-offload", "1"),
            ("feature-rx-copy", "1"),
            ("feature-rx-flip", "0"),
            ("feature-split-event-channels", "1"),
            ("feature-multicast-control", "1"),
            ("feature-dynamic-multicast-control", "1"),
            ("feature-xdp-headroom", "1"),
            ("feature-ctrl-ring", "1"),
        ];
        let features = features.map(|(key, value)| (key, value.to_owned()));
        let rate = rate.map(|rate| ("rate", rate.key()));
        let keys = config.into_iter().chain(rate).chain(features);
        let keys = keys.map(|(key, value)| (key.to_owned(), value));
        keys.chain(toolstack.backend.iter().cloned()).collect()
    }

    fn connect(&mut self, frontend: &dyn FrontendKeys, domain: &DomainHandle) -> Result<Keys, ConnectError> {
        if !self.is_stopped() {
            return Err(self.error("the queues of the former connection have not stopped yet"));
        }
        for (key, why) in [
            ("request-rx-copy", "pages are filled in place and never exchanged"),
            ("feature-rx-notify", "nothing looks for new receive buffers unasked"),
        ] {
            if number(frontend, key) != Some(1) {
                return Err(self.error(format_args!("the frontend must write 1 to {key}: {why}")));
            }
        }
        let features = Self::features(frontend);
        let queues = self.queues(frontend)?;
        let mut connection = Connection {
            stop: Arc::new(Stop::new().map_err(|error| self.error(error))?),
            running: Arc::default(),
            threads: Vec::new(),
            features,
            requests: Arc::new(Requests::new(Arc::clone(&domain.kick))),
            small_frames: false,
            stalled: false,
            settings: Arc::new(Settings::new(queues).map_err(|error| self.error(error))?),
        };
        let mut list = Vec::new();
        for index in 0..queues {
            // A frontend of one queue writes its keys without a prefix.
            let prefix = if queues == 1 { String::new() } else { format!("queue-{index}/") };
            list.push(self.queue(index, &prefix, frontend, domain, &connection)?);
        }
        let control = self.control_ring(frontend, domain, &connection)?;
        read_live_keys(&connection.settings, frontend);
        self.prepare_tap(&connection).map_err(|error| {
            self.error(format_args!("the tap {} cannot be set up: {error}", self.tap.name()))
        })?;
        let spawned = list.into_iter().try_for_each(|queue| {
            connection.threads.push(self.spawn(queue, &connection)?);
            Ok::<_, std::io::Error>(())
        });
        let spawned = spawned.and_then(|()| {
            if let Some(run) = control {
                let name = format!("vif-{}-ctrl", self.config.index);
                connection.threads.push(self.spawn_thread(name, &connection, run)?);
            }
            Ok(())
        });
        self.connection = Some(connection);
        if let Err(error) = spawned {
            self.disconnect();
            return Err(self.error(format_args!("no thread for a queue: {error}")));
        }
        Ok(Keys::new())
    }

    fn disconnect(&mut self) {
        if let Some(connection) = &self.connection {
            connection.stop.order();
            // A tap that is gone has no cable either.
            let _ = self.tap.set_carrier(false);
        }
    }

    fn is_stopped(&mut self) -> bool {
        if self.connection.as_ref().is_some_and(|c| c.running.load(SeqCst) > 0) {
            return false;
        }
        // The threads are past their last use of the domain: this waits for their very end only.
        if let Some(connection) = self.connection.take() {
            connection.join();
        }
        true
    }

    /// Does what the queues asked for. None of it changes a key.
    fn take_update(&mut self) -> Option<Keys> {
        let connection = self.connection.as_mut()?;
        if connection.running.load(SeqCst) == 0 {
            // The queues ended by themselves. It shows, and the bridge stops filling a tap that nobody reads.
            let _ = self.tap.set_carrier(false);
        }
        let stalled = connection.requests.is_stalled();
        if stalled != connection.stalled && connection.running.load(SeqCst) > 0 {
            connection.stalled = stalled;
            let name = self.tap.name();
            match self.tap.set_carrier(!stalled) {
                Err(error) => tracing::warn!("{name}: the cable cannot be plugged in or out: {error}"),
                Ok(()) if stalled => {
                    tracing::warn!(
                        "{name}: the guest takes no frames any more: the cable is out until it does"
                    );
                }
                Ok(()) => tracing::info!("{name}: the guest takes frames again: the cable is plugged in"),
            }
        }
        if connection.requests.wants_small_frames() && !connection.small_frames {
            connection.small_frames = true;
            let name = self.tap.name();
            match self.connection.as_ref().map(|connection| self.set_offload(connection)) {
                Some(Err(error)) => tracing::warn!("{name}: segmentation cannot be switched on: {error}"),
                _ => tracing::info!(
                    "{name}: large segments that the guest cannot take (of a VLAN?): \
                                          the host cuts them up from now on"
                ),
            }
        }
        None
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &[MULTICAST_KEY, HEADROOM_KEY]
    }

    fn reconfigure(&mut self, frontend: &dyn FrontendKeys) {
        let Some(connection) = &self.connection else { return };
        read_live_keys(&connection.settings, frontend);
        if let Err(error) = self.set_offload(connection) {
            tracing::debug!("{}: segmentation cannot be changed: {error}", self.tap.name());
        }
    }

    fn is_reconfigured(&mut self) -> bool {
        self.connection.as_ref().is_none_or(|connection| {
            // A queue that has ended goes by nothing any more.
            connection.running.load(SeqCst) == 0 || connection.settings.is_in_force()
        })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = &self.counters;
        [
            ("tx_packets", &c.tx_packets),
            ("tx_bytes", &c.tx_bytes),
            ("tx_drops", &c.tx_drops),
            ("tx_errors", &c.tx_errors),
            ("rx_packets", &c.rx_packets),
            ("rx_bytes", &c.rx_bytes),
            ("rx_drops", &c.rx_drops),
            ("rx_errors", &c.rx_errors),
            ("rx_filtered", &c.rx_filtered),
            ("rx_steered", &c.rx_steered),
            ("notifications", &c.notifications),
            ("wakeups", &c.wakeups),
            ("system_calls", &c.system_calls),
            ("tx_copied_bytes", &c.tx_copied_bytes),
            ("rx_copied", &c.rx_copied),
            ("rx_straight", &c.rx_straight),
            ("rx_copied_bytes", &c.rx_copied_bytes),
        ]
        .map(|(name, counter)| (name, counter.load(std::sync::atomic::Ordering::Relaxed)))
        .to_vec()
    }
}

impl Drop for NetDevice {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.join();
        }
    }
}

//! A vif: the configuration of an interface, and its connection to a frontend.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use devices::xen::event_channel::BackendChannel;
use devices::xen::shared_ring::BackRing;
use devices::xen::types::{GrantRef, Port};
use devices::xen::xenbus::{BackendDevice, ConnectError, DomainHandle, FrontendKeys, Keys};

use crate::mac::MacAddr;
use crate::protocol::{RX_ENTRY, TX_ENTRY};
use crate::queue::{Channels, Counters, Features, Link, Queue, Requests, Stop};
use crate::rx::Rx;
use crate::tap::{Offload, Tap};
use crate::tx::Tx;

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
    connection: Option<Connection>,
}

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
        Self { config, tap: Arc::new(tap), counters: Arc::default(), connection: None }
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
    ) -> Result<Queue, ConnectError> {
        let key = |name: &str| format!("{prefix}{name}");
        let ring = |name: &str, entry| {
            let key = key(name);
            let gref = number(frontend, &key)
                .ok_or_else(|| self.error(format_args!("the frontend wrote no grant reference to {key}")))?;
            BackRing::new(Arc::clone(&domain.grants), &[GrantRef(gref)], entry)
                .map_err(|error| self.error(format_args!("{key}: {error}")))
        };
        let channel = |key: &str, port| -> Result<BackendChannel, ConnectError> {
            domain
                .events
                .bind_backend(Port(port))
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
        };
        let rx = Rx::new(rx, connection.features, self.config.mtu);
        Ok(Queue { link, tx: Tx::new(tx), rx, channels, stop: Arc::clone(&connection.stop) })
    }

    /// Sets the tap up for what the frontend can do and empties it.
    fn prepare_tap(&self, features: Features, queues: usize) -> std::io::Result<()> {
        self.tap.set_active_queues(queues)?;
        self.tap.set_offload(offload(features))?;
        for queue in 0..self.tap.queues() {
            self.tap.drain(queue, MAX_STALE);
        }
        self.tap.set_carrier(true)
    }

    fn spawn(&self, mut queue: Queue, running: &Arc<AtomicUsize>) -> std::io::Result<JoinHandle<()>> {
        let requests = Arc::clone(&queue.link.requests);
        let name = format!("vif-{}-{}", self.config.index, queue.link.queue);
        running.fetch_add(1, SeqCst);
        let counted = Arc::clone(running);
        let body = move || {
            if let Err(error) = queue.run() {
                tracing::error!(
                    "{}: {error}; the interface is dead until its driver reconnects",
                    queue.link.tap.name()
                );
                // The other queues as well: the kernel goes on handing frames to all of them.
                queue.stop.order();
            }
            // The rings and event channels must be given back before the main thread is told.
            drop(queue);
            counted.fetch_sub(1, SeqCst);
            requests.kick();
        };
        thread::Builder::new().name(name).spawn(body).inspect_err(|_| {
            running.fetch_sub(1, SeqCst);
        })
    }
}

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
        let VifConfig { index, mac, vifname, mtu, toolstack } = &self.config;
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
        ];
        let features = features.map(|(key, value)| (key, value.to_owned()));
        let keys = config.into_iter().chain(features).map(|(key, value)| (key.to_owned(), value));
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
        };
        let mut list = Vec::new();
        for index in 0..queues {
            // A frontend of one queue writes its keys without a prefix.
            let prefix = if queues == 1 { String::new() } else { format!("queue-{index}/") };
            list.push(self.queue(index, &prefix, frontend, domain, &connection)?);
        }
        self.prepare_tap(features, queues).map_err(|error| {
            self.error(format_args!("the tap {} cannot be set up: {error}", self.tap.name()))
        })?;
        let spawned = list.into_iter().try_for_each(|queue| {
            connection.threads.push(self.spawn(queue, &connection.running)?);
            Ok::<_, std::io::Error>(())
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
        if connection.requests.wants_small_frames() && !connection.small_frames {
            connection.small_frames = true;
            let small = Offload { tso4: false, tso6: false, ..offload(connection.features) };
            let name = self.tap.name();
            match self.tap.set_offload(small) {
                Ok(()) => tracing::info!(
                    "{name}: large segments that the guest cannot take (of a VLAN?): \
                                          the host cuts them up from now on"
                ),
                Err(error) => tracing::warn!("{name}: segmentation cannot be switched on: {error}"),
            }
        }
        None
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
            ("notifications", &c.notifications),
            ("wakeups", &c.wakeups),
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

//! A vif: the configuration of an interface, and its connection to a frontend.

mod connection;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use devices::xen::xenbus::{BackendDevice, ConnectError, DomainHandle, FrontendKeys, Keys};

use crate::mac::MacAddr;
use crate::queue::{Clock, Counters, Features};
use crate::rate::{Credit, Rate};
use crate::steering::{MAX_HEADROOM, Settings};
use crate::tap::Tap;
use connection::Connection;

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

    /// Whether queues run.
    #[cfg(test)]
    pub(crate) fn connection_runs(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::runs)
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
}

/// What the frontend may change while it is connected. True if the headroom is another one than before.
fn read_live_keys(settings: &Settings, frontend: &dyn FrontendKeys) -> bool {
    settings.multicast.set_filter(number(frontend, MULTICAST_KEY) == Some(1));
    // One that wants more than there is gets what there is: it can tell by the offset of each frame.
    let headroom = number(frontend, HEADROOM_KEY).map_or(0, |bytes| bytes.min(MAX_HEADROOM.into()));
    settings.set_headroom(u16::try_from(headroom).unwrap_or(0))
}

/// Key of a frontend that has its list of multicast groups applied.
const MULTICAST_KEY: &str = "request-multicast-control";
/// Key of a frontend that wants bytes of room before received data.
const HEADROOM_KEY: &str = "xdp-headroom";

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
        let connection = Connection::new(features, queues, domain);
        let mut connection = connection.map_err(|error| self.error(error))?;
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
            connection.order_stop();
            // A tap that is gone has no cable either.
            let _ = self.tap.set_carrier(false);
        }
    }

    fn is_stopped(&mut self) -> bool {
        if self.connection.as_ref().is_some_and(Connection::runs) {
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
        let runs = connection.runs();
        if !runs {
            // The queues ended by themselves. It shows, and the bridge stops filling a tap that nobody reads.
            let _ = self.tap.set_carrier(false);
        }
        let name = self.tap.name();
        let stalled = connection.requests.is_stalled();
        if stalled != connection.stalled && runs {
            connection.stalled = stalled;
            match self.tap.set_carrier(!stalled) {
                _ if !self.counters.complaints.may_complain() => {}
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
            match self.connection.as_ref().map(|connection| self.set_offload(connection)) {
                _ if !self.counters.complaints.may_complain() => {}
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
        // A change of the tap takes a lock of all networks of the host: not for each key that a guest writes.
        if read_live_keys(&connection.settings, frontend)
            && let Err(error) = self.set_offload(connection)
        {
            tracing::debug!("{}: segmentation cannot be changed: {error}", self.tap.name());
        }
    }

    fn is_reconfigured(&mut self) -> bool {
        self.connection.as_ref().is_none_or(|connection| {
            // A queue that has ended goes by nothing any more.
            !connection.runs() || connection.settings.is_in_force()
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
        .map(|(name, counter)| (name, counter.load(Relaxed)))
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

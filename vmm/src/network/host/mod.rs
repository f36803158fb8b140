//! Networks of the host: shared ones like xenbr0, with a network card in the bridge, and private ones like
//! virbr0, with address translation, DHCP and DNS.
//!
//! Each change is one transaction. Its journal says which steps were begun, and what was there before, and is
//! on the disk before each step. A change that fails is undone at once, one that was interrupted by
//! [`repair`], and one that nobody confirms by a watchdog.
//!
//! ```text
//! definition     what a network is made of, /etc/xvmm/networks/NAME.json
//! commands       create, up, down, delete, repair, confirm, list, show
//! transaction    runs the steps of a plan, or undoes them; journal: the file that tells which
//! shared         the steps of a shared network; snapshot: what the host has on its network card
//! private        the steps of a private network; firewall: nftables; dnsmasq, supervisor: DHCP and DNS
//! managers       NetworkManager, systemd-networkd, ifupdown: kept from undoing it
//! watchdog       takes back what is not confirmed
//! hands          every single change of the host; tools, files, and network/netlink: by what means
//! ```

mod commands;
mod definition;
mod dnsmasq;
mod error;
mod files;
mod firewall;
mod hands;
mod journal;
mod managers;
mod prefix;
mod private;
mod shared;
mod snapshot;
mod status;
mod supervisor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tools;
mod transaction;
mod watchdog;

use std::path::{Path, PathBuf};

use super::netlink;

pub use commands::{Options, Report, confirm, create, delete, down, repair, reserve, up};
pub use definition::{
    DEFAULT_NETWORKS_DIR, DEFAULT_SUBNET, Definition, Kind, Layout, Private, Reservation, Shared, pool,
};
pub use error::HostNetError;
pub use prefix::Prefix;
pub use status::{Status, list, show};
pub use supervisor::supervise;
pub use tools::Tools;
pub use watchdog::watch;

/// Where the parts of a host are found.
#[derive(Clone, Debug)]
pub struct Host {
    /// The folder of definitions.
    pub definitions: PathBuf,
    /// The folder of running domains; journals and leases are in `networks` below it.
    pub run_dir: PathBuf,
    /// `/`: below it lie `etc`, `run` and so on of the programs that look after networks.
    pub root: PathBuf,
    /// The programs of the host.
    pub tools: Tools,
    /// xvmm itself, to be started in the background.
    pub program: PathBuf,
}

impl Host {
    /// The folder of what runs.
    pub(super) fn state(&self) -> PathBuf {
        self.run_dir.join("networks")
    }

    /// The file `NAME.SUFFIX` of what runs.
    fn state_file(&self, name: &str, suffix: &str) -> PathBuf {
        self.state().join(format!("{name}.{suffix}"))
    }

    /// A file of another program: `path` begins without a slash.
    fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }
}

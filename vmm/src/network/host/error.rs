//! Why a network of the host cannot be made, changed or taken away.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Each text names the network or the thing, the reason and the way out.
#[derive(Debug, Error)]
pub enum HostNetError {
    /// The name is none that an interface can have, or that is used in file names.
    #[error(
        "network {name:?}: not a name for a bridge; take 1 to {most} letters, digits, `-` and `_`, a letter first"
    )]
    Name {
        /// The name.
        name: String,
        /// The most characters.
        most: usize,
    },
    /// A value breaks its grammar or contradicts another one.
    #[error("network {name}: {problem}")]
    Invalid {
        /// The network.
        name: String,
        /// The reason and the way out.
        problem: String,
    },
    /// The network is there, and is something else.
    #[error("network {name}: {problem}")]
    Exists {
        /// The network.
        name: String,
        /// What is there, and the way out.
        problem: String,
    },
    /// There is no definition of it.
    #[error("network {0}: no network of that name; `xvmm network list` shows them")]
    Unknown(String),
    /// The uplink cannot be one.
    #[error("network {name}: uplink {uplink} {problem}")]
    Uplink {
        /// The network.
        name: String,
        /// The interface.
        uplink: String,
        /// The reason and the way out.
        problem: String,
    },
    /// The subnet is in use.
    #[error(
        "network {name}: subnet {subnet} overlaps with {other} on {device}; take another one with --subnet, like 192.168.123.1/24"
    )]
    Overlap {
        /// The network.
        name: String,
        /// The subnet that was asked for.
        subnet: String,
        /// The one that is there.
        other: String,
        /// Where it is.
        device: String,
    },
    /// A port that dnsmasq needs is taken.
    #[error(
        "network {name}: {protocol} port {port} of {address} is taken by another program; have it listen on its own addresses only (`ss -lnp sport = :{port}` names it), or use {flag}"
    )]
    PortTaken {
        /// The network.
        name: String,
        /// "UDP" or "TCP".
        protocol: &'static str,
        /// 53 or 67.
        port: u16,
        /// The address.
        address: String,
        /// The flag that does without.
        flag: &'static str,
    },
    /// A program is missing.
    #[error("network {name}: there is no {tool} on this host; on Debian: apt-get install {package}")]
    ToolMissing {
        /// The network.
        name: String,
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Not allowed.
    #[error("network {0}: not permitted to change the host's network; run as root or with CAP_NET_ADMIN")]
    NotPermitted(String),
    /// A program that looks after the uplink would undo the change.
    #[error("network {name}: {manager} {problem}")]
    Manager {
        /// The network.
        name: String,
        /// "NetworkManager", ...
        manager: &'static str,
        /// The reason and the way out.
        problem: String,
    },
    /// A step failed, and those before it were undone.
    #[error("network {name}: cannot {what}: {error}; everything is as it was before")]
    Undone {
        /// The network.
        name: String,
        /// The step.
        what: String,
        /// What the kernel or the program said.
        error: io::Error,
    },
    /// Undoing failed.
    #[error(
        "network {name}: cannot {what}: {error}; not everything could be undone{left}; `xvmm network repair {name}` tries again"
    )]
    NotUndone {
        /// The network.
        name: String,
        /// The step.
        what: String,
        /// What the kernel or the program said.
        error: io::Error,
        /// What could not be undone, in parentheses, if it is something else.
        left: String,
    },
    /// A change was interrupted.
    #[error(
        "network {0}: a change was interrupted, or waits to be confirmed; `xvmm network repair {0}` takes it back, `xvmm network confirm {0}` keeps what is complete"
    )]
    HalfMade(String),
    /// The journal was written in another network namespace.
    #[error("network {0}: it belongs to another network namespace; run this command there")]
    OtherNamespace(String),
    /// There is nothing to confirm.
    #[error("network {0}: nothing waits to be confirmed; its time may be over: see `xvmm network show {0}`")]
    NothingToConfirm(String),
    /// Guests are plugged in.
    #[error("network {name}: in use by {ports}; stop these guests first, or use --force")]
    InUse {
        /// The network.
        name: String,
        /// Interfaces on the bridge.
        ports: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A definition or a journal is damaged.
    #[error("{}: not understood: {problem}; correct it or remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// The host cannot answer.
    #[error("network {name}: cannot {what}: {error}")]
    Host {
        /// The network.
        name: String,
        /// What was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
}

/// A change of the host that failed.
#[derive(Debug)]
pub(super) struct StepError {
    /// What was tried, as in "cannot ...".
    pub(super) what: String,
    pub(super) error: io::Error,
}

impl StepError {
    pub(super) fn new(what: impl Into<String>, error: io::Error) -> StepError {
        StepError { what: what.into(), error }
    }
}

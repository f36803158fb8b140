//! Why an interface of a guest cannot be had: one sentence each.

use std::io;
use std::path::PathBuf;

use netback::TapError;
use thiserror::Error;

/// Why an interface of the guest cannot be plugged in. Each text names the bridge or the interface, the
/// reason and the way out.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// There is no interface of the bridge's name.
    #[error(
        "--net {0}: no bridge of that name; make it with `xvmm network create {0}`, or bring it up with `xvmm network up {0}`"
    )]
    NoBridge(String),
    /// The interface is not a bridge.
    #[error(
        "--net {bridge}: an interface of the kind {driver:?}, not a bridge; `ip link show type bridge` lists them"
    )]
    NotABridge {
        /// Name of the interface.
        bridge: String,
        /// Its driver; empty where it has none to tell.
        driver: String,
    },
    /// The bridge does not keep VLANs apart.
    #[error(
        "--net {bridge}: vlan={vlan} needs a bridge that filters VLANs; switch that on with `ip link set {bridge} type bridge vlan_filtering 1`"
    )]
    NoVlans {
        /// Name of the bridge.
        bridge: String,
        /// The VLAN.
        vlan: u16,
    },
    /// `vif-route` has no address to use.
    #[error(
        "--net: {0} has no IPv4 address for vif-route to use; name the interface that has one with gatewaydev="
    )]
    NoGateway(String),
    /// The tap cannot be made or used.
    #[error("--net: {0}")]
    Tap(#[from] TapError),
    /// The kernel refuses the MTU.
    #[error(
        "--net: interface {vifname} cannot have an mtu of {mtu}: {error}; give mtu= a value from 68 to 65521"
    )]
    Mtu {
        /// Name of the tap.
        vifname: String,
        /// Bytes.
        mtu: u16,
        /// What the kernel said.
        error: io::Error,
    },
    /// Not allowed.
    #[error(
        "--net {0}: not permitted to change interfaces; run as root or with CAP_NET_ADMIN, or pass an open tap with fd="
    )]
    NotPermitted(String),
    /// There is no `nft`.
    #[error("--net: {0} needs the program nft; install the package nftables, or set XVMM_NFT to its path")]
    NoNft(String),
    /// The rules of a filter cannot be made.
    #[error(
        "--net: the rules of an interface cannot be changed: {0}; `nft list ruleset` shows what is there"
    )]
    Filter(String),
    /// There is no such script.
    #[error(
        "--net: script {path}: no such program; without a path there are vif-bridge, vif-nat and vif-route, which need no file",
        path = .0.display()
    )]
    NoScript(PathBuf),
    /// A script failed.
    #[error("--net: script {path} {what}: {why}; correct the script, or leave script= out", path = .program.display())]
    Script {
        /// The script.
        program: PathBuf,
        /// What it was to do: "online", "offline".
        what: &'static str,
        /// What it said.
        why: String,
    },
    /// The interface cannot be set up.
    #[error("--net: cannot {what} the interface {name}: {error}")]
    Interface {
        /// Name of the interface.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// Anything else.
    #[error("--net {bridge}: cannot {what}: {error}")]
    Host {
        /// Name of the bridge.
        bridge: String,
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

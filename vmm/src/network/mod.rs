//! The host's side of a guest's interfaces: taps, and what they are plugged into.
//!
//! A tap is made as Xen's vif-bridge script leaves one: address fe:ff:ff:ff:ff:ff, no IP, up, in its bridge. It belongs
//! to the process and vanishes with it. Bridges, addresses and routes are asked and changed by ioctl and netlink; `nft` is
//! run for what filters or translates, and a script where one is named.

mod error;
mod filter;
mod hex;
pub mod host;
mod interface;
mod netlink;
mod nft;
mod routed;
mod rtnl;
mod script;
#[cfg(test)]
pub(crate) mod testing;

use std::fs;
use std::io;
use std::path::Path;

pub use error::NetworkError;
pub use netback::{MacAddr, MacError, Tap};
use netback::{ToolstackKeys, VifConfig};

use crate::config::{NetConfig, VifScript, VifType};
use filter::Filter;
use interface::Interfaces;
pub use nft::NFT_VARIABLE;
use nft::index_of;
use routed::Routed;
use rtnl::Rtnl;
use script::{Online, Script};

/// Bytes of payload of an interface whose bridge does not tell.
const DEFAULT_MTU: u16 = 1500;

/// Name of the tap of interface `index` of a domain, unless the user gives one. At most 15 characters for
/// every domain id and each of the first 1,000,000 interfaces.
pub fn vif_name(domid: u16, index: u32) -> String {
    format!("vif{domid}.{index}")
}

/// Checks that `bridge` is a bridge of the host. Changes nothing.
pub fn check_bridge(bridge: &str) -> Result<(), NetworkError> {
    let fail = |error| failed(bridge, || "ask the host about the bridge".to_owned(), error);
    match Interfaces::new().map_err(fail)?.driver(bridge) {
        Ok(driver) if driver == "bridge" => Ok(()),
        Ok(driver) => Err(NetworkError::NotABridge { bridge: bridge.to_owned(), driver }),
        // The loopback interface and some tunnels have no driver to tell.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err(NetworkError::NotABridge { bridge: bridge.to_owned(), driver: String::new() })
        }
        Err(error) => Err(fail(error)),
    }
}

/// The bridge's MTU: what an interface gets that names none.
pub fn bridge_mtu(bridge: &str) -> Result<u16, NetworkError> {
    /// The largest that a tap takes: 65,535 less an Ethernet header.
    const LARGEST: u16 = 65_521;
    let fail = |error| failed(bridge, || "ask the host about the bridge".to_owned(), error);
    let mtu = Interfaces::new().and_then(|interfaces| interfaces.mtu(bridge)).map_err(fail)?;
    Ok(u16::try_from(mtu).map_or(LARGEST, |mtu| mtu.min(LARGEST)))
}

/// Looks whether the host has what the interface needs. Changes nothing.
pub fn check(net: &NetConfig) -> Result<(), NetworkError> {
    if !net.fds.is_empty() {
        return Ok(Tap::check_passed(&net.fds).map(drop)?);
    }
    if !may_change_interfaces() {
        return Err(NetworkError::NotPermitted(net.what()));
    }
    if net.is_filtered() {
        nft::program(if net.ips.is_empty() { "mac-filter" } else { "ip=" })?;
    }
    match &net.script {
        VifScript::Bridge => {
            let bridge = net.bridge().unwrap_or_default();
            check_bridge(bridge)?;
            net.vlan.map_or(Ok(()), |vlan| check_vlans(bridge, vlan).map(drop))
        }
        VifScript::Nat => nft::program("vif-nat").map(drop),
        VifScript::Route => routed::host_address(net).map(drop),
        VifScript::Program(program) => Script::check(program),
    }
}

/// Removes what interfaces of processes that were killed have left on the host: rules of nftables.
pub fn clean_up() -> Result<(), NetworkError> {
    nft::sweep()
}

/// What an interface has on the host besides its tap. Undone in this order, while the tap is there.
#[derive(Debug)]
#[expect(dead_code, reason = "it is held")]
struct Plugged {
    online: Option<Online>,
    routed: Option<Routed>,
    filter: Option<Filter>,
}

/// Makes the interface of the domain `domid`, which has the state folder `folder`, and plugs it in. Number and address
/// are those of `net`. Whatever fails, nothing is left; and nothing is once the tap is dropped.
pub fn plug(net: &NetConfig, domid: u16, folder: &Path) -> Result<(VifConfig, Tap), NetworkError> {
    check(net)?;
    let devid = net.devid.unwrap_or(0);
    let mac = net.mac.unwrap_or_else(|| MacAddr::for_domain(None, devid));
    let (tap, mtu) = if net.fds.is_empty() {
        let name = net.vifname.clone().unwrap_or_else(|| vif_name(domid, devid));
        make(net, domid, devid, mac, &name, folder)?
    } else {
        let tap = Tap::passed(&net.fds)?;
        let own = Interfaces::new().and_then(|interfaces| interfaces.mtu(tap.name()));
        let own = own.ok().and_then(|mtu| u16::try_from(mtu).ok());
        (tap, net.mtu.or(own).unwrap_or(DEFAULT_MTU))
    };
    let vifname = tap.name().to_owned();
    let toolstack = ToolstackKeys {
        backend: backend_keys(net),
        frontend: vec![("trusted".to_owned(), u8::from(net.trusted).to_string())],
    };
    Ok((VifConfig { index: devid, mac, vifname, mtu, rate: net.rate, toolstack }, tap))
}

/// Makes the tap `name`, configures it, and plugs it in; with its MTU.
fn make(
    net: &NetConfig,
    domid: u16,
    devid: u32,
    mac: MacAddr,
    name: &str,
    folder: &Path,
) -> Result<(Tap, u16), NetworkError> {
    let mtu = match (&net.script, net.mtu, net.bridge()) {
        (_, Some(mtu), _) => mtu,
        (VifScript::Bridge, None, Some(bridge)) => bridge_mtu(bridge)?,
        _ => DEFAULT_MTU,
    };
    let tap = Tap::create(name, net.queue_count())?;
    let step = |what: &'static str| {
        let name = name.to_owned();
        move |error| NetworkError::Interface { name, what, error }
    };
    let interfaces = Interfaces::new().map_err(step("configure"))?;
    interfaces.set_mac(name, MacAddr::TAP).map_err(step("set the address of"))?;
    let refused = |error| NetworkError::Mtu { vifname: name.to_owned(), mtu, error };
    interfaces.set_mtu(name, mtu).map_err(refused)?;
    // A guest that is reached by routes over IPv6 needs a neighbour.
    let is_neighbour = net.bridge().is_none() && net.ips.iter().any(|ip| ip.address().is_ipv6());
    if !is_neighbour {
        disable_ipv6(name);
    }
    // Before anything can pass.
    let filter = Filter::install(name, mac, net)?;
    let (mut online, mut routed) = (None, None);
    match &net.script {
        VifScript::Bridge => {
            let bridge = net.bridge().unwrap_or_default();
            let fail = |error| failed(bridge, || format!("add to the bridge the interface {name}"), error);
            interfaces.add_to_bridge(name, bridge).map_err(fail)?;
            if let Some(vlan) = net.vlan {
                join_vlan(bridge, name, vlan)?;
            }
            interfaces.set_up(name).map_err(step("bring up"))?;
        }
        VifScript::Nat | VifScript::Route => {
            interfaces.set_up(name).map_err(step("bring up"))?;
            routed = Some(routed::set_up(name, net)?);
        }
        VifScript::Program(program) => {
            let mut keys = backend_keys(net);
            keys.extend(script_keys(net, devid, mac, domid));
            let (program, name, folder) = (program.clone(), name.to_owned(), folder.to_owned());
            online = Some(Script { program, name, domid, devid, folder, keys }.online()?);
        }
    }
    // A script may have changed it.
    let mtu = interfaces.mtu(name).ok().and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(mtu);
    Ok((tap.with_guard(Plugged { online, routed, filter }), mtu))
}

/// What Xen's toolstack writes into the backend's directory, besides what netback writes itself.
fn backend_keys(net: &NetConfig) -> Vec<(String, String)> {
    let ips: Vec<String> = net.ips.iter().map(ToString::to_string).collect();
    let kind = if net.kind == VifType::Ioemu { "vif_ioemu" } else { "vif" };
    let pairs = [
        ("bridge", net.bridge().map(str::to_owned)),
        ("script", Some(net.script_path()).filter(|_| net.fds.is_empty())),
        ("ip", Some(ips.join(" ")).filter(|ips| !ips.is_empty())),
        ("gatewaydev", net.gatewaydev.clone()),
        ("vlan", net.vlan.map(|vlan| vlan.to_string())),
        ("type", Some(kind.to_owned())),
    ];
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// What a script finds in xenstore beside that, but for `vifname`: the interface has its name already.
fn script_keys(net: &NetConfig, devid: u32, mac: MacAddr, domid: u16) -> Vec<(String, String)> {
    let pairs = [
        ("frontend", Some(format!("/local/domain/{domid}/device/vif/{devid}"))),
        ("frontend-id", Some(domid.to_string())),
        ("online", Some("1".to_owned())),
        ("state", Some("1".to_owned())),
        ("handle", Some(devid.to_string())),
        ("mac", Some(mac.to_string())),
        ("rate", net.rate.map(|rate| format!("{},{}", rate.bytes_per_interval, rate.interval_us))),
        ("mtu", net.mtu.map(|mtu| mtu.to_string())),
        ("hotplug-status", Some(String::new())),
    ];
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// Whether this thread has CAP_NET_ADMIN.
fn may_change_interfaces() -> bool {
    /// linux/capability.h
    const CAP_NET_ADMIN: u32 = 12;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Without /proc the kernel has to tell.
    mask.is_none_or(|mask| mask >> CAP_NET_ADMIN & 1 != 0)
}

/// Checks that the bridge keeps VLANs apart; what a new port belongs to. Changes nothing.
fn check_vlans(bridge: &str, vlan: u16) -> Result<u16, NetworkError> {
    let fail = |error| failed(bridge, || "ask the host about the bridge".to_owned(), error);
    let index = index_of(bridge).ok_or_else(|| NetworkError::NoBridge(bridge.to_owned()))?;
    let vlans = Rtnl::new().and_then(|mut rtnl| rtnl.bridge_vlans(index)).map_err(fail)?;
    if vlans.filtering {
        return Ok(vlans.default_pvid);
    }
    Err(NetworkError::NoVlans { bridge: bridge.to_owned(), vlan })
}

/// Puts the port `name` of the bridge into the VLAN, and into no other.
fn join_vlan(bridge: &str, name: &str, vlan: u16) -> Result<(), NetworkError> {
    let default = check_vlans(bridge, vlan)?;
    let join = || {
        let port = index_of(name).ok_or(io::ErrorKind::NotFound)?;
        let mut rtnl = Rtnl::new()?;
        rtnl.add_vlan(port, vlan)?;
        if default != 0 && default != vlan { rtnl.remove_vlan(port, default) } else { Ok(()) }
    };
    join().map_err(|error| failed(bridge, || format!("put {name} into the VLAN {vlan}"), error))
}

/// The host must not speak on the guest's cable: no link-local address, no router solicitations.
fn disable_ipv6(vifname: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{vifname}/disable_ipv6");
    match std::fs::write(&path, "1") {
        Ok(()) => {}
        // The host has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // /proc/sys may be read-only, as in a container. The guest is served all the same.
        Err(error) => tracing::warn!("{path}: {error}: the host keeps an IPv6 address on {vifname}"),
    }
}

fn failed(bridge: &str, what: impl Fn() -> String, error: io::Error) -> NetworkError {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => NetworkError::NoBridge(bridge.to_owned()),
        Some(libc::EPERM | libc::EACCES) => NetworkError::NotPermitted(bridge.to_owned()),
        _ => NetworkError::Host { bridge: bridge.to_owned(), what: what(), error },
    }
}

#[cfg(test)]
mod tests;

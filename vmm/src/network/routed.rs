//! Interfaces in no bridge, as Xen's scripts `vif-route` and `vif-nat` leave them: the host routes to the guest's
//! addresses through the interface, answers ARP for everybody else there (proxy_arp), and forwards.

use std::io;
use std::net::Ipv4Addr;

use super::NetworkError;
use super::interface::Interfaces;
use super::nft::{Chain, Family, index_of};
use super::rtnl::Rtnl;
use crate::config::{NetConfig, VifScript, nat_router};

/// The host's interface whose address the guest is reached by, unless `gatewaydev=` names another: Xen's default.
const DEFAULT_GATEWAY: &str = "eth0";
/// Of routes through a paravirtual interface; Xen gives those through emulated ones 1.
const ROUTE_METRIC: u32 = 2;

/// What is on the host for a routed interface besides what vanishes with it.
#[derive(Debug)]
pub(super) struct Routed(#[expect(dead_code, reason = "it is held")] Option<Chain>);

/// The address of the host on the interface. Changes nothing.
pub(super) fn host_address(net: &NetConfig) -> Result<Option<Ipv4Addr>, NetworkError> {
    match net.script {
        VifScript::Nat => Ok(net.ips.first().and_then(|ip| ip.single_v4()).and_then(nat_router)),
        // Without IPv4 addresses the guest needs none of the host's.
        VifScript::Route if net.ips.iter().any(|ip| ip.address().is_ipv4()) => {
            let gateway = net.gatewaydev.as_deref().unwrap_or(DEFAULT_GATEWAY);
            let address = Interfaces::new().and_then(|interfaces| interfaces.address(gateway));
            address.map(Some).map_err(|_| NetworkError::NoGateway(gateway.to_owned()))
        }
        _ => Ok(None),
    }
}

/// Routes to the guest through the interface `name`, which is up.
pub(super) fn set_up(name: &str, net: &NetConfig) -> Result<Routed, NetworkError> {
    let failed = |what: &'static str| {
        let name = name.to_owned();
        move |error: io::Error| NetworkError::Interface { name, what, error }
    };
    let host = host_address(net)?;
    let index = index_of(name).ok_or_else(|| failed("find")(io::ErrorKind::NotFound.into()))?;
    let mut rtnl = Rtnl::new().map_err(failed("configure"))?;
    if let Some(host) = host {
        rtnl.add_address(index, host).map_err(failed("give an address to"))?;
    }
    let metric = (net.script == VifScript::Route).then_some(ROUTE_METRIC);
    for ip in &net.ips {
        rtnl.add_route(index, (ip.address(), ip.prefix()), host, metric).map_err(failed("route through"))?;
        if ip.address().is_ipv4() {
            set("ipv4", name, "proxy_arp");
            set("ipv4", name, "forwarding");
        } else {
            set("ipv6", name, "forwarding");
        }
    }
    if net.script == VifScript::Route {
        let gateway = net.gatewaydev.as_deref().unwrap_or(DEFAULT_GATEWAY);
        if host.is_some() {
            set("ipv4", gateway, "forwarding");
        }
        return Ok(Routed(None));
    }
    let chain = net.ips.first().map(|guest| {
        let rule = format!("ip saddr {guest} oifname != \"{name}\" masquerade");
        let hook = "type nat hook postrouting priority srcnat; policy accept;";
        Chain::install(Family::Ip, name, hook, &[rule], &[])
    });
    // The way back comes in anywhere.
    set("ipv4", "all", "forwarding");
    chain.transpose().map(Routed)
}

/// Switches a setting of the kernel on.
fn set(family: &str, interface: &str, what: &str) {
    let path = format!("/proc/sys/net/{family}/conf/{interface}/{what}");
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == "1") {
        return;
    }
    if let Err(error) = std::fs::write(&path, "1") {
        tracing::warn!("{path}: {error}: the guest may not be reached from outside");
    }
}

#[cfg(test)]
#[path = "routed_tests.rs"]
mod tests;

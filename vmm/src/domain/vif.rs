//! Interfaces that a guest has from the start, and those that are attached and detached while it runs. What is common to
//! all devices is in [`super::hotplug`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use devices::xen::DomId;
use devices::xen::xenbus::DeviceId;
use netback::{MacAddr, NetDevice};
use serde_json::json;

use super::change::Plan;
use super::hotplug::{Arrival, Departure, Hotplug, Open, Opened, no_such_device};
use crate::api::{NetworkAttach, NetworkDetach};
use crate::config::{ConfigError, DomainConfig, NetConfig, Problem};
use crate::exit::{ExitStatus, Failure};
use crate::network;

/// How long the guest has to let go of an interface, unless the request says otherwise: as with Xen's toolstack.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for an interface that it loses in any case.
const FORCE_PATIENCE: Duration = Duration::from_secs(5);

/// The device of the interface of this number.
fn device_id(devid: u32) -> DeviceId {
    DeviceId { class: "vif", index: devid }
}

/// Makes the interfaces of a domain, with what they are plugged into; they are gone when the devices are dropped.
pub(super) fn make_all(
    config: &DomainConfig,
    domid: DomId,
    folder: &Path,
) -> Result<Vec<NetDevice>, Failure> {
    config.nets.iter().map(|net| make(net, domid, folder)).collect()
}

fn make(net: &NetConfig, domid: DomId, folder: &Path) -> Result<NetDevice, Failure> {
    let (vif, tap) = network::plug(net, domid.0, folder)?;
    Ok(NetDevice::new(vif, tap))
}

/// An interface without a number gets the first one that is free, and one without an address one as at the start.
pub(super) fn attach(
    hotplug: &Hotplug,
    domid: DomId,
    folder: PathBuf,
    mut config: DomainConfig,
    request: &NetworkAttach,
) -> Result<Plan, Failure> {
    let mut net: NetConfig = request.spec.parse()?;
    if !net.fds.is_empty() {
        let problem = "a running domain cannot be given a descriptor; give fd= when it is started";
        return Err(ConfigError::new("--net", &request.spec, Problem::Syntax(problem.into())).into());
    }
    if net.devid.is_none() {
        let used = |devid: &u32| {
            config.nets.iter().any(|net| net.devid == Some(*devid)) || hotplug.is_taken(device_id(*devid))
        };
        net.devid = (0..=crate::config::MAX_DEVID).find(|devid| !used(devid));
    }
    config.nets.push(net);
    config.assign_nets();
    config.validate()?;
    let net = config.nets.pop().unwrap_or_default();
    let devid = net.devid.unwrap_or(0);
    let answer = json!({
        "devid": devid,
        "mac": net.mac.map(|mac| mac.to_string()),
        "vifname": net.vifname.clone().unwrap_or_else(|| network::vif_name(domid.0, devid)),
    });
    let open: Open = Box::new(move || {
        let device = Box::new(make(&net, domid, &folder)?);
        let describe = Box::new(move |config: &mut DomainConfig| config.nets.push(net));
        Ok(Opened { device, describe })
    });
    Ok(Plan::Attach(Arrival { id: device_id(devid), name: format!("vif {devid}"), open, answer }, None))
}

/// The number of the interface that is called so: its number, its address, or its name on the host.
fn find(config: &DomainConfig, domid: DomId, name: &str) -> Result<u32, Failure> {
    let mac: Option<MacAddr> = name.parse().ok();
    let number: Option<u32> = name.parse().ok();
    let found = config.nets.iter().find_map(|net| {
        let devid = net.devid?;
        let vifname = net.vifname.clone().unwrap_or_else(|| network::vif_name(domid.0, devid));
        let is_it = number == Some(devid) || (mac.is_some() && net.mac == mac) || vifname == name;
        is_it.then_some(devid)
    });
    if found.is_none() && number.is_none() && mac.is_none() && !netback::is_interface_name(name) {
        let sentence = format!(
            "{name}: neither the number nor the MAC address of an interface; `xvmm network-list` shows them"
        );
        return Err(Failure::new(ExitStatus::Usage, sentence));
    }
    found.ok_or_else(|| no_such_device(name))
}

pub(super) fn detach(config: &DomainConfig, domid: DomId, request: &NetworkDetach) -> Result<Plan, Failure> {
    let devid = find(config, domid, &request.vif)?;
    let patience = request.timeout.unwrap_or(if request.force { FORCE_PATIENCE } else { PATIENCE });
    Ok(Plan::Detach(Departure {
        id: device_id(devid),
        name: format!("vif {devid}"),
        patience,
        force: request.force,
        describe: Box::new(move |config: &mut DomainConfig| {
            config.nets.retain(|net| net.devid != Some(devid))
        }),
    }))
}

#[cfg(test)]
#[path = "vif_tests.rs"]
mod tests;

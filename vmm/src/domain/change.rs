//! Requests that add devices to a guest that runs, and take them away: what each comes to.

use super::disks::LimitGroups;
use super::hotplug::{Arrival, Change, Departure, Describe, Hotplug};
use super::{block, vif};
use crate::api::{DeviceChange, Reply};

/// What a request comes to.
pub(super) enum Plan {
    /// A device comes, perhaps in the place of another.
    Attach(Arrival, Option<Departure>),
    Detach(Departure),
    /// A device stays, with another disc in it.
    Change(Change),
    /// No device comes or goes: the drive is empty.
    Describe(Describe),
}

/// Does what a request asks for, and answers it.
pub(super) fn change(hotplug: &mut Hotplug, groups: &LimitGroups, change: DeviceChange, reply: Reply) {
    let config = hotplug.config();
    let (domid, folder) = hotplug.domain();
    let planned = match change {
        DeviceChange::BlockAttach(request) => block::attach(hotplug, groups, &config, request),
        DeviceChange::BlockDetach(request) => block::detach(&config, &request),
        DeviceChange::CdInsert(request) => block::insert(hotplug, groups, &config, request),
        DeviceChange::CdEject(request) => block::eject(hotplug, &config, &request),
        DeviceChange::NetworkAttach(request) => vif::attach(hotplug, domid, folder, config, &request),
        DeviceChange::NetworkDetach(request) => vif::detach(&config, domid, &request),
    };
    match planned {
        Ok(Plan::Attach(arrival, before)) => hotplug.attach(arrival, before, reply),
        Ok(Plan::Detach(departure)) => hotplug.detach(departure, reply),
        Ok(Plan::Change(change)) => hotplug.change(change, reply),
        Ok(Plan::Describe(describe)) => hotplug.describe(describe, reply),
        Err(failure) => reply.send(Err(failure)),
    }
}

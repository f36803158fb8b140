//! What `xvmm network list` and `show` tell.

use serde::Serialize;

use super::commands::guests;
use super::definition::{Definition, Kind};
use super::error::HostNetError;
use super::journal::{COMPLETE, Journal, PENDING, Place};
use super::netlink::Netlink;
use super::transaction::Plan;
use super::{Host, dnsmasq, files, supervisor};

/// A network of the host at this moment.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// How it is defined. What waits to be confirmed, too, for its definition goes with it.
    pub definition: Definition,
    /// "up", "down", "unconfirmed", or "interrupted" in the middle of a change.
    pub state: &'static str,
    /// Interfaces of the host, as long as it is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Interfaces>,
    /// Whose bridge it is, if it is not xvmm's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Interfaces of guests in the bridge.
    pub guests: Vec<String>,
    /// Whether the supervisor of dnsmasq runs, where the network has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnsmasq: Option<bool>,
    /// Addresses that were given away.
    pub leases: Vec<Lease>,
}

/// The interfaces of a shared network.
#[derive(Clone, Debug, Serialize)]
pub struct Interfaces {
    /// The uplink's name in the bridge.
    pub uplink: String,
    /// The host's end.
    pub host: String,
    /// The bridge's end of the cable.
    pub cable: String,
}

/// A lease of dnsmasq.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// Seconds since 1970; 0 for ever.
    pub expires: u64,
    /// The Ethernet address.
    pub mac: String,
    /// The address.
    pub address: String,
    /// What the guest calls itself, or is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// All networks that are defined.
pub fn list(host: &Host) -> Result<Vec<Status>, HostNetError> {
    Definition::names(&host.definitions)?.iter().map(|name| show(host, name)).collect()
}

/// One network.
pub fn show(host: &Host, name: &str) -> Result<Status, HostNetError> {
    let definition = Definition::load(&host.definitions, name)?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| HostNetError::Host { name: name.to_owned(), what, error }
    };
    let pending = Journal::open(host, name, PENDING)?;
    let journal = match pending {
        Some(journal) => Some((journal, false)),
        None => Journal::open(host, name, COMPLETE)?.map(|journal| (journal, true)),
    };
    let here = match journal {
        Some((journal, complete))
            if journal.header.place().map_err(failed("read the journal"))? == Place::Here =>
        {
            Some((journal, complete))
        }
        _ => None,
    };
    let bridge =
        Netlink::new().and_then(|mut netlink| netlink.link(name)).map_err(failed("look for the bridge"))?;
    let state = match &here {
        None => "down",
        Some((_, true)) if bridge.is_none() => "interrupted",
        Some((_, true)) => "up",
        Some((journal, false)) if journal.made => "unconfirmed",
        Some((_, false)) => "interrupted",
    };
    let plan = here.as_ref().map(|(journal, _)| &journal.header.plan);
    let interfaces = match plan {
        Some(Plan::Shared(plan)) if bridge.is_some() => {
            Some(Interfaces { uplink: plan.port.clone(), host: plan.host.clone(), cable: plan.cable.clone() })
        }
        _ => None,
    };
    let owner = match plan {
        Some(Plan::Private(plan)) => plan.owner.clone(),
        _ => None,
    };
    let guests = plan.map(|plan| guests(name, plan)).transpose().map_err(failed("list the ports"))?;
    let serves =
        matches!(&definition.kind, Kind::Private(private) if dnsmasq::is_wanted(private)) && owner.is_none();
    let leases = files::read(&host.state_file(name, dnsmasq::LEASES)).ok().flatten().unwrap_or_default();
    Ok(Status {
        state,
        interfaces,
        owner,
        guests: guests.unwrap_or_default(),
        dnsmasq: serves.then(|| supervisor::runs(host, name)),
        leases: leases.lines().filter_map(lease).collect(),
        definition,
    })
}

/// `EXPIRES MAC ADDRESS NAME CLIENT-ID`; `*` for no name. Other lines are about IPv6.
fn lease(line: &str) -> Option<Lease> {
    let mut words = line.split_whitespace();
    let expires = words.next()?.parse().ok()?;
    let (mac, address, name) = (words.next()?, words.next()?, words.next()?);
    mac.parse::<netback::MacAddr>().ok()?;
    Some(Lease {
        expires,
        mac: mac.to_owned(),
        address: address.to_owned(),
        name: (name != "*").then(|| name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read() {
        let found = lease("1700000000 00:16:3e:00:00:01 192.168.122.10 web 01:00:16:3e:00:00:01");
        let expected = Lease {
            expires: 1_700_000_000,
            mac: "00:16:3e:00:00:01".into(),
            address: "192.168.122.10".into(),
            name: Some("web".into()),
        };
        assert_eq!(found, Some(expected));
        assert_eq!(lease("duid 00:01:00"), None);
    }
}

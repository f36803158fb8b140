//! A shared network: the uplink in the bridge, and the host behind a cable of its own.
//!
//! ```text
//! plain                                 classic
//! eth0 --+                              peth0 --+
//!        xenbr0 -- xenbr0-port                  xenbr0 -- vif0.0
//! vifD.N-+          | xenbr0-host       vifD.N--+          | eth0
//! ```
//!
//! The host's end has the uplink's Ethernet address, so that leases, switches and neighbours see the host
//! where it was. The uplink has fe:ff:ff:ff:ff:ff instead, as on a Xen host.

use netback::MacAddr;
use serde::{Deserialize, Serialize};

use super::definition::{Definition, Layout, Shared};
use super::error::HostNetError;
use super::hands::{Done, Hands, LinkChange, read_sysctl};
use super::journal::{self, COMPLETE, Journal};
use super::managers::Managers;
use super::netlink::{Link, Netlink};
use super::snapshot::{Place, Snapshot};
use super::transaction::{OldDefinition, Plan, Step};
use super::{Host, files};

/// What is to be done for a shared network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SharedPlan {
    pub(super) bridge: String,
    /// The uplink's name in the bridge.
    pub(super) port: String,
    /// The uplink's address in the bridge.
    port_mac: Vec<u8>,
    /// The host's end of the cable.
    pub(super) host: String,
    /// The bridge's end of it.
    pub(super) cable: String,
    /// The uplink as it was.
    pub(super) before: Snapshot,
    /// Keys below /proc/sys: before and after.
    settings: Vec<(String, String, String)>,
    managers: Managers,
    pub(super) define: Option<OldDefinition>,
}

/// Bridged frames go through the rules of IP where these are 1.
const BRIDGE_FILTERS: [&str; 3] = ["iptables", "ip6tables", "arptables"];

impl SharedPlan {
    /// Looks at the host; changes nothing.
    pub(super) fn new(host: &Host, name: &str, shared: &Shared) -> Result<SharedPlan, HostNetError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error| HostNetError::Host { name: name.to_owned(), what, error }
        };
        let mut netlink = Netlink::new().map_err(failed("talk to the kernel"))?;
        let links = netlink.links().map_err(failed("list the interfaces"))?;
        let uplink = check_uplink(&links, name, &shared.uplink)?;
        let uplink_name = uplink.name.clone();
        let (port, host_end, cable) = match shared.layout {
            Layout::Plain => (uplink_name.clone(), format!("{name}-host"), format!("{name}-port")),
            Layout::Classic => {
                (format!("p{uplink_name}"), uplink_name.clone(), free_vif(&links, &uplink_name))
            }
        };
        for wanted in [name, &port, &host_end, &cable] {
            let taken = links.iter().find(|link| {
                link.index != uplink.index
                    && (link.name == *wanted || link.altnames.iter().any(|alt| alt == wanted))
            });
            if let Some(taken) = taken {
                let kind = if taken.kind.is_empty() { "" } else { &taken.kind };
                return Err(HostNetError::Exists {
                    name: name.to_owned(),
                    problem: format!(
                        "there is an interface {wanted} already{}{kind}, which xvmm did not make; delete it (`ip link delete {wanted}`) or take another name",
                        if kind.is_empty() { "" } else { ", a " },
                    ),
                });
            }
        }
        let port_mac =
            if uplink.kind == "bond" { other_mac(&uplink.mac) } else { MacAddr::TAP.bytes().to_vec() };
        let before = Snapshot::take(&mut netlink, uplink).map_err(failed("read what the uplink has"))?;
        if let Some(obstacle) = before.obstacle() {
            return Err(HostNetError::Uplink {
                name: name.to_owned(),
                uplink: uplink_name,
                problem: format!(
                    "cannot be moved: there are {obstacle} (`ip nexthop`), which the kernel deletes with it; take routes without them"
                ),
            });
        }
        let others = others(host, name);
        let mut settings = Vec::new();
        for filter in BRIDGE_FILTERS {
            let key = format!("net/bridge/bridge-nf-call-{filter}");
            // The last network that goes sets back what the first one found.
            let found = others.iter().flat_map(|other| &other.settings).find(|(other, _, _)| *other == key);
            let old = found.map(|(_, old, _)| old.clone());
            let old = read_sysctl(&key).map(|value| if value == "0" { old.unwrap_or(value) } else { value });
            if let Some(old) = old.filter(|old| old != "0") {
                settings.push((key, old, "0".to_owned()));
            }
        }
        let managers = Managers::plan(host, name, &before, shared.layout, [name, &port, &cable, &host_end])?;
        Ok(SharedPlan {
            bridge: name.to_owned(),
            port,
            port_mac,
            host: host_end,
            cable,
            before,
            settings,
            managers,
            define: None,
        })
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let all = [
            (Step::Define, self.define.is_some()),
            (Step::Exclude, self.managers.has_exclusion()),
            (Step::Settings, !self.settings.is_empty()),
            (Step::Bridge, true),
            (Step::Release, true),
            (Step::Dress, true),
            (Step::Cable, true),
            (Step::Plug, true),
            (Step::Carry, true),
            (Step::Resolve, self.managers.has_resolver()),
        ];
        all.into_iter().filter(|(_, used)| *used).map(|(step, _)| step).collect()
    }

    pub(super) fn describe(&self, step: Step) -> String {
        let SharedPlan { bridge, port, host, cable, before, .. } = self;
        let uplink = &before.link.name;
        match step {
            Step::Exclude => self.managers.describe(),
            Step::Settings => {
                let keys: Vec<_> =
                    self.settings.iter().map(|(key, _, new)| format!("{key} = {new}")).collect();
                format!("set {}", keys.join(", "))
            }
            Step::Bridge => format!("make the bridge {bridge}, without an address and a forward delay"),
            Step::Release => format!("take the addresses from {uplink}, and take it down"),
            Step::Dress if port == uplink => {
                format!("give {uplink} the address {}", mac_text(&self.port_mac))
            }
            Step::Dress => format!("call {uplink} {port}, with the address {}", mac_text(&self.port_mac)),
            Step::Cable => format!(
                "make {host}, with the address {}, and {cable} at its other end",
                mac_text(&before.link.mac)
            ),
            Step::Plug => format!("put {port} and {cable} into {bridge}"),
            Step::Carry => {
                let count = before.addresses.len();
                format!(
                    "bring up {host} with the {count} addresses of {uplink}, its routes, rules and settings"
                )
            }
            Step::Resolve => format!("tell systemd-resolved the DNS servers of {host}"),
            Step::Define | Step::Address | Step::Firewall | Step::Serve => String::new(),
        }
    }

    /// What the user should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.managers.warnings();
        if !self.settings.is_empty() {
            warnings.push(
                "bridged frames went through the host's iptables (net.bridge.bridge-nf-call-*); this is switched off, for a rule made for the host would drop what guests send; Kubernetes needs it".into(),
            );
        }
        warnings
    }

    pub(super) fn perform(&self, step: Step, hands: &mut Hands<'_>) -> Done {
        let SharedPlan { bridge, port, host, cable, before, .. } = self;
        let uplink = &before.link;
        match step {
            Step::Exclude => self.managers.exclude(hands),
            Step::Settings => self.settings.iter().try_for_each(|(key, _, new)| hands.sysctl(key, new)),
            Step::Bridge => {
                hands.create_bridge(bridge, &MacAddr::TAP.bytes(), Some(uplink.mtu))?;
                no_ipv6(hands, bridge)?;
                let link = hands.expect(bridge)?;
                // The kernel answers for all addresses of the host on all interfaces: without this, it would tell
                // the neighbours the bridge's address as well as that of the host's end.
                let change = LinkChange { up: Some(true), no_arp: true, ..LinkChange::default() };
                hands.set_link(link.index, &format!("bring up {bridge}"), &change)
            }
            Step::Release => {
                before.strip(hands)?;
                if uplink.is_up() { set_up(hands, uplink, false) } else { Ok(()) }
            }
            Step::Dress => {
                if *port != uplink.name {
                    let change = LinkChange { name: Some(port), ..LinkChange::default() };
                    hands.set_link(uplink.index, &format!("call {} {port}", uplink.name), &change)?;
                }
                no_ipv6(hands, port)?;
                let change = LinkChange { mac: Some(&self.port_mac), ..LinkChange::default() };
                hands.set_link(uplink.index, &format!("set the address of {port}"), &change)
            }
            Step::Cable => {
                let tap = MacAddr::TAP.bytes();
                hands.create_veth((host, &uplink.mac), (cable, &tap), uplink.mtu)?;
                no_ipv6(hands, cable)
            }
            Step::Plug => {
                let bridge = hands.expect(bridge)?;
                for name in [port, cable] {
                    let link = hands.expect(name)?;
                    let change = LinkChange { master: Some(bridge.index), ..LinkChange::default() };
                    hands.set_link(link.index, &format!("put {name} into {}", bridge.name), &change)?;
                    set_up(hands, &link, true)?;
                }
                Ok(())
            }
            Step::Carry => {
                let link = hands.expect(host)?;
                let mut carried = before.moved(Place { index: link.index, name: host });
                // The host's end is there to be used.
                carried.link.flags |= super::netlink::IFF_UP;
                carried.apply(hands)
            }
            Step::Resolve => self.managers.resolve(hands, host),
            Step::Define | Step::Address | Step::Firewall | Step::Serve => Ok(()),
        }
    }

    pub(super) fn undo(&self, step: Step, hands: &mut Hands<'_>) -> Done {
        let before = &self.before;
        match step {
            Step::Exclude => self.managers.include(hands),
            Step::Settings if !others(hands.host, &self.bridge).is_empty() => Ok(()),
            Step::Settings => self.settings.iter().try_for_each(|(key, old, _)| {
                if read_sysctl(key).is_some_and(|value| value != *old) {
                    hands.sysctl(key, old)
                } else {
                    Ok(())
                }
            }),
            Step::Bridge => hands.delete_link(&self.bridge, "bridge"),
            // What it had is given back at once, when its name and address are.
            Step::Release => before.apply(hands),
            Step::Dress => self.undress(hands),
            // Both ends vanish.
            Step::Cable => hands.delete_link(&self.cable, "veth"),
            Step::Plug => {
                let link = self.uplink(hands)?;
                let change = LinkChange { master: Some(0), ..LinkChange::default() };
                if link.master.is_none() {
                    return Ok(());
                }
                hands.set_link(link.index, &format!("take {} from {}", link.name, self.bridge), &change)
            }
            Step::Carry | Step::Resolve | Step::Define | Step::Address | Step::Firewall | Step::Serve => {
                Ok(())
            }
        }
    }

    /// The uplink, by whichever name.
    fn uplink(&self, hands: &mut Hands<'_>) -> Result<Link, super::error::StepError> {
        let index = self.before.link.index;
        let links = hands.read("list the interfaces", Netlink::links)?;
        let gone = || std::io::Error::other("the uplink is gone");
        links
            .into_iter()
            .find(|link| link.index == index)
            .ok_or_else(|| super::error::StepError::new(format!("find {}", self.before.link.name), gone()))
    }

    fn undress(&self, hands: &mut Hands<'_>) -> Done {
        let now = self.uplink(hands)?;
        let then = &self.before.link;
        if now.is_up() && (now.name != then.name || now.mac != then.mac) {
            set_up(hands, &now, false)?;
        }
        if now.name != then.name {
            let change = LinkChange { name: Some(&then.name), ..LinkChange::default() };
            hands.set_link(now.index, &format!("call {} {}", now.name, then.name), &change)?;
        }
        if now.mac != then.mac {
            let change = LinkChange { mac: Some(&then.mac), ..LinkChange::default() };
            hands.set_link(now.index, &format!("set the address of {}", then.name), &change)?;
        }
        if now.is_up() && !then.is_up() {
            set_up(hands, &now, false)?;
        }
        if now.mtu != then.mtu {
            let change = LinkChange { mtu: Some(then.mtu), ..LinkChange::default() };
            hands.set_link(now.index, &format!("set the mtu of {}", then.name), &change)?;
        }
        if now.txqlen != then.txqlen {
            let change = LinkChange { txqlen: Some(then.txqlen), ..LinkChange::default() };
            hands.set_link(now.index, &format!("set the queue of {}", then.name), &change)?;
        }
        Ok(())
    }

    /// Takes what the host's end has now for what the uplink gets back: addresses may have changed since.
    pub(super) fn refresh(&mut self, definition: &Definition) -> Result<(), HostNetError> {
        let failed = |error| HostNetError::Host {
            name: definition.name.clone(),
            what: format!("read what {} has", self.host),
            error,
        };
        let mut netlink = Netlink::new().map_err(failed)?;
        let Some(link) = netlink.link(&self.host).map_err(failed)?.filter(|link| link.kind == "veth") else {
            // Somebody took the host's end away: the uplink gets what it had then.
            return Ok(());
        };
        let place = Place { index: self.before.link.index, name: &self.before.link.name };
        let mut now = Snapshot::take(&mut netlink, link).map_err(failed)?.moved(place);
        now.link = Link { flags: self.before.link.flags, ..self.before.link.clone() };
        self.before = now;
        Ok(())
    }
}

/// The other shared networks that are up.
fn others(host: &Host, name: &str) -> Vec<SharedPlan> {
    let names = files::stems(&host.state(), &format!(".{COMPLETE}")).unwrap_or_default();
    let names = names.into_iter().filter(|other| other != name);
    let plan = |name: String| {
        let journal = Journal::open(host, &name, COMPLETE).ok().flatten()?;
        match (journal.header.place().ok()?, journal.header.plan) {
            (journal::Place::Here, Plan::Shared(plan)) => Some(*plan),
            _ => None,
        }
    };
    names.filter_map(plan).collect()
}

/// The interface `name`, if it can be an uplink.
fn check_uplink(links: &[Link], network: &str, name: &str) -> Result<Link, HostNetError> {
    let refuse =
        |problem: String| HostNetError::Uplink { name: network.to_owned(), uplink: name.to_owned(), problem };
    let uplink = links.iter().find(|link| link.name == name || link.altnames.iter().any(|alt| alt == name));
    let uplink = uplink.ok_or_else(|| refuse("does not exist; `ip -br link` lists the interfaces".into()))?;
    if let Some(master) = uplink.master {
        let master = links.iter().find(|link| link.index == master);
        let (kind, of) = master.map_or(("", ""), |master| (master.kind.as_str(), master.name.as_str()));
        return Err(refuse(match kind {
            "bridge" => format!(
                "is in the bridge {of} already; use that one, or take it out with `ip link set {name} nomaster`"
            ),
            _ => format!("is a part of {of}; take {of} as the uplink"),
        }));
    }
    if uplink.layer != libc::ARPHRD_ETHER || uplink.mac.len() != 6 {
        return Err(refuse(
            "is no Ethernet interface, and a bridge takes no other; `ip -br link` lists the interfaces"
                .into(),
        ));
    }
    if matches!(uplink.kind.as_str(), "bridge" | "tun" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "vrf")
    {
        return Err(refuse(format!(
            "is a {}; take the network card, the bond or the VLAN below it",
            uplink.kind
        )));
    }
    let upper = links.iter().find(|link| {
        link.lower == Some(uplink.index)
            && !link.lower_elsewhere
            && link.kind != "veth"
            && link.index != uplink.index
    });
    if let Some(upper) = upper {
        return Err(refuse(format!(
            "carries {}, which would lose its network; take {} as the uplink, or make it anew on the host's end afterwards",
            upper.name, upper.name
        )));
    }
    Ok(uplink.clone())
}

/// `vif0.N`: N as in the uplink's name, if that one is free.
fn free_vif(links: &[Link], uplink: &str) -> String {
    let digits = uplink.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let own = (!uplink.contains('.')).then(|| digits.parse().ok().filter(|number| *number < 1000)).flatten();
    let mut candidates = own.into_iter().chain(0..).map(|number: u32| format!("vif0.{number}"));
    // The last part is reached with more interfaces than the kernel can have.
    candidates.find(|name| links.iter().all(|link| link.name != *name)).unwrap_or_default()
}

/// A bond speaks LACP under its address: two of them with the same one confuse the switch.
fn other_mac(mac: &[u8]) -> Vec<u8> {
    let mut mac = mac.to_vec();
    if let Some(first) = mac.first_mut() {
        // Locally administered, or not.
        *first ^= 2;
    }
    mac
}

pub(super) fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The host does not speak on it.
fn no_ipv6(hands: &mut Hands<'_>, name: &str) -> Done {
    let key = format!("net/ipv6/conf/{name}/disable_ipv6");
    if read_sysctl(&key).is_some_and(|value| value != "1") { hands.sysctl(&key, "1") } else { Ok(()) }
}

fn set_up(hands: &mut Hands<'_>, link: &Link, up: bool) -> Done {
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    let what = if up { format!("bring up {}", link.name) } else { format!("take {} down", link.name) };
    hands.set_link(link.index, &what, &change)
}

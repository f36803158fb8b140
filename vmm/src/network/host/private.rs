//! A private network: a bridge with the host's address, rules of nftables, and a dnsmasq.

use std::fs;
use std::net::IpAddr;

use netback::MacAddr;
use serde::{Deserialize, Serialize};

use super::definition::Private;
use super::error::{HostNetError, StepError};
use super::hands::{Done, Hands, LinkChange, read_sysctl};
use super::netlink::{Link, Message, Netlink};
use super::prefix::Prefix;
use super::transaction::{OldDefinition, Step};
use super::{Host, dnsmasq, files, firewall, supervisor};

/// What is to be done for a private network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PrivatePlan {
    pub(super) bridge: String,
    pub(super) private: Private,
    /// Whose bridge it is, if it is not ours: nothing is done to it then.
    pub(super) owner: Option<String>,
    /// Keys below /proc/sys: before and after.
    settings: Vec<(String, String, String)>,
    pub(super) define: Option<OldDefinition>,
}

impl PrivatePlan {
    /// Looks at the host; changes nothing.
    pub(super) fn new(host: &Host, name: &str, private: &Private) -> Result<PrivatePlan, HostNetError> {
        let failed = |error| HostNetError::Host {
            name: name.to_owned(),
            what: "ask the kernel about the network".into(),
            error,
        };
        let mut netlink = Netlink::new().map_err(failed)?;
        let links = netlink.links().map_err(failed)?;
        let addresses = addresses(&mut netlink).map_err(failed)?;
        let mut plan = PrivatePlan {
            bridge: name.to_owned(),
            private: private.clone(),
            owner: None,
            settings: Vec::new(),
            define: None,
        };
        if let Some(link) =
            links.iter().find(|link| link.name == name || link.altnames.iter().any(|alt| alt == name))
        {
            plan.owner = Some(check_owner(host, link, &addresses, private)?);
            return Ok(plan);
        }
        check_overlap(&mut netlink, &links, &addresses, name, private)?;
        need(host, name, "nft", "nftables")?;
        if dnsmasq::is_wanted(private) {
            need(host, name, "dnsmasq", "dnsmasq-base")?;
            dnsmasq::check_ports(name, private)?;
        }
        plan.settings = settings(&links, private);
        Ok(plan)
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let ours = self.owner.is_none();
        let all = [
            (Step::Define, self.define.is_some()),
            (Step::Settings, !self.settings.is_empty()),
            (Step::Bridge, ours),
            (Step::Address, ours),
            (Step::Firewall, ours),
            (Step::Serve, ours && dnsmasq::is_wanted(&self.private)),
        ];
        all.into_iter().filter(|(_, used)| *used).map(|(step, _)| step).collect()
    }

    pub(super) fn describe(&self, step: Step) -> String {
        let PrivatePlan { bridge, private, .. } = self;
        match step {
            Step::Settings => {
                let keys: Vec<_> =
                    self.settings.iter().map(|(key, _, new)| format!("{key} = {new}")).collect();
                format!("set {}", keys.join(", "))
            }
            Step::Bridge => format!("make the bridge {bridge}, without a forward delay"),
            Step::Address => {
                let six = private.address6().map(|prefix| format!(" and {prefix}")).unwrap_or_default();
                format!("give {bridge} the address {}{six}, and bring it up", private.subnet)
            }
            Step::Firewall => {
                let nat = if private.nat { ", with address translation" } else { "" };
                format!("make the table inet {} of nftables{nat}", firewall::table(bridge))
            }
            Step::Serve => {
                let dhcp = private.dhcp.map(|(first, last)| format!(" DHCP {first}-{last}"));
                let dns = private.dns.then(|| " DNS".to_owned());
                let ra = private.ipv6.map(|_| " router advertisements".to_owned());
                let what: Vec<_> = [dhcp, dns, ra].into_iter().flatten().collect();
                format!("start dnsmasq for{}", what.join(","))
            }
            _ => String::new(),
        }
    }

    /// What the user should know.
    pub(super) fn warnings(&self, host: &Host) -> Vec<String> {
        if let Some(owner) = &self.owner {
            return vec![format!(
                "{} is {owner}'s, and used as it is; {owner} gives the addresses",
                self.bridge
            )];
        }
        // A host that does not tell its rules has none that are known.
        let ruleset = host.tools.run("nft", &["-j", "list", "ruleset"], "").unwrap_or_default();
        let mut warnings = firewall::obstacles(&self.bridge, &ruleset);
        let legacy = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
        if legacy.lines().any(|table| table == "filter") {
            warnings.push(format!(
                "there are rules of iptables-legacy, which nft does not show: see that `iptables-legacy -S FORWARD` lets {} through",
                self.bridge
            ));
        }
        warnings
    }

    pub(super) fn perform(&self, step: Step, hands: &mut Hands<'_>) -> Done {
        let PrivatePlan { bridge, private, .. } = self;
        match step {
            Step::Settings => self.settings.iter().try_for_each(|(key, _, new)| hands.sysctl(key, new)),
            Step::Bridge => {
                // Always the same one: a bridge without ports would get a random one at each start.
                let mac = MacAddr::for_domain(Some(&format!("the host on {bridge}")), 0);
                hands.create_bridge(bridge, &mac.bytes(), None)
            }
            Step::Address => self.address(hands),
            Step::Firewall => hands.run("nft", &["-f", "-"], &firewall::ruleset(bridge, private)).map(|_| ()),
            Step::Serve => {
                let host = hands.host;
                hands.write_file(
                    &host.state_file(bridge, dnsmasq::CONFIG),
                    &dnsmasq::config(host, bridge, private),
                )?;
                hands.write_file(&host.state_file(bridge, dnsmasq::HOSTS), &dnsmasq::hosts(private))?;
                hands.other("start dnsmasq", || supervisor::start(host, bridge))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn undo(&self, step: Step, removing: bool, hands: &mut Hands<'_>) -> Done {
        let bridge = &self.bridge;
        match step {
            // A host that has been routing for a while may do so for others by now.
            Step::Settings if !removing => self.settings.iter().rev().try_for_each(|(key, old, _)| {
                if read_sysctl(key).is_some_and(|value| value != *old) {
                    hands.sysctl(key, old)
                } else {
                    Ok(())
                }
            }),
            Step::Bridge => hands.delete_link(bridge, "bridge"),
            Step::Firewall => hands.run("nft", &["-f", "-"], &firewall::removal(bridge)).map(|_| ()),
            Step::Serve => {
                let host = hands.host;
                hands.other("stop dnsmasq", || supervisor::stop(host, bridge))?;
                let suffixes =
                    [dnsmasq::CONFIG, dnsmasq::HOSTS, dnsmasq::PID, dnsmasq::LOG, supervisor::LOCK];
                suffixes
                    .into_iter()
                    .try_for_each(|suffix| hands.remove_file(&host.state_file(bridge, suffix)))?;
                if removing { Ok(()) } else { hands.remove_file(&host.state_file(bridge, dnsmasq::LEASES)) }
            }
            _ => Ok(()),
        }
    }

    fn address(&self, hands: &mut Hands<'_>) -> Done {
        let PrivatePlan { bridge, private, .. } = self;
        let link = hands.expect(bridge)?;
        let six = private.address6();
        let keys = if six.is_some() {
            // No test of addresses: without a guest there is no carrier, and it would never end.
            vec![("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")]
        } else {
            vec![("disable_ipv6", "1")]
        };
        for (key, value) in keys {
            let key = format!("net/ipv6/conf/{bridge}/{key}");
            if read_sysctl(&key).is_some_and(|present| present != value) {
                hands.sysctl(&key, value)?;
            }
        }
        let change = LinkChange { up: Some(true), ..LinkChange::default() };
        hands.set_link(link.index, &format!("bring up {bridge}"), &change)?;
        for prefix in [Some(private.subnet), six].into_iter().flatten() {
            let message = address_message(link.index, prefix);
            let flags = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_EXCL;
            hands.send(&format!("give {bridge} the address {prefix}"), &message, flags)?;
        }
        Ok(())
    }

    /// Mends what others may have broken: rules that went with a flush of all, a dnsmasq that is gone.
    /// Returns what was done.
    pub(super) fn mend(&self, hands: &mut Hands<'_>) -> Result<Vec<String>, StepError> {
        let mut mended = Vec::new();
        if self.owner.is_some() {
            return Ok(mended);
        }
        let table = firewall::table(&self.bridge);
        if hands.tools().run("nft", &["list", "table", "inet", &table], "").is_err() {
            self.perform(Step::Firewall, hands)?;
            mended.push(self.describe(Step::Firewall));
        }
        if dnsmasq::is_wanted(&self.private) && !supervisor::runs(hands.host, &self.bridge) {
            self.perform(Step::Serve, hands)?;
            mended.push(self.describe(Step::Serve));
        }
        Ok(mended)
    }
}

fn address_message(index: u32, prefix: Prefix) -> Message {
    let mut message = Message::new(libc::RTM_NEWADDR);
    let (family, bytes) = match prefix.address() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    message.set_header(0, &[u8::try_from(family).unwrap_or(0), prefix.bits()]);
    message.set_header(4, &index.to_ne_bytes());
    message.set(libc::IFA_LOCAL, bytes.clone());
    message.set(libc::IFA_ADDRESS, bytes);
    if let Some(broadcast) = prefix.broadcast() {
        message.set(libc::IFA_BROADCAST, broadcast.octets());
    }
    message
}

/// Index of the interface and prefix of each address of the host.
fn addresses(netlink: &mut Netlink) -> std::io::Result<Vec<(u32, Prefix)>> {
    let parse = |message: Message| {
        let bytes = message.get(libc::IFA_ADDRESS)?;
        Some((message.header_u32(4), Prefix::new(ip(bytes)?, message.header_u8(1))?))
    };
    Ok(netlink.dump(libc::RTM_GETADDR, 0)?.into_iter().filter_map(parse).collect())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Whose the bridge is that is there already.
fn check_owner(
    host: &Host,
    link: &Link,
    addresses: &[(u32, Prefix)],
    private: &Private,
) -> Result<String, HostNetError> {
    let exists = |problem: String| HostNetError::Exists { name: link.name.clone(), problem };
    if link.kind != "bridge" || !is_libvirts(host, &link.name) {
        let kind = if link.kind.is_empty() { "an interface" } else { &link.kind };
        return Err(exists(format!(
            "there is an interface {} already ({kind}), which xvmm did not make; delete it (`ip link delete {}`) or take another name",
            link.name, link.name
        )));
    }
    if !addresses.contains(&(link.index, private.subnet)) {
        return Err(exists(format!(
            "it is libvirt's, and has not the address {}; give --subnet as libvirt has it, or take another name and subnet",
            private.subnet
        )));
    }
    Ok("libvirt".to_owned())
}

fn is_libvirts(host: &Host, bridge: &str) -> bool {
    if host.file(format!("var/lib/libvirt/dnsmasq/{bridge}.status")).exists() {
        return true;
    }
    let Ok(networks) = fs::read_dir(host.file("run/libvirt/network")) else { return false };
    networks.flatten().any(|file| {
        let text = files::read(&file.path()).ok().flatten().unwrap_or_default();
        text.contains(&format!("<bridge name='{bridge}'"))
    })
}

fn check_overlap(
    netlink: &mut Netlink,
    links: &[Link],
    addresses: &[(u32, Prefix)],
    name: &str,
    private: &Private,
) -> Result<(), HostNetError> {
    let failed = |error| HostNetError::Host { name: name.to_owned(), what: "list the routes".into(), error };
    let mut present = addresses.to_vec();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or(0);
        for route in netlink.dump(libc::RTM_GETROUTE, family).map_err(failed)? {
            let main = route.u32(libc::RTA_TABLE).unwrap_or(0) == u32::from(libc::RT_TABLE_MAIN);
            let prefix =
                route.get(libc::RTA_DST).and_then(ip).and_then(|ip| Prefix::new(ip, route.header_u8(1)));
            if let (true, Some(prefix)) = (main, prefix.filter(|prefix| prefix.bits() > 0)) {
                present.push((route.u32(libc::RTA_OIF).unwrap_or(0), prefix));
            }
        }
    }
    for wanted in [Some(private.subnet), private.ipv6].into_iter().flatten() {
        if let Some((index, other)) = present.iter().find(|(_, other)| other.overlaps(wanted)) {
            let device = links.iter().find(|link| link.index == *index);
            return Err(HostNetError::Overlap {
                name: name.to_owned(),
                subnet: wanted.subnet().to_string(),
                other: other.subnet().to_string(),
                device: device.map_or_else(|| "a route".to_owned(), |link| link.name.clone()),
            });
        }
    }
    Ok(())
}

fn need(host: &Host, name: &str, tool: &str, package: &'static str) -> Result<(), HostNetError> {
    let missing = || HostNetError::ToolMissing { name: name.to_owned(), tool: tool.to_owned(), package };
    host.tools.find(tool).map(|_| ()).ok_or_else(missing)
}

/// The host becomes a router.
fn settings(links: &[Link], private: &Private) -> Vec<(String, String, String)> {
    let mut wanted = vec![("net/ipv4/ip_forward".to_owned(), "1")];
    if private.ipv6.is_some() {
        // A router does not listen to advertisements of others unless it is told to.
        for link in links.iter().filter(|link| link.name != "lo") {
            let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
            if read_sysctl(&key).is_some_and(|value| value == "1") {
                wanted.push((key, "2"));
            }
        }
        wanted.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    let change = |(key, new): (String, &str)| {
        let old = read_sysctl(&key)?;
        (old != new).then(|| (key, old, new.to_owned()))
    };
    wanted.into_iter().filter_map(change).collect()
}

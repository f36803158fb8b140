//! `--net`: a network interface of the guest, in the grammar of Xen's xl-network-configuration(5), and a few keys
//! more. A first word without `=` is the bridge.

mod ip;
mod script;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use netback::{MacAddr, is_interface_name};
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};
use super::spec::{self, Item};
use crate::text;

pub use ip::GuestIp;
pub use netback::Rate;
pub use script::{SCRIPTS_DIR, VifScript, nat_router};

pub(super) const FLAG: &str = "--net";
const KEYS: &str = "mac=, bridge=, gatewaydev=, script=, ip=, rate=, vifname=, model=, type=, devid=, mtu=, vlan=, \
                    queues=, fd=, backend=, mac-filter, trusted and untrusted";

/// The bridge of an interface that names none.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// Queue pairs of an interface with the most of them.
pub const MAX_QUEUES: u16 = 16;
/// The highest number of an interface.
pub const MAX_DEVID: u32 = 65_535;

/// Bytes of payload in a frame: what IPv4 needs at least, and what a tap takes at most.
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;
/// VLANs that a frame can belong to (IEEE 802.1Q).
const VLAN: std::ops::RangeInclusive<u16> = 1..=4094;
/// Bytes of the longest `model=`.
const MODEL_MAX: usize = 32;

/// What the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VifType {
    /// A paravirtual interface.
    #[default]
    Vif,
    /// An emulated network card beside it.
    Ioemu,
}

/// A network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetConfig {
    /// The bridge on the host, as given; see [`NetConfig::bridge`].
    #[serde(rename = "bridge")]
    pub named_bridge: Option<String>,
    /// The guest's address; `None` until [`super::DomainConfig::assign_nets`].
    #[serde(with = "text::optional")]
    pub mac: Option<MacAddr>,
    /// The name of the interface on the host in place of `vifD.N`.
    pub vifname: Option<String>,
    /// Bytes of payload in a frame, in place of the bridge's own.
    pub mtu: Option<u16>,
    /// What plugs the interface in.
    pub script: VifScript,
    /// The host's interface that has the address by which the guest is reached, for `vif-route`.
    pub gatewaydev: Option<String>,
    /// The addresses that the guest may use; empty: any.
    #[serde(rename = "ip")]
    pub ips: Vec<GuestIp>,
    /// The limit of what the guest sends.
    pub rate: Option<Rate>,
    /// The model of the emulated card.
    pub model: Option<String>,
    /// What the guest sees.
    #[serde(rename = "type")]
    pub kind: VifType,
    /// The number of the interface; `None` until [`super::DomainConfig::assign_nets`].
    pub devid: Option<u32>,
    /// The VLAN of the bridge that the interface belongs to, untagged.
    pub vlan: Option<u16>,
    /// Queue pairs that the guest is offered.
    pub queues: Option<u16>,
    /// What the guest is told about the host: whether to trust it.
    pub trusted: bool,
    /// Frames with another source than `mac` are dropped.
    pub mac_filter: bool,
    /// Descriptors of the queues of a tap that the caller has opened.
    #[serde(rename = "fd")]
    pub fds: Vec<RawFd>,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            named_bridge: None,
            mac: None,
            vifname: None,
            mtu: None,
            script: VifScript::default(),
            gatewaydev: None,
            ips: Vec::new(),
            rate: None,
            model: None,
            kind: VifType::default(),
            devid: None,
            vlan: None,
            queues: None,
            trusted: true,
            mac_filter: false,
            fds: Vec::new(),
        }
    }
}

impl NetConfig {
    /// The bridge of the interface; `None` if it is plugged into none.
    pub fn bridge(&self) -> Option<&str> {
        let bridged = self.fds.is_empty() && matches!(self.script, VifScript::Bridge | VifScript::Program(_));
        bridged.then(|| self.named_bridge.as_deref().unwrap_or(DEFAULT_BRIDGE))
    }

    /// Whether some of what the guest sends is dropped.
    pub fn is_filtered(&self) -> bool {
        self.mac_filter || !self.ips.is_empty()
    }

    /// Whether the host has rules for the interface, which do not vanish with it.
    pub fn has_rules(&self) -> bool {
        self.is_filtered() || self.script == VifScript::Nat
    }

    /// The script as Xen's toolstack has it in xenstore: its path.
    pub fn script_path(&self) -> String {
        match &self.script {
            VifScript::Program(path) => path.display().to_string(),
            built_in => format!("{SCRIPTS_DIR}/{built_in}"),
        }
    }

    /// Queue pairs that the guest is offered.
    pub fn queue_count(&self) -> usize {
        if self.fds.is_empty() { self.queues.unwrap_or(1).into() } else { self.fds.len() }
    }

    /// What sentences call the interface.
    pub(crate) fn what(&self) -> String {
        match (self.bridge(), self.to_string()) {
            (Some(bridge), text) if text.is_empty() => bridge.to_owned(),
            (_, text) => text,
        }
    }

    /// Finds contradictions between the keys.
    pub(super) fn check(&self) -> Result<(), Problem> {
        let syntax = |text: String| Err(Problem::Syntax(text));
        if let Some(key) = self.key_beside_fd() {
            return syntax(format!("fd= takes a tap as its caller has set it up; leave out {key}"));
        }
        if self.kind == VifType::Ioemu {
            return syntax("type=ioemu needs a guest with emulated devices; write type=vif".into());
        }
        match self.script {
            VifScript::Nat => {
                let address = match self.ips.as_slice() {
                    [ip] => ip.single_v4(),
                    _ => None,
                };
                if address.and_then(script::nat_router).is_none() {
                    return syntax(
                        "vif-nat needs the guest's one IPv4 address, whose last number is 1 to 127; give it with ip=".into(),
                    );
                }
            }
            VifScript::Route if self.ips.is_empty() => {
                return syntax("vif-route needs the guest's addresses; give them with ip=".into());
            }
            _ => {}
        }
        if self.vlan.is_some() && matches!(self.script, VifScript::Nat | VifScript::Route) {
            return syntax(
                "vlan= is for an interface in a bridge; leave it out, or leave out script=".into(),
            );
        }
        Ok(())
    }

    /// Why there cannot be both interfaces.
    pub(super) fn conflict(&self, other: &NetConfig) -> Option<Problem> {
        fn both<'a, T: PartialEq>(a: &'a Option<T>, b: &Option<T>) -> Option<&'a T> {
            a.as_ref().filter(|_| a == b)
        }
        if let Some(mac) = both(&self.mac, &other.mac) {
            return Some(Problem::SameMac(mac.to_string()));
        }
        if let Some(devid) = both(&self.devid, &other.devid) {
            return Some(Problem::SameDevid(*devid));
        }
        if let Some(name) = both(&self.vifname, &other.vifname) {
            let sentence = format!("two interfaces are called {name}; give one of them another vifname");
            return Some(Problem::Syntax(sentence));
        }
        let fd = self.fds.iter().find(|fd| other.fds.contains(fd))?;
        Some(Problem::Syntax(format!("two interfaces have the descriptor {fd}; pass a tap for each")))
    }

    /// A key that says how to set a tap up, beside `fd=`.
    fn key_beside_fd(&self) -> Option<&'static str> {
        let keys = [
            (self.named_bridge.is_some(), "bridge="),
            (self.vifname.is_some(), "vifname="),
            (self.script != VifScript::Bridge, "script="),
            (self.gatewaydev.is_some(), "gatewaydev="),
            (!self.ips.is_empty(), "ip="),
            (self.mac_filter, "mac-filter"),
            (self.vlan.is_some(), "vlan="),
            (self.queues.is_some(), "queues="),
        ];
        let given = keys.into_iter().find(|(given, _)| *given && !self.fds.is_empty());
        given.map(|(_, key)| key)
    }

    /// Takes one item of a specification.
    fn take(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        let syntax = Problem::Syntax;
        match key {
            "bridge" => self.named_bridge = Some(interface_name(key, value)?),
            "mac" => self.mac = Some(parse_mac(value)?),
            "vifname" => self.vifname = Some(own_name(key, value)?),
            "gatewaydev" => self.gatewaydev = Some(interface_name(key, value)?),
            "script" => self.script = value.parse().map_err(syntax)?,
            "ip" => self.ips = ip::parse_list(value).map_err(syntax)?,
            "rate" => self.rate = Some(value.parse().map_err(syntax)?),
            "model" => self.model = Some(parse_model(value)?),
            "type" => {
                self.kind = match value {
                    "vif" => VifType::Vif,
                    "ioemu" => VifType::Ioemu,
                    _ => return Err(syntax(format!("type `{value}` is not one; write type=vif"))),
                }
            }
            "mtu" => self.mtu = Some(number(key, value, MTU, "number of bytes")?),
            "vlan" => self.vlan = Some(number(key, value, VLAN, "number of a VLAN")?),
            "queues" => self.queues = Some(number(key, value, 1..=MAX_QUEUES, "number of queues")?),
            "devid" => self.devid = Some(number(key, value, 0..=MAX_DEVID, "number of an interface")?),
            "mac-filter" => self.mac_filter = parse_switch(key, value)?,
            "trusted" => self.trusted = parse_switch(key, value)?,
            "untrusted" => self.trusted = !parse_switch(key, value)?,
            "fd" => self.fds = parse_fds(value)?,
            "backend" if matches!(value, "0" | "Domain-0") => {}
            "backend" => {
                return Err(syntax(format!(
                    "backend `{value}` is another domain; leave it out, the host serves all"
                )));
            }
            _ => return Err(Problem::UnknownKey { key: key.to_owned(), known: KEYS }),
        }
        Ok(())
    }
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    /// Parses `BRIDGE[,KEY=VALUE][,FLAG]..` or `KEY=VALUE..`. Spaces around keys and values do not count, as with
    /// Xen's toolstack. An empty text is an interface on the default bridge.
    fn from_str(text: &str) -> Result<NetConfig, ConfigError> {
        let fail = |problem: Problem| ConfigError::new(FLAG, text, problem);
        let mut net = NetConfig::default();
        let mut given: Vec<String> = Vec::new();
        let items = if text.trim().is_empty() { Ok(Vec::new()) } else { spec::split(text) };
        for (index, item) in items.map_err(|e| fail(e.into()))?.into_iter().enumerate() {
            let (key, value) = match &item {
                Item::Pair(key, value) => (key.trim(), value.trim()),
                Item::Word(word) => match word.trim() {
                    flag @ ("trusted" | "untrusted" | "mac-filter") => (flag, "on"),
                    word if index == 0 => ("bridge", word),
                    key => return Err(fail(Problem::UnknownKey { key: key.to_owned(), known: KEYS })),
                },
            };
            // Xen's old name of it.
            let key = if key == "netdev" { "gatewaydev" } else { key };
            // The two are one.
            let name = if key == "untrusted" { "trusted" } else { key };
            net.take(key, value).map_err(fail)?;
            if given.iter().any(|other| other == name) {
                return Err(fail(Problem::Syntax(format!("`{name}` is given twice; once is enough"))));
            }
            given.push(name.to_owned());
        }
        net.check().map_err(fail)?;
        Ok(net)
    }
}

impl fmt::Display for NetConfig {
    /// The specification, so that it is read back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>, between| (!items.is_empty()).then(|| items.join(between));
        let fds = list(self.fds.iter().map(ToString::to_string).collect(), ":");
        let pairs = [
            ("bridge", self.named_bridge.clone()),
            ("fd", fds),
            ("mac", self.mac.map(|mac| mac.to_string())),
            ("vifname", self.vifname.clone()),
            ("devid", self.devid.map(|devid| devid.to_string())),
            ("script", (self.script != VifScript::Bridge).then(|| self.script.to_string())),
            ("gatewaydev", self.gatewaydev.clone()),
            ("ip", list(self.ips.iter().map(ToString::to_string).collect(), " ")),
            ("mac-filter", self.mac_filter.then(|| "on".to_owned())),
            ("rate", self.rate.map(|rate| rate.to_string())),
            ("mtu", self.mtu.map(|mtu| mtu.to_string())),
            ("vlan", self.vlan.map(|vlan| vlan.to_string())),
            ("queues", self.queues.map(|queues| queues.to_string())),
            ("model", self.model.clone()),
            ("type", (self.kind == VifType::Ioemu).then(|| "ioemu".to_owned())),
            ("trusted", (!self.trusted).then(|| "off".to_owned())),
        ];
        let mut between = "";
        for (key, value) in pairs.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
            write!(f, "{between}{key}={}", spec::quote(value))?;
            between = ",";
        }
        Ok(())
    }
}

fn interface_name(key: &str, name: &str) -> Result<String, Problem> {
    if is_interface_name(name) {
        return Ok(name.to_owned());
    }
    Err(not_a_name(key, name))
}

fn not_a_name(key: &str, name: &str) -> Problem {
    let rule = "not the name of an interface; use 1 to 15 letters, digits, `-`, `_` and dots";
    Problem::Syntax(format!("{key} `{name}` is {rule}"))
}

/// A name that we give. Those with other characters, which the kernel takes as well, cannot be written in rules.
fn own_name(key: &str, name: &str) -> Result<String, Problem> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    interface_name(key, if name.bytes().all(plain) { name } else { "" }).map_err(|_| not_a_name(key, name))
}

fn parse_mac(text: &str) -> Result<MacAddr, Problem> {
    match text.parse() {
        Ok(MacAddr::TAP) => Err(Problem::Syntax(format!(
            "mac {text} is the address of the host's side of every interface; choose another one"
        ))),
        Ok(mac) => Ok(mac),
        Err(error) => Err(Problem::Mac(error)),
    }
}

fn parse_model(text: &str) -> Result<String, Problem> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=MODEL_MAX).contains(&text.len()) && text.bytes().all(is_good) {
        return Ok(text.to_owned());
    }
    Err(Problem::Syntax(format!(
        "model `{text}` is not the name of a network card, like e1000; leave it out"
    )))
}

fn parse_switch(key: &str, text: &str) -> Result<bool, Problem> {
    match text {
        "on" | "y" | "yes" | "1" | "true" => Ok(true),
        "off" | "n" | "no" | "0" | "false" => Ok(false),
        _ => Err(Problem::Syntax(format!("{key}={text} is neither on nor off; write one of these"))),
    }
}

fn parse_fds(text: &str) -> Result<Vec<RawFd>, Problem> {
    let syntax = |why: &str| Problem::Syntax(format!("fd `{text}` {why}"));
    let parse = |part: &str| {
        let fd = part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        fd.filter(|fd| *fd > 2)
    };
    let fds: Option<Vec<RawFd>> = text.split(':').map(parse).collect();
    let fds = fds.ok_or_else(|| {
        syntax("is not the number of a descriptor from 3; write fd=3, or fd=3:4 for a tap with two queues")
    })?;
    if fds.iter().enumerate().any(|(at, fd)| fds.iter().take(at).any(|other| other == fd)) {
        return Err(syntax("names one descriptor twice; pass one for each queue"));
    }
    if fds.len() > MAX_QUEUES.into() {
        return Err(syntax(&format!("has more than {MAX_QUEUES} queues; pass fewer")));
    }
    Ok(fds)
}

/// A decimal number in a range.
fn number<T: FromStr + PartialOrd + fmt::Display>(
    key: &str,
    text: &str,
    range: std::ops::RangeInclusive<T>,
    what: &str,
) -> Result<T, Problem> {
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        Problem::Syntax(format!("{key} `{text}` is not a {what} from {} to {}", range.start(), range.end()))
    })
}

//! `--net`: a network interface of the guest, and the bridge it is plugged into.

use std::str::FromStr;

use netback::{MacAddr, is_interface_name};
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};
use super::spec::{self, Item};

const FLAG: &str = "--net";
const KEYS: &str = "bridge=, mac=, vifname= and mtu=";

/// The bridge of an interface that names none.
pub const DEFAULT_BRIDGE: &str = "xenbr0";

/// Bytes of payload in a frame: what IPv4 needs at least, and what a tap takes at most.
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;

/// A network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The bridge on the host.
    pub bridge: String,
    /// The guest's address; `None` until [`super::DomainConfig::assign_macs`].
    #[serde(default, with = "mac_text")]
    pub mac: Option<MacAddr>,
    /// The name of the interface on the host in place of `vifD.N`.
    #[serde(default)]
    pub vifname: Option<String>,
    /// Bytes of payload in a frame, in place of the bridge's own.
    #[serde(default)]
    pub mtu: Option<u16>,
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    /// Parses `BRIDGE[,mac=..][,vifname=..][,mtu=..]` or `bridge=BRIDGE,...`.
    fn from_str(text: &str) -> Result<NetConfig, ConfigError> {
        let fail = |problem: Problem| ConfigError::new(FLAG, text, problem);
        let (mut bridge, mut mac, mut vifname, mut mtu) = (None, None, None, None);
        for (index, item) in spec::split(text).map_err(|e| fail(e.into()))?.into_iter().enumerate() {
            let (key, value) = match item {
                Item::Pair(key, value) => (key, value),
                Item::Word(word) if index == 0 => ("bridge".to_owned(), word),
                Item::Word(key) => return Err(fail(Problem::UnknownKey { key, known: KEYS })),
            };
            let is_new = match key.as_str() {
                "bridge" => bridge.replace(interface_name(&key, value).map_err(fail)?).is_none(),
                "mac" => mac.replace(parse_mac(&value).map_err(fail)?).is_none(),
                "vifname" => vifname.replace(interface_name(&key, value).map_err(fail)?).is_none(),
                "mtu" => mtu.replace(parse_mtu(&value).map_err(fail)?).is_none(),
                _ => return Err(fail(Problem::UnknownKey { key, known: KEYS })),
            };
            if !is_new {
                return Err(fail(Problem::Syntax(format!("`{key}` is given twice; once is enough"))));
            }
        }
        Ok(NetConfig { bridge: bridge.unwrap_or_else(|| DEFAULT_BRIDGE.to_owned()), mac, vifname, mtu })
    }
}

fn interface_name(key: &str, name: String) -> Result<String, Problem> {
    if is_interface_name(&name) {
        return Ok(name);
    }
    let rule = "not the name of an interface; use 1 to 15 letters, digits, `-`, `_` and dots";
    Err(Problem::Syntax(format!("{key} `{name}` is {rule}")))
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

fn parse_mtu(text: &str) -> Result<u16, Problem> {
    let mtu = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    mtu.filter(|mtu| MTU.contains(mtu)).ok_or_else(|| {
        Problem::Syntax(format!(
            "mtu `{text}` is not a number of bytes from {} to {}",
            MTU.start(),
            MTU.end()
        ))
    })
}

/// An address as its usual text.
mod mac_text {
    use netback::MacAddr;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn serialize<S: Serializer>(mac: &Option<MacAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        mac.map(|mac| mac.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MacAddr>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn net(bridge: &str, mac: Option<&str>, vifname: Option<&str>, mtu: Option<u16>) -> NetConfig {
        NetConfig {
            bridge: bridge.into(),
            mac: mac.map(|m| m.parse().unwrap()),
            vifname: vifname.map(Into::into),
            mtu,
        }
    }

    #[test]
    fn specifications_and_their_interfaces() {
        let mac = "00:16:3e:00:00:01";
        let table = [
            ("xenbr0", net("xenbr0", None, None, None)),
            ("bridge=br-lan.5", net("br-lan.5", None, None, None)),
            ("mac=00:16:3e:00:00:01", net("xenbr0", Some(mac), None, None)),
            (
                "br0,mac=00:16:3e:00:00:01,vifname=web,mtu=9000",
                net("br0", Some(mac), Some("web"), Some(9000)),
            ),
            ("mtu=68", net("xenbr0", None, None, Some(68))),
            ("vifname=a,bridge=b", net("b", None, Some("a"), None)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_specifications_and_their_sentences() {
        let table = [
            ("xenbr0,script=x", "there is no key `script`; the keys are bridge=, mac=, vifname= and mtu="),
            ("xenbr0,br1", "there is no key `br1`; the keys are bridge=, mac=, vifname= and mtu="),
            ("a,bridge=b", "`bridge` is given twice; once is enough"),
            ("mac=1", "MAC address \"1\" is not six pairs of hexadecimal digits like 00:16:3e:12:34:56"),
            (
                "mac=01:00:5e:00:00:01",
                "MAC address 01:00:5e:00:00:01 is a multicast address; take one whose first byte is even, like 00:16:3e:12:34:56",
            ),
            (
                "mac=fe:ff:ff:ff:ff:ff",
                "mac fe:ff:ff:ff:ff:ff is the address of the host's side of every interface; choose another one",
            ),
            (
                "bridge=",
                "bridge `` is not the name of an interface; use 1 to 15 letters, digits, `-`, `_` and dots",
            ),
            (
                "../../etc",
                "bridge `../../etc` is not the name of an interface; use 1 to 15 letters, digits, `-`, `_` and dots",
            ),
            (
                "vifname=a234567890123456",
                "vifname `a234567890123456` is not the name of an interface; use 1 to 15 letters, digits, `-`, `_` \
                 and dots",
            ),
            ("mtu=67", "mtu `67` is not a number of bytes from 68 to 65521"),
            ("mtu=+1500", "mtu `+1500` is not a number of bytes from 68 to 65521"),
            ("mtu=99999999", "mtu `99999999` is not a number of bytes from 68 to 65521"),
        ];
        for (text, sentence) in table {
            assert_eq!(
                text.parse::<NetConfig>().unwrap_err().to_string(),
                format!("--net {text}: {sentence}"),
                "{text}"
            );
        }
    }
}

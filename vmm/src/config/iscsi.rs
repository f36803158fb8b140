//! An iSCSI disk in the words of Xen's block-iscsi script: `iqn=NAME,portal=ADDRESS[,multipath=y]`, and ours.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of the longest iSCSI name (RFC 7143, section 4.2.7.1).
const NAME_MAX: usize = 223;

/// A disk of an iSCSI target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IscsiTarget {
    /// The target's name: `iqn.2001-05.com.example:storage`.
    pub iqn: String,
    /// Where it is: an address or host name, with a port if it is not 3260.
    pub portal: String,
    /// The logical unit; `None`: the only disk that the target has.
    #[serde(default)]
    pub lun: Option<u64>,
    /// Uses the device that multipathd makes of all paths.
    #[serde(default)]
    pub multipath: bool,
    /// A file with the user and the secret for CHAP; `None`: what iscsid's records say.
    #[serde(default)]
    pub chap: Option<PathBuf>,
}

impl IscsiTarget {
    /// Checks what came in as text: it becomes arguments of a program, and part of names in `/sys`.
    pub(super) fn check(&self) -> Result<(), String> {
        let name = &self.iqn;
        let kind = ["iqn.", "eui.", "naa."].into_iter().any(|kind| name.len() > 4 && name.starts_with(kind));
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'_'));
        if !kind || !plain || name.len() > NAME_MAX {
            return Err(format!(
                "`{name}` is not the name of an iSCSI target; write iqn=iqn.YYYY-MM.DOMAIN:NAME"
            ));
        }
        if !is_portal(&self.portal) {
            return Err(format!(
                "`{}` is not the address of an iSCSI target; write portal=ADDRESS or portal=ADDRESS:PORT, \
                 with an IPv6 address in brackets",
                self.portal
            ));
        }
        let no_file =
            |chap: &PathBuf| chap.as_os_str().is_empty() || chap.as_os_str().as_encoded_bytes().contains(&0);
        if self.chap.as_ref().is_some_and(no_file) {
            return Err("chap= names no file; give the path of a file with the user and the secret".into());
        }
        Ok(())
    }

    /// Whether the two are the same disk, whatever way leads there.
    pub fn is_same_disk(&self, other: &IscsiTarget) -> bool {
        self.iqn == other.iqn && self.lun == other.lun
    }
}

/// `192.0.2.1`, `192.0.2.1:3260`, `[2001:db8::1]:3260`, `san.example.org`.
fn is_portal(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (None, port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (Some(host), port)
        }
    };
    let host = host.is_none_or(|host| {
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        plain && host.starts_with(|first: char| first.is_ascii_alphanumeric()) && host.len() <= 253
    });
    let port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    host && port
}

impl FromStr for IscsiTarget {
    type Err = String;

    /// Parses `iqn=..,portal=..[,multipath=y|n][,lun=N][,chap=FILE]`, in any order.
    fn from_str(text: &str) -> Result<IscsiTarget, String> {
        const WAY_OUT: &str = "write target=iqn=NAME,portal=ADDRESS";
        let (mut iqn, mut portal, mut multipath, mut lun, mut chap) = (None, None, None, None, None);
        for item in text.split(',') {
            let (key, value) = item.trim_start().split_once('=').ok_or_else(|| {
                format!(
                    "`{item}` is not a part of an iSCSI target; {WAY_OUT}[,multipath=y][,lun=N][,chap=FILE]"
                )
            })?;
            let is_new = match key {
                "iqn" => iqn.replace(value.to_owned()).is_none(),
                "portal" => portal.replace(value.to_owned()).is_none(),
                "multipath" => multipath.replace(parse_multipath(value)?).is_none(),
                "lun" => lun.replace(parse_lun(value)?).is_none(),
                "chap" => chap.replace(PathBuf::from(value)).is_none(),
                _ => {
                    return Err(format!(
                        "an iSCSI target has no `{key}=`; it has iqn=, portal=, multipath=, lun= and chap=, and the \
                         keys of a disk stand before target="
                    ));
                }
            };
            if !is_new {
                return Err(format!("`{key}` is given twice; once is enough"));
            }
        }
        let iqn = iqn.ok_or_else(|| format!("the iSCSI target has no iqn=; {WAY_OUT}"))?;
        let portal = portal.ok_or_else(|| format!("the iSCSI target has no portal=; {WAY_OUT}"))?;
        Ok(IscsiTarget { iqn, portal, lun, multipath: multipath.unwrap_or(false), chap })
    }
}

fn parse_multipath(value: &str) -> Result<bool, String> {
    match value {
        "y" => Ok(true),
        "n" => Ok(false),
        _ => Err(format!("multipath={value} is neither y nor n; write one of these")),
    }
}

/// Parses the number of a logical unit.
pub(super) fn parse_lun(value: &str) -> Result<u64, String> {
    let number = value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok()).flatten();
    number.ok_or_else(|| {
        format!("lun={value} is not the number of a logical unit; write a whole number from 0")
    })
}

impl fmt::Display for IscsiTarget {
    /// The text behind `target=`, without the file for CHAP: its path may have commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iqn={},portal={}", self.iqn, self.portal)?;
        if self.multipath {
            f.write_str(",multipath=y")?;
        }
        self.lun.map_or(Ok(()), |lun| write!(f, ",lun={lun}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn portals() {
        for text in
            ["192.0.2.1", "192.0.2.1:3260", "[2001:db8::1]", "[::1]:860", "san.example.org", "san1:65535"]
        {
            assert!(is_portal(text), "{text}");
        }
        for text in [
            "",
            "-p",
            ".",
            ":3260",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a b",
            "::1",
            "2001:db8::1",
            "[::1",
            "[::1]3260",
            "[a]:1",
            "a/b",
            "a;b",
            &"a".repeat(254),
        ] {
            assert!(!is_portal(text), "{text}");
        }
    }

    #[test]
    fn a_target_survives_its_own_text() {
        let text = "iqn=iqn.2001-05.com.example:a,portal=192.0.2.1,multipath=y,lun=3";
        assert_eq!(text.parse::<IscsiTarget>().unwrap().to_string(), text);
    }

    #[test]
    fn two_ways_to_one_disk_are_seen() {
        let parse = |text: &str| text.parse::<IscsiTarget>().unwrap();
        let first = parse("iqn=iqn.x:a,portal=192.0.2.1");
        assert!(first.is_same_disk(&parse("iqn=iqn.x:a,portal=192.0.2.2,multipath=y")));
        assert!(!first.is_same_disk(&parse("iqn=iqn.x:a,portal=192.0.2.1,lun=1")));
        assert!(!first.is_same_disk(&parse("iqn=iqn.x:b,portal=192.0.2.1")));
    }
}

//! An iSCSI disk in the words of Xen's block-iscsi script: `iqn=NAME,portal=ADDRESS[,multipath=y]`, and ours.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::portal::{Portal, is_target_name};

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
        if !is_target_name(&self.iqn) {
            return Err(format!(
                "`{}` is not the name of an iSCSI target; write iqn=iqn.YYYY-MM.DOMAIN:NAME",
                self.iqn
            ));
        }
        if self.portal.parse::<Portal>().is_err() {
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

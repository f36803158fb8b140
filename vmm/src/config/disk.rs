//! `--disk`: an image file or block device, and the guest's name for it.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};
use super::spec::{self, Item};
use super::vdev::Vdev;

const FLAG: &str = "--disk";
const KEYS: &str = "path=, vdev=, ro and rw";

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// The image file or block device. A name without a slash is looked for in the images folder first.
    pub path: PathBuf,
    /// The guest's name for the disk.
    pub vdev: Vdev,
    /// The guest cannot write to it.
    #[serde(default)]
    pub readonly: bool,
}

/// One `--disk` as written: the name may still be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// As in [`DiskConfig`].
    pub path: PathBuf,
    /// The guest's name for the disk, or else the first free one of `xvda`, `xvdb`, ...
    pub vdev: Option<Vdev>,
    /// As in [`DiskConfig`].
    pub readonly: bool,
}

impl DiskSpec {
    /// Parses `PATH[,vdev=xvda][,ro|rw]` or `path=PATH,...`. A path with a comma or a double quote in it
    /// goes into double quotes: `"a,b.img",ro`.
    pub fn parse(text: &str) -> Result<DiskSpec, ConfigError> {
        let fail = |problem: Problem| ConfigError::new(FLAG, text, problem);
        let twice = |key: &str| fail(Problem::Syntax(format!("`{key}` is given twice; once is enough")));
        let (mut path, mut vdev, mut readonly) = (None, None, None);
        let items = spec::split(text).map_err(|e| fail(e.into()))?;
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Item::Pair(key, value) => match key.as_str() {
                    "path" if path.is_some() => return Err(twice("path")),
                    "path" => path = Some(value),
                    "vdev" if vdev.is_some() => return Err(twice("vdev")),
                    "vdev" => vdev = Some(value.parse().map_err(|_| fail(Problem::Vdev(value)))?),
                    _ => return Err(fail(Problem::UnknownKey { key, known: KEYS })),
                },
                Item::Word(word) => match word.as_str() {
                    "ro" | "rw" if readonly.is_some() => return Err(twice("ro or rw")),
                    "ro" | "rw" => readonly = Some(word == "ro"),
                    _ if index == 0 => path = Some(word),
                    _ => return Err(fail(Problem::UnknownKey { key: word, known: KEYS })),
                },
            }
        }
        let path = path.ok_or_else(|| fail(Problem::Syntax("no image is named; add path=FILE".into())))?;
        if path.is_empty() || path.contains('\0') {
            return Err(fail(Problem::Syntax(
                "the path is empty or has a zero byte; name an image file".into(),
            )));
        }
        Ok(DiskSpec { path: path.into(), vdev, readonly: readonly.unwrap_or(false) })
    }

    /// Gives each disk without a name the first of `xvda`, `xvdb`, ... that no disk before it has: the first
    /// `--disk img` is always `xvda`, whatever follows.
    pub fn assign(specs: Vec<DiskSpec>) -> Result<Vec<DiskConfig>, ConfigError> {
        let mut disks: Vec<DiskConfig> = Vec::new();
        let mut names = HashSet::new();
        let mut free = (0..).map_while(Vdev::xvd);
        for DiskSpec { path, vdev, readonly } in specs {
            let fail = |problem| Err(ConfigError::new(FLAG, path.display(), problem));
            let Some(vdev) = vdev.or_else(|| free.find(|vdev| !names.contains(vdev))) else {
                return fail(Problem::Syntax("there is no free name; give fewer disks".into()));
            };
            if !names.insert(vdev) {
                return fail(Problem::SameVdev(vdev.to_string()));
            }
            disks.push(DiskConfig { path, vdev, readonly });
        }
        Ok(disks)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn disk(path: &str, vdev: Option<&str>, readonly: bool) -> DiskSpec {
        DiskSpec { path: path.into(), vdev: vdev.map(|v| v.parse().unwrap()), readonly }
    }

    #[test]
    fn specifications_and_their_disks() {
        let table = [
            ("img", disk("img", None, false)),
            ("./a b.img", disk("./a b.img", None, false)),
            ("/dev/vg/lv,ro", disk("/dev/vg/lv", None, true)),
            ("img,vdev=xvdb,rw", disk("img", Some("xvdb"), false)),
            ("path=img,vdev=xvda", disk("img", Some("xvda"), false)),
            ("vdev=sda,ro,path=img", disk("img", Some("sda"), true)),
            ("path=ro", disk("ro", None, false)),
            ("path=a=b.img", disk("a=b.img", None, false)),
            (r#""a,b.img",ro"#, disk("a,b.img", None, true)),
            (r#"path="a,b.img",vdev=hda"#, disk("a,b.img", Some("hda"), false)),
        ];
        for (text, expected) in table {
            assert_eq!(DiskSpec::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_specifications_and_their_sentences() {
        let table = [
            ("img,size=4", "--disk img,size=4: there is no key `size`; the keys are path=, vdev=, ro and rw"),
            ("img,xvda", "--disk img,xvda: there is no key `xvda`; the keys are path=, vdev=, ro and rw"),
            (
                "img,vdev=vda",
                "--disk img,vdev=vda: `vda` is not a virtual disk; use xvda, xvdb, ... (or sda-sdp, hda-hdd), with a \
                 partition number if need be",
            ),
            ("ro", "--disk ro: no image is named; add path=FILE"),
            ("path=", "--disk path=: the path is empty or has a zero byte; name an image file"),
            ("img,path=b", "--disk img,path=b: `path` is given twice; once is enough"),
            ("img,ro,rw", "--disk img,ro,rw: `ro or rw` is given twice; once is enough"),
            ("img,,ro", "--disk img,,ro: an item is empty; write items with one comma between them"),
            ("path=\"img", "--disk path=\"img: a double quote is not closed"),
        ];
        for (text, sentence) in table {
            assert_eq!(DiskSpec::parse(text).unwrap_err().to_string(), sentence, "{text}");
        }
    }

    #[test]
    fn disks_without_a_name_get_the_free_ones_in_order() {
        let specs = vec![
            disk("a", None, false),
            disk("b", Some("xvdb"), false),
            disk("c", None, false),
            disk("d", Some("sda"), false),
            disk("e", None, false),
        ];
        let names: Vec<String> = DiskSpec::assign(specs)
            .unwrap()
            .iter()
            .map(|d| format!("{}={}", d.path.display(), d.vdev))
            .collect();
        assert_eq!(names, ["a=xvda", "b=xvdb", "c=xvdc", "d=sda", "e=xvdd"]);
    }

    #[test]
    fn the_name_of_a_disk_does_not_depend_on_those_behind_it() {
        let error =
            DiskSpec::assign(vec![disk("a", None, false), disk("b", Some("xvda"), false)]).unwrap_err();
        assert_eq!(error.problem, Problem::SameVdev("xvda".into()));
    }

    #[test]
    fn two_disks_of_one_name_are_refused() {
        let error = DiskSpec::assign(vec![disk("a", Some("xvda"), false), disk("b", Some("xvda"), true)]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "--disk b: two disks are called xvda; give one of them another vdev"
        );
    }
}

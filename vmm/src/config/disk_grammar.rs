//! The text of `--disk`: the grammar of Xen's disk= (xl-disk-configuration(5)), with keys of our own.
//!
//! Items stand between commas. A word that is no flag is the next of target, format, vdev and access that has
//! not been given; an empty one leaves that as it is. `key=value` names it in place of its position. `target=`
//! takes all the rest of the text, whatever is in it. In front of a target, the prefixes of xend may stand:
//! `phy:`, `file:`, `tap:qcow2:`; behind them comes the vdev, not the format.
//!
//! Where Xen's parser takes what makes no sense (any text as a vdev, a disk without an image, `access=` twice),
//! this one refuses. Items of our own are what Xen's parser refuses, so no text has two meanings: double
//! quotes, `path=`, `ro` and `rw` in any place, a missing vdev, `w!`, and the keys from `cache=` on.

use std::path::{Path, PathBuf};

use super::disk::{CacheMode, DiskFormat, DiskSource, DiskSpec, FLAG};
use super::error::{ConfigError, Problem};
use super::iscsi::{self, IscsiTarget};
use super::spec;
use super::vdev::Vdev;

const KEYS: &str = "target=, path=, format=, vdev=, access=, devtype=, script=, cache=, queues=, iops=, bps=, group=, \
                    enospc=, lun=, chap=, and the words ro, rw, cdrom, removable, discard and no-discard";

/// The places of words without a key, in their order.
const POSITIONS: [Position; 4] = [Position::Target, Position::Format, Position::Vdev, Position::Access];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Target,
    Format,
    Vdev,
    Access,
}

/// What `format=` and the format's place may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FormatWord {
    Format(DiskFormat),
    Empty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AccessWord {
    ReadOnly,
    Write,
    Shared,
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Draft {
    /// Given, if only as an empty word.
    given: Vec<Position>,
    /// The prefix in front of the target, as written, if there was one.
    prefix: Option<String>,
    /// The prefix says that the target is a block device.
    phy: bool,
    target: Option<String>,
    format: Option<FormatWord>,
    vdev: Option<Vdev>,
    access: Option<AccessWord>,
    cdrom: Option<bool>,
    removable: bool,
    discard: Option<bool>,
    script: Option<String>,
    backend: Option<String>,
    backendtype: Option<String>,
    specification: Option<String>,
    cache: Option<CacheMode>,
    queues: Option<u32>,
    iops: Option<u64>,
    bps: Option<u64>,
    group: Option<String>,
    enospc_pause: Option<bool>,
    lun: Option<u64>,
    chap: Option<PathBuf>,
}

impl DiskSpec {
    /// Parses what `--disk` takes; see this module.
    pub fn parse(text: &str) -> Result<DiskSpec, ConfigError> {
        let spec = read(text).and_then(Draft::finish);
        spec.map_err(|problem| ConfigError::new(FLAG, text, problem))
    }
}

/// Reads the items.
fn read(text: &str) -> Result<Draft, Problem> {
    let mut draft = Draft::default();
    let mut rest = text;
    loop {
        // Space before an item means nothing.
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
        if rest.starts_with('"') {
            let word = spec::take_value(&mut rest)?;
            draft.place(word, true)?;
        } else if let Some((key, value)) = split_key(rest) {
            if key == "target" {
                draft.set_target("target", value)?;
                return Ok(draft);
            }
            rest = value;
            let value = spec::take_value(&mut rest)?;
            draft.pair(key, value)?;
        } else {
            let (word, tail) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
            rest = tail;
            draft.word(word)?;
        }
        match rest.strip_prefix(',') {
            // xl allows a comma at the end.
            Some(next) if !next.is_empty() => rest = next,
            _ => return Ok(draft),
        }
    }
}

/// Splits `key=...`, where what is before the `=` can be a key: `./a=b` is a path.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once('=')?;
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    (plain && key.starts_with(|first: char| first.is_ascii_alphabetic())).then_some((key, value))
}

fn twice(key: &str) -> Problem {
    Problem::Syntax(format!("`{key}` is given twice; once is enough"))
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Syntax(why.into()))
}

/// Fills a place that may be filled once.
fn once<T>(place: &mut Option<T>, value: T, key: &str) -> Result<(), Problem> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(twice(key)),
    }
}

/// As [`once`] for a flag, which may be repeated but not contradicted.
fn flag(place: &mut Option<bool>, value: bool, words: &str) -> Result<(), Problem> {
    match place.replace(value) {
        Some(before) if before != value => refuse(format!("{words} contradict each other; give one of them")),
        _ => Ok(()),
    }
}

impl Draft {
    /// `key=value`. An empty value is as none where xl has it so.
    fn pair(&mut self, key: &str, value: String) -> Result<(), Problem> {
        let trimmed = value.trim();
        match key {
            "path" => self.set_target(key, &value),
            "format" => self.set_format(trimmed),
            "vdev" => self.set_vdev(trimmed),
            "access" => self.set_access(trimmed),
            "devtype" => match trimmed {
                "cdrom" => flag(&mut self.cdrom, true, "devtype=disk and cdrom"),
                "disk" => flag(&mut self.cdrom, false, "devtype=disk and cdrom"),
                _ => refuse(format!("there is no devtype `{value}`; it is disk or cdrom")),
            },
            "script" => once(&mut self.script, trimmed.to_owned(), key),
            "backend" => once(&mut self.backend, trimmed.to_owned(), key),
            "backendtype" => once(&mut self.backendtype, trimmed.to_owned(), key),
            "specification" => once(&mut self.specification, trimmed.to_owned(), key),
            "cache" => {
                let modes = [CacheMode::None, CacheMode::Writeback, CacheMode::Unsafe];
                match modes.into_iter().find(|mode| mode.name() == trimmed) {
                    Some(mode) => once(&mut self.cache, mode, key),
                    None => {
                        refuse(format!("there is no cache mode `{value}`; use none, writeback or unsafe"))
                    }
                }
            }
            "queues" => once(&mut self.queues, whole_number(key, trimmed)?, key),
            "iops" => once(&mut self.iops, whole_number(key, trimmed)?, key),
            "bps" => once(&mut self.bps, byte_rate(trimmed)?, key),
            "group" => once(&mut self.group, value, key),
            "enospc" => match trimmed {
                "error" => once(&mut self.enospc_pause, false, key),
                "pause" => once(&mut self.enospc_pause, true, key),
                _ => refuse(format!(
                    "`{value}` says nothing about a full disk; use enospc=error or enospc=pause"
                )),
            },
            "lun" => once(&mut self.lun, iscsi::parse_lun(trimmed).map_err(Problem::Syntax)?, key),
            "chap" => once(&mut self.chap, value.into(), key),
            _ if is_colo(key) => refuse(NO_COLO),
            _ => Err(Problem::UnknownKey { key: key.to_owned(), known: KEYS }),
        }
    }

    /// A word without a key: a flag, or what its place says.
    fn word(&mut self, word: &str) -> Result<(), Problem> {
        let trimmed = word.trim();
        match trimmed {
            "cdrom" => flag(&mut self.cdrom, true, "devtype=disk and cdrom"),
            "removable" => {
                self.removable = true;
                Ok(())
            }
            "discard" => flag(&mut self.discard, true, "discard and no-discard"),
            "no-discard" => flag(&mut self.discard, false, "discard and no-discard"),
            // It asks for what cache=none does anyway.
            "direct-io-safe" => Ok(()),
            "ro" | "rw" => self.set_access(trimmed),
            _ if is_colo(trimmed) => refuse(NO_COLO),
            // No format and no vdev is called like an access, so its place need not be counted.
            _ if self.given.contains(&Position::Target) && access(trimmed).is_some() => {
                self.set_access(trimmed)
            }
            _ => self.place(word.to_owned(), false),
        }
    }

    /// A word for the next place that is free.
    fn place(&mut self, word: String, quoted: bool) -> Result<(), Problem> {
        let Some(position) = POSITIONS.into_iter().find(|position| !self.given.contains(position)) else {
            let why =
                "one item too many; target, format, vdev and access have no key, the others need theirs";
            return if word.is_empty() { refuse(why) } else { refuse(format!("`{word}` is {why}")) };
        };
        match position {
            Position::Target if quoted => self.set_target("target", &word),
            Position::Target => self.prefixed_target(&word),
            // xend's empty drive, `,hdc:cdrom,r`.
            Position::Format if self.target.is_none() && word.contains(':') => {
                self.give(Position::Format);
                self.set_vdev(word.trim())
            }
            Position::Format => self.set_format(word.trim()),
            Position::Vdev => self.set_vdev(word.trim()),
            Position::Access => self.set_access(word.trim()),
        }
    }

    fn give(&mut self, position: Position) {
        if !self.given.contains(&position) {
            self.given.push(position);
        }
    }

    fn set_target(&mut self, key: &str, target: &str) -> Result<(), Problem> {
        self.give(Position::Target);
        if target.is_empty() { Ok(()) } else { once(&mut self.target, target.to_owned(), key) }
    }

    /// A target as xend had it. Prefixes are those that xl knows; most of them mean nothing any more.
    fn prefixed_target(&mut self, word: &str) -> Result<(), Problem> {
        let mut target = word;
        while let Some((prefix, rest)) = target.split_once(':') {
            match prefix {
                "raw" | "qcow" | "qcow2" | "vhd" => self.set_format(prefix)?,
                "iscsi" | "nbd" | "enbd" | "drbd" => {
                    once(&mut self.script, format!("block-{prefix}"), "script")?;
                }
                "phy" => self.phy = true,
                "file" | "aio" | "tap" | "tap2" | "tapdisk" | "ioemu" => {}
                _ => {
                    let word = prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                    let path = rest.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
                    if !word || path || !prefix.starts_with(|c: char| c.is_ascii_lowercase()) {
                        break;
                    }
                    return refuse(format!(
                        "there is no prefix `{prefix}:`; the prefixes are phy:, file:, tap:, raw:, qcow2:, vhd: and \
                         iscsi:, and a path with a colon goes behind target="
                    ));
                }
            }
            self.prefix.get_or_insert_with(|| prefix.to_owned());
            self.give(Position::Format);
            target = rest;
        }
        self.set_target("target", target)
    }

    fn set_format(&mut self, word: &str) -> Result<(), Problem> {
        self.give(Position::Format);
        if word.is_empty() {
            return Ok(());
        }
        let known = [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Vhd];
        let format = match known.into_iter().find(|format| format.name() == word) {
            Some(format) => FormatWord::Format(format),
            None if word == "empty" => FormatWord::Empty,
            None => return Err(no_format(word)),
        };
        once(&mut self.format, format, "format")
    }

    fn set_vdev(&mut self, word: &str) -> Result<(), Problem> {
        self.give(Position::Vdev);
        let (name, devtype) = word.split_once(':').map_or((word, None), |(name, kind)| (name, Some(kind)));
        match devtype {
            None => {}
            Some("cdrom") => flag(&mut self.cdrom, true, "devtype=disk and cdrom")?,
            Some("disk") => flag(&mut self.cdrom, false, "devtype=disk and cdrom")?,
            Some(kind) => return refuse(format!("there is no devtype `{kind}`; it is disk or cdrom")),
        }
        if name.is_empty() {
            return Ok(());
        }
        let vdev = name.parse().map_err(|_| match &self.prefix {
            Some(prefix) if ["raw", "qcow2", "vhd"].contains(&name) => Problem::Syntax(format!(
                "behind a target with `{prefix}:` comes the vdev at once; leave out the prefix, or `{name}`"
            )),
            _ => Problem::Vdev(name.to_owned()),
        })?;
        once(&mut self.vdev, vdev, "vdev")
    }

    fn set_access(&mut self, word: &str) -> Result<(), Problem> {
        self.give(Position::Access);
        if word.is_empty() {
            return Ok(());
        }
        let Some(access) = access(word) else {
            return refuse(format!("there is no access `{word}`; use ro, rw, or w! where several write"));
        };
        once(&mut self.access, access, "access")
    }

    /// Puts together what was read.
    fn finish(self) -> Result<DiskSpec, Problem> {
        self.check_backend()?;
        let cdrom = self.cdrom.unwrap_or(false);
        let (format, source) = match (self.format, self.script.as_deref().unwrap_or_default()) {
            (Some(FormatWord::Empty), _) if self.target.is_some() => {
                return refuse("an empty drive has no image; leave out format=empty or the image");
            }
            (Some(FormatWord::Empty), _) => (DiskFormat::Raw, DiskSource::Empty {}),
            (Some(FormatWord::Format(_)) | None, "") if self.target.is_none() && cdrom => {
                (DiskFormat::Raw, DiskSource::Empty {})
            }
            (Some(FormatWord::Format(format)), script) => (format, self.source(script)?),
            (None, script) => (DiskFormat::Raw, self.source(script)?),
        };
        if !matches!(source, DiskSource::Iscsi(_)) && (self.lun.is_some() || self.chap.is_some()) {
            return refuse("lun= and chap= are for iSCSI; add script=block-iscsi, or leave them out");
        }
        if cdrom && matches!(self.access, Some(AccessWord::Write | AccessWord::Shared)) {
            tracing::info!("--disk {source}: a CD-ROM is read-only, whatever its access says");
        }
        let spec = DiskSpec {
            vdev: self.vdev,
            readonly: cdrom || self.access == Some(AccessWord::ReadOnly),
            shared: !cdrom && self.access == Some(AccessWord::Shared),
            format,
            cdrom,
            removable: cdrom || self.removable,
            discard: self.discard.unwrap_or(true),
            cache: self.cache.unwrap_or_default(),
            queues: self.queues,
            iops: self.iops,
            bps: self.bps,
            group: self.group,
            enospc_pause: self.enospc_pause.unwrap_or(false),
            ..DiskSpec::new(source)
        };
        spec.check()?;
        Ok(spec)
    }

    /// What holds the bytes, if the drive is not empty.
    fn source(&self, script: &str) -> Result<DiskSource, Problem> {
        let name = Path::new(script).file_name().and_then(|name| name.to_str()).unwrap_or(script);
        let target = self.target.as_deref().unwrap_or_default();
        match name {
            "" if self.phy && !target.is_empty() => Ok(DiskSource::Path(Path::new("/dev").join(target))),
            "" => Ok(DiskSource::Path(target.into())),
            "block-iscsi" => {
                let mut iscsi: IscsiTarget = target.parse().map_err(Problem::Syntax)?;
                for (key, doubled) in [
                    ("lun", self.lun.is_some() && iscsi.lun.is_some()),
                    ("chap", self.chap.is_some() && iscsi.chap.is_some()),
                ] {
                    if doubled {
                        return Err(twice(key));
                    }
                }
                iscsi.lun = iscsi.lun.or(self.lun);
                iscsi.chap = iscsi.chap.or_else(|| self.chap.clone());
                Ok(DiskSource::Iscsi(iscsi))
            }
            "block-nbd" | "block-enbd" => {
                refuse(format!("script={script} is not run; connect with nbd-client, and name /dev/nbdN"))
            }
            "block-drbd" => {
                refuse(format!("script={script} is not run; name the device, /dev/drbd/by-res/NAME/0"))
            }
            _ => refuse(format!(
                "script={script} is not run, only block-iscsi is known; set the device up before, and name it"
            )),
        }
    }

    /// What Xen can choose between and xvmm cannot.
    fn check_backend(&self) -> Result<(), Problem> {
        match self.backend.as_deref() {
            None | Some("" | "0" | "Domain-0") => {}
            Some(domain) => {
                return refuse(format!(
                    "backend={domain}: there are no driver domains, each guest's disks are served by its own \
                     process; leave out backend="
                ));
            }
        }
        match self.backendtype.as_deref() {
            None | Some("") => {}
            Some(kind @ ("phy" | "tap" | "qdisk" | "standalone")) => {
                tracing::info!(
                    "--disk: backendtype={kind} makes no difference, xvmm serves all disks itself"
                );
            }
            Some(kind) => {
                return refuse(format!(
                    "there is no backendtype `{kind}`; leave it out, all disks are served alike"
                ));
            }
        }
        match self.specification.as_deref() {
            None | Some("" | "xen") => Ok(()),
            Some(other) => {
                refuse(format!("specification={other}: disks are Xen's; leave out specification="))
            }
        }
    }
}

const NO_COLO: &str = "there is no COLO replication; leave out colo and its keys";

fn is_colo(word: &str) -> bool {
    matches!(word, "colo" | "colo-host" | "colo-port" | "colo-export" | "active-disk" | "hidden-disk")
}

fn access(word: &str) -> Option<AccessWord> {
    match word {
        "r" | "ro" => Some(AccessWord::ReadOnly),
        "w" | "rw" => Some(AccessWord::Write),
        "w!" | "rw!" | "!" => Some(AccessWord::Shared),
        _ => None,
    }
}

fn no_format(word: &str) -> Problem {
    Problem::Format(match word {
        "qcow" | "qed" | "vhdx" | "vmdk" | "vdi" => {
            format!("format {word} is not served; convert the image with `qemu-img convert -O qcow2 OLD NEW`")
        }
        _ if word.parse::<Vdev>().is_ok() => format!(
            "`{word}` stands where the format is expected; put an empty item before it, or write vdev={word}"
        ),
        _ => format!(
            "there is no format `{word}`; the formats are raw, qcow2 and vhd, and raw is meant without one"
        ),
    })
}

fn whole_number<N: std::str::FromStr>(key: &str, text: &str) -> Result<N, Problem> {
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number
        .ok_or_else(|| Problem::Syntax(format!("{key}={text} is not a number; write a whole number from 1")))
}

/// A number of bytes per second, with K, M, G or T for powers of 1024.
fn byte_rate(text: &str) -> Result<u64, Problem> {
    let letter = text.chars().next_back().filter(|last| !last.is_ascii_digit());
    let shift = match letter {
        None => Some(0),
        Some('k' | 'K') => Some(10),
        Some('m' | 'M') => Some(20),
        Some('g' | 'G') => Some(30),
        Some('t' | 'T') => Some(40),
        Some(_) => None,
    };
    let digits = letter.and_then(|letter| text.strip_suffix(letter)).unwrap_or(text);
    let digits = (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(digits);
    let number = digits.and_then(|digits| digits.parse::<u64>().ok());
    let bytes = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| {
        Problem::Syntax(format!(
            "bps={text} is not a number of bytes per second; write one, with K, M or G if need be"
        ))
    })
}

#[cfg(test)]
mod tests;

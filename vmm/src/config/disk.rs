//! `--disk`: what holds the bytes of a disk, and how the guest is shown it. The text of it is read by
//! [`super::disk_grammar`].

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

pub use blkback::device::MAX_QUEUES;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Problem};
pub use super::iscsi::IscsiTarget;
use super::spec;
use super::vdev::{Vdev, VdevKind};

pub(super) const FLAG: &str = "--disk";

/// Disks of the guest with the most of them; each one costs event channels, a thread and descriptors.
pub const MAX_DISKS: usize = 1024;
/// Bytes per second of the tightest limit: a page. A tighter one would hold a single request for minutes.
pub const MIN_BPS: u64 = 4096;
/// Bytes of the longest name of a group.
const GROUP_MAX: usize = 64;

/// What holds the bytes of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskSource {
    /// An image file or a block device. A name without a slash is looked for in the images folder first.
    Path(PathBuf),
    /// A disk of an iSCSI target, which the host logs in to.
    Iscsi(IscsiTarget),
    /// Nothing: a drive without a medium.
    Empty {},
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskSource::Path(path) => path.display().fmt(f),
            DiskSource::Iscsi(target) => target.fmt(f),
            DiskSource::Empty {} => f.write_str("(empty)"),
        }
    }
}

/// What the bytes of an image mean. It is stated, never guessed: a guest can write any header into its disk
/// (XSA-258).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk itself.
    #[default]
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// Microsoft's and Xen's virtual hard disk.
    Vhd,
}

impl DiskFormat {
    /// The word of the grammar.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Vhd => "vhd",
        }
    }
}

/// Who else may use an image at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is only read; so may others.
    ReadOnly,
    /// It is written, and nobody else has it.
    Exclusive,
    /// It is written, and others that say so too may write to it: a cluster file system keeps them apart.
    Shared,
}

impl Access {
    /// Whether two users with these rights can have one image.
    pub fn goes_with(self, other: Access) -> bool {
        self == other && self != Access::Exclusive
    }

    /// The word of the grammar.
    pub fn name(self) -> &'static str {
        match self {
            Access::ReadOnly => "ro",
            Access::Exclusive => "rw",
            Access::Shared => "w!",
        }
    }
}

/// Where data of a disk may stay on its way, and what a flush of the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Past the host's page cache, where the file system can; a flush is an fdatasync.
    #[default]
    None,
    /// Through the host's page cache; a flush is an fdatasync.
    Writeback,
    /// Through the host's page cache; a flush does nothing.
    Unsafe,
}

impl CacheMode {
    /// The word of the grammar.
    pub fn name(self) -> &'static str {
        match self {
            CacheMode::None => "none",
            CacheMode::Writeback => "writeback",
            CacheMode::Unsafe => "unsafe",
        }
    }
}

/// A disk. `V` is what is known of the guest's name for it: see [`DiskConfig`] and [`DiskSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk<V> {
    /// What holds its bytes: one of the keys `path`, `iscsi` and `empty`.
    #[serde(flatten)]
    pub source: DiskSource,
    /// The guest's name for it.
    pub vdev: V,
    /// The guest cannot write to it.
    #[serde(default)]
    pub readonly: bool,
    /// Others may write to the image too. Only where `readonly` is not set.
    #[serde(default)]
    pub shared: bool,
    /// What the bytes of the image mean.
    #[serde(default)]
    pub format: DiskFormat,
    /// The guest is told that it is a CD-ROM.
    #[serde(default)]
    pub cdrom: bool,
    /// The guest is told that its medium can be changed.
    #[serde(default)]
    pub removable: bool,
    /// The guest may give parts of it back (discard).
    #[serde(default = "yes")]
    pub discard: bool,
    /// What the host keeps in memory.
    #[serde(default)]
    pub cache: CacheMode,
    /// Most queues that the guest is offered, from 1; `None`: as many as are of use.
    #[serde(default)]
    pub queues: Option<u32>,
    /// Requests per second, for the disk or for all of its group together.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bytes per second, in the same way.
    #[serde(default)]
    pub bps: Option<u64>,
    /// The name of the group of disks of this guest that share one `iops` and one `bps`.
    #[serde(default)]
    pub group: Option<String>,
    /// A full file system stops the disk until there is room, in place of an error to the guest.
    #[serde(default)]
    pub enospc_pause: bool,
}

fn yes() -> bool {
    true
}

/// A disk of a guest.
pub type DiskConfig = Disk<Vdev>;

/// One `--disk` as written. Without a vdev it gets the first free one of `xvda`, `xvdb`, ...
pub type DiskSpec = Disk<Option<Vdev>>;

impl<V> Disk<V> {
    /// Who else may use the image.
    pub fn access(&self) -> Access {
        match (self.readonly, self.shared) {
            (true, _) => Access::ReadOnly,
            (false, false) => Access::Exclusive,
            (false, true) => Access::Shared,
        }
    }

    /// The image file or block device, where the source is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            DiskSource::Path(path) => Some(path),
            DiskSource::Iscsi(_) | DiskSource::Empty {} => None,
        }
    }

    /// Whether there is anything to serve. A drive without a medium is no device of the guest until it has one.
    pub fn has_medium(&self) -> bool {
        !matches!(self.source, DiskSource::Empty {})
    }

    fn with_vdev<W>(self, vdev: W) -> Disk<W> {
        Disk {
            source: self.source,
            vdev,
            readonly: self.readonly,
            shared: self.shared,
            format: self.format,
            cdrom: self.cdrom,
            removable: self.removable,
            discard: self.discard,
            cache: self.cache,
            queues: self.queues,
            iops: self.iops,
            bps: self.bps,
            group: self.group,
            enospc_pause: self.enospc_pause,
        }
    }

    /// Checks what can be seen from this disk alone.
    pub(super) fn check(&self) -> Result<(), Problem> {
        let refuse = |why: &str| Err(Problem::Syntax(why.to_owned()));
        match &self.source {
            DiskSource::Path(path) if path.as_os_str().as_encoded_bytes().contains(&0) => {
                return refuse("the path has a zero byte; name an image file");
            }
            DiskSource::Path(path) if path.as_os_str().is_empty() => {
                return refuse("no image is named; add target=FILE, or cdrom for an empty drive");
            }
            DiskSource::Empty {} if !self.cdrom => {
                return refuse(
                    "only a CD-ROM drive can be empty; add cdrom, or name an image with target=FILE",
                );
            }
            DiskSource::Iscsi(target) => target.check().map_err(Problem::Syntax)?,
            DiskSource::Path(_) | DiskSource::Empty {} => {}
        }
        if self.queues.is_some_and(|queues| queues == 0 || queues > MAX_QUEUES) {
            return Err(Problem::Syntax(format!("a disk has 1 to {MAX_QUEUES} queues; write queues=N so")));
        }
        if self.iops == Some(0) {
            return refuse("iops=0 lets no request through; write a number from 1, or leave it out");
        }
        if self.bps.is_some_and(|bps| bps < MIN_BPS) {
            return Err(Problem::Syntax(format!("bps= is too small; the smallest limit is {MIN_BPS} bytes")));
        }
        if let Some(group) = &self.group {
            let plain = group.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            if group.is_empty() || group.len() > GROUP_MAX || !plain {
                return refuse(
                    "the name of a group is 1 to 64 letters, digits, dots, `-` and `_`; choose such a one",
                );
            }
        }
        Ok(())
    }

    /// The specification that gives this disk.
    fn write(&self, vdev: Option<Vdev>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.format != DiskFormat::Raw {
            write!(f, "format={},", self.format.name())?;
        }
        if let Some(vdev) = vdev {
            write!(f, "vdev={vdev},")?;
        }
        if self.cdrom {
            f.write_str("cdrom,")?;
        } else if self.access() != Access::Exclusive {
            write!(f, "access={},", self.access().name())?;
        }
        if self.removable && !self.cdrom {
            f.write_str("removable,")?;
        }
        if !self.discard {
            f.write_str("no-discard,")?;
        }
        if self.cache != CacheMode::None {
            write!(f, "cache={},", self.cache.name())?;
        }
        let numbers = [("queues", self.queues.map(u64::from)), ("iops", self.iops), ("bps", self.bps)];
        for (key, number) in numbers {
            number.map_or(Ok(()), |number| write!(f, "{key}={number},"))?;
        }
        if let Some(group) = &self.group {
            write!(f, "group={group},")?;
        }
        if self.enospc_pause {
            f.write_str("enospc=pause,")?;
        }
        match &self.source {
            // Behind target= anything is taken as it is.
            DiskSource::Path(path) => write!(f, "target={}", path.display()),
            DiskSource::Iscsi(target) => {
                if let Some(chap) = &target.chap {
                    write!(f, "chap={},", spec::quote(&chap.display().to_string()))?;
                }
                write!(f, "script=block-iscsi,target={target}")
            }
            DiskSource::Empty {} => f.write_str("format=empty"),
        }
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(Some(self.vdev), f)
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(self.vdev, f)
    }
}

impl DiskConfig {
    /// What keeps the two from being disks of one guest.
    pub(super) fn conflict(&self, other: &DiskConfig) -> Option<Problem> {
        if self.vdev == other.vdev {
            return Some(Problem::SameVdev(self.vdev.to_string()));
        }
        if self.vdev.overlaps(other.vdev) {
            let (disk, part) = if self.vdev < other.vdev { (self, other) } else { (other, self) };
            return Some(Problem::VdevPart { disk: disk.vdev.to_string(), part: part.vdev.to_string() });
        }
        let same = || match (&self.source, &other.source) {
            (DiskSource::Path(one), DiskSource::Path(two)) => one == two,
            (DiskSource::Iscsi(one), DiskSource::Iscsi(two)) => one.is_same_disk(two),
            _ => false,
        };
        if !self.access().goes_with(other.access()) && same() {
            return Some(Problem::SameImage);
        }
        match &self.group {
            Some(group) if self.group == other.group && (self.iops, self.bps) != (other.iops, other.bps) => {
                Some(Problem::Syntax(format!(
                    "the disks of group `{group}` share one iops and one bps; give them with the first disk only"
                )))
            }
            _ => None,
        }
    }
}

impl DiskSpec {
    /// A writable disk with all else as it is without a word about it.
    pub fn new(source: DiskSource) -> DiskSpec {
        Disk {
            source,
            vdev: None,
            readonly: false,
            shared: false,
            format: DiskFormat::default(),
            cdrom: false,
            removable: false,
            discard: true,
            cache: CacheMode::default(),
            queues: None,
            iops: None,
            bps: None,
            group: None,
            enospc_pause: false,
        }
    }

    /// Gives each disk without a name the first of `xvda`, `xvdb`, ... that no disk before it has: the first
    /// `--disk img` is always `xvda`, whatever follows.
    pub fn assign(specs: Vec<DiskSpec>) -> Result<Vec<DiskConfig>, ConfigError> {
        let mut disks: Vec<DiskConfig> = Vec::new();
        for spec in specs {
            let disk = spec.beside(&disks)?;
            disks.push(disk);
        }
        Ok(disks)
    }

    /// The disk that this becomes in a guest that has `others`: it gets a free name if it has none, and the
    /// limits of its group.
    pub fn beside(mut self, others: &[DiskConfig]) -> Result<DiskConfig, ConfigError> {
        let source = self.source.to_string();
        let fail = |problem| Err(ConfigError::new(FLAG, &source, problem));
        if others.len() >= MAX_DISKS {
            return fail(Problem::Syntax(format!("a guest has at most {MAX_DISKS} disks; give fewer")));
        }
        if let (Some(group), None, None) = (&self.group, self.iops, self.bps) {
            let Some(first) = others.iter().find(|other| other.group.as_ref() == Some(group)) else {
                return fail(Problem::Syntax(format!(
                    "group `{group}` has no limit; give iops= or bps= with its first disk"
                )));
            };
            (self.iops, self.bps) = (first.iops, first.bps);
        }
        let vdev = self.vdev.or_else(|| {
            let xvd = others.iter().map(|other| other.vdev).filter(|vdev| vdev.kind() == VdevKind::Xvd);
            let taken: HashSet<u32> = xvd.map(Vdev::disk).collect();
            (0..).find(|disk| !taken.contains(disk)).and_then(Vdev::xvd)
        });
        let Some(vdev) = vdev else {
            return fail(Problem::Syntax("there is no free name; give fewer disks".into()));
        };
        let disk = self.with_vdev(vdev);
        match others.iter().find_map(|other| disk.conflict(other)) {
            Some(problem) => fail(problem),
            None => Ok(disk),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn specs(texts: &[&str]) -> Vec<DiskSpec> {
        texts.iter().map(|text| DiskSpec::parse(text).unwrap()).collect()
    }

    fn refusal(texts: &[&str]) -> String {
        DiskSpec::assign(specs(texts)).unwrap_err().to_string()
    }

    #[test]
    fn disks_without_a_name_get_the_free_ones_in_order() {
        let disks = DiskSpec::assign(specs(&["a", "b,,xvdb", "c", "d,,sda", "e,,xvdd5", "f"])).unwrap();
        let names: Vec<String> = disks.iter().map(|d| format!("{}={}", d.source, d.vdev)).collect();
        assert_eq!(names, ["a=xvda", "b=xvdb", "c=xvdc", "d=sda", "e=xvdd5", "f=xvde"]);
    }

    #[test]
    fn the_name_of_a_disk_does_not_depend_on_those_behind_it() {
        assert_eq!(
            refusal(&["a", "b,,xvda"]),
            "--disk b: two disks are called xvda; give one of them another vdev"
        );
    }

    #[test]
    fn two_disks_of_one_name_are_refused() {
        for second in ["b,,xvda", "b,vdev=d0", "b,,51712,ro", "b,,0xca00", "b,,d0p0", "b,,268435456"] {
            assert_eq!(
                refusal(&["a,,xvda", second]),
                "--disk b: two disks are called xvda; give one of them another vdev"
            );
        }
    }

    #[test]
    fn a_disk_and_its_own_partition_are_refused() {
        let sentence =
            "--disk b: xvda1 is a part of xvda, which is a disk too; give one of them another vdev";
        assert_eq!(refusal(&["a,,xvda", "b,,xvda1"]), sentence);
        assert_eq!(refusal(&["a,,xvda1", "b,,51712"]), sentence);
        assert_eq!(DiskSpec::assign(specs(&["a,,xvda1", "b,,xvda2", "c,,xvdb"])).unwrap().len(), 3);
    }

    #[test]
    fn one_image_twice_is_refused_unless_nobody_writes_or_all_share() {
        let sentence =
            "--disk a: the image is given twice; a writable image can be one disk only, unless both say w!";
        for pair in [["a", "a"], ["a", "a,ro"], ["a,ro", "a,raw,xvdb,w!"], ["a,,xvda,w!", "a"]] {
            assert_eq!(refusal(&pair), sentence, "{pair:?}");
        }
        for pair in [["a,ro", "a,ro"], ["a,,xvda,w!", "a,,xvdb,!"], ["a,,hdc,cdrom", "a,,xvda,r"]] {
            assert!(DiskSpec::assign(specs(&pair)).is_ok(), "{pair:?}");
        }
    }

    #[test]
    fn one_iscsi_disk_twice_is_refused() {
        let target = |portal: &str| format!("script=block-iscsi,target=iqn=iqn.x:a,portal={portal}");
        let sentence = refusal(&[&target("192.0.2.1"), &target("192.0.2.2")]);
        assert!(sentence.ends_with("unless both say w!"), "{sentence}");
    }

    #[test]
    fn the_disks_of_a_group_have_the_limits_of_its_first() {
        let disks =
            specs(&["a,group=g,iops=100,bps=1M", "b,group=g", "c,iops=5", "d,group=g,bps=1024K,iops=100"]);
        let disks = DiskSpec::assign(disks).unwrap();
        let limits: Vec<_> = disks.iter().map(|disk| (disk.iops, disk.bps)).collect();
        let shared = (Some(100), Some(1 << 20));
        assert_eq!(limits, [shared, shared, (Some(5), None), shared]);
    }

    #[test]
    fn a_group_without_one_limit_is_refused() {
        assert_eq!(
            refusal(&["a,group=g"]),
            "--disk a: group `g` has no limit; give iops= or bps= with its first disk"
        );
        assert_eq!(
            refusal(&["a,group=g,iops=1", "b,group=g,iops=2"]),
            "--disk b: the disks of group `g` share one iops and one bps; give them with the first disk only"
        );
    }

    #[test]
    fn a_disk_more_than_there_can_be_is_refused() {
        let disks = DiskSpec::assign(vec![DiskSpec::parse("a,ro").unwrap(); MAX_DISKS]).unwrap();
        let error = DiskSpec::parse("a,ro").unwrap().beside(&disks).unwrap_err().to_string();
        assert_eq!(error, "--disk a: a guest has at most 1024 disks; give fewer");
    }

    #[test]
    fn disks_survive_json() {
        let disks = specs(&[
            "a",
            "b,qcow2,,w!,cache=unsafe,queues=2,enospc=pause,no-discard",
            "format=empty,cdrom",
            "chap=/etc/c,script=block-iscsi,target=iqn=iqn.x:a,portal=192.0.2.1,lun=2",
        ]);
        let disks = DiskSpec::assign(disks).unwrap();
        let json = serde_json::to_string(&disks).unwrap();
        assert_eq!(serde_json::from_str::<Vec<DiskConfig>>(&json).unwrap(), disks, "{json}");
    }

    #[test]
    fn json_of_an_older_release_is_read() {
        let old = r#"{"path":"/a.img","vdev":"xvda","readonly":true}"#;
        let expected = specs(&["/a.img,ro"]).remove(0).beside(&[]).unwrap();
        assert_eq!(serde_json::from_str::<DiskConfig>(old).unwrap(), expected);
        let older = r#"{"path":"/a.img","vdev":"xvda"}"#;
        assert!(!serde_json::from_str::<DiskConfig>(older).unwrap().readonly);
        assert!(serde_json::from_str::<DiskConfig>(r#"{"vdev":"xvda"}"#).is_err());
    }
}

//! From the description of a disk to what serves it: the opened storage, and what the guest is shown.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use blkback::limits::LimitGroup;
use blkback::medium::DiskMedium;
use blkback::{Backing, Disk, DiskImage, ImageError, ImageOptions};
use devices::ide::{Attachment, Identity, Place};
use devices::medium::Medium;

use crate::config::vdev::VdevKind;
use crate::config::{Access, CacheMode, DiskConfig, DiskFormat, DiskSource, Vdev};
use crate::exit::{ExitStatus, Failure};
use crate::machine::pc::Drive;
use crate::storage::IscsiError;

/// Why the storage of a disk cannot be opened. One sentence.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The image file or block device.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The disk of an iSCSI target.
    #[error(transparent)]
    Iscsi(#[from] IscsiError),
    /// Nothing is in the drive.
    #[error("the drive {0} has no medium; name an image")]
    NoMedium(Vdev),
}

/// Opens what holds the bytes of a disk, and locks it. `run_dir` is the folder of running domains, in which
/// they agree on sessions with iSCSI targets.
pub fn open_storage(disk: &DiskConfig, run_dir: &Path) -> Result<Backing, StorageError> {
    match &disk.source {
        DiskSource::Path(path) => Ok(DiskImage::open_with(&image_options(disk, path))?.into()),
        DiskSource::Iscsi(target) => {
            let lun = target.attach(run_dir)?;
            let image = DiskImage::open_with(&image_options(disk, lun.path()))?;
            Ok(lun.under(image.into()))
        }
        DiskSource::Empty {} => Err(StorageError::NoMedium(disk.vdev)),
    }
}

/// How the image at `path` is opened for the disk.
fn image_options(disk: &DiskConfig, path: &Path) -> ImageOptions {
    ImageOptions {
        path: path.to_owned(),
        format: match disk.format {
            DiskFormat::Raw => blkback::Format::Raw,
            DiskFormat::Qcow2 => blkback::Format::Qcow2,
            DiskFormat::Vhd => blkback::Format::Vhd,
        },
        access: match disk.access() {
            Access::ReadOnly => blkback::Access::ReadOnly,
            Access::Exclusive => blkback::Access::Exclusive,
            Access::Shared => blkback::Access::Shared,
        },
        cache: match disk.cache {
            CacheMode::None => blkback::CacheMode::None,
            CacheMode::Writeback => blkback::CacheMode::Writeback,
            CacheMode::Unsafe => blkback::CacheMode::Unsafe,
        },
    }
}

/// The groups of disks of one guest that share their limits. Clones are the same groups.
#[derive(Clone, Debug, Default)]
pub struct LimitGroups(Arc<Mutex<HashMap<String, Weak<LimitGroup>>>>);

impl LimitGroups {
    /// The group of the disk, made with the disk's limits when no other disk has it.
    fn of(&self, disk: &DiskConfig) -> Option<Arc<LimitGroup>> {
        let name = disk.group.as_ref()?;
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(name).and_then(Weak::upgrade) {
            return Some(group);
        }
        let group = LimitGroup::new(disk.iops, disk.bps);
        groups.insert(name.clone(), Arc::downgrade(&group));
        Some(group)
    }
}

/// How the guest is shown the disk. `bootable` is the first one.
pub fn shown(disk: &DiskConfig, bootable: bool, groups: &LimitGroups) -> blkback::DiskConfig {
    let limit_group = groups.of(disk);
    // The limits of a disk in a group are the group's.
    let own = |limit: Option<u64>| limit.filter(|_| limit_group.is_none());
    blkback::DiskConfig {
        vdev: disk.vdev.to_string(),
        virtual_device: disk.vdev.virtual_device(),
        readonly: disk.readonly,
        bootable,
        cdrom: disk.cdrom,
        removable: disk.removable,
        discard: disk.discard,
        queues: disk.queues,
        iops: own(disk.iops),
        bps: own(disk.bps),
        limit_group,
        enospc_pause: disk.enospc_pause,
    }
}

/// Where the disk is an IDE drive of a PC: `hda` to `hdd`.
pub(super) fn ide_place(disk: &DiskConfig) -> Option<Place> {
    let whole = disk.vdev.kind() == VdevKind::Hd && disk.vdev.partition() == 0;
    Place::of_hd(disk.vdev.disk()).filter(|_| whole)
}

/// The disk as an IDE drive, and what its PV half shares with it. A CD-ROM drive may be empty.
pub(super) fn ide_drive(
    place: Place,
    disk: &DiskConfig,
    shown: &blkback::DiskConfig,
    image: Option<Backing>,
) -> Result<(Drive, Option<Arc<Disk>>), Failure> {
    let shared = image.map(|image| Arc::new(Disk::new(shown, image)));
    let medium = shared.clone().map(|shared| ide_medium(disk, shared));
    let (what, model) = match medium.transpose()? {
        medium if disk.cdrom => (Attachment::Cdrom(medium), "xvmm CD-ROM"),
        Some(medium) => (Attachment::Disk(medium), "xvmm disk"),
        None => {
            let message = format!("--disk: the drive {} is empty; only a CD-ROM drive can be", disk.vdev);
            return Err(Failure::new(ExitStatus::Usage, message));
        }
    };
    let serial = format!("XV{:05}", disk.vdev.virtual_device());
    let firmware = env!("CARGO_PKG_VERSION").to_owned();
    let identity = Identity { model: model.to_owned(), serial, firmware };
    // A guest keeps its CD-ROM drives: they are not unplugged.
    Ok((Drive { place, what, identity }, shared.filter(|_| !disk.cdrom)))
}

/// What is in a drive. It has a thread.
pub(super) fn ide_medium(disk: &DiskConfig, image: Arc<Disk>) -> Result<Arc<dyn Medium>, Failure> {
    let medium = DiskMedium::new(image).map_err(|error| {
        Failure::new(ExitStatus::HostError, format!("no thread for the drive {}: {error}", disk.vdev))
    })?;
    Ok(Arc::new(medium))
}

/// The name of the image format whose mark a file has, where it is one that is often given as raw by mistake.
/// Whatever it is, nothing follows from it: a guest can write the mark into its disk (XSA-258).
pub(super) fn looks_like(path: &Path) -> Option<&'static str> {
    const START: [(&[u8], &str); 6] = [
        (b"QFI\xfb", "qcow2"),
        (b"conectix", "vhd"),
        (b"vhdxfile", "vhdx"),
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile", "vmdk"),
    ];
    let mut file = File::open(path).ok()?;
    let mut mark = [0; 32];
    let count = file.read(&mut mark).ok()?;
    let start = mark.get(..count)?;
    if let Some((_, name)) = START.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(name);
    }
    // A fixed VHD has its only mark in the last sector.
    file.seek(SeekFrom::End(-512)).ok()?;
    file.read_exact(mark.first_chunk_mut::<8>()?).ok()?;
    mark.starts_with(b"conectix").then_some("vhd")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::DiskSpec;

    fn disks(specs: &[&str]) -> Vec<DiskConfig> {
        DiskSpec::assign(specs.iter().map(|spec| DiskSpec::parse(spec).unwrap()).collect()).unwrap()
    }

    #[test]
    fn the_guest_is_shown_what_the_description_says() {
        let disks = disks(&["a,,hdc,cdrom", "b,,xvdq,no-discard,queues=2,iops=7,bps=1M,enospc=pause"]);
        let groups = LimitGroups::default();
        let cdrom = shown(&disks[0], true, &groups);
        assert_eq!((cdrom.vdev.as_str(), cdrom.virtual_device), ("hdc", 5632));
        assert!(cdrom.cdrom && cdrom.removable && cdrom.readonly && cdrom.bootable && cdrom.discard);
        let disk = shown(&disks[1], false, &groups);
        assert_eq!((disk.virtual_device, disk.queues), (1 << 28 | 16 << 8, Some(2)));
        assert_eq!((disk.iops, disk.bps, disk.enospc_pause), (Some(7), Some(1 << 20), true));
        assert!(!disk.cdrom && !disk.removable && !disk.readonly && !disk.bootable && !disk.discard);
        assert!(disk.limit_group.is_none());
    }

    #[test]
    fn the_disks_of_a_group_share_one_limit() {
        let disks = disks(&["a,iops=5,group=g", "b,group=g", "c,iops=5,group=h"]);
        let groups = LimitGroups::default();
        let shown: Vec<_> = disks.iter().map(|disk| shown(disk, false, &groups)).collect();
        assert!(shown.iter().all(|disk| disk.iops.is_none() && disk.bps.is_none()));
        let group = |index: usize| shown[index].limit_group.as_ref().unwrap();
        assert!(Arc::ptr_eq(group(0), group(1)) && !Arc::ptr_eq(group(0), group(2)));
    }

    #[test]
    fn a_group_that_no_disk_has_any_more_begins_anew() {
        let disks = disks(&["a,iops=5,group=g"]);
        let groups = LimitGroups::default();
        let first = Arc::downgrade(&shown(&disks[0], false, &groups).limit_group.unwrap());
        assert!(first.upgrade().is_none());
        assert!(shown(&disks[0], false, &groups).limit_group.is_some());
    }

    #[test]
    fn an_image_is_opened_as_the_description_says() {
        let table = [
            ("/a", blkback::Format::Raw, blkback::Access::Exclusive, blkback::CacheMode::None),
            ("/a,qcow2,,ro", blkback::Format::Qcow2, blkback::Access::ReadOnly, blkback::CacheMode::None),
            (
                "/a,vhd,cache=writeback",
                blkback::Format::Vhd,
                blkback::Access::Exclusive,
                blkback::CacheMode::Writeback,
            ),
            (
                "/a,,,w!,cache=unsafe",
                blkback::Format::Raw,
                blkback::Access::Shared,
                blkback::CacheMode::Unsafe,
            ),
        ];
        for (spec, format, access, cache) in table {
            let path = Path::new("/a");
            let expected = ImageOptions { path: path.into(), format, access, cache };
            assert_eq!(image_options(&disks(&[spec])[0], path), expected, "{spec}");
        }
    }

    #[test]
    fn marks_of_formats_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let looks = |bytes: &[u8]| {
            let path = dir.path().join("image");
            std::fs::write(&path, bytes).unwrap();
            looks_like(&path)
        };
        let sectors = |start: &[u8], end: &[u8]| {
            let mut bytes = [0; 1536];
            bytes[..start.len()].copy_from_slice(start);
            bytes[1024..1024 + end.len()].copy_from_slice(end);
            looks(&bytes)
        };
        assert_eq!(sectors(b"QFI\xfb\0\0\0\x03", b""), Some("qcow2"));
        assert_eq!(sectors(b"conectix", b"conectix"), Some("vhd"));
        assert_eq!(sectors(b"", b"conectix"), Some("vhd"));
        assert_eq!(sectors(b"vhdxfile", b""), Some("vhdx"));
        assert_eq!(sectors(b"\xeb\x63\x90", b""), None);
        assert_eq!(looks(b""), None);
        assert_eq!(looks(b"QF"), None);
        assert_eq!(looks_like(Path::new("/nonexistent/image")), None);
    }
}

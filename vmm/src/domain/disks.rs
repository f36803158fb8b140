//! From the description of a disk to what serves it: the opened storage, and what the guest is shown.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use blkback::{Backing, DiskImage, ImageError};

use crate::config::{Access, CacheMode, DiskConfig, DiskFormat, DiskSource};
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
    /// What this build has no storage for.
    #[error(
        "{0}: this build serves raw images with cache=none and one writer; convert the image, or leave the rest out"
    )]
    NotServed(String),
}

/// Opens what holds the bytes of a disk, and locks it. `run_dir` is the folder of running domains, in which
/// they agree on sessions with iSCSI targets.
pub fn open_storage(disk: &DiskConfig, run_dir: &Path) -> Result<Backing, StorageError> {
    let plain =
        disk.format == DiskFormat::Raw && disk.cache == CacheMode::None && disk.access() != Access::Shared;
    match &disk.source {
        DiskSource::Path(path) if plain => Ok(DiskImage::open(path, disk.readonly)?.into()),
        DiskSource::Iscsi(target) if plain => {
            let lun = target.attach(run_dir)?;
            let image = DiskImage::open(lun.path(), disk.readonly)?;
            Ok(lun.under(image.into()))
        }
        source => Err(StorageError::NotServed(source.to_string())),
    }
}

/// How the guest is shown the disk. `bootable` is the first one.
pub fn shown(disk: &DiskConfig, bootable: bool) -> blkback::DiskConfig {
    blkback::DiskConfig {
        vdev: disk.vdev.to_string(),
        virtual_device: disk.vdev.virtual_device(),
        readonly: disk.readonly,
        bootable,
        discard: true,
        ..Default::default()
    }
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

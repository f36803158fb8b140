//! The order in which firmware tries the drives: the file `bootorder` of fw_cfg. A line for each, a path as Open Firmware
//! writes them; the end is a zero.

use devices::ide::{Attachment, Place};
use devices::pc::cmos::BootDevice;

use super::board::Drive;

/// The IDE drives in the order of `boot`; of one kind, in that of their places.
pub(super) fn paths(boot: &[BootDevice], drives: &[Drive]) -> Vec<u8> {
    let places = drives.iter().map(|drive| (drive.place, matches!(drive.what, Attachment::Disk(..))));
    lines(boot, &places.collect::<Vec<_>>()).into_bytes()
}

fn lines(boot: &[BootDevice], drives: &[(Place, bool)]) -> String {
    let mut text = String::new();
    for device in boot {
        let disks = match device {
            BootDevice::Disk => true,
            BootDevice::Cdrom => false,
            _ => continue,
        };
        let mut of_kind: Vec<(usize, usize)> = drives
            .iter()
            .filter(|(_, disk)| *disk == disks)
            .map(|(place, _)| (place.channel, place.unit))
            .collect();
        of_kind.sort_unstable();
        for (channel, unit) in of_kind {
            text += &format!("/pci@i0cf8/ide@1,1/drive@{channel}/disk@{unit}\n");
        }
    }
    text + "\0"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_are_tried_by_kind_and_place() {
        let place = |channel, unit| Place { channel, unit };
        let drives = [(place(1, 0), false), (place(0, 1), true), (place(0, 0), true)];
        let path = |channel, unit| format!("/pci@i0cf8/ide@1,1/drive@{channel}/disk@{unit}\n");
        let disks = path(0, 0) + &path(0, 1);
        assert_eq!(lines(&[BootDevice::Cdrom, BootDevice::Disk], &drives), path(1, 0) + &disks + "\0");
        assert_eq!(lines(&[BootDevice::Disk, BootDevice::Network], &drives), disks + "\0");
        assert_eq!(lines(&[BootDevice::Network], &drives), "\0");
    }
}

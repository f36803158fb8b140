//! Names of virtual disks, `xvda`, and their numbers in xenstore (xen-vbd-interface(7)).

use std::fmt;
use std::str::FromStr;

use crate::text::as_text;

/// The driver family that a name belongs to. It decides the numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VdevKind {
    /// `xvd`: the guest's own Xen disks.
    Xvd,
    /// `sd`: shown as SCSI disks.
    Sd,
    /// `hd`: shown as IDE disks.
    Hd,
}

impl VdevKind {
    fn prefix(self) -> &'static str {
        match self {
            VdevKind::Xvd => "xvd",
            VdevKind::Sd => "sd",
            VdevKind::Hd => "hd",
        }
    }

    /// Disks of this kind, and the highest partition number of each.
    fn limits(self) -> (u32, u32) {
        match self {
            // 20 bits of the extended number, and 8 for the partition.
            VdevKind::Xvd => (1 << 20, 255),
            VdevKind::Sd => (16, 15),
            VdevKind::Hd => (4, 63),
        }
    }
}

/// The name of a virtual disk or of one partition: `xvda`, `xvda1`, `sdb`, `hdc`, `xvdaa`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vdev {
    kind: VdevKind,
    disk: u32,
    partition: u32,
}

impl Vdev {
    /// The whole disk number `disk`, from 0, of the `xvd` kind; `None` past the last one.
    pub fn xvd(disk: u32) -> Option<Vdev> {
        (disk < VdevKind::Xvd.limits().0).then_some(Vdev { kind: VdevKind::Xvd, disk, partition: 0 })
    }

    /// The disk or partition that a number in xenstore names; the inverse of [`Vdev::virtual_device`]. A small
    /// disk in the wide encoding (`1 << 28`) is the disk of the same name: guests show both alike.
    ///
    /// Numbers that stand for Linux's major and minor numbers of other drivers are deprecated and name nothing.
    pub fn from_number(number: u32) -> Option<Vdev> {
        let (kind, disk, partition) = match number >> 8 {
            202 => (VdevKind::Xvd, number >> 4 & 15, number & 15),
            8 => (VdevKind::Sd, number >> 4 & 15, number & 15),
            3 => (VdevKind::Hd, number >> 6 & 3, number & 63),
            22 => (VdevKind::Hd, (number >> 6 & 3) + 2, number & 63),
            wide if wide >> 20 == 1 => (VdevKind::Xvd, wide & 0xf_ffff, number & 255),
            _ => return None,
        };
        // Two disks share the major number 3, and two the number 22.
        let last = if number >> 8 == 3 { 2 } else { kind.limits().0 };
        (disk < last).then_some(Vdev { kind, disk, partition })
    }

    /// Whether the two cannot be disks of one guest: they are the same, or one is a partition of the other.
    pub fn overlaps(self, other: Vdev) -> bool {
        let whole = self.partition == 0 || other.partition == 0;
        (self.kind, self.disk) == (other.kind, other.disk) && (whole || self.partition == other.partition)
    }

    /// The kind of name.
    pub fn kind(self) -> VdevKind {
        self.kind
    }

    /// The disk, from 0.
    pub fn disk(self) -> u32 {
        self.disk
    }

    /// The partition from 1, or 0 for the whole disk.
    pub fn partition(self) -> u32 {
        self.partition
    }

    /// The number that names the disk in xenstore, in `device/vbd/N` and `virtual-device`
    /// (xen-vbd-interface(7), "Concrete encoding in the VBD interface").
    ///
    /// `xvd`: `202 << 8 | disk << 4 | partition` while both fit, `1 << 28 | disk << 8 | partition` beyond;
    /// `sd`: `8 << 8 | disk << 4 | partition`; `hd`: `3 << 8 | disk << 6 | partition` for the first two
    /// disks and 22 in place of 3 for the other two.
    pub fn virtual_device(self) -> u32 {
        let Vdev { kind, disk, partition } = self;
        match kind {
            VdevKind::Xvd if disk < 16 && partition < 16 => 202 << 8 | disk << 4 | partition,
            VdevKind::Xvd => 1 << 28 | disk << 8 | partition,
            VdevKind::Sd => 8 << 8 | disk << 4 | partition,
            VdevKind::Hd if disk < 2 => 3 << 8 | disk << 6 | partition,
            VdevKind::Hd => 22 << 8 | (disk - 2) << 6 | partition,
        }
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Letters count as a, b, .. z, aa, ab: base 26 without a zero.
        let mut letters = Vec::new();
        let mut rest = self.disk + 1;
        while rest > 0 {
            rest -= 1;
            letters.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
            rest /= 26;
        }
        f.write_str(self.kind.prefix())?;
        letters.iter().rev().try_for_each(|letter| write!(f, "{letter}"))?;
        if self.partition > 0 {
            write!(f, "{}", self.partition)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the name of a virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a virtual disk; use xvda, xvdb, ... (or sda-sdp, hda-hdd), with a partition number if need be")]
pub struct VdevError;

/// A number as xl reads it: decimal, hexadecimal behind `0x`, octal behind `0`.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would take a sign too.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

/// The numbers in `d0`, `d0p1`: disk and partition of the `xvd` kind.
fn disk_and_partition(text: &str) -> Option<(u32, u32)> {
    let plain = |digits: &str| {
        let canonical = digits == "0" || !digits.starts_with('0');
        (canonical && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
    };
    let (disk, partition) = text.split_once('p').unwrap_or((text, "0"));
    Some((plain(disk)?, plain(partition)?))
}

impl FromStr for Vdev {
    type Err = VdevError;

    /// Parses a name, `dNpM`, or the number itself (`51712`, `0xca00`).
    fn from_str(text: &str) -> Result<Vdev, VdevError> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            return number(text).and_then(Vdev::from_number).ok_or(VdevError);
        }
        let numbered = text.strip_prefix('d').and_then(disk_and_partition);
        if let Some((disk, partition)) = numbered {
            let (disks, last_partition) = VdevKind::Xvd.limits();
            let fits = disk < disks && partition <= last_partition;
            return fits.then_some(Vdev { kind: VdevKind::Xvd, disk, partition }).ok_or(VdevError);
        }
        let kinds = [VdevKind::Xvd, VdevKind::Sd, VdevKind::Hd];
        let (kind, rest) = kinds
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)))
            .ok_or(VdevError)?;
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        let (letters, digits) = rest.split_at_checked(letters).ok_or(VdevError)?;
        // Four letters reach past the last disk number, so longer names cannot overflow.
        if letters.is_empty() || letters.len() > 5 || digits.len() > 3 {
            return Err(VdevError);
        }
        let disk = letters.bytes().fold(0, |disk, b| disk * 26 + u32::from(b - b'a') + 1) - 1;
        let partition = if digits.is_empty() {
            0
        } else if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(VdevError);
        } else {
            digits.parse().map_err(|_| VdevError)?
        };
        let (disks, last_partition) = kind.limits();
        if disk >= disks || partition > last_partition {
            return Err(VdevError);
        }
        Ok(Vdev { kind, disk, partition })
    }
}

as_text!(Vdev);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_have_their_xenstore_numbers() {
        let table = [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvda15", 51727),
            ("xvda16", 1 << 28 | 16),
            ("xvdb", 51728),
            ("xvdp", 51952),
            ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvdq1", 1 << 28 | 16 << 8 | 1),
            ("xvdz", 1 << 28 | 25 << 8),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("xvdzz", 1 << 28 | 701 << 8),
            ("xvdaaa", 1 << 28 | 702 << 8),
            ("sda", 2048),
            ("sdb3", 2067),
            ("sdp15", 2303),
            ("hda", 768),
            ("hdb", 832),
            ("hdb63", 895),
            ("hdc", 5632),
            ("hdd1", 5697),
        ];
        for (name, number) in table {
            let vdev: Vdev = name.parse().unwrap();
            assert_eq!(vdev.virtual_device(), number, "{name}");
            assert_eq!(vdev.to_string(), name);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "xvd",
            "xvd1",
            "xvdA",
            "xvda0",
            "xvda01",
            "xvda256",
            "xvda-1",
            "xvda 1",
            "xvda1p",
            "d",
            "d0p",
            "dp1",
            "d0p256",
            "d1048576",
            "d00",
            "d0p01",
            "d0p1p1",
            "d+1",
            "d99999999999",
            "0",
            "1",
            "0x",
            "0xcag0",
            "0x+ca00",
            "051712",
            "51712 ",
            "+51712",
            "-51712",
            "896",
            "5760",
            "8448",
            "0xcb00",
            "0x20000000",
            "4294967296",
            "99999999999999999999",
            "sdq",
            "sda16",
            "hde",
            "hda64",
            "vda",
            "/dev/xvda",
            "XVDA",
            "xvdé",
            "xvdzzzzz",
            "xvdaaaaaaaaaaaaaaaaaa",
            "xvda99999999999999999999",
        ] {
            assert_eq!(name.parse::<Vdev>(), Err(VdevError), "{name}");
        }
    }

    #[test]
    fn other_spellings_name_the_same_disk() {
        let table = [
            ("d0", "xvda"),
            ("d0p0", "xvda"),
            ("d1p2", "xvdb2"),
            ("d536p37", "xvdtq37"),
            ("51712", "xvda"),
            ("0xca00", "xvda"),
            ("0XCA01", "xvda1"),
            ("0145000", "xvda"),
            ("51967", "xvdp15"),
            ("2048", "sda"),
            ("0x8ff", "sdp15"),
            ("768", "hda"),
            ("895", "hdb63"),
            ("5632", "hdc"),
            ("5759", "hdd63"),
            ("268435456", "xvda"),
            ("0x10000010", "xvda16"),
            ("268439552", "xvdq"),
            ("0x1fffffff", "xvdbgqcv255"),
        ];
        for (text, name) in table {
            assert_eq!(text.parse::<Vdev>().map(|v| v.to_string()), Ok(name.to_owned()), "{text}");
        }
    }

    #[test]
    fn every_number_is_that_of_its_disk() {
        for number in (0..0x1_0000).chain(0x1000_1000..0x1000_3000) {
            if let Some(vdev) = Vdev::from_number(number) {
                assert_eq!(vdev.virtual_device(), number, "{vdev}");
            }
        }
    }

    #[test]
    fn a_partition_overlaps_with_its_disk_only() {
        let overlap = |a: &str, b: &str| {
            let (a, b): (Vdev, Vdev) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.overlaps(b), b.overlaps(a));
            a.overlaps(b)
        };
        assert!(overlap("xvda", "d0") && overlap("xvda", "xvda1") && overlap("hdc7", "hdc"));
        assert!(!overlap("xvda1", "xvda2") && !overlap("xvda", "xvdb1") && !overlap("xvda", "sda1"));
    }

    #[test]
    fn the_last_disk_has_a_name() {
        let last = Vdev::xvd((1 << 20) - 1).unwrap();
        assert_eq!(last.to_string().parse(), Ok(last));
        assert_eq!(Vdev::xvd(1 << 20), None);
    }
}

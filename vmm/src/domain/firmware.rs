//! The image of a PC's firmware.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use devices::pc::cmos::BootDevice;

use crate::exit::{ExitStatus, Failure};

/// A firmware has whole segments of 64 KiB, and at most 4 MiB.
const SEGMENT: usize = 64 << 10;
const MAX: usize = 4 << 20;
const VGA_MAX: usize = 256 << 10;

/// What the letters of `--boot` mean.
pub(super) fn boot_order(letters: &str) -> Vec<BootDevice> {
    let device = |letter| match letter {
        'c' => Some(BootDevice::Disk),
        'd' => Some(BootDevice::Cdrom),
        'n' => Some(BootDevice::Network),
        _ => None,
    };
    letters.chars().filter_map(device).collect()
}

/// Reads the machine's firmware.
pub(super) fn read_bios(path: &Path) -> Result<Vec<u8>, Failure> {
    let sizes = "a firmware has a multiple of 64 KiB, at most 4 MiB; name one like SeaBIOS's bios-256k.bin";
    read("--bios", path, MAX, |len| len.is_multiple_of(SEGMENT), sizes)
}

/// Reads the screen's firmware.
pub(super) fn read_vgabios(path: &Path) -> Result<Vec<u8>, Failure> {
    let sizes = "a video BIOS has at most 256 KiB; name one like SeaBIOS's vgabios-stdvga.bin";
    read("--vgabios", path, VGA_MAX, |_| true, sizes)
}

fn read(
    flag: &str,
    path: &Path,
    max: usize,
    fits: impl Fn(usize) -> bool,
    sizes: &str,
) -> Result<Vec<u8>, Failure> {
    let fail =
        |problem: String| Failure::new(ExitStatus::Usage, format!("{flag} {}: {problem}", path.display()));
    let mut image = Vec::new();
    let limit = max as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut image));
    read.map_err(|error| fail(format!("cannot be read: {error}")))?;
    if image.is_empty() || image.len() > max || !fits(image.len()) {
        return Err(fail(sizes.to_owned()));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_size_of_a_firmware_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bios");
        for (len, good) in [(0, false), (1, false), (SEGMENT, true), (MAX, true), (MAX + SEGMENT, false)] {
            std::fs::write(&path, vec![0; len]).unwrap();
            assert_eq!(read_bios(&path).is_ok(), good, "{len}");
        }
    }
}

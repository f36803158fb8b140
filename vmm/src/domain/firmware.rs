//! The image of a PC's firmware.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::exit::{ExitStatus, Failure};

/// A firmware has whole segments of 64 KiB, and at most 4 MiB.
const SEGMENT: usize = 64 << 10;
const MAX: usize = 4 << 20;

/// Reads it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let fail =
        |problem: String| Failure::new(ExitStatus::Usage, format!("--bios {}: {problem}", path.display()));
    let mut image = Vec::new();
    let limit = MAX as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut image));
    read.map_err(|error| fail(format!("cannot be read: {error}")))?;
    if image.is_empty() || image.len() > MAX || !image.len().is_multiple_of(SEGMENT) {
        let what = "a firmware has a multiple of 64 KiB, at most 4 MiB; name a firmware like SeaBIOS's bios-256k.bin";
        return Err(fail(what.into()));
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
            assert_eq!(read(&path).is_ok(), good, "{len}");
        }
    }
}

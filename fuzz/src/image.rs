//! What the targets for image formats share: a file in memory, patches, and a guest.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

use blkback::engine::IoVec;
use blkback::storage::Storage;
use blkback::{Access, CacheMode, DiskImage, Format, ImageOptions};

use crate::Input;

/// Bytes that a guest reads or writes at once, at most.
const LONGEST: usize = 128 << 10;
/// Operations of a guest.
const MAX_OPERATIONS: u32 = 64;
/// Bytes that the file may grow to: what a guest can make it grow by, and a little.
const MAX_GROWTH: u64 = 64 << 20;

/// An image file in memory.
#[derive(Debug)]
pub struct Scratch(File, u64);

impl Scratch {
    /// With these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        // SAFETY: a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "a memfd");
        // SAFETY: a new descriptor that nobody else owns.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(bytes).expect("memory");
        Self(file, bytes.len() as u64)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Bytes that it takes, without holes.
    fn used(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&self.0.metadata().expect("a file")) * 512
    }
}

/// Changes numbers in `bytes`, or replaces all of them.
pub fn patch(input: &mut Input, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        let len = usize::from(input.u16());
        bytes.extend_from_slice(input.bytes(len));
        return;
    }
    for _ in 0..input.below(9) {
        let at = usize::from(input.u16()) % bytes.len();
        let value = input.number().to_be_bytes();
        // A field of 1, 2, 4 or 8 bytes.
        let field = &value[8 - (1 << input.below(4))..];
        for (to, from) in bytes[at..].iter_mut().zip(field) {
            *to = *from;
        }
    }
}

/// Opens the image and does what a guest may do to a disk. What was written and not discarded is read again,
/// unless the image is found to be damaged.
pub fn play(input: &mut Input, scratch: &Scratch, format: Format) {
    let access = if input.u8() & 7 == 7 { Access::ReadOnly } else { Access::Exclusive };
    let options = ImageOptions { path: scratch.path(), format, access, cache: CacheMode::Unsafe };
    let Ok(mut image) = DiskImage::open_with(&options) else { return };
    let size = image.size();
    let mut buffer = vec![0; LONGEST];
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let operation = input.below(6);
        // What the ring has checked: whole sectors within the disk.
        let sector = input.number() % (size / 512);
        let len = (u64::from(input.below(0xff)) + 1) * 512;
        let len = len.min(size - sector * 512).min(LONGEST as u64);
        let piece = [IoVec::new(buffer.as_mut_ptr(), len as usize)];
        match operation {
            // SAFETY: the buffer outlives the call.
            0 | 1 => drop(unsafe { image.read_at(&piece, sector * 512) }),
            2 | 3 => {
                buffer.fill(input.u8());
                // SAFETY: as above.
                if let Ok(done) = unsafe { image.write_at(&piece, sector * 512) } {
                    assert_eq!(done as u64, len, "a short write");
                }
            }
            4 => drop(image.discard(sector * 512, len)),
            _ if input.u8() & 1 == 0 => drop(image.flush()),
            _ => {
                drop(image);
                match DiskImage::open_with(&options) {
                    Ok(again) if again.size() == size => image = again,
                    _ => return,
                }
            }
        }
    }
    drop(image);
    assert!(scratch.used() <= scratch.1 + MAX_GROWTH, "the image grew to {} bytes", scratch.used());
}

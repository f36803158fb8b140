//! Kernel images: unpacking, loading and the PVH entry.
//!
//! [`Kernel::open`] reads and unpacks an image and refuses a bad one before anything on the host is changed; it
//! needs nothing of the guest and may run beside the making of the VM. [`Kernel::check`] says whether the
//! guest's memory is large enough, and [`Kernel::load_into`] writes the kernel, the initrd and `hvm_start_info`
//! into guest RAM. The unpacked image (tens of MiB) lives as long as the [`Kernel`]: drop it after loading.
//!
//! Kernel and initrd may come from the guest's owner, not the host's: every byte of them is hostile. No input
//! makes these functions panic, and the sizes below bound their memory and time.

mod bzimage;
mod elf;
mod error;
mod free_ram;
mod image;
mod lzo;
mod pvh;
mod unpack;

#[cfg(test)]
mod testing;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use elf::Class;
pub use error::{BootError, ImageError};
use image::Image;
pub use pvh::{BootEntry, Initrd, LoadRequest, MemmapEntry, MemmapKind};

/// The largest kernel file that is read: an unstripped vmlinux with debug information fits.
pub const MAX_KERNEL_FILE: u64 = 1 << 30;

/// The most a payload may unpack to. A bomb of a few KiB would otherwise take 4 GiB of the host's memory;
/// Debian's kernels unpack to 51 - 63 MiB.
pub const MAX_UNPACKED: usize = 512 << 20;

/// A kernel with a PVH entry, unpacked and ready to be loaded.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    image: Image,
    elf: elf::Elf,
    initrd_limit: u64,
}

impl Kernel {
    /// Reads and unpacks a bzImage, an ELF image or a gzip-compressed ELF image.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::KernelUnreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        if let Some(image) = elf_file(&file) {
            return Self::new(path, open_elf(image));
        }
        // The length is a hint: a pipe has none.
        let len = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_KERNEL_FILE));
        let mut bytes: Vec<u8> = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1);
        unpack::advise_huge_pages(bytes.as_mut_ptr(), bytes.capacity());
        // A device that never ends (/dev/zero) stops here as well.
        file.take(MAX_KERNEL_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_KERNEL_FILE {
            let error = ImageError::TooLarge { size: bytes.len() as u64, limit: MAX_KERNEL_FILE };
            return Err(BootError::Image { path: path.to_owned(), error });
        }
        Self::new(path, open_image(bytes))
    }

    /// As [`Kernel::open`] from the bytes of a file; `path` only names it in messages.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, BootError> {
        Self::new(path, open_image(bytes.to_vec()))
    }

    fn new(path: &Path, opened: Result<(Image, elf::Elf, u64), ImageError>) -> Result<Self, BootError> {
        let (image, elf, initrd_limit) =
            opened.map_err(|error| BootError::Image { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), image, elf, initrd_limit })
    }

    /// Whether the image is ELF32 or ELF64. A 32-bit image may still bring up a 64-bit guest.
    pub fn class(&self) -> Class {
        self.elf.class
    }

    /// Bytes of the unpacked image.
    pub fn image_len(&self) -> usize {
        self.image.len()
    }
}

/// A regular file with an ELF image that is not compressed.
fn elf_file(file: &File) -> Option<Image> {
    let metadata = file.metadata().ok().filter(|metadata| metadata.is_file())?;
    let len = usize::try_from(metadata.len()).ok().filter(|len| *len as u64 <= MAX_KERNEL_FILE)?;
    let mut magic = [0; elf::MAGIC.len()];
    file.read_exact_at(&mut magic, 0).ok().filter(|()| magic == elf::MAGIC)?;
    Some(Image::File(file.try_clone().ok()?, len))
}

/// Unpacks to an ELF image; the last field is the first address that an initrd may not reach.
fn open_image(bytes: Vec<u8>) -> Result<(Image, elf::Elf, u64), ImageError> {
    if let Some(header) = bzimage::parse(&bytes)? {
        let limit = u64::from(header.initrd_addr_max) + 1;
        let (format, image) = unpack::unpack(header.payload)?;
        drop(bytes);
        let image = Image::Memory(image);
        let elf = elf::parse(&image).map_err(|error| inside(format, error))?;
        return Ok((image, elf, limit));
    }
    // NetBSD's Dom-U kernels are installed as netbsd-XEN3_DOMU.gz; the Xen tools unpack these, too.
    if unpack::Format::of(&bytes) == Some(unpack::Format::Gzip) {
        let (format, image) = unpack::unpack(&bytes)?;
        return open_elf(Image::Memory(image)).map_err(|error| inside(format, error));
    }
    open_elf(Image::Memory(bytes))
}

/// As [`open_image`] for what is an ELF image already.
fn open_elf(image: Image) -> Result<(Image, elf::Elf, u64), ImageError> {
    let elf = elf::parse(&image)?;
    let limit = match elf.machine {
        elf::Machine::X86_64 => 1 << 31,
        // What a 32-bit Linux without its bzImage header can reach (boot protocol, initrd_addr_max).
        elf::Machine::I386 => 0x3800_0000,
    };
    Ok((image, elf, limit))
}

/// An error of the unpacked image in words of the file: what cannot be an ELF image was damaged.
fn inside(format: unpack::Format, error: ImageError) -> ImageError {
    match error {
        ImageError::NotAKernel => format.corrupt("it does not unpack to an ELF image"),
        ImageError::Truncated { .. } => format.corrupt("the ELF image in it is cut off"),
        other => other,
    }
}

/// The little-endian word at `offset`, if it is inside `bytes`.
fn le_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// As [`le_u16`].
fn le_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// As [`le_u16`].
fn le_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;

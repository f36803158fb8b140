//! Why a kernel or an initrd is refused: one sentence each, for the person who gave it.

use std::io;
use std::path::PathBuf;

/// What is wrong with the bytes of a kernel image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// Neither a bzImage nor an ELF image.
    #[error(
        "it is not a kernel (neither a bzImage nor an ELF image); give a vmlinuz or vmlinux of a Linux built for x86"
    )]
    NotAKernel,
    /// The file ends before the size that its own header states.
    #[error(
        "the {what} is truncated ({actual} bytes, its header says at least {expected}); copy or install it again"
    )]
    Truncated {
        /// "bzImage" or "ELF image".
        what: &'static str,
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes that there are.
        actual: u64,
    },
    /// The file could be opened, but a part of it could not be read.
    #[error("a part of it cannot be read: {0}")]
    Unreadable(String),
    /// A boot protocol without a payload field, before Linux 2.6.26.
    #[error(
        "it speaks Linux boot protocol {}.{:02}, which has no direct way to its payload; use Linux 2.6.26 or later",
        .0 >> 8, .0 & 0xff
    )]
    TooOld(u16),
    /// The setup header contradicts itself.
    #[error("its bzImage header is damaged: {0}; copy or install it again")]
    DamagedHeader(&'static str),
    /// A payload in a format that Linux does not use.
    #[error(
        "its payload is in an unknown format (it begins with {0:02x?}); rebuild it with gzip, bzip2, lzma, xz, lzo, lz4 or zstd"
    )]
    UnknownCompression([u8; 6]),
    /// The payload does not unpack.
    #[error("its {format} payload is corrupt ({reason}); copy or install it again")]
    CorruptPayload {
        /// Name of the compression.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// More than [`super::MAX_UNPACKED`] or [`super::MAX_KERNEL_FILE`].
    #[error("it is too large ({} MiB, at most {} MiB are accepted); use a stripped kernel", .size >> 20, .limit >> 20)]
    TooLarge {
        /// Bytes of the file or the unpacked image.
        size: u64,
        /// Bytes accepted.
        limit: u64,
    },
    /// No memory on the host to unpack it.
    #[error("the host has no memory to unpack it ({} MiB); free some", .0 >> 20)]
    HostMemory(usize),
    /// ELF for another machine.
    #[error("it is built for another machine (ELF machine {0}); use a kernel for x86")]
    OtherMachine(u16),
    /// An ELF image that no linker makes.
    #[error("its ELF image is malformed: {0}; build or install it again")]
    BadElf(&'static str),
    /// No note PHYS32_ENTRY.
    #[error(
        "it has no PVH entry (no Xen ELF note PHYS32_ENTRY); use one built with CONFIG_PVH=y and CONFIG_XEN_PVH=y"
    )]
    NoPvhEntry,
}

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No such file, or no right to read it.
    #[error("kernel {} cannot be read: {source}; check the path and its permissions", .path.display())]
    KernelUnreadable {
        /// The kernel.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The file is not a kernel that can be booted.
    #[error("kernel {}: {error}", .path.display())]
    Image {
        /// The kernel.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: ImageError,
    },
    /// The kernel ends above the end of RAM.
    #[error(
        "kernel {} needs {} MiB of memory to be loaded, the guest has {} MiB; raise --memory",
        .path.display(), .needed.div_ceil(1 << 20), .memory >> 20
    )]
    MemoryTooSmall {
        /// The kernel.
        path: PathBuf,
        /// Bytes of RAM from address 0 to the end of the kernel.
        needed: u64,
        /// Bytes of guest RAM.
        memory: u64,
    },
    /// The kernel must be where no RAM is, and cannot be moved.
    #[error(
        "kernel {} can only be loaded at {start:#x}-{end:#x}, which is not free guest RAM; use a relocatable kernel",
        .path.display()
    )]
    NoPlaceForKernel {
        /// The kernel.
        path: PathBuf,
        /// Its first address.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// No such file, or no right to read it, or not a regular file.
    #[error("initrd {} cannot be read: {source}; check the path and its permissions", .path.display())]
    InitrdUnreadable {
        /// The initrd.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "initrd {} ({} MiB) does not fit into the guest's {} MiB of memory beside the kernel; raise --memory",
        .path.display(), .size.div_ceil(1 << 20), .memory >> 20
    )]
    InitrdTooLarge {
        /// The initrd.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// Bytes of guest RAM.
        memory: u64,
    },
    /// Longer than what Linux keeps, or with a NUL byte.
    #[error("the kernel command line {0}; shorten or mend it")]
    CommandLine(&'static str),
    /// More entries than the guest's own table holds.
    #[error("the guest's memory map has {0} ranges, a kernel takes at most {max}", max = super::pvh::MAX_MEMMAP_ENTRIES)]
    MemmapTooLong(usize),
    /// No page for hvm_start_info.
    #[error("the guest has no free RAM below 1 GiB for its start information; raise --memory")]
    NoPlaceForStartInfo,
    /// The memory map names RAM that is not mapped.
    #[error("writing guest memory at {gpa:#x} failed: {source}")]
    GuestMemory {
        /// Guest physical address.
        gpa: u64,
        /// The reason.
        source: vm_memory::GuestMemoryError,
    },
}

//! Guest RAM, and host pages that a guest maps at addresses of its choice.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// Bytes of a guest page.
pub const PAGE_SIZE: usize = 4096;

/// All RAM of a guest. Pages that are overlaid (grant frames, shared_info) read as their overlay.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// Host pages shared with the guest: backed by a memfd, so that the same page can stand in xvmm's own
/// address space for the life of the domain and be overlaid over any guest frame at the same time.
#[derive(Debug)]
pub struct SharedPages {
    file: File,
    base: NonNull<u8>,
    pages: usize,
}

// SAFETY: the mapping is plain shared memory, reached only through volatile or atomic accesses.
unsafe impl Send for SharedPages {}
// SAFETY: as above.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Makes `pages` zeroed pages. `name` shows in /proc/PID/maps.
    pub fn new(name: &str, pages: usize) -> io::Result<Self> {
        let name = std::ffi::CString::new(name).map_err(io::Error::other)?;
        // SAFETY: the name is a valid C string; the result is checked.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: memfd_create returned a descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        let bytes = pages * PAGE_SIZE;
        file.set_len(bytes as u64)?;
        // SAFETY: a fresh mapping of a file of that length at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned 0"))?;
        Ok(Self { file, base, pages })
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The memfd, for overlays of single pages: page `n` is at offset `n * 4096`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Host address of page `index`, or `None` past the end.
    pub fn page_ptr(&self, index: usize) -> Option<NonNull<u8>> {
        // SAFETY: the index is inside the mapping.
        (index < self.pages).then(|| unsafe { self.base.add(index * PAGE_SIZE) })
    }

    #[inline]
    fn checked<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.pages * PAGE_SIZE || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: the offset is inside the mapping.
        Some(unsafe { self.base.add(offset) }.cast())
    }

    /// The byte at `offset`, shared with the guest.
    #[inline]
    pub fn u8_at(&self, offset: usize) -> Option<&AtomicU8> {
        // SAFETY: inside the mapping, which lives as long as self; atomics tolerate a concurrent guest.
        self.checked::<AtomicU8>(offset).map(|p| unsafe { p.as_ref() })
    }

    /// The aligned 16-bit word at `offset`, shared with the guest.
    #[inline]
    pub fn u16_at(&self, offset: usize) -> Option<&AtomicU16> {
        // SAFETY: as in u8_at, and aligned.
        self.checked::<AtomicU16>(offset).map(|p| unsafe { p.as_ref() })
    }

    /// The aligned 32-bit word at `offset`, shared with the guest.
    #[inline]
    pub fn u32_at(&self, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: as in u16_at.
        self.checked::<AtomicU32>(offset).map(|p| unsafe { p.as_ref() })
    }

    /// The aligned 64-bit word at `offset`, shared with the guest.
    #[inline]
    pub fn u64_at(&self, offset: usize) -> Option<&AtomicU64> {
        // SAFETY: as in u16_at.
        self.checked::<AtomicU64>(offset).map(|p| unsafe { p.as_ref() })
    }

    /// Copies out of the pages; `None` if the range is not inside them.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Option<()> {
        self.volatile(offset, buf.len())?.copy_to(buf);
        Some(())
    }

    /// Copies into the pages; `None` if the range is not inside them.
    pub fn write(&self, offset: usize, buf: &[u8]) -> Option<()> {
        self.volatile(offset, buf.len())?.copy_from(buf);
        Some(())
    }

    fn volatile(&self, offset: usize, len: usize) -> Option<vm_memory::VolatileSlice<'_>> {
        if offset.checked_add(len)? > self.pages * PAGE_SIZE {
            return None;
        }
        // SAFETY: the range is inside the mapping, which lives as long as self.
        Some(unsafe { vm_memory::VolatileSlice::new(self.base.add(offset).as_ptr(), len) })
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping made in new(); references into it do not outlive self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE_SIZE) };
    }
}

//! Arguments of hypercalls in guest memory.

use devices::memory::{GuestRam, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Errno;

/// Guest virtual to guest physical addresses, by the page tables of the calling vCPU.
pub trait Translate {
    /// The physical address of `gva`, or `None` if it is not mapped.
    fn translate(&self, gva: u64) -> Option<u64>;
}

/// Copies between guest virtual memory and here. Any access outside RAM or mapped memory is -EFAULT.
pub struct GuestCopy<'a> {
    ram: &'a GuestRam,
    translate: &'a dyn Translate,
    /// The caller's structures have the 64-bit layout.
    pub long_mode: bool,
}

impl<'a> GuestCopy<'a> {
    pub(super) fn new(ram: &'a GuestRam, translate: &'a dyn Translate, long_mode: bool) -> Self {
        Self { ram, translate, long_mode }
    }

    /// Calls `f(gpa, range of the buffer)` for each piece of `len` bytes at `gva` that lies in one page.
    fn pieces(
        &self,
        gva: u64,
        len: usize,
        mut f: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            let at = gva.checked_add(done as u64).ok_or(Errno::FAULT)?;
            let in_page = usize::try_from(at % PAGE_SIZE as u64).map_err(|_| Errno::FAULT)?;
            let part = (len - done).min(PAGE_SIZE - in_page);
            let gpa = self.translate.translate(at).ok_or(Errno::FAULT)?;
            f(GuestAddress(gpa), done..done + part)?;
            done += part;
        }
        Ok(())
    }

    /// Copies in.
    pub fn read(&self, gva: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.pieces(gva, buf.len(), |gpa, range| {
            let part = buf.get_mut(range).ok_or(Errno::FAULT)?;
            self.ram.read_slice(part, gpa).map_err(|_| Errno::FAULT)
        })
    }

    /// Copies out.
    pub fn write(&self, gva: u64, buf: &[u8]) -> Result<(), Errno> {
        self.pieces(gva, buf.len(), |gpa, range| {
            let part = buf.get(range).ok_or(Errno::FAULT)?;
            self.ram.write_slice(part, gpa).map_err(|_| Errno::FAULT)
        })
    }

    /// Copies a structure in.
    pub fn get<T: FromBytes + IntoBytes>(&self, gva: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read(gva, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a structure out.
    pub fn put<T: IntoBytes + Immutable>(&self, gva: u64, value: &T) -> Result<(), Errno> {
        self.write(gva, value.as_bytes())
    }

    /// An array element of type `unsigned long`: 8 or 4 bytes by the caller's mode.
    pub fn get_ulong(&self, array: u64, index: u64) -> Result<u64, Errno> {
        let size = if self.long_mode { 8 } else { 4 };
        let at = index.checked_mul(size).and_then(|o| array.checked_add(o)).ok_or(Errno::FAULT)?;
        if self.long_mode { self.get::<u64>(at) } else { self.get::<u32>(at).map(u64::from) }
    }

    /// Copies an `unsigned long` out to an array element.
    pub fn put_ulong(&self, array: u64, index: u64, value: u64) -> Result<(), Errno> {
        let size = if self.long_mode { 8 } else { 4 };
        let at = index.checked_mul(size).and_then(|o| array.checked_add(o)).ok_or(Errno::FAULT)?;
        if self.long_mode {
            self.put(at, &value)
        } else {
            self.put(at, &u32::try_from(value).unwrap_or(u32::MAX))
        }
    }

    /// The physical address of a structure of `len` bytes at `gva` that must lie in one page of RAM.
    pub fn physical(&self, gva: u64, len: usize) -> Result<u64, Errno> {
        if gva % PAGE_SIZE as u64 + len as u64 > PAGE_SIZE as u64 {
            return Err(Errno::INVAL);
        }
        let gpa = self.translate.translate(gva).ok_or(Errno::FAULT)?;
        let mut probe = [0];
        self.ram.read_slice(&mut probe, GuestAddress(gpa)).map_err(|_| Errno::FAULT)?;
        Ok(gpa)
    }
}

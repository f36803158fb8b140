//! What an emulated drive keeps its bytes in, and how it asks for them: [`Medium`].

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::io::IoVec;
use crate::memory::GuestRam;

/// Bytes of a sector, the unit of [`Medium::sectors`].
pub const SECTOR: usize = 512;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From the medium into the memory.
    Read,
    /// From the memory to the medium.
    Write,
    /// What was written before is on stable storage when this is done. Without memory.
    Flush,
}

/// The memory of a request: our own or the guest's. It stays valid as long as this lives, whatever becomes of the drive.
#[derive(Debug)]
pub struct Memory(Kind);

#[derive(Debug)]
enum Kind {
    Own(Vec<u8>),
    /// The pieces point into the RAM.
    Guest {
        _ram: Arc<GuestRam>,
        pieces: Vec<IoVec>,
    },
}

impl Memory {
    /// Memory of our own.
    pub fn own(bytes: Vec<u8>) -> Self {
        Self(Kind::Own(bytes))
    }

    /// Ranges of guest RAM, as (address, bytes), in order. `None`: not all of it is RAM.
    pub fn guest(ram: &Arc<GuestRam>, ranges: &[(GuestAddress, usize)]) -> Option<Self> {
        let mut pieces: Vec<IoVec> = Vec::with_capacity(ranges.len());
        for (address, len) in ranges {
            let mut found = 0;
            for slice in ram.get_slices(*address, *len) {
                let slice = slice.ok()?;
                let base = slice.ptr_guard_mut().as_ptr();
                if !pieces.last_mut().is_some_and(|last| last.extend(base, slice.len())) {
                    pieces.push(IoVec::new(base, slice.len()));
                }
                found += slice.len();
            }
            if found != *len {
                return None;
            }
        }
        Some(Self(Kind::Guest { _ram: Arc::clone(ram), pieces }))
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        match &self.0 {
            Kind::Own(bytes) => bytes.len(),
            Kind::Guest { pieces, .. } => pieces.iter().map(IoVec::size).sum(),
        }
    }

    /// Where the bytes are, valid as long as this lives. The guest may change its own at any time.
    pub fn pieces(&mut self) -> Vec<IoVec> {
        match &mut self.0 {
            Kind::Own(bytes) if bytes.is_empty() => Vec::new(),
            Kind::Own(bytes) => vec![IoVec::new(bytes.as_mut_ptr(), bytes.len())],
            Kind::Guest { pieces, .. } => pieces.clone(),
        }
    }

    /// The bytes, if they are our own.
    pub fn into_own(self) -> Vec<u8> {
        match self.0 {
            Kind::Own(bytes) => bytes,
            Kind::Guest { .. } => Vec::new(),
        }
    }
}

/// Who is told of the end of a request, and gets its memory back.
pub type Done = Box<dyn FnOnce(io::Result<()>, Memory) + Send>;

/// Something to be done on a medium.
pub struct Request {
    /// What.
    pub op: Op,
    /// Byte offset, a multiple of [`SECTOR`].
    pub offset: u64,
    /// As many bytes as are to be read or written: a multiple of [`SECTOR`]; none for a flush.
    pub memory: Memory,
    /// Told of the end.
    pub done: Done,
}

impl Request {
    /// It is done, or has failed.
    pub fn finish(self, result: io::Result<()>) {
        (self.done)(result, self.memory);
    }
}

/// A disk or disc in a drive.
pub trait Medium: Send + Sync {
    /// Capacity in units of [`SECTOR`] bytes, now.
    fn sectors(&self) -> u64;
    /// It cannot be written.
    fn readonly(&self) -> bool;
    /// Starts a request, in the order of the calls. [`Request::finish`] is called once for each, by another thread or
    /// later, never from within this call. An error of a read or write says nothing about which part was done.
    fn submit(&self, request: Request);
    /// Nobody waits for the requests so far any more: what was not started fails, what waits (for a limit, for room)
    /// fails too. Each is finished nevertheless.
    fn cancel(&self);
}

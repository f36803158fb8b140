//! The memory of a request: pieces in order, cut and filled like one long buffer.

use crate::engine::IoVec;

/// Pieces that one preadv or pwritev takes (UIO_MAXIOV).
const MAX_VECTOR: usize = 1024;

/// Memory in order. It does not own it: whoever makes one knows that the memory is valid.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    list: Vec<IoVec>,
    /// Of the list, how many are used up.
    first: usize,
    len: usize,
}

impl Pieces {
    /// All of a list.
    pub(super) fn new(buffers: &[IoVec]) -> Self {
        let list: Vec<IoVec> = buffers.iter().filter(|piece| piece.size() > 0).copied().collect();
        let len = list.iter().map(IoVec::size).sum();
        Self { list, first: 0, len }
    }

    /// Memory of our own.
    pub(super) fn of(buffer: &mut [u8]) -> Self {
        Self { len: buffer.len(), list: vec![IoVec::new(buffer.as_mut_ptr(), buffer.len())], first: 0 }
    }

    /// Memory of our own that will only be read.
    pub(super) fn of_const(buffer: &[u8]) -> Self {
        Self { len: buffer.len(), list: vec![IoVec::new(buffer.as_ptr().cast_mut(), buffer.len())], first: 0 }
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first of them, as many as one system call takes.
    pub(super) fn batch(&self) -> &[IoVec] {
        let rest = self.list.get(self.first..).unwrap_or_default();
        rest.get(..rest.len().min(MAX_VECTOR)).unwrap_or_default()
    }

    fn rest(&self) -> &[IoVec] {
        self.list.get(self.first..).unwrap_or_default()
    }

    /// Takes up to `len` bytes from the front away.
    pub(super) fn advance(&mut self, len: usize) {
        let mut len = len.min(self.len);
        self.len -= len;
        while let Some(piece) = self.list.get_mut(self.first) {
            len -= piece.advance(len);
            if piece.size() > 0 {
                return;
            }
            self.first += 1;
        }
    }

    /// Takes up to `len` bytes from the front away, and returns them.
    pub(super) fn take(&mut self, len: usize) -> Pieces {
        let len = len.min(self.len);
        let mut taken = Vec::new();
        let mut left = len;
        for piece in self.rest() {
            if left == 0 {
                break;
            }
            let part = piece.size().min(left);
            taken.push(IoVec::new(piece.base(), part));
            left -= part;
        }
        self.advance(len);
        Pieces { list: taken, first: 0, len }
    }

    /// Puts others before and after these.
    pub(super) fn between(self, before: &[u8], after: &[u8]) -> Pieces {
        let constant = |bytes: &[u8]| IoVec::new(bytes.as_ptr().cast_mut(), bytes.len());
        let list = std::iter::once(constant(before))
            .chain(self.rest().iter().copied())
            .chain(std::iter::once(constant(after)))
            .collect::<Vec<_>>();
        Pieces::new(&list)
    }

    /// Whether each piece is a multiple of `memory` by address and of `unit` by length.
    pub(super) fn aligned(&self, memory: u32, unit: u32) -> bool {
        self.rest().iter().all(|piece| {
            (piece.base() as usize).is_multiple_of(memory as usize)
                && piece.size().is_multiple_of(unit as usize)
        })
    }

    /// The pieces as a storage takes them.
    pub(super) fn list(&self) -> &[IoVec] {
        self.rest()
    }

    /// Fills them with zeroes.
    ///
    /// # Safety
    /// The memory is valid.
    pub(super) unsafe fn zero(&self) {
        for piece in self.rest() {
            // SAFETY: passed on.
            unsafe { piece.base().write_bytes(0, piece.size()) };
        }
    }

    /// Copies `bytes` to the first of them.
    ///
    /// # Safety
    /// The memory is valid and not that of `bytes`.
    pub(super) unsafe fn fill_from(&self, mut bytes: &[u8]) {
        for piece in self.rest() {
            let (part, rest) = bytes.split_at(piece.size().min(bytes.len()));
            // SAFETY: passed on; the part is no longer than the piece.
            unsafe { piece.base().copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            bytes = rest;
        }
    }

    /// Copies the first of them to `bytes`.
    ///
    /// # Safety
    /// The memory is valid and not that of `bytes`.
    pub(super) unsafe fn copy_to(&self, mut bytes: &mut [u8]) {
        for piece in self.rest() {
            let len = piece.size().min(bytes.len());
            let (part, rest) = bytes.split_at_mut(len);
            // SAFETY: passed on; the part is no longer than the piece.
            unsafe { part.as_mut_ptr().copy_from_nonoverlapping(piece.base(), len) };
            bytes = rest;
        }
    }
}

//! A bounded cache of pieces of metadata tables.

use std::collections::HashMap;
use std::io;

use crate::image::file::ImageFile;

/// Bytes of a piece, or a cluster if that is less.
const PIECE: u64 = 4096;

/// A piece of a table, as it is on the disk: big-endian numbers.
#[derive(Debug)]
struct Piece {
    bytes: Box<[u8]>,
    /// Counts changes, so that a writer knows whether what it wrote is still all.
    changes: u64,
    written: u64,
    used: u64,
}

/// Pieces of tables by their offset in the file.
#[derive(Debug)]
pub(super) struct Tables {
    pieces: HashMap<u64, Piece>,
    piece: u64,
    limit: usize,
    dirty: usize,
    clock: u64,
}

/// A copy of a changed piece that is to be written.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) offset: u64,
    pub(super) bytes: Box<[u8]>,
    changes: u64,
}

fn bad_offset() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Tables {
    /// An empty cache of `limit` bytes for an image with clusters of `cluster` bytes.
    pub(super) fn new(cluster: u64, limit: usize) -> Self {
        let piece = cluster.min(PIECE);
        let limit = limit / usize::try_from(piece).unwrap_or(limit);
        Self { pieces: HashMap::new(), piece, limit, dirty: 0, clock: 0 }
    }

    /// Bytes of a piece.
    pub(super) fn piece(&self) -> u64 {
        self.piece
    }

    /// Pieces that are changed and not written.
    pub(super) fn dirty(&self) -> usize {
        self.dirty
    }

    /// Whether so much is changed that it is time to write it.
    pub(super) fn crowded(&self) -> bool {
        self.dirty > self.limit / 2
    }

    /// The piece that byte `offset` of the file is in, and where in it.
    fn load(&mut self, file: &ImageFile, offset: u64) -> io::Result<(&mut Piece, usize)> {
        let start = offset - offset % self.piece;
        let within = usize::try_from(offset - start).map_err(|_| bad_offset())?;
        self.clock += 1;
        if !self.pieces.contains_key(&start) {
            self.make_room();
            let mut bytes = vec![0; usize::try_from(self.piece).map_err(|_| bad_offset())?];
            file.read(&mut bytes, start)?;
            let piece = Piece { bytes: bytes.into(), changes: 0, written: 0, used: 0 };
            self.pieces.insert(start, piece);
        }
        let piece = self.pieces.get_mut(&start).ok_or_else(bad_offset)?;
        piece.used = self.clock;
        Ok((piece, within))
    }

    /// Drops what was not used for longest, of what is not changed.
    fn make_room(&mut self) {
        if self.pieces.len() < self.limit.max(1) {
            return;
        }
        // An eighth at once, so that looking for the oldest is rare.
        let mut clean: Vec<(u64, u64)> =
            self.pieces.iter().filter(|(_, p)| p.changes == p.written).map(|(at, p)| (p.used, *at)).collect();
        clean.sort_unstable();
        for (_, at) in clean.iter().take(clean.len().div_ceil(8)) {
            self.pieces.remove(at);
        }
    }

    /// The 8-byte number at byte `offset`.
    pub(super) fn number(&mut self, file: &ImageFile, offset: u64) -> io::Result<u64> {
        let (piece, at) = self.load(file, offset)?;
        let bytes = piece.bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or_else(bad_offset)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Sets the 8-byte number at byte `offset`.
    pub(super) fn set_number(&mut self, file: &ImageFile, offset: u64, value: u64) -> io::Result<()> {
        self.change(file, offset, |bytes, at| {
            if let Some(bytes) = bytes.get_mut(at..at + 8) {
                bytes.copy_from_slice(&value.to_be_bytes());
            }
        })
    }

    /// The piece that `offset` is in, and the place in it.
    pub(super) fn bytes(&mut self, file: &ImageFile, offset: u64) -> io::Result<(&[u8], usize)> {
        let (piece, at) = self.load(file, offset)?;
        Ok((&piece.bytes, at))
    }

    /// Changes the piece that `offset` is in: the function gets the piece and the place in it.
    pub(super) fn change(
        &mut self,
        file: &ImageFile,
        offset: u64,
        change: impl FnOnce(&mut [u8], usize),
    ) -> io::Result<()> {
        let (piece, at) = self.load(file, offset)?;
        let clean = piece.changes == piece.written;
        piece.changes += 1;
        change(&mut piece.bytes, at);
        self.dirty += usize::from(clean);
        Ok(())
    }

    /// Copies of all changed pieces, in the order of their offsets.
    pub(super) fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = self
            .pieces
            .iter()
            .filter(|(_, piece)| piece.changes != piece.written)
            .map(|(offset, piece)| Change {
                offset: *offset,
                bytes: piece.bytes.clone(),
                changes: piece.changes,
            })
            .collect();
        changes.sort_unstable_by_key(|change| change.offset);
        changes
    }

    /// The copies are in the file.
    pub(super) fn written(&mut self, changes: &[Change]) {
        for change in changes {
            if let Some(piece) = self.pieces.get_mut(&change.offset)
                && piece.written < change.changes
            {
                piece.written = change.changes;
                self.dirty -= usize::from(piece.changes == piece.written);
            }
        }
    }

    /// Writes all changed pieces.
    pub(super) fn write(&mut self, file: &ImageFile) -> io::Result<()> {
        let changes = self.changes();
        for change in &changes {
            file.write(&change.bytes, change.offset)?;
        }
        self.written(&changes);
        Ok(())
    }

    /// Forgets what is known of a range that becomes something else.
    pub(super) fn forget(&mut self, offset: u64, len: u64) {
        let mut at = offset;
        while at < offset + len {
            if let Some(piece) = self.pieces.remove(&at) {
                self.dirty -= usize::from(piece.changes != piece.written);
            }
            at += self.piece;
        }
    }
}

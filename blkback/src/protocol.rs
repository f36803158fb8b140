//! Requests and responses of a block ring (xen/include/public/io/blkif.h), as checked types.
//!
//! A request is copied out of the ring once, as a [`RawEntry`]; [`Request::parse`] turns the copy into what
//! the rest of blkback may trust, or into the [`Rejection`] that the frontend gets as a response. An indirect
//! request names a page with its segments: that page is copied once too.
//!
//! Two layouts, by the frontend's `protocol` key, little-endian:
//!
//! | field                      | x86_64-abi | x86_32-abi |
//! |----------------------------|-----------:|-----------:|
//! | operation u8               |          0 |          0 |
//! | nr_segments u8             |          1 |          1 |
//! | handle u16                 |          2 |          2 |
//! | id u64                     |          8 |          4 |
//! | sector u64                 |         16 |         12 |
//! | 11 segments                |         24 |         20 |
//! | discard: flag u8           |          1 |          1 |
//! | discard: nr_sectors u64    |         24 |         20 |
//! | indirect: indirect_op u8   |          1 |          1 |
//! | indirect: nr_segments u16  |          2 |          2 |
//! | indirect: handle u16       |         24 |         20 |
//! | indirect: 8 grants u32     |         28 |         24 |
//! | **size**                   |    **112** |    **108** |
//!
//! Segment, 8 bytes: grant reference u32 @0, first sector u8 @4, last sector u8 @5 (of the eight sectors of
//! the granted page); a page of an indirect request has 512 of them. Response, 16 or 12 bytes: id u64 @0,
//! operation u8 @8, status i16 @10.

use devices::memory::PAGE_SIZE;
use devices::xen::GrantRef;
use devices::xen::grant_table::GrantError;
use static_assertions::{const_assert, const_assert_eq};
use thiserror::Error;
use zerocopy::little_endian::{I16, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector in every number of the protocol, whatever the disk's own sector size.
pub const SECTOR_SIZE: u64 = 512;
/// Segments of a request that carries them itself (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;
/// Segments of an indirect request, as offered (`feature-max-indirect-segments`): 1 MiB.
pub const MAX_INDIRECT_SEGMENTS: usize = 256;
const SECTORS_PER_PAGE: u8 = 8;
const INDIRECT_PAGES: usize = 8;

const OP_READ: u8 = 0;
const OP_WRITE: u8 = 1;
const OP_WRITE_BARRIER: u8 = 2;
const OP_FLUSH_DISKCACHE: u8 = 3;
const OP_DISCARD: u8 = 5;
const OP_INDIRECT: u8 = 6;
/// `BLKIF_DISCARD_SECURE`
const DISCARD_SECURE: u8 = 1;

/// The copy of a ring entry; of the 32-bit layout only the first 108 bytes count.
pub type RawEntry = [u8; 112];

/// Layout of the ring's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `x86_64-abi`
    X86_64,
    /// `x86_32-abi`
    X86_32,
}

impl Protocol {
    /// The layout that the frontend's `protocol` key names; without the key it is that of a 64-bit guest.
    pub fn from_key(value: Option<&str>) -> Option<Self> {
        match value {
            None | Some("x86_64-abi") => Some(Protocol::X86_64),
            Some("x86_32-abi") => Some(Protocol::X86_32),
            Some(_) => None,
        }
    }

    /// Bytes of a ring entry.
    pub fn entry_size(self) -> usize {
        match self {
            Protocol::X86_64 => size_of::<Raw64>(),
            Protocol::X86_32 => size_of::<Raw32>() - size_of::<[u8; 4]>(),
        }
    }
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSegment {
    gref: U32,
    first_sect: u8,
    last_sect: u8,
    _pad: [u8; 2],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw64 {
    operation: u8,
    nr_segments: u8,
    _handle: U16,
    _pad: [u8; 4],
    id: U64,
    sector: U64,
    segments: [RawSegment; MAX_SEGMENTS],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw32 {
    operation: u8,
    nr_segments: u8,
    _handle: U16,
    id: U64,
    sector: U64,
    segments: [RawSegment; MAX_SEGMENTS],
    _not_in_entry: [u8; 4],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Indirect64 {
    _operation: u8,
    indirect_op: u8,
    nr_segments: U16,
    _pad1: [u8; 4],
    _id: U64,
    _sector: U64,
    _handle: U16,
    _pad2: [u8; 2],
    grefs: [U32; INDIRECT_PAGES],
    _rest: [u8; 52],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Indirect32 {
    _operation: u8,
    indirect_op: u8,
    nr_segments: U16,
    _id: U64,
    _sector: U64,
    _handle: U16,
    _pad: [u8; 2],
    grefs: [U32; INDIRECT_PAGES],
    _rest: [u8; 56],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Discard64 {
    _operation: u8,
    _flag: u8,
    _pad: [u8; 6],
    _id: U64,
    _sector: U64,
    nr_sectors: U64,
    _rest: [u8; 80],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Discard32 {
    _operation: u8,
    _flag: u8,
    _handle: U16,
    _id: U64,
    _sector: U64,
    nr_sectors: U64,
    _rest: [u8; 84],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RawResponse {
    id: U64,
    operation: u8,
    pad: u8,
    status: I16,
    pad64: [u8; 4],
}

const_assert_eq!(size_of::<RawSegment>(), 8);
const_assert_eq!(size_of::<Raw64>(), 112);
const_assert_eq!(core::mem::offset_of!(Raw64, segments), 24);
const_assert_eq!(size_of::<Raw32>(), 112);
const_assert_eq!(core::mem::offset_of!(Raw32, segments), 20);
const_assert_eq!(size_of::<Indirect64>(), 112);
const_assert_eq!(core::mem::offset_of!(Indirect64, grefs), 28);
const_assert_eq!(size_of::<Indirect32>(), 112);
const_assert_eq!(core::mem::offset_of!(Indirect32, grefs), 24);
const_assert_eq!(size_of::<Discard64>(), 112);
const_assert_eq!(core::mem::offset_of!(Discard64, nr_sectors), 24);
const_assert_eq!(size_of::<Discard32>(), 112);
const_assert_eq!(core::mem::offset_of!(Discard32, nr_sectors), 20);
const_assert_eq!(size_of::<RawResponse>(), 16);
const_assert_eq!(core::mem::offset_of!(RawResponse, status), 10);
// All segments that are offered fit into the first page of an indirect request; the other seven are not read.
const_assert!(MAX_INDIRECT_SEGMENTS <= PAGE_SIZE / size_of::<RawSegment>());

/// What a disk allows; a request is checked against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Capacity in units of 512 bytes.
    pub sectors: u64,
    /// Bytes of the disk's own sector: 512 or 4096. Requests start and end on its boundaries.
    pub logical_block: u32,
    /// Writes are refused.
    pub readonly: bool,
    /// Discard is offered.
    pub discard: bool,
}

/// A part of a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub gref: GrantRef,
    /// First byte inside the page, a multiple of 512.
    pub offset: u16,
    /// Bytes, 512..=4096; `offset + len <= 4096`.
    pub len: u16,
}

/// Consecutive bytes of the disk, inside it. What they are read into or written from is the list of segments
/// that [`Request::parse`] fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    sector: u64,
    bytes: u32,
}

impl Transfer {
    /// Where the data starts on the disk, in bytes.
    pub fn offset(&self) -> u64 {
        self.sector * SECTOR_SIZE
    }

    /// Bytes of all segments, at most 1 MiB.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the disk into the pages.
    Read(Transfer),
    /// From the pages to the disk.
    Write(Transfer),
    /// Everything answered before this request was put into the ring is on stable storage; after that the
    /// data, if there is any, is written.
    Flush(Option<Transfer>),
    /// Everything that came before in this ring is done and on stable storage; then the data, if there is any,
    /// is written and on stable storage; then comes what follows in the ring.
    Barrier(Option<Transfer>),
    /// The bytes are of no more use.
    Discard {
        /// The first byte.
        offset: u64,
        /// Bytes, at least a sector of the disk.
        len: u64,
    },
}

/// A request that was found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Returned in the response.
    pub id: u64,
    /// The operation's number, returned in the response: of an indirect request that of the operation inside.
    pub opcode: u8,
    /// What to do.
    pub operation: Operation,
}

/// Why a request is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// The operation is not one that was offered.
    #[error("operation {0} is not offered")]
    NotSupported(u8),
    /// Too few or too many segments.
    #[error("it has {count} segments, and 1 to {max} are possible")]
    SegmentCount {
        /// Segments that it claims.
        count: u16,
        /// Segments that it may have.
        max: usize,
    },
    /// A segment is not inside its page.
    #[error("a segment has sectors {0} to {1}, and a page has sectors 0 to 7")]
    SegmentRange(u8, u8),
    /// An indirect request has something else inside than a read or a write.
    #[error("operation {0} cannot be indirect")]
    Indirect(u8),
    /// The page with the segments of an indirect request cannot be read.
    #[error("its list of segments cannot be read: {0}")]
    SegmentPage(GrantError),
    /// Some of the data is not on the disk.
    #[error("it wants {count} sectors from {sector}, and the disk has {capacity}")]
    PastEnd {
        /// First sector.
        sector: u64,
        /// Sectors wanted.
        count: u64,
        /// Sectors of the disk.
        capacity: u64,
    },
    /// A write to a read-only disk.
    #[error("it writes to a read-only disk")]
    ReadOnly,
    /// Start or length is not a multiple of the disk's sector size.
    #[error("it does not start or end on a boundary of the disk's sectors of {0} bytes")]
    Misaligned(u32),
    /// A discard of no sectors.
    #[error("it discards nothing")]
    Nothing,
    /// A discard that should make the data unreadable: no storage here can promise that.
    #[error("secure discard is not offered")]
    Secure,
}

/// A request that gets a bad response.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Returned in the response.
    pub id: u64,
    /// Returned in the response.
    pub opcode: u8,
    /// Why.
    pub reason: Reason,
}

impl Rejection {
    /// The response that tells it.
    pub fn response(&self) -> Response {
        let status = match self.reason {
            Reason::NotSupported(_) | Reason::Secure => Status::NotSupported,
            _ => Status::Error,
        };
        Response { id: self.id, opcode: self.opcode, status }
    }
}

/// Both layouts in one.
struct Fields {
    operation: u8,
    nr_segments: u8,
    id: u64,
    sector: u64,
    segments: [RawSegment; MAX_SEGMENTS],
    /// nr_sectors of a discard.
    discarded: u64,
    indirect_segments: u16,
    indirect_page: GrantRef,
}

impl Fields {
    fn new(entry: &RawEntry, protocol: Protocol) -> Self {
        // The types differ in where the fields lie.
        macro_rules! fields {
            ($raw:ty, $discard:ty, $indirect:ty) => {{
                let raw: $raw = zerocopy::transmute!(*entry);
                let discard: $discard = zerocopy::transmute!(*entry);
                let indirect: $indirect = zerocopy::transmute!(*entry);
                let [page, ..] = indirect.grefs;
                Fields {
                    operation: raw.operation,
                    nr_segments: raw.nr_segments,
                    id: raw.id.get(),
                    sector: raw.sector.get(),
                    segments: raw.segments,
                    discarded: discard.nr_sectors.get(),
                    indirect_segments: indirect.nr_segments.get(),
                    indirect_page: GrantRef(page.get()),
                }
            }};
        }
        match protocol {
            Protocol::X86_64 => fields!(Raw64, Discard64, Indirect64),
            Protocol::X86_32 => fields!(Raw32, Discard32, Indirect32),
        }
    }

    /// The operation inside an indirect request is in the place of the number of segments.
    fn indirect_op(&self) -> u8 {
        self.nr_segments
    }

    fn discard_flag(&self) -> u8 {
        self.nr_segments
    }

    /// What the response names: frontends look for the operation inside.
    fn opcode(&self) -> u8 {
        if self.operation == OP_INDIRECT { self.indirect_op() } else { self.operation }
    }

    fn operation(
        &self,
        limits: &DiskLimits,
        segments: &mut Vec<Segment>,
        copy: impl FnOnce(GrantRef, &mut [u8]) -> Result<(), GrantError>,
    ) -> Result<Operation, Reason> {
        let empty = self.nr_segments == 0;
        match self.operation {
            OP_READ => self.direct(limits, segments).map(Operation::Read),
            OP_WRITE => self.written(limits, segments).map(Operation::Write),
            OP_FLUSH_DISKCACHE if empty => Ok(Operation::Flush(None)),
            OP_FLUSH_DISKCACHE => self.written(limits, segments).map(|t| Operation::Flush(Some(t))),
            OP_WRITE_BARRIER if empty => Ok(Operation::Barrier(None)),
            OP_WRITE_BARRIER => self.written(limits, segments).map(|t| Operation::Barrier(Some(t))),
            OP_DISCARD => self.discard(limits),
            OP_INDIRECT => match self.indirect_op() {
                OP_READ => self.indirect(limits, segments, copy).map(Operation::Read),
                OP_WRITE if limits.readonly => Err(Reason::ReadOnly),
                OP_WRITE => self.indirect(limits, segments, copy).map(Operation::Write),
                // An indirect request inside an indirect one too.
                other => Err(Reason::Indirect(other)),
            },
            other => Err(Reason::NotSupported(other)),
        }
    }

    fn written(&self, limits: &DiskLimits, segments: &mut Vec<Segment>) -> Result<Transfer, Reason> {
        if limits.readonly { Err(Reason::ReadOnly) } else { self.direct(limits, segments) }
    }

    fn direct(&self, limits: &DiskLimits, segments: &mut Vec<Segment>) -> Result<Transfer, Reason> {
        let raw = self.segments.get(..usize::from(self.nr_segments)).filter(|s| !s.is_empty());
        let count = u16::from(self.nr_segments);
        let raw = raw.ok_or(Reason::SegmentCount { count, max: MAX_SEGMENTS })?;
        self.transfer(limits, raw, segments)
    }

    fn indirect(
        &self,
        limits: &DiskLimits,
        segments: &mut Vec<Segment>,
        copy: impl FnOnce(GrantRef, &mut [u8]) -> Result<(), GrantError>,
    ) -> Result<Transfer, Reason> {
        let count = self.indirect_segments;
        let mut page = [0; MAX_INDIRECT_SEGMENTS * size_of::<RawSegment>()];
        let list = page.get_mut(..usize::from(count) * size_of::<RawSegment>()).filter(|s| !s.is_empty());
        let list = list.ok_or(Reason::SegmentCount { count, max: MAX_INDIRECT_SEGMENTS })?;
        // Once: the frontend may change the page while it is looked at (XSA-155).
        copy(self.indirect_page, list).map_err(Reason::SegmentPage)?;
        let raw = <[RawSegment]>::ref_from_bytes(list).unwrap_or(&[]);
        self.transfer(limits, raw, segments)
    }

    fn transfer(
        &self,
        limits: &DiskLimits,
        raw: &[RawSegment],
        segments: &mut Vec<Segment>,
    ) -> Result<Transfer, Reason> {
        let mut count = 0u32;
        for raw in raw {
            let (first, last) = (raw.first_sect, raw.last_sect);
            if first > last || last >= SECTORS_PER_PAGE {
                return Err(Reason::SegmentRange(first, last));
            }
            let sectors = u16::from(last - first) + 1;
            segments.push(Segment {
                gref: GrantRef(raw.gref.get()),
                offset: u16::from(first) * 512,
                len: sectors * 512,
            });
            count += u32::from(sectors);
        }
        self.check_range(limits, count.into())?;
        Ok(Transfer { sector: self.sector, bytes: count * 512 })
    }

    fn discard(&self, limits: &DiskLimits) -> Result<Operation, Reason> {
        if !limits.discard {
            return Err(Reason::NotSupported(self.operation));
        }
        if self.discard_flag() & DISCARD_SECURE != 0 {
            return Err(Reason::Secure);
        }
        if limits.readonly {
            return Err(Reason::ReadOnly);
        }
        if self.discarded == 0 {
            return Err(Reason::Nothing);
        }
        self.check_range(limits, self.discarded)?;
        Ok(Operation::Discard { offset: self.sector * SECTOR_SIZE, len: self.discarded * SECTOR_SIZE })
    }

    /// Whether `count` sectors lie on the disk, on boundaries of its own sectors.
    fn check_range(&self, limits: &DiskLimits, count: u64) -> Result<(), Reason> {
        // The sum may pass 2^64: then the request is past the end of every disk.
        if self.sector.checked_add(count).is_none_or(|end| end > limits.sectors) {
            return Err(Reason::PastEnd { sector: self.sector, count, capacity: limits.sectors });
        }
        let per_block = (u64::from(limits.logical_block) / SECTOR_SIZE).max(1);
        if !self.sector.is_multiple_of(per_block) || !count.is_multiple_of(per_block) {
            return Err(Reason::Misaligned(limits.logical_block));
        }
        Ok(())
    }
}

impl Request {
    /// The response to a request that is refused whatever it asks for.
    pub fn refusal(entry: &RawEntry, protocol: Protocol) -> Response {
        let fields = Fields::new(entry, protocol);
        Response { id: fields.id, opcode: fields.opcode(), status: Status::Error }
    }

    /// Checks the copy of a ring entry. Total: every content is a request or a rejection.
    ///
    /// `segments` becomes the memory of the request's transfer: 1 to 256 parts of pages, in the order of the
    /// disk; with an operation that has no data, nothing. `copy` is called at most once, to copy the start of a
    /// granted page.
    pub fn parse(
        entry: &RawEntry,
        protocol: Protocol,
        limits: &DiskLimits,
        segments: &mut Vec<Segment>,
        copy: impl FnOnce(GrantRef, &mut [u8]) -> Result<(), GrantError>,
    ) -> Result<Self, Rejection> {
        segments.clear();
        let fields = Fields::new(entry, protocol);
        let (id, opcode) = (fields.id, fields.opcode());
        match fields.operation(limits, segments, copy) {
            Ok(operation) => Ok(Request { id, opcode, operation }),
            Err(reason) => Err(Rejection { id, opcode, reason }),
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `BLKIF_RSP_OKAY`
    Okay,
    /// `BLKIF_RSP_ERROR`
    Error,
    /// `BLKIF_RSP_EOPNOTSUPP`: the frontend does not use the operation again.
    NotSupported,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The request's.
    pub opcode: u8,
    /// How it ended.
    pub status: Status,
}

impl Response {
    /// The response's bytes, the same in both layouts: a 32-bit frontend looks at the first 12, and the rest
    /// still lies inside the slot. Padding is zero, or it would show a piece of our memory (XSA-216).
    pub fn emit(&self) -> [u8; 16] {
        let status = match self.status {
            Status::Okay => 0,
            Status::Error => -1,
            Status::NotSupported => -2,
        };
        let (id, status) = (U64::new(self.id), I16::new(status));
        zerocopy::transmute!(RawResponse { id, operation: self.opcode, pad: 0, status, pad64: [0; 4] })
    }
}

#[cfg(test)]
mod tests;

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
        match protocol {
            Protocol::X86_64 => {
                let raw: Raw64 = zerocopy::transmute!(*entry);
                let discard: Discard64 = zerocopy::transmute!(*entry);
                let indirect: Indirect64 = zerocopy::transmute!(*entry);
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
            }
            Protocol::X86_32 => {
                let raw: Raw32 = zerocopy::transmute!(*entry);
                let discard: Discard32 = zerocopy::transmute!(*entry);
                let indirect: Indirect32 = zerocopy::transmute!(*entry);
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
            }
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMITS: DiskLimits =
        DiskLimits { sectors: 1000, logical_block: 512, readonly: false, discard: true };
    const ID: u64 = 0x1122_3344_5566_7788;
    const BOTH: [Protocol; 2] = [Protocol::X86_64, Protocol::X86_32];

    /// Where id, sector and segments are.
    fn layout(protocol: Protocol) -> (usize, usize, usize) {
        match protocol {
            Protocol::X86_64 => (8, 16, 24),
            Protocol::X86_32 => (4, 12, 20),
        }
    }

    /// An entry whose first two bytes are `op` and `second`.
    fn bare(protocol: Protocol, op: u8, second: u8, sector: u64) -> RawEntry {
        let (id_at, sector_at, _) = layout(protocol);
        // Padding is what the guest left there.
        let mut entry = [0xee; 112];
        (entry[0], entry[1]) = (op, second);
        entry[id_at..id_at + 8].copy_from_slice(&ID.to_le_bytes());
        entry[sector_at..sector_at + 8].copy_from_slice(&sector.to_le_bytes());
        entry
    }

    fn list(segments: &[(u32, u8, u8)]) -> Vec<u8> {
        let bytes = |(gref, first, last): &(u32, u8, u8)| {
            let mut bytes = [0xee; 8];
            bytes[..4].copy_from_slice(&gref.to_le_bytes());
            (bytes[4], bytes[5]) = (*first, *last);
            bytes
        };
        segments.iter().flat_map(bytes).collect()
    }

    /// A request of `segments` = (grant, first, last) in the layout of `protocol`.
    fn entry(protocol: Protocol, op: u8, sector: u64, segments: &[(u32, u8, u8)]) -> RawEntry {
        let mut entry = bare(protocol, op, u8::try_from(segments.len()).unwrap(), sector);
        let list = list(&segments[..segments.len().min(11)]);
        let at = layout(protocol).2;
        entry[at..at + list.len()].copy_from_slice(&list);
        entry
    }

    /// An indirect request that names the pages 71 to 78.
    fn indirect(protocol: Protocol, op: u8, sector: u64, count: u16) -> RawEntry {
        let mut entry = bare(protocol, 6, op, sector);
        entry[2..4].copy_from_slice(&count.to_le_bytes());
        let at = layout(protocol).1 + 12;
        for i in 0..8u8 {
            let at = at + usize::from(i) * 4;
            entry[at..at + 4].copy_from_slice(&[71 + i, 0, 0, 0]);
        }
        entry
    }

    fn discard(protocol: Protocol, flag: u8, sector: u64, count: u64) -> RawEntry {
        let mut entry = bare(protocol, 5, flag, sector);
        let at = layout(protocol).1 + 8;
        entry[at..at + 8].copy_from_slice(&count.to_le_bytes());
        entry
    }

    type Parsed = Result<(Request, Vec<Segment>), Rejection>;

    fn parse_with(entry: &RawEntry, protocol: Protocol, limits: &DiskLimits, page: &[u8]) -> Parsed {
        // What a former request left.
        let mut segments = vec![Segment { gref: GrantRef(99), offset: 0, len: 512 }];
        let copy = |gref: GrantRef, out: &mut [u8]| {
            if gref != GrantRef(71) {
                return Err(GrantError::BadRef(gref.0));
            }
            out.copy_from_slice(&page[..out.len()]);
            Ok(())
        };
        Request::parse(entry, protocol, limits, &mut segments, copy).map(|request| (request, segments))
    }

    fn parse(entry: &RawEntry, protocol: Protocol, limits: &DiskLimits) -> Parsed {
        parse_with(entry, protocol, limits, &[])
    }

    fn reason(op: u8, sector: u64, segments: &[(u32, u8, u8)], limits: &DiskLimits) -> Reason {
        let entry = entry(Protocol::X86_64, op, sector, segments);
        parse(&entry, Protocol::X86_64, limits).unwrap_err().reason
    }

    fn count(count: u16, max: usize) -> Reason {
        Reason::SegmentCount { count, max }
    }

    #[test]
    fn both_layouts_give_the_same_request() {
        for protocol in BOTH {
            let entry = entry(protocol, 0, 7, &[(9, 0, 7), (10, 3, 3)]);
            let (request, segments) = parse(&entry, protocol, &LIMITS).unwrap();
            assert_eq!((request.id, request.opcode), (ID, 0));
            let Operation::Read(transfer) = request.operation else { panic!("{request:?}") };
            assert_eq!((transfer.offset(), transfer.bytes()), (7 * 512, 4096 + 512));
            let whole = Segment { gref: GrantRef(9), offset: 0, len: 4096 };
            let part = Segment { gref: GrantRef(10), offset: 3 * 512, len: 512 };
            assert_eq!(segments, [whole, part]);
        }
    }

    #[test]
    fn layouts_have_the_sizes_of_the_public_header() {
        assert_eq!(Protocol::X86_64.entry_size(), 112);
        assert_eq!(Protocol::X86_32.entry_size(), 108);
    }

    #[test]
    fn the_32_bit_layout_ends_before_the_last_four_bytes() {
        let mut entry = entry(Protocol::X86_32, 1, 0, &[(1, 0, 7); 11]);
        let before = parse(&entry, Protocol::X86_32, &LIMITS).unwrap();
        entry[108..].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(parse(&entry, Protocol::X86_32, &LIMITS).unwrap(), before);
    }

    #[test]
    fn a_missing_protocol_key_is_64_bit_and_an_unknown_one_is_refused() {
        assert_eq!(Protocol::from_key(None), Some(Protocol::X86_64));
        assert_eq!(Protocol::from_key(Some("x86_32-abi")), Some(Protocol::X86_32));
        assert_eq!(Protocol::from_key(Some("arm-abi")), None);
    }

    #[test]
    fn segment_count_of_0_and_of_more_than_11_is_refused() {
        for op in [0, 1] {
            assert_eq!(reason(op, 0, &[], &LIMITS), count(0, 11));
        }
        for op in [0, 1, 2, 3] {
            assert_eq!(reason(op, 0, &[(1, 0, 0); 12], &LIMITS), count(12, 11));
            assert_eq!(reason(op, 0, &[(1, 0, 0); 255], &LIMITS), count(255, 11));
        }
        let most = entry(Protocol::X86_64, 0, 0, &[(1, 0, 7); 11]);
        assert!(parse(&most, Protocol::X86_64, &LIMITS).is_ok());
    }

    #[test]
    fn segment_outside_its_page_is_refused() {
        for (first, last) in [(0, 8), (5, 4), (255, 255), (8, 8), (0, 255), (7, 0)] {
            let expected = Reason::SegmentRange(first, last);
            assert_eq!(reason(0, 0, &[(1, 0, 7), (1, first, last)], &LIMITS), expected);
            let page = list(&[(1, 0, 7), (1, first, last)]);
            let entry = indirect(Protocol::X86_64, 0, 0, 2);
            let rejection = parse_with(&entry, Protocol::X86_64, &LIMITS, &page).unwrap_err();
            assert_eq!(rejection.reason, expected);
        }
    }

    #[test]
    fn the_last_sector_is_the_last() {
        let ok = entry(Protocol::X86_64, 0, 999, &[(1, 0, 0)]);
        assert!(parse(&ok, Protocol::X86_64, &LIMITS).is_ok());
        let past = |sector, count| Reason::PastEnd { sector, count, capacity: 1000 };
        assert_eq!(reason(0, 999, &[(1, 0, 1)], &LIMITS), past(999, 2));
        assert_eq!(reason(0, 1000, &[(1, 0, 0)], &LIMITS), past(1000, 1));
        assert_eq!(reason(1, u64::MAX, &[(1, 0, 0)], &LIMITS), past(u64::MAX, 1));
        assert_eq!(reason(1, u64::MAX - 7, &[(1, 0, 7)], &LIMITS), past(u64::MAX - 7, 8));
        assert_eq!(reason(1, 1 << 55, &[(1, 0, 0)], &LIMITS), past(1 << 55, 1));
    }

    #[test]
    fn a_read_only_disk_is_read_and_flushed_but_not_written() {
        let readonly = DiskLimits { readonly: true, ..LIMITS };
        for op in [1, 2, 3] {
            assert_eq!(reason(op, 0, &[(1, 0, 0)], &readonly), Reason::ReadOnly);
        }
        for (op, segments) in [(0, &[(1, 0, 0)][..]), (3, &[]), (2, &[])] {
            let entry = entry(Protocol::X86_64, op, 0, segments);
            assert!(parse(&entry, Protocol::X86_64, &readonly).is_ok(), "operation {op}");
        }
        let refused = |entry| parse(&entry, Protocol::X86_64, &readonly).unwrap_err().reason;
        assert_eq!(refused(indirect(Protocol::X86_64, 1, 0, 1)), Reason::ReadOnly);
        assert_eq!(refused(discard(Protocol::X86_64, 0, 0, 8)), Reason::ReadOnly);
    }

    #[test]
    fn a_disk_of_4096_byte_sectors_wants_whole_ones() {
        let limits = DiskLimits { logical_block: 4096, ..LIMITS };
        assert_eq!(reason(0, 4, &[(1, 0, 7)], &limits), Reason::Misaligned(4096));
        assert_eq!(reason(1, 8, &[(1, 0, 6)], &limits), Reason::Misaligned(4096));
        // One sector of the disk in two pages is whole.
        let split = entry(Protocol::X86_64, 0, 8, &[(1, 4, 7), (2, 0, 3)]);
        assert!(parse(&split, Protocol::X86_64, &limits).is_ok());
        for (sector, len) in [(4, 8), (8, 4), (8, 9)] {
            let entry = discard(Protocol::X86_64, 0, sector, len);
            let rejection = parse(&entry, Protocol::X86_64, &limits).unwrap_err();
            assert_eq!(rejection.reason, Reason::Misaligned(4096));
        }
    }

    #[test]
    fn operations_that_are_not_offered_are_not_supported() {
        for op in [4, 7, 8, 255] {
            let entry = entry(Protocol::X86_64, op, 0, &[(1, 0, 0)]);
            let rejection = parse(&entry, Protocol::X86_64, &LIMITS).unwrap_err();
            assert_eq!(rejection.response().status, Status::NotSupported, "operation {op}");
            assert_eq!(rejection.response().opcode, op);
        }
    }

    #[test]
    fn a_rejection_is_answered_with_the_id_of_the_request() {
        let entry = entry(Protocol::X86_32, 0, 5000, &[(1, 0, 0)]);
        let response = parse(&entry, Protocol::X86_32, &LIMITS).unwrap_err().response();
        assert_eq!(response, Response { id: ID, opcode: 0, status: Status::Error });
    }

    #[test]
    fn flush_and_barrier_need_no_segments_and_may_bring_some() {
        for op in [2, 3] {
            let operation = |sector, segments: &[_]| {
                let parsed = parse(&entry(Protocol::X86_64, op, sector, segments), Protocol::X86_64, &LIMITS);
                parsed.map(|(request, _)| request.operation)
            };
            let data = |operation| match operation {
                Operation::Flush(data) if op == 3 => data,
                Operation::Barrier(data) if op == 2 => data,
                other => panic!("{other:?}"),
            };
            assert_eq!(data(operation(u64::MAX, &[]).unwrap()), None);
            assert!(operation(u64::MAX, &[(1, 0, 0)]).is_err());
            assert_eq!(data(operation(2, &[(1, 0, 0)]).unwrap()).unwrap().offset(), 1024);
        }
    }

    #[test]
    fn an_indirect_request_is_what_its_page_says_in_both_layouts() {
        for protocol in BOTH {
            for op in [0, 1] {
                let page = list(&[(9, 0, 7), (10, 3, 3)]);
                let entry = indirect(protocol, op, 7, 2);
                let (request, segments) = parse_with(&entry, protocol, &LIMITS, &page).unwrap();
                // Frontends look for the operation inside.
                assert_eq!((request.id, request.opcode), (ID, op));
                let (Operation::Read(transfer) | Operation::Write(transfer)) = request.operation else {
                    panic!("{request:?}")
                };
                assert_eq!(matches!(request.operation, Operation::Write(_)), op == 1);
                assert_eq!((transfer.offset(), transfer.bytes()), (7 * 512, 4096 + 512));
                let whole = Segment { gref: GrantRef(9), offset: 0, len: 4096 };
                let part = Segment { gref: GrantRef(10), offset: 3 * 512, len: 512 };
                assert_eq!(segments, [whole, part]);
            }
        }
    }

    #[test]
    fn an_indirect_request_has_1_to_256_segments() {
        let limits = DiskLimits { sectors: 1 << 40, ..LIMITS };
        let page = list(&[(5, 0, 7); 512]);
        let parse =
            |count| parse_with(&indirect(Protocol::X86_64, 0, 0, count), Protocol::X86_64, &limits, &page);
        let (request, segments) = parse(256).unwrap();
        assert!(matches!(request.operation, Operation::Read(t) if t.bytes() == 1 << 20));
        assert_eq!(segments.len(), 256);
        assert_eq!(parse(1).unwrap().1.len(), 1);
        for bad in [0, 257, 512, 513, u16::MAX] {
            assert_eq!(parse(bad).unwrap_err().reason, count(bad, 256));
        }
    }

    #[test]
    fn only_reads_and_writes_can_be_indirect() {
        for op in [2, 3, 4, 5, 6, 255] {
            let entry = indirect(Protocol::X86_64, op, 0, 1);
            let rejection = parse_with(&entry, Protocol::X86_64, &LIMITS, &list(&[(1, 0, 7)])).unwrap_err();
            assert_eq!(rejection.reason, Reason::Indirect(op));
            assert_eq!(rejection.response(), Response { id: ID, opcode: op, status: Status::Error });
        }
    }

    #[test]
    fn an_indirect_page_that_cannot_be_read_is_an_error() {
        let mut entry = indirect(Protocol::X86_64, 0, 0, 1);
        entry[28..32].copy_from_slice(&500u32.to_le_bytes());
        let rejection = parse_with(&entry, Protocol::X86_64, &LIMITS, &list(&[(1, 0, 7)])).unwrap_err();
        assert_eq!(rejection.reason, Reason::SegmentPage(GrantError::BadRef(500)));
        assert_eq!(rejection.response().status, Status::Error);
    }

    #[test]
    fn a_discard_is_a_range_in_both_layouts() {
        for protocol in BOTH {
            let (request, segments) = parse(&discard(protocol, 0, 7, 993), protocol, &LIMITS).unwrap();
            assert_eq!((request.id, request.opcode), (ID, 5));
            assert_eq!(request.operation, Operation::Discard { offset: 7 * 512, len: 993 * 512 });
            assert!(segments.is_empty());
        }
    }

    #[test]
    fn a_discard_past_the_end_or_of_nothing_is_refused() {
        for (sector, len) in
            [(7, 994), (1000, 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX), (0, 1 << 55)]
        {
            let rejection = parse(&discard(Protocol::X86_64, 0, sector, len), Protocol::X86_64, &LIMITS);
            let expected = Reason::PastEnd { sector, count: len, capacity: 1000 };
            assert_eq!(rejection.unwrap_err().reason, expected);
        }
        let rejection = parse(&discard(Protocol::X86_64, 0, 0, 0), Protocol::X86_64, &LIMITS).unwrap_err();
        assert_eq!(rejection.reason, Reason::Nothing);
    }

    #[test]
    fn secure_discard_and_discard_that_was_not_offered_are_not_supported() {
        let rejection = parse(&discard(Protocol::X86_64, 1, 0, 8), Protocol::X86_64, &LIMITS).unwrap_err();
        assert_eq!(rejection.reason, Reason::Secure);
        assert_eq!(rejection.response().status, Status::NotSupported);
        let limits = DiskLimits { discard: false, ..LIMITS };
        let rejection = parse(&discard(Protocol::X86_64, 0, 0, 8), Protocol::X86_64, &limits).unwrap_err();
        assert_eq!(rejection.response(), Response { id: ID, opcode: 5, status: Status::NotSupported });
    }

    #[test]
    fn a_response_has_zeroed_padding() {
        let bytes = Response { id: u64::MAX, opcode: 0xff, status: Status::NotSupported }.emit();
        let mut expected = [0u8; 16];
        expected[..9].fill(0xff);
        expected[10..12].copy_from_slice(&(-2i16).to_le_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(Response { id: 1, opcode: 0, status: Status::Okay }.emit()[10..12], [0, 0]);
        assert_eq!(Response { id: 1, opcode: 0, status: Status::Error }.emit()[10..12], [0xff, 0xff]);
    }
}

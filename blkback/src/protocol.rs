//! Requests and responses of a block ring (xen/include/public/io/blkif.h), as checked types.
//!
//! A request is copied out of the ring once, as a [`RawEntry`]; [`Request::parse`] turns the copy into what
//! the rest of blkback may trust, or into the [`Rejection`] that the frontend gets as a response.
//!
//! Two layouts, by the frontend's `protocol` key, little-endian:
//!
//! | field          | x86_64-abi | x86_32-abi |
//! |----------------|-----------:|-----------:|
//! | operation u8   |          0 |          0 |
//! | nr_segments u8 |          1 |          1 |
//! | handle u16     |          2 |          2 |
//! | id u64         |          8 |          4 |
//! | sector u64     |         16 |         12 |
//! | 11 segments    |         24 |         20 |
//! | **size**       |    **112** |    **108** |
//!
//! Segment, 8 bytes: grant reference u32 @0, first sector u8 @4, last sector u8 @5 (of the eight sectors of
//! the granted page). Response, 16 or 12 bytes: id u64 @0, operation u8 @8, status i16 @10.

use devices::xen::GrantRef;
use static_assertions::const_assert_eq;
use thiserror::Error;
use zerocopy::little_endian::{I16, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector in every number of the protocol, whatever the disk's own sector size.
pub const SECTOR_SIZE: u64 = 512;
/// Segments of a request that carries them itself (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;
const SECTORS_PER_PAGE: u8 = 8;

const OP_READ: u8 = 0;
const OP_WRITE: u8 = 1;
const OP_FLUSH_DISKCACHE: u8 = 3;

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
const_assert_eq!(size_of::<RawResponse>(), 16);
const_assert_eq!(core::mem::offset_of!(RawResponse, status), 10);

/// What a disk allows; a request is checked against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Capacity in units of 512 bytes.
    pub sectors: u64,
    /// Bytes of the disk's own sector: 512 or 4096. Requests start and end on its boundaries.
    pub logical_block: u32,
    /// Writes are refused.
    pub readonly: bool,
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

const NO_SEGMENT: Segment = Segment { gref: GrantRef(0), offset: 0, len: 0 };

/// The data of a request: consecutive bytes of the disk, scattered over guest pages. Inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    sector: u64,
    bytes: u32,
    count: u8,
    segments: [Segment; MAX_SEGMENTS],
}

impl Transfer {
    /// Where the data starts on the disk, in bytes.
    pub fn offset(&self) -> u64 {
        self.sector * SECTOR_SIZE
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The pages, in the order of the disk; at least one.
    pub fn segments(&self) -> &[Segment] {
        self.segments.get(..usize::from(self.count)).unwrap_or(&[])
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
}

/// A request that was found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Returned in the response.
    pub id: u64,
    /// The operation's number, returned in the response.
    pub opcode: u8,
    /// What to do.
    pub operation: Operation,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// The operation is not one that was offered.
    #[error("operation {0} is not offered")]
    NotSupported(u8),
    /// Too few or too many segments.
    #[error("it has {0} segments, and 1 to 11 are possible")]
    SegmentCount(u8),
    /// A segment is not inside its page.
    #[error("a segment has sectors {0} to {1}, and a page has sectors 0 to 7")]
    SegmentRange(u8, u8),
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
}

/// A request that gets a bad response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            Reason::NotSupported(_) => Status::NotSupported,
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
}

impl Fields {
    fn new(entry: &RawEntry, protocol: Protocol) -> Self {
        match protocol {
            Protocol::X86_64 => {
                let raw: Raw64 = zerocopy::transmute!(*entry);
                Fields {
                    operation: raw.operation,
                    nr_segments: raw.nr_segments,
                    id: raw.id.get(),
                    sector: raw.sector.get(),
                    segments: raw.segments,
                }
            }
            Protocol::X86_32 => {
                let raw: Raw32 = zerocopy::transmute!(*entry);
                Fields {
                    operation: raw.operation,
                    nr_segments: raw.nr_segments,
                    id: raw.id.get(),
                    sector: raw.sector.get(),
                    segments: raw.segments,
                }
            }
        }
    }

    fn operation(&self, limits: &DiskLimits) -> Result<Operation, Reason> {
        match self.operation {
            OP_READ => self.transfer(limits).map(Operation::Read),
            OP_WRITE => self.written(limits).map(Operation::Write),
            OP_FLUSH_DISKCACHE if self.nr_segments == 0 => Ok(Operation::Flush(None)),
            OP_FLUSH_DISKCACHE => self.written(limits).map(|t| Operation::Flush(Some(t))),
            other => Err(Reason::NotSupported(other)),
        }
    }

    fn written(&self, limits: &DiskLimits) -> Result<Transfer, Reason> {
        if limits.readonly { Err(Reason::ReadOnly) } else { self.transfer(limits) }
    }

    fn transfer(&self, limits: &DiskLimits) -> Result<Transfer, Reason> {
        let raw = self.segments.get(..usize::from(self.nr_segments)).filter(|s| !s.is_empty());
        let raw = raw.ok_or(Reason::SegmentCount(self.nr_segments))?;
        let mut segments = [NO_SEGMENT; MAX_SEGMENTS];
        let mut count = 0u64;
        for (segment, raw) in segments.iter_mut().zip(raw) {
            let (first, last) = (raw.first_sect, raw.last_sect);
            if first > last || last >= SECTORS_PER_PAGE {
                return Err(Reason::SegmentRange(first, last));
            }
            let sectors = u16::from(last - first) + 1;
            *segment = Segment {
                gref: GrantRef(raw.gref.get()),
                offset: u16::from(first) * 512,
                len: sectors * 512,
            };
            count += u64::from(sectors);
        }
        // The sum may pass 2^64: then the request is past the end of every disk.
        if self.sector.checked_add(count).is_none_or(|end| end > limits.sectors) {
            return Err(Reason::PastEnd { sector: self.sector, count, capacity: limits.sectors });
        }
        let per_block = (u64::from(limits.logical_block) / SECTOR_SIZE).max(1);
        if !self.sector.is_multiple_of(per_block) || !count.is_multiple_of(per_block) {
            return Err(Reason::Misaligned(limits.logical_block));
        }
        let bytes = segments.iter().map(|s| u32::from(s.len)).sum();
        Ok(Transfer { sector: self.sector, bytes, count: self.nr_segments, segments })
    }
}

impl Request {
    /// Checks the copy of a ring entry. Total: every content is a request or a rejection.
    pub fn parse(entry: &RawEntry, protocol: Protocol, limits: &DiskLimits) -> Result<Self, Rejection> {
        let fields = Fields::new(entry, protocol);
        let (id, opcode) = (fields.id, fields.operation);
        match fields.operation(limits) {
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

    const LIMITS: DiskLimits = DiskLimits { sectors: 1000, logical_block: 512, readonly: false };

    /// A request of `segments` = (grant, first, last) in the layout of `protocol`.
    fn entry(protocol: Protocol, op: u8, sector: u64, segments: &[(u32, u8, u8)]) -> RawEntry {
        let (id_at, sector_at, segments_at) = match protocol {
            Protocol::X86_64 => (8, 16, 24),
            Protocol::X86_32 => (4, 12, 20),
        };
        // Padding is what the guest left there.
        let mut entry = [0xee; 112];
        entry[0] = op;
        entry[1] = u8::try_from(segments.len()).unwrap();
        entry[id_at..id_at + 8].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
        entry[sector_at..sector_at + 8].copy_from_slice(&sector.to_le_bytes());
        for (i, (gref, first, last)) in segments.iter().take(11).enumerate() {
            let at = segments_at + i * 8;
            entry[at..at + 4].copy_from_slice(&gref.to_le_bytes());
            (entry[at + 4], entry[at + 5]) = (*first, *last);
        }
        entry
    }

    fn reason(op: u8, sector: u64, segments: &[(u32, u8, u8)], limits: &DiskLimits) -> Reason {
        let entry = entry(Protocol::X86_64, op, sector, segments);
        Request::parse(&entry, Protocol::X86_64, limits).unwrap_err().reason
    }

    #[test]
    fn both_layouts_give_the_same_request() {
        for protocol in [Protocol::X86_64, Protocol::X86_32] {
            let entry = entry(protocol, 0, 7, &[(9, 0, 7), (10, 3, 3)]);
            let request = Request::parse(&entry, protocol, &LIMITS).unwrap();
            assert_eq!((request.id, request.opcode), (0x1122_3344_5566_7788, 0));
            let Operation::Read(transfer) = request.operation else { panic!("{request:?}") };
            assert_eq!((transfer.offset(), transfer.bytes()), (7 * 512, 4096 + 512));
            let whole = Segment { gref: GrantRef(9), offset: 0, len: 4096 };
            let part = Segment { gref: GrantRef(10), offset: 3 * 512, len: 512 };
            assert_eq!(transfer.segments(), [whole, part]);
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
        let before = Request::parse(&entry, Protocol::X86_32, &LIMITS).unwrap();
        entry[108..].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(Request::parse(&entry, Protocol::X86_32, &LIMITS).unwrap(), before);
    }

    #[test]
    fn a_missing_protocol_key_is_64_bit_and_an_unknown_one_is_refused() {
        assert_eq!(Protocol::from_key(None), Some(Protocol::X86_64));
        assert_eq!(Protocol::from_key(Some("x86_32-abi")), Some(Protocol::X86_32));
        assert_eq!(Protocol::from_key(Some("arm-abi")), None);
    }

    #[test]
    fn segment_count_of_0_and_of_more_than_11_is_refused() {
        assert_eq!(reason(0, 0, &[], &LIMITS), Reason::SegmentCount(0));
        assert_eq!(reason(1, 0, &[], &LIMITS), Reason::SegmentCount(0));
        assert_eq!(reason(0, 0, &[(1, 0, 0); 12], &LIMITS), Reason::SegmentCount(12));
        assert_eq!(reason(3, 0, &[(1, 0, 0); 12], &LIMITS), Reason::SegmentCount(12));
        assert_eq!(reason(0, 0, &[(1, 0, 0); 255], &LIMITS), Reason::SegmentCount(255));
        assert!(
            Request::parse(&entry(Protocol::X86_64, 0, 0, &[(1, 0, 7); 11]), Protocol::X86_64, &LIMITS)
                .is_ok()
        );
    }

    #[test]
    fn segment_outside_its_page_is_refused() {
        assert_eq!(reason(0, 0, &[(1, 0, 8)], &LIMITS), Reason::SegmentRange(0, 8));
        assert_eq!(reason(0, 0, &[(1, 5, 4)], &LIMITS), Reason::SegmentRange(5, 4));
        assert_eq!(reason(0, 0, &[(1, 255, 255)], &LIMITS), Reason::SegmentRange(255, 255));
        assert_eq!(reason(0, 0, &[(1, 0, 7), (1, 0, 255)], &LIMITS), Reason::SegmentRange(0, 255));
    }

    #[test]
    fn the_last_sector_is_the_last() {
        let ok = entry(Protocol::X86_64, 0, 999, &[(1, 0, 0)]);
        assert!(Request::parse(&ok, Protocol::X86_64, &LIMITS).is_ok());
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
        assert_eq!(reason(1, 0, &[(1, 0, 0)], &readonly), Reason::ReadOnly);
        assert_eq!(reason(3, 0, &[(1, 0, 0)], &readonly), Reason::ReadOnly);
        for (op, segments) in [(0, &[(1, 0, 0)][..]), (3, &[])] {
            let entry = entry(Protocol::X86_64, op, 0, segments);
            assert!(Request::parse(&entry, Protocol::X86_64, &readonly).is_ok(), "operation {op}");
        }
    }

    #[test]
    fn a_disk_of_4096_byte_sectors_wants_whole_ones() {
        let limits = DiskLimits { logical_block: 4096, ..LIMITS };
        assert_eq!(reason(0, 4, &[(1, 0, 7)], &limits), Reason::Misaligned(4096));
        assert_eq!(reason(1, 8, &[(1, 0, 6)], &limits), Reason::Misaligned(4096));
        // One sector of the disk in two pages is whole.
        let split = entry(Protocol::X86_64, 0, 8, &[(1, 4, 7), (2, 0, 3)]);
        assert!(Request::parse(&split, Protocol::X86_64, &limits).is_ok());
    }

    #[test]
    fn operations_that_are_not_offered_are_not_supported() {
        for op in [2, 4, 5, 6, 7, 255] {
            let entry = entry(Protocol::X86_64, op, 0, &[(1, 0, 0)]);
            let rejection = Request::parse(&entry, Protocol::X86_64, &LIMITS).unwrap_err();
            assert_eq!(rejection.response().status, Status::NotSupported, "operation {op}");
            assert_eq!(rejection.response().opcode, op);
        }
    }

    #[test]
    fn a_rejection_is_answered_with_the_id_of_the_request() {
        let entry = entry(Protocol::X86_32, 0, 5000, &[(1, 0, 0)]);
        let response = Request::parse(&entry, Protocol::X86_32, &LIMITS).unwrap_err().response();
        assert_eq!(response, Response { id: 0x1122_3344_5566_7788, opcode: 0, status: Status::Error });
    }

    #[test]
    fn a_flush_needs_no_segments_and_may_bring_some() {
        let parse = |segments: &[_]| {
            Request::parse(&entry(Protocol::X86_64, 3, u64::MAX, segments), Protocol::X86_64, &LIMITS)
        };
        assert_eq!(parse(&[]).unwrap().operation, Operation::Flush(None));
        assert!(parse(&[(1, 0, 0)]).is_err());
        let entry = entry(Protocol::X86_64, 3, 2, &[(1, 0, 0)]);
        let request = Request::parse(&entry, Protocol::X86_64, &LIMITS).unwrap();
        assert!(matches!(request.operation, Operation::Flush(Some(t)) if t.offset() == 1024));
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

#![allow(clippy::unwrap_used)]
use super::*;

const LIMITS: DiskLimits = DiskLimits { sectors: 1000, logical_block: 512, readonly: false, discard: true };
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

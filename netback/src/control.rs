//! The control ring: the frontend says how its packets are hashed and spread over its queues (netif.h, "Control
//! ring").
//!
//! | request, 16 bytes | response, 12 bytes |
//! |---|---|
//! | id u16 @0, type u16 @2, data [u32; 3] @4 | id u16 @0, type u16 @2, status u32 @4, data u32 @8 |
//!
//! Keys and tables come in a granted page, which is copied once and checked in the copy. A request is done whole or
//! not at all.

use devices::memory::PAGE_SIZE;
use devices::xen::grant_table::{Access, GrantTable};
use devices::xen::types::GrantRef;

use crate::hash::{ALL_KINDS, HashConfig, KEY_LEN, MAX_MAPPING, TOEPLITZ};

/// Bytes of a slot of the control ring: of a request, the larger entry.
pub const CTRL_ENTRY: usize = 16;
/// Bytes of a response.
pub const CTRL_RESPONSE: usize = 12;

/// What a request asks for (`XEN_NETIF_CTRL_TYPE_*`).
mod kind {
    pub(super) const GET_HASH_FLAGS: u16 = 1;
    pub(super) const SET_HASH_FLAGS: u16 = 2;
    pub(super) const SET_HASH_KEY: u16 = 3;
    pub(super) const GET_HASH_MAPPING_SIZE: u16 = 4;
    pub(super) const SET_HASH_MAPPING_SIZE: u16 = 5;
    pub(super) const SET_HASH_MAPPING: u16 = 6;
    pub(super) const SET_HASH_ALGORITHM: u16 = 7;
}

/// How a request went (`XEN_NETIF_CTRL_STATUS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CtrlStatus {
    /// Done.
    Success = 0,
    /// There is no such request, or not before an algorithm was chosen.
    NotSupported = 1,
    /// A value is wrong; nothing was changed.
    InvalidParameter = 2,
    /// More than is kept here; nothing was changed.
    BufferOverflow = 3,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtrlRequest {
    /// Comes back in the response.
    pub id: u16,
    /// What is asked for; comes back in the response.
    pub kind: u16,
    /// Its parameters.
    pub data: [u32; 3],
}

impl CtrlRequest {
    /// Reads a request.
    pub fn parse(bytes: &[u8; CTRL_ENTRY]) -> Self {
        let [a, b, c, d, data @ ..] = *bytes;
        let (words, _) = data.as_chunks::<4>();
        let mut data = [0; 3];
        for (word, bytes) in data.iter_mut().zip(words) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { id: u16::from_le_bytes([a, b]), kind: u16::from_le_bytes([c, d]), data }
    }

    /// Writes a request, as a frontend does.
    pub fn emit(&self) -> [u8; CTRL_ENTRY] {
        let ([a, b], [c, d]) = (self.id.to_le_bytes(), self.kind.to_le_bytes());
        let [x, y, z] = self.data.map(u32::to_le_bytes);
        let mut bytes = [0; CTRL_ENTRY];
        for (to, from) in bytes.iter_mut().zip([[a, b, c, d], x, y, z].as_flattened()) {
            *to = *from;
        }
        bytes
    }
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtrlResponse {
    /// Of the request.
    pub id: u16,
    /// Of the request.
    pub kind: u16,
    /// How it went.
    pub status: CtrlStatus,
    /// The answer; 0 where there is none.
    pub data: u32,
}

impl CtrlResponse {
    /// Writes a response.
    pub fn emit(&self) -> [u8; CTRL_RESPONSE] {
        let ([a, b], [c, d]) = (self.id.to_le_bytes(), self.kind.to_le_bytes());
        let [e, f, g, h] = (self.status as u32).to_le_bytes();
        let [i, j, k, l] = self.data.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

/// Pages of the frontend.
pub trait Pages {
    /// Copies the first bytes of a granted page; false if that page is not granted.
    fn copy(&self, gref: GrantRef, to: &mut [u8]) -> bool;
}

impl Pages for GrantTable {
    fn copy(&self, gref: GrantRef, to: &mut [u8]) -> bool {
        let Ok(page) = self.pin(gref, Access::Read) else { return false };
        let copied = self.slice(&page, 0, to.len()).map(|slice| slice.copy_to(to));
        self.unpin(page);
        copied.is_some()
    }
}

/// Does what a request asks for, for a frontend of `queues` queues.
pub fn answer(
    request: &CtrlRequest,
    hash: &mut HashConfig,
    queues: usize,
    pages: &impl Pages,
) -> CtrlResponse {
    let (status, data) = match perform(request, hash, queues, pages) {
        Ok(data) => (CtrlStatus::Success, data),
        Err(status) => (status, 0),
    };
    CtrlResponse { id: request.id, kind: request.kind, status, data }
}

fn perform(
    request: &CtrlRequest,
    hash: &mut HashConfig,
    queues: usize,
    pages: &impl Pages,
) -> Result<u32, CtrlStatus> {
    let [first, second, third] = request.data;
    match request.kind {
        kind::SET_HASH_ALGORITHM => {
            hash.toeplitz = match first {
                0 => false,
                algorithm if algorithm == u32::from(TOEPLITZ) => true,
                _ => return Err(CtrlStatus::InvalidParameter),
            };
        }
        kind::GET_HASH_FLAGS if !hash.toeplitz => return Err(CtrlStatus::NotSupported),
        kind::GET_HASH_FLAGS => return Ok(ALL_KINDS),
        kind::SET_HASH_FLAGS => {
            if !hash.toeplitz || first & !ALL_KINDS != 0 {
                return Err(CtrlStatus::InvalidParameter);
            }
            hash.kinds = first;
        }
        kind::SET_HASH_KEY => hash.key = key(GrantRef(first), second, pages)?,
        kind::GET_HASH_MAPPING_SIZE => return Ok(u32::try_from(MAX_MAPPING).unwrap_or(0)),
        kind::SET_HASH_MAPPING_SIZE => {
            let size = usize::try_from(first).unwrap_or(usize::MAX);
            if size > MAX_MAPPING {
                return Err(CtrlStatus::InvalidParameter);
            }
            hash.mapping = vec![0; size];
        }
        kind::SET_HASH_MAPPING => set_mapping(hash, GrantRef(first), second, third, queues, pages)?,
        _ => return Err(CtrlStatus::NotSupported),
    }
    Ok(0)
}

/// What is missing of a key is zero; one of no bytes needs no page.
fn key(gref: GrantRef, len: u32, pages: &impl Pages) -> Result<[u8; KEY_LEN], CtrlStatus> {
    let mut key = [0; KEY_LEN];
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let part = key.get_mut(..len).ok_or(CtrlStatus::BufferOverflow)?;
    if len > 0 && !pages.copy(gref, part) {
        return Err(CtrlStatus::InvalidParameter);
    }
    Ok(key)
}

/// Replaces `len` entries of the table from `offset` on.
fn set_mapping(
    hash: &mut HashConfig,
    gref: GrantRef,
    len: u32,
    offset: u32,
    queues: usize,
    pages: &impl Pages,
) -> Result<(), CtrlStatus> {
    const INVALID: CtrlStatus = CtrlStatus::InvalidParameter;
    let [offset, len] = [offset, len].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    // Two numbers of the guest must not wrap around to a small one (XSA-270).
    let end = offset.checked_add(len).ok_or(INVALID)?;
    let part = hash.mapping.get_mut(offset..end).ok_or(INVALID)?;
    let mut bytes = [0; MAX_MAPPING * 4];
    const _: () = assert!(MAX_MAPPING * 4 <= PAGE_SIZE);
    let bytes = bytes.get_mut(..len * 4).ok_or(INVALID)?;
    if len > 0 && !pages.copy(gref, bytes) {
        return Err(INVALID);
    }
    // Looked at in the copy: the guest may change its page meanwhile, and a queue that does not exist must not be
    // in the table for a moment.
    let (words, _) = bytes.as_chunks::<4>();
    let entries: Option<Vec<u16>> = words
        .iter()
        .map(|word| {
            u16::try_from(u32::from_le_bytes(*word)).ok().filter(|queue| usize::from(*queue) < queues)
        })
        .collect();
    part.copy_from_slice(&entries.ok_or(INVALID)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use devices::testing::FakeGuest;

    use super::kind::*;
    use super::*;
    use CtrlStatus::{BufferOverflow, InvalidParameter, NotSupported, Success};

    struct Bench {
        guest: FakeGuest,
        hash: HashConfig,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench = Self { guest: FakeGuest::new(16), hash: HashConfig::default() };
            assert_eq!(bench.ask(SET_HASH_ALGORITHM, [1, 0, 0]), (Success, 0));
            bench
        }

        fn ask(&mut self, kind: u16, data: [u32; 3]) -> (CtrlStatus, u32) {
            let before = self.hash.clone();
            let request = CtrlRequest { id: 77, kind, data };
            let response = answer(&request, &mut self.hash, 4, &*self.guest.domain.grants);
            assert_eq!((response.id, response.kind), (77, kind));
            assert!(response.status == Success || self.hash == before, "a refused request changed something");
            (response.status, response.data)
        }

        /// A page that may only be read.
        fn page(&mut self, bytes: &[u8]) -> u32 {
            let frame = self.guest.alloc_page();
            self.guest.write(frame, 0, bytes);
            self.guest.grant(frame, true).0
        }

        fn table(&mut self, entries: &[u32]) -> u32 {
            self.page(&entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>())
        }
    }

    #[test]
    fn entries_have_the_layout_of_netif_h() {
        let bytes = [0x34, 0x12, 3, 0, 8, 0, 0, 0, 40, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        let request = CtrlRequest { id: 0x1234, kind: SET_HASH_KEY, data: [8, 40, u32::MAX] };
        assert_eq!(CtrlRequest::parse(&bytes), request);
        assert_eq!(request.emit(), bytes);
        let response = CtrlResponse { id: 0x1234, kind: 4, status: BufferOverflow, data: 128 };
        assert_eq!(response.emit(), [0x34, 0x12, 4, 0, 3, 0, 0, 0, 128, 0, 0, 0]);
    }

    #[test]
    fn there_is_one_algorithm_and_none() {
        let mut bench = Bench::new();
        for algorithm in [2, 255, 257, u32::MAX] {
            assert_eq!(bench.ask(SET_HASH_ALGORITHM, [algorithm, 0, 0]), (InvalidParameter, 0));
        }
        assert!(bench.hash.toeplitz);
        assert_eq!(bench.ask(SET_HASH_ALGORITHM, [0, 0, 0]), (Success, 0));
        assert!(!bench.hash.toeplitz);
    }

    #[test]
    fn kinds_are_chosen_after_the_algorithm() {
        let mut bench = Bench::new();
        assert_eq!(bench.ask(GET_HASH_FLAGS, [0; 3]), (Success, 15));
        assert_eq!(bench.ask(SET_HASH_FLAGS, [10, 0, 0]), (Success, 0));
        assert_eq!(bench.hash.kinds, 10);
        assert_eq!(bench.ask(SET_HASH_FLAGS, [16, 0, 0]), (InvalidParameter, 0));
        bench.ask(SET_HASH_ALGORITHM, [0, 0, 0]);
        assert_eq!(bench.ask(GET_HASH_FLAGS, [0; 3]), (NotSupported, 0));
        assert_eq!(bench.ask(SET_HASH_FLAGS, [1, 0, 0]), (InvalidParameter, 0));
    }

    #[test]
    fn a_key_is_copied_and_the_rest_of_it_is_zero() {
        let mut bench = Bench::new();
        let gref = bench.page(&[7; 50]);
        assert_eq!(bench.ask(SET_HASH_KEY, [gref, 40, 0]), (Success, 0));
        assert_eq!(bench.hash.key, [7; 40]);
        assert_eq!(bench.ask(SET_HASH_KEY, [gref, 39, 0]), (Success, 0));
        assert_eq!((bench.hash.key[38], bench.hash.key[39]), (7, 0));
        assert_eq!(bench.ask(SET_HASH_KEY, [u32::MAX, 0, 0]), (Success, 0));
        assert_eq!(bench.hash.key, [0; 40]);
        assert_eq!(bench.guest.grant_flags(GrantRef(gref)), 1 | 4, "the page is still in use");
    }

    #[test]
    fn a_key_that_is_too_long_or_not_granted_is_refused() {
        let mut bench = Bench::new();
        let gref = bench.page(&[7; 50]);
        for len in [41, 4096, 4097, u32::MAX] {
            assert_eq!(bench.ask(SET_HASH_KEY, [gref, len, 0]), (BufferOverflow, 0));
        }
        for gref in [0, 400, u32::MAX] {
            assert_eq!(bench.ask(SET_HASH_KEY, [gref, 40, 0]), (InvalidParameter, 0));
        }
    }

    #[test]
    fn a_table_is_made_empty_and_filled_in_parts() {
        let mut bench = Bench::new();
        assert_eq!(bench.ask(GET_HASH_MAPPING_SIZE, [0; 3]), (Success, 128));
        assert_eq!(bench.ask(SET_HASH_MAPPING_SIZE, [128, 0, 0]), (Success, 0));
        assert_eq!(bench.hash.mapping, [0; 128]);
        let all = bench.table(&[3; 128]);
        assert_eq!(bench.ask(SET_HASH_MAPPING, [all, 128, 0]), (Success, 0));
        let part = bench.table(&[1, 2]);
        assert_eq!(bench.ask(SET_HASH_MAPPING, [part, 2, 126]), (Success, 0));
        assert_eq!(bench.hash.mapping[..126], [3; 126]);
        assert_eq!(bench.hash.mapping[126..], [1, 2]);
        assert_eq!(bench.ask(SET_HASH_MAPPING, [u32::MAX, 0, 128]), (Success, 0));
        // A new size clears what was there.
        assert_eq!(bench.ask(SET_HASH_MAPPING_SIZE, [2, 0, 0]), (Success, 0));
        assert_eq!(bench.hash.mapping, [0; 2]);
        assert_eq!(bench.ask(SET_HASH_MAPPING_SIZE, [0, 0, 0]), (Success, 0));
        assert!(bench.hash.mapping.is_empty());
    }

    #[test]
    fn a_table_that_is_too_large_or_not_granted_is_refused() {
        let mut bench = Bench::new();
        for size in [129, 1024, u32::MAX] {
            assert_eq!(bench.ask(SET_HASH_MAPPING_SIZE, [size, 0, 0]), (InvalidParameter, 0));
        }
        bench.ask(SET_HASH_MAPPING_SIZE, [8, 0, 0]);
        for gref in [0, 400, u32::MAX] {
            assert_eq!(bench.ask(SET_HASH_MAPPING, [gref, 8, 0]), (InvalidParameter, 0));
        }
    }

    #[test]
    fn a_table_with_a_queue_that_does_not_exist_is_refused_whole() {
        let mut bench = Bench::new();
        bench.ask(SET_HASH_MAPPING_SIZE, [3, 0, 0]);
        for queue in [4, 65_536, u32::MAX] {
            let gref = bench.table(&[1, 2, queue]);
            assert_eq!(bench.ask(SET_HASH_MAPPING, [gref, 3, 0]), (InvalidParameter, 0));
        }
        assert_eq!(bench.hash.mapping, [0; 3]);
    }

    #[test]
    fn a_request_of_no_kind_is_not_supported() {
        let mut bench = Bench::new();
        for kind in [0, 8, 255, 0x0101, u16::MAX] {
            assert_eq!(bench.ask(kind, [1; 3]), (NotSupported, 0));
        }
    }
}

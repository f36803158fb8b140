//! The headers of a frame from anybody, found for checksum and segmentation offload and for the hash.
//!
//! Input: 2 bytes, of the frame that were not copied; a byte, the kinds to hash; a key of 40 bytes; the frame's first
//! bytes.

#![no_main]

use devices::xen::GrantRef;
use libfuzzer_sys::fuzz_target;
use netback::control::{CtrlRequest, CtrlStatus, Pages, answer};
use netback::hash::{HashConfig, HashKind, KEY_LEN};
use netback::protocol::ETH_HLEN;
use netback::{HEADER_MAX, Headers, IpVersion, Transport};
use xvmm_fuzz::Input;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let more = usize::from(input.u16());
    let kinds = u32::from(input.u8() & 15);
    let key = Key(input.bytes(KEY_LEN));
    let frame = input.rest();
    let head = &frame[..frame.len().min(HEADER_MAX)];
    let total = frame.len() + more;
    let found = Headers::parse(head, total).ok();
    if let Some(found) = &found {
        offloads(found, head, total);
    }
    hashes(found, head, total, kinds, &key);
});

/// A key in a page of the frontend.
struct Key<'a>(&'a [u8]);

impl Pages for Key<'_> {
    fn copy(&self, _: GrantRef, to: &mut [u8]) -> bool {
        to[..self.0.len()].copy_from_slice(self.0);
        true
    }
}

fn offloads(found: &Headers, head: &[u8], total: usize) {
    assert!(usize::from(found.l3) >= ETH_HLEN && found.l3 < found.l4 && found.l4 < found.payload);
    assert!(usize::from(found.payload) <= head.len() && usize::from(found.payload) <= total);
    assert!(found.l4 + found.csum_offset() + 2 <= found.payload);
    let mut after = head.to_vec();
    found.set_pseudo_checksum(&mut after);
    let at = usize::from(found.l4 + found.csum_offset());
    after[at..at + 2].copy_from_slice(&head[at..at + 2]);
    assert_eq!(after, head, "only the checksum is written");
}

fn hashes(found: Option<Headers>, head: &[u8], total: usize, kinds: u32, key: &Key) {
    let mut config = HashConfig::default();
    for (kind, data) in [(7, [1, 0, 0]), (2, [kinds, 0, 0]), (3, [0, KEY_LEN as u32, 0])] {
        let response = answer(&CtrlRequest { id: 0, kind, data }, &mut config, 4, key);
        assert_eq!(response.status, CtrlStatus::Success);
    }
    let hash = config.hash(head, total);
    let queue = config.queue(hash, 4);
    assert_eq!(queue.is_some(), kinds != 0);
    assert!(queue.is_none_or(|queue| queue < 4));
    if let Some(hash) = hash {
        assert!(kinds & 1 << hash.kind as u32 != 0, "{hash:?} was not asked for");
    }
    // What has headers for offloads has addresses and ports, and where they are is known.
    let Some(found) = found else { return };
    let (addresses, plain, whole) = match found.ip {
        IpVersion::V4 => (12..20, HashKind::Ipv4, HashKind::Ipv4Tcp),
        IpVersion::V6 => (8..40, HashKind::Ipv6, HashKind::Ipv6Tcp),
    };
    let asked = |kind: HashKind| kinds & 1 << kind as u32 != 0;
    let (l3, l4) = (usize::from(found.l3), usize::from(found.l4));
    let mut input = head[l3 + addresses.start..l3 + addresses.end].to_vec();
    let kind = if found.transport == Transport::Tcp && asked(whole) {
        input.extend(&head[l4..l4 + 4]);
        whole
    } else {
        plain
    };
    let expected = asked(kind).then(|| (kind, slow_toeplitz(key.0, &input)));
    assert_eq!(hash.map(|hash| (hash.kind, hash.value)), expected);
}

/// As netif.h tells it, bit by bit.
fn slow_toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let mut hash = 0;
    for at in 0..input.len() * 8 {
        if bit(input, at) == 1 {
            hash ^= (0..32).fold(0u32, |word, next| word << 1 | u32::from(bit(key, at + next)));
        }
    }
    hash
}

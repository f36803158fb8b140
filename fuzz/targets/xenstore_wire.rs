//! The store under four clients: domain 0, a guest through its ring page, the same guest by another way, and a
//! second guest. Messages arrive in any pieces, and the guest changes its ring page at will.
//!
//! Input: operations of a tag byte (low two bits: the client) and their arguments, see the match below.

#![no_main]

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, LazyLock};

use devices::memory::{PAGE_SIZE, SharedPages};
use devices::xen::DomId;
use devices::xen::xenstore::wire::{HEADER_SIZE, Header, PAYLOAD_MAX};
use devices::xen::xenstore::{ConnId, Perm, ReceiveError, XenStore, XenStoreRing};
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

/// The ring is the middle page: its neighbours must stay as they are.
static PAGES: LazyLock<Arc<SharedPages>> =
    LazyLock::new(|| Arc::new(SharedPages::new("xenstore", 3).expect("a memfd")));

const RING_SIZE: u32 = 1024;
const REQ_CONS: usize = PAGE_SIZE + 2048;
const REQ_PROD: usize = PAGE_SIZE + 2052;
const RSP_CONS: usize = PAGE_SIZE + 2056;
const RSP_PROD: usize = PAGE_SIZE + 2060;

const PATHS: [&str; 12] = [
    "/",
    "/local/domain/1",
    "/local/domain/1/device/vbd/51712/state",
    "/local/domain/0/backend/vbd/1/51712/state",
    "device",
    "device/vif/0",
    "@introduceDomain",
    "@releaseDomain",
    "/local/domain/1/data",
    "/tool/xenstored",
    "/local/domain/2/data",
    "data/a",
];

fn domain(store: &mut XenStore, domid: u16) {
    let home = format!("/local/domain/{domid}");
    let own = |owner, access| Perm { domid: owner, access };
    use devices::xen::xenstore::Access::{None, Read};
    store.mkdir(&home).expect("a directory");
    store.set_perms(&home, &[own(DomId::DOM0, None), own(DomId(domid), Read)]).expect("permissions");
    for name in ["data", "device"] {
        let path = format!("{home}/{name}");
        store.mkdir(&path).expect("a directory");
        store.set_perms(&path, &[own(DomId(domid), None)]).expect("permissions");
    }
    store.introduce_domain(DomId(domid));
}

/// A message as a client sends it: type, transaction, request id, then pieces of a payload.
fn message(input: &mut Input) -> Vec<u8> {
    let kind = u32::from(input.u8() % 28);
    let tx_id = u32::from(input.u8() % 8);
    let mut payload = Vec::new();
    let pieces = input.u8();
    for piece in 0..pieces % 8 {
        match input.u8() {
            choice @ 0..64 => {
                payload.extend_from_slice(PATHS[usize::from(choice) % PATHS.len()].as_bytes());
                payload.push(0);
            }
            choice @ 64..128 => {
                payload.extend_from_slice(input.bytes((choice - 64).into()));
                payload.push(0);
            }
            choice @ 128..192 => payload.extend_from_slice(input.bytes((choice - 128).into())),
            // As long as paths and values get.
            choice => payload.extend(std::iter::repeat_n(b'a' + piece, usize::from(choice - 191) * 64)),
        }
    }
    let mut len = payload.len() as u32;
    if pieces >= 240 {
        len = input.number() as u32;
    }
    let mut bytes = Header { kind, req_id: 7, tx_id, len }.emit().to_vec();
    bytes.extend_from_slice(&payload);
    bytes
}

/// Takes what waits for a client and follows its messages from one to the next.
fn read_all(store: &mut XenStore, id: ConnId, unread: &mut Vec<u8>) {
    unread.extend(store.take_output(id));
    let mut rest = unread.as_slice();
    while let Some((header, tail)) = rest.split_first_chunk::<HEADER_SIZE>() {
        let header = Header::parse(header);
        assert!(header.len as usize <= PAYLOAD_MAX, "{header:?}");
        assert!(header.kind < 28, "{header:?}");
        let Some(tail) = tail.get(header.len as usize..) else { break };
        rest = tail;
    }
    *unread = rest.to_vec();
}

/// What a frontend's driver does: as much of the message as there is room for.
fn send_through_ring(pages: &SharedPages, bytes: &[u8]) {
    let word = |at| pages.u32_at(at).expect("an index");
    let (mut prod, cons) = (word(REQ_PROD).load(SeqCst), word(REQ_CONS).load(SeqCst));
    for byte in bytes {
        if prod.wrapping_sub(cons) >= RING_SIZE {
            break;
        }
        pages.write(PAGE_SIZE + (prod % RING_SIZE) as usize, &[*byte]).expect("inside the page");
        prod = prod.wrapping_add(1);
    }
    word(REQ_PROD).store(prod, SeqCst);
}

fuzz_target!(|data: &[u8]| {
    let pages = &*PAGES;
    pages.write(0, &[0x5a; 3 * PAGE_SIZE]).expect("three pages");
    pages.write(PAGE_SIZE, &[0; PAGE_SIZE]).expect("three pages");
    let mut store = XenStore::new();
    domain(&mut store, 1);
    domain(&mut store, 2);
    let mut ring = XenStoreRing::new(&mut store, DomId(1), Arc::clone(pages), 1).expect("three pages");
    let clients = [
        store.add_connection(DomId::DOM0),
        ring.connection(),
        store.add_connection(DomId(1)),
        store.add_connection(DomId(2)),
    ];
    let mut unread = [const { Vec::new() }; 4];
    let mut dead = [false; 4];
    let mut input = Input::new(data);
    while !input.is_empty() {
        let tag = input.u8();
        let who = usize::from(tag % 4);
        let (id, through_ring) = (clients[who], who == 1);
        match tag >> 2 & 7 {
            // A message, whole or in pieces of some bytes; or bytes that are none.
            action @ 0..=3 => {
                let bytes = if action == 3 {
                    let len = input.u8().into();
                    input.bytes(len).to_vec()
                } else {
                    message(&mut input)
                };
                if through_ring {
                    send_through_ring(pages, &bytes);
                    if action != 2 {
                        let _ = ring.process(&mut store);
                    }
                    continue;
                }
                if dead[who] {
                    continue;
                }
                let piece = if action == 1 { usize::from(input.u8()).max(1) } else { bytes.len().max(1) };
                for piece in bytes.chunks(piece) {
                    match store.receive(id, piece) {
                        Ok(taken) => {
                            assert!(taken <= piece.len());
                            if taken < piece.len() {
                                // The stream ends here: a transport would offer the rest again.
                                dead[who] = !store.has_connection(id);
                                store.reset_connection(id);
                                unread[who].clear();
                                break;
                            }
                        }
                        Err(ReceiveError::TooLong) => {
                            store.remove_connection(id);
                            dead[who] = true;
                            break;
                        }
                        Err(ReceiveError::Gone) => {
                            assert!(!store.has_connection(id));
                            dead[who] = true;
                            break;
                        }
                    }
                }
            }
            // A client reads.
            4 if through_ring => {
                let prod = pages.u32_at(RSP_PROD).expect("an index").load(SeqCst);
                pages.u32_at(RSP_CONS).expect("an index").store(prod, SeqCst);
                let _ = ring.process(&mut store);
            }
            4 => read_all(&mut store, id, &mut unread[who]),
            // The guest writes any of the ring's words.
            5 => {
                let at = REQ_CONS + usize::from(input.u8() % 8) * 4;
                pages.u32_at(at).expect("a word").store(input.number() as u32, SeqCst);
                let _ = ring.process(&mut store);
            }
            // The VMM's own code.
            6 => {
                let path = PATHS[usize::from(input.u8()) % PATHS.len()];
                match who {
                    0 => drop(store.write(path, input.bytes(4))),
                    1 => drop(store.rm(path)),
                    2 => drop(store.mkdir(path)),
                    _ => drop((store.directory(path), store.perms(path), store.read(path))),
                }
            }
            _ => match input.u8() % 4 {
                0 if who > 0 => store.release_domain(DomId(1 + u16::from(who == 3))),
                1 => store.introduce_domain(DomId(who as u16)),
                2 => drop(store.take_ready()),
                _ => {
                    let _ = ring.process(&mut store);
                }
            },
        }
    }
    for (id, unread) in clients.into_iter().zip(&mut unread) {
        if id != ring.connection() {
            read_all(&mut store, id, unread);
        }
    }
    store.check().expect("a sound tree");
    for page in [0, 2] {
        let mut bytes = [0; PAGE_SIZE];
        pages.read(page * PAGE_SIZE, &mut bytes).expect("three pages");
        assert!(bytes == [0x5a; PAGE_SIZE], "page {page} was written to");
    }
});

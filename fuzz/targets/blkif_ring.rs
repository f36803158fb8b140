//! A block ring under a hostile frontend: any request, any grant, any index, changed between any two passes.
//!
//! Input: two bytes of settings, then operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use blkback::Disk;
use blkback::protocol::Protocol;
use blkback::queue::Queue;
use blkback::storage::{Discard, Traits};
use blkback::testing::{Inline, Memory, config};
use devices::memory::PAGE_SIZE;
use devices::testing::{FakeGuest, FrontRing};
use devices::xen::GrantRef;
use devices::xen::shared_ring::BackRing;
use libfuzzer_sys::fuzz_target;
use xvmm_fuzz::Input;

const SECTORS: u64 = 64;
const PAGES: usize = 48;
const GRANTS: usize = 16;
/// The grants from this one on are read-only: what is in their pages stays as the frontend wrote it.
const READONLY: usize = 12;
/// Never granted: nothing may be written there.
const CANARY: u64 = 40;
/// GTF_reading and GTF_writing.
const IN_USE: u16 = 8 | 16;
const OP_DISCARD: u8 = 5;
const OP_INDIRECT: u8 = 6;

/// What the disk is like, by the second byte of settings.
fn traits(kind: u8) -> Traits {
    Traits {
        logical_block: if kind & 1 == 0 { 512 } else { 4096 },
        physical_block: 4096,
        discard: (kind & 4 == 0).then_some(Discard { granularity: 4096, alignment: 0 }),
        memory_alignment: 512,
        // More than the sectors that the guest is told: requests are widened.
        offset_alignment: if kind & 3 == 0 { 512 } else { 4096 },
        max_transfer: u32::MAX,
    }
}

struct Frontend {
    guest: FakeGuest,
    ring: FrontRing,
    protocol: Protocol,
    /// Granted pages: frame and reference.
    pages: Vec<(u64, GrantRef)>,
    /// The ring's own pages may be written by what was asked for: that is the frontend's doing.
    tampered: bool,
}

impl Frontend {
    fn gref(&self, input: &mut Input) -> u32 {
        match input.u8() {
            choice @ 0..224 => self.pages[usize::from(choice) % GRANTS].1.0,
            _ => input.number() as u32,
        }
    }

    /// Whether any of the words is a reference of the ring's pages.
    fn names_ring(&self, bytes: &[u8]) -> bool {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().any(|word| self.ring.refs.contains(&GrantRef(u32::from_le_bytes(*word))))
    }

    fn segments(&self, input: &mut Input, count: usize) -> Vec<u8> {
        let mut list = Vec::new();
        for _ in 0..count {
            list.extend(self.gref(input).to_le_bytes());
            list.extend([input.u8(), input.u8(), 0xee, 0xee]);
        }
        list
    }

    /// A request whose fields are near what is right.
    fn request(&mut self, input: &mut Input) -> Vec<u8> {
        let (id_at, sector_at, segments_at) = match self.protocol {
            Protocol::X86_64 => (8, 16, 24),
            Protocol::X86_32 => (4, 12, 20),
        };
        let mut entry = vec![0xee; self.protocol.entry_size()];
        entry[0] = input.u8();
        entry[1] = input.u8();
        let id = u64::from(input.u8());
        entry[id_at..id_at + 8].copy_from_slice(&id.to_le_bytes());
        entry[sector_at..sector_at + 8].copy_from_slice(&input.number().to_le_bytes());
        match entry[0] {
            OP_DISCARD => entry[segments_at..segments_at + 8].copy_from_slice(&input.number().to_le_bytes()),
            OP_INDIRECT => {
                let count = match input.u8() {
                    count @ 0..32 => u16::from(count),
                    // The first segments are written now, and the others are what the page held before.
                    count @ 32..250 => 256 - u16::from(count - 32),
                    _ => input.u16(),
                };
                entry[2..4].copy_from_slice(&count.to_le_bytes());
                let written = usize::from(input.below(32));
                let list = self.segments(input, written);
                self.tampered |= self.names_ring(&list);
                let gref = match input.u8() {
                    choice @ 0..240 => {
                        let choice = READONLY + usize::from(choice) % (GRANTS - READONLY);
                        self.guest.write(self.pages[choice].0, 0, &list);
                        self.pages[choice].1.0
                    }
                    // Any page: data may be read into it before it is looked at.
                    _ => {
                        self.tampered = true;
                        self.gref(input)
                    }
                };
                let at = segments_at + 4;
                entry[at..at + 4].copy_from_slice(&gref.to_le_bytes());
            }
            _ => {
                let count = usize::from(entry[1]).min(11);
                let list = self.segments(input, count);
                entry[segments_at..segments_at + list.len()].copy_from_slice(&list);
            }
        }
        entry
    }

    fn put(&mut self, entry: &[u8]) {
        self.tampered |= self.names_ring(entry);
        self.ring.put(&self.guest, entry);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (settings, kind) = (input.u8(), input.u8());
    let protocol = if settings & 1 == 0 { Protocol::X86_64 } else { Protocol::X86_32 };
    let mut config = config(settings >> 1 & 1 != 0);
    config.enospc_pause = kind & 8 != 0;
    let memory = Arc::new(Memory::with_traits(SECTORS, traits(kind)));
    let disk = Arc::new(Disk::new(&config, memory.backing()));

    let mut guest = FakeGuest::new(PAGES);
    let order = if kind & 0x10 == 0 { settings >> 2 & 3 } else { 4 };
    let ring = FrontRing::new(&mut guest, 1 << order, protocol.entry_size());
    let pages = (0..GRANTS).map(|i| {
        let frame = guest.alloc_page();
        (frame, guest.grant(frame, i >= READONLY))
    });
    let pages = pages.collect();
    let mut front = Frontend { guest, ring, protocol, pages, tampered: false };
    let start = if settings & 0x10 == 0 { 0 } else { u32::MAX - u32::from(settings >> 5) };
    for (at, value) in [(0, start), (4, start.wrapping_add(1)), (8, start), (12, start.wrapping_add(1))] {
        front.guest.write(front.ring.frames[0], at, &value.to_le_bytes());
    }
    (front.ring.req_prod, front.ring.rsp_cons) = (start, start);
    front.guest.write(CANARY, 0, &[0x5a; PAGE_SIZE]);

    let port = front.guest.alloc_port();
    let table = Arc::clone(&front.guest.domain.grants);
    let ring = BackRing::new(Arc::clone(&table), &front.ring.refs, protocol.entry_size()).expect("a ring");
    let channel = front.guest.domain.events.bind_backend(port).expect("a port");
    // It fails if it is handed memory that is neither the guest's nor a bounce buffer.
    let engine = Inline::new(Arc::clone(disk.storage()), &front.guest);
    let mut queue = Queue::new(engine, ring, channel, table, disk, protocol);

    let mut forged = false;
    let pass = |queue: &mut Queue<_>| {
        let more = queue.pass();
        assert!(!(more && queue.is_broken()));
        queue.is_broken()
    };
    while !input.is_empty() {
        match input.u8() % 9 {
            0 | 1 => {
                let entry = front.request(&mut input);
                front.put(&entry);
            }
            // An entry of any content.
            2 => {
                let mut entry = input.bytes(protocol.entry_size()).to_vec();
                entry.resize(protocol.entry_size(), 0);
                // An indirect one may name any page.
                front.tampered |= entry[0] == OP_INDIRECT;
                front.put(&entry);
            }
            3 => {
                front.ring.publish(&front.guest);
            }
            // One of the ring's indexes.
            4 => {
                front.tampered = true;
                let at = usize::from(input.u8() % 4) * 4;
                let value = (input.number() as u32).wrapping_add(start);
                front.guest.write(front.ring.frames[0], at, &value.to_le_bytes());
            }
            // Any grant entry, those of the ring's pages too.
            5 => {
                let gref = GrantRef(8 + u32::from(input.below(40)));
                let flags = input.u16();
                let domid = u16::from(input.u8() / 200);
                let frame = match input.u8() {
                    frame @ 0..40 => frame.into(),
                    // Not RAM.
                    _ => u64::from(input.number() as u32).max(PAGES as u64),
                };
                forged = true;
                front.guest.set_grant(gref, flags, domid, frame);
            }
            6 => front.guest.send(port),
            7 => {
                if pass(&mut queue) {
                    break;
                }
            }
            // The storage begins or ceases to fail.
            _ => {
                let errno = match input.u8() & 3 {
                    0 => 0,
                    1 => libc::EIO,
                    2 => libc::ENOSPC,
                    _ => libc::EAGAIN,
                };
                for fail in [&memory.fail_reads, &memory.fail_writes, &memory.fail_flushes] {
                    fail.store(errno, SeqCst);
                }
            }
        }
    }
    front.ring.publish(&front.guest);
    for fail in [&memory.fail_reads, &memory.fail_writes, &memory.fail_flushes] {
        fail.store(0, SeqCst);
    }
    // Whatever waits in the ring and in the engine. A barrier takes four passes and holds back the others; an
    // operation that was postponed is tried again eight times.
    let mut broken = false;
    for _ in 0..16 + 8 * front.ring.nr_entries() {
        // A write that failed before may be held only now.
        queue.retry_now();
        broken = pass(&mut queue);
        if queue.idle() && (broken || front.ring.rsp_prod(&front.guest) == front.ring.req_prod) {
            break;
        }
    }
    assert!(queue.idle(), "an operation does not end");
    if kind & 3 == 0 || kind & 3 == 2 {
        assert_eq!(queue.engine().outside, 0, "bounced without need");
    }
    drop(queue);
    let guest = &front.guest;
    assert!(guest.read(CANARY, 0, PAGE_SIZE) == [0x5a; PAGE_SIZE], "a page that was not granted is written");
    if !forged {
        for gref in front.ring.refs.iter().chain(front.pages.iter().map(|(_, gref)| gref)) {
            assert_eq!(guest.grant_flags(*gref) & IN_USE, 0, "{gref:?} is still in use");
        }
    }
    if !forged && !front.tampered && !broken {
        assert_eq!(front.ring.rsp_prod(guest), front.ring.req_prod, "each request has its response");
    }
});

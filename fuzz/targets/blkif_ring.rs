//! A block ring under a hostile frontend: any request, any grant, any index, changed between any two passes.
//!
//! Input: a byte of settings, then operations of a tag byte and their arguments, see the match below.

#![no_main]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use blkback::engine::Blocking;
use blkback::protocol::Protocol;
use blkback::queue::Queue;
use blkback::{Disk, DiskImage};
use devices::memory::PAGE_SIZE;
use devices::testing::{FakeGuest, FrontRing};
use devices::xen::GrantRef;
use devices::xen::shared_ring::BackRing;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xvmm_fuzz::Input;

const SECTORS: u64 = 64;
const PAGES: usize = 48;
/// Never granted: nothing may be written there.
const CANARY: u64 = 40;
/// GTF_reading and GTF_writing.
const IN_USE: u16 = 8 | 16;

/// A disk in memory, and the same for reading only. Kept from run to run with its content.
static DISKS: LazyLock<[Arc<Disk>; 2]> = LazyLock::new(|| {
    // SAFETY: a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "a memfd");
    // SAFETY: a new descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(SECTORS * 512).expect("a size");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let image = DiskImage::open(Path::new(&path), false).expect("an image");
    let writable = Disk::new("xvda", image, false);
    // A second lock of the same file would be refused.
    // SAFETY: as above.
    let fd = unsafe { libc::memfd_create(c"readonly".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "a memfd");
    // SAFETY: as above.
    let second = unsafe { File::from_raw_fd(fd) };
    second.set_len(SECTORS * 512).expect("a size");
    let path = format!("/proc/self/fd/{}", second.as_raw_fd());
    let image = DiskImage::open(Path::new(&path), true).expect("an image");
    // The memfds live as long as the images do.
    std::mem::forget((file, second));
    [Arc::new(writable), Arc::new(Disk::new("xvdb", image, true))]
});

/// A request whose fields are near what is right.
fn request(input: &mut Input, protocol: Protocol, grants: &[GrantRef]) -> Vec<u8> {
    let (id_at, sector_at, segments_at) = match protocol {
        Protocol::X86_64 => (8, 16, 24),
        Protocol::X86_32 => (4, 12, 20),
    };
    let mut entry = vec![0xee; protocol.entry_size()];
    entry[0] = input.u8();
    entry[1] = input.u8();
    let id = u64::from(input.u8());
    entry[id_at..id_at + 8].copy_from_slice(&id.to_le_bytes());
    entry[sector_at..sector_at + 8].copy_from_slice(&input.number().to_le_bytes());
    for i in 0..usize::from(entry[1]).min(11) {
        let at = segments_at + i * 8;
        let gref = match input.u8() {
            choice @ 0..224 => grants[usize::from(choice) % grants.len()].0,
            _ => input.number() as u32,
        };
        entry[at..at + 4].copy_from_slice(&gref.to_le_bytes());
        (entry[at + 4], entry[at + 5]) = (input.u8(), input.u8());
    }
    entry
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let settings = input.u8();
    let protocol = if settings & 1 == 0 { Protocol::X86_64 } else { Protocol::X86_32 };
    let disk = &DISKS[usize::from(settings >> 1 & 1)];
    let mut guest = FakeGuest::new(PAGES);
    let mut front = FrontRing::new(&mut guest, 1 << (settings >> 2 & 3), protocol.entry_size());
    let start = if settings & 0x10 == 0 { 0 } else { u32::MAX - u32::from(settings >> 5) };
    for (at, value) in [(0, start), (4, start.wrapping_add(1)), (8, start), (12, start.wrapping_add(1))] {
        guest.write(front.frames[0], at, &value.to_le_bytes());
    }
    (front.req_prod, front.rsp_cons) = (start, start);
    let grants: Vec<GrantRef> = (0..16)
        .map(|i| {
            let frame = guest.alloc_page();
            guest.grant(frame, i >= 12)
        })
        .collect();
    guest.write(CANARY, 0, &[0x5a; PAGE_SIZE]);

    let port = guest.alloc_port();
    let table = &guest.domain.grants;
    let ring = BackRing::new(Arc::clone(table), &front.refs, protocol.entry_size()).expect("a ring");
    let channel = guest.domain.events.bind_backend(port).expect("a port");
    let stop = EventFd::new(EFD_NONBLOCK).expect("an event");
    let engine = Blocking::new(disk.image().as_raw_fd(), channel.event().as_raw_fd(), stop.as_raw_fd());
    let mut queue = Queue::new(engine, ring, channel, Arc::clone(table), Arc::clone(disk), protocol);

    let mut forged = false;
    let mut tampered = false;
    // Data read from the disk into the ring's own pages is the frontend's doing.
    let ring_refs = front.refs.clone();
    let names_ring = |entry: &[u8]| {
        let (words, _) = entry.as_chunks::<4>();
        words.iter().any(|word| ring_refs.contains(&GrantRef(u32::from_le_bytes(*word))))
    };
    let mut pass = || {
        let more = queue.pass();
        assert!(!(more && queue.is_broken()));
        queue.is_broken()
    };
    while !input.is_empty() {
        match input.u8() % 8 {
            0 | 1 => {
                let entry = request(&mut input, protocol, &grants);
                tampered |= names_ring(&entry);
                front.put(&guest, &entry);
            }
            // An entry of any content.
            2 => {
                let mut entry = input.bytes(protocol.entry_size()).to_vec();
                entry.resize(protocol.entry_size(), 0);
                tampered |= names_ring(&entry);
                front.put(&guest, &entry);
            }
            3 => {
                front.publish(&guest);
            }
            // One of the ring's indexes.
            4 => {
                tampered = true;
                let at = usize::from(input.u8() % 4) * 4;
                let value = (input.number() as u32).wrapping_add(start);
                guest.write(front.frames[0], at, &value.to_le_bytes());
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
                guest.set_grant(gref, flags, domid, frame);
            }
            6 => guest.send(port),
            _ => {
                if pass() {
                    break;
                }
            }
        }
    }
    front.publish(&guest);
    // Whatever waits in the ring and in the engine: a request takes two operations at most.
    let broken = (0..4).fold(false, |_, _| pass());
    assert!(queue.idle(), "an operation does not end");
    drop(queue);
    assert!(guest.read(CANARY, 0, PAGE_SIZE) == [0x5a; PAGE_SIZE], "a page that was not granted is written");
    if !forged {
        for gref in front.refs.iter().chain(&grants) {
            assert_eq!(guest.grant_flags(*gref) & IN_USE, 0, "{gref:?} is still in use");
        }
    }
    if !forged && !tampered && !broken {
        assert_eq!(front.rsp_prod(&guest), front.req_prod, "each request has its response");
    }
});

//! The control ring of a network interface under a hostile frontend.
//!
//! Input: operations, see the match below.

#![no_main]

use std::io;
use std::os::unix::net::UnixDatagram;

use devices::memory::PAGE_SIZE;
use devices::testing::{FakeGuest, FrontRing};
use devices::xen::GrantRef;
use libfuzzer_sys::fuzz_target;
use netback::control::{CTRL_ENTRY, CTRL_RESPONSE, CtrlRequest, CtrlStatus, answer};
use netback::hash::{HashConfig, MAX_MAPPING};
use netback::protocol::{RX_ENTRY, TX_ENTRY};
use netback::rings::Rings;
use xvmm_fuzz::Input;

const PAGES: usize = 32;
/// Never granted: nothing may be written there.
const CANARY: u64 = 30;
/// GTF_reading and GTF_writing.
const IN_USE: u16 = 8 | 16;
/// Queues of the frontend.
const QUEUES: usize = 3;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut guest = FakeGuest::new(PAGES);
    let mut wires = Vec::new();
    let mut queues = Vec::new();
    for _ in 0..QUEUES {
        let (tx, rx) = (FrontRing::new(&mut guest, 1, TX_ENTRY), FrontRing::new(&mut guest, 1, RX_ENTRY));
        let (ours, far) = wire().expect("two sockets");
        wires.push(far);
        queues.push((ours.into(), (tx.refs[0], rx.refs[0])));
    }
    let mut ring = FrontRing::new(&mut guest, 1, CTRL_ENTRY);
    let grants: Vec<GrantRef> = (0..8)
        .map(|i| {
            let frame = guest.alloc_page();
            guest.grant(frame, i < 6)
        })
        .collect();
    guest.write(CANARY, 0, &[0x5a; PAGE_SIZE]);
    let rings = Rings::several(&guest.domain, queues, 31, 1500).expect("rings");
    let mut control = rings[0].control(ring.refs[0]).expect("a control ring");
    // The same requests, answered without a ring.
    let mut model = HashConfig::default();
    let (mut forged, mut closed) = (false, false);
    while !input.is_empty() && !closed {
        match input.below(6) {
            // A request, mostly one that is possible, whose answer is known.
            0 => {
                let kind = u16::from(input.u8());
                let first = match input.u8() {
                    choice @ 0..200 if kind == 3 || kind == 6 => grants[usize::from(choice) % grants.len()].0,
                    _ => input.number() as u32,
                };
                let request = CtrlRequest {
                    id: input.u16(),
                    kind,
                    data: [first, input.number() as u32, input.number() as u32],
                };
                let before = model.clone();
                let expected = answer(&request, &mut model, QUEUES, &*guest.domain.grants);
                assert!(
                    expected.status == CtrlStatus::Success || model == before,
                    "a refused request did something"
                );
                assert!(model.mapping().len() <= MAX_MAPPING);
                assert!(model.mapping().iter().all(|queue| usize::from(*queue) < QUEUES));
                ring.put(&guest, &request.emit());
                ring.publish(&guest);
                closed = !control.pass();
                if !forged {
                    assert!(!closed);
                    let mut last = None;
                    while let Some(response) = ring.take(&guest, CTRL_RESPONSE) {
                        last = Some(response);
                    }
                    assert_eq!(last.expect("an answer"), expected.emit());
                }
            }
            // A slot of any content.
            1 => {
                let mut slot = input.bytes(CTRL_ENTRY).to_vec();
                slot.resize(CTRL_ENTRY, 0);
                // The model does not know it: only what must not happen is looked at from now on.
                forged = true;
                ring.put(&guest, &slot);
            }
            // The content of a page.
            2 => {
                let frame = 1 + u64::from(input.below(20));
                let at = usize::from(input.u16()) % PAGE_SIZE;
                let len = usize::from(input.u8()).min(PAGE_SIZE - at);
                // The rings' own pages, too.
                forged |= frame <= 7;
                guest.write(frame, at, input.bytes(len));
            }
            3 => {
                let value = input.number() as u32;
                forged = true;
                guest.write(ring.frames[0], usize::from(input.below(4)) * 4, &value.to_le_bytes());
            }
            4 => {
                let gref = GrantRef(8 + u32::from(input.below(16)));
                forged = true;
                guest.set_grant(gref, input.u16(), u16::from(input.u8() / 200), input.below(60).into());
            }
            _ => {
                ring.publish(&guest);
                closed = !control.pass();
                ring.rsp_cons = ring.rsp_prod(&guest);
            }
        }
    }
    drop((control, rings, wires));
    assert!(guest.read(CANARY, 0, PAGE_SIZE) == [0x5a; PAGE_SIZE], "a page that was not granted is written");
    if !forged {
        for gref in grants.iter().chain(&ring.refs) {
            assert_eq!(guest.grant_flags(*gref) & IN_USE, 0, "{gref:?} is still in use");
        }
    }
});

fn wire() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (ours, far) = UnixDatagram::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, far))
}

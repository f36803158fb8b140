//! Packets of any content to a CD-ROM drive, by PIO and DMA, while the disc is changed.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use devices::bus::Registers;
use devices::ide::Place;
use devices::ide::testing::{CD, Manual, Rig};
use devices::medium::Medium;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use xvmm_fuzz::Input;

/// Blocks that the host takes of one answer.
const MAX_BLOCKS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::new(64);
    let mut input = Input::new(data);
    while !input.is_empty() {
        let tag = input.u8();
        match tag & 7 {
            // A disc, or none: nothing is under way meanwhile but by chance.
            0 => {
                let disc = (tag & 8 == 0)
                    .then(|| Manual::new(input.number() % (1 << 34), 0) as std::sync::Arc<dyn Medium>);
                let _ = rig.ide.change_medium(Place { channel: 1, unit: 0 }, disc, tag & 16 != 0);
            }
            1 => {
                let len = usize::from(input.u8());
                let at = input.number() % (2 << 20);
                let _ = rig.ram.write(input.bytes(len), GuestAddress(at));
            }
            2 => rig.bus_master(8 + u64::from(input.u8() & 7), input.u8()),
            3 => *rig.disc.bad.lock().expect("a lock") = Some(input.number()),
            // A packet, then the data that it asks for or has.
            _ => {
                let limit = input.u16();
                let packet = input.bytes(12);
                rig.packet(packet, limit, tag & 8 != 0);
                for _ in 0..MAX_BLOCKS {
                    let status = rig.read(CD, 7);
                    if status & 0x88 != 0x08 || tag & 8 != 0 {
                        break;
                    }
                    let len = u16::from_le_bytes([rig.read(CD, 4), rig.read(CD, 5)]);
                    assert!(len > 0, "a block without bytes");
                    if rig.read(CD, 2) & 2 == 0 {
                        let bytes: Vec<u8> = (0..len).map(|_| input.u8()).collect();
                        rig.put_data(CD, &bytes);
                    } else {
                        rig.data(CD, len.into());
                    }
                    rig.serve();
                }
                if tag & 16 != 0 {
                    rig.control(CD, 4);
                    rig.control(CD, 0);
                }
            }
        }
        assert!(rig.disc.waiting.lock().expect("a lock").len() <= 1, "a drive has one request at a time");
    }
    rig.ide.write(2 * CD, 7, &[0x08]);
});

//! The IDE controller under a guest that writes any register at any time, and any table of regions.
//!
//! Input: operations of a tag byte and their arguments, see the match below.

#![no_main]

use devices::bus::Registers;
use devices::ide::testing::Rig;
use devices::pci::PciFunction;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use xvmm_fuzz::Input;

/// Requests that are done for one input.
const MAX_SERVED: u32 = 4096;

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::new(1 << 30);
    let mut input = Input::new(data);
    let mut served = 0;
    while !input.is_empty() {
        let tag = input.u8();
        let channel = tag >> 7;
        match tag & 0x0f {
            0..=3 => rig.write(channel, u64::from(tag >> 4 & 7), input.u8()),
            4 => drop(rig.read(channel, u64::from(tag >> 4 & 7))),
            5 => rig.control(channel, input.u8()),
            // The data register, several times: 32 bits, or fewer.
            6 | 7 => {
                let len = 1usize << (tag >> 4 & 3).min(2);
                for _ in 0..input.number().min(600) {
                    let mut data = [0x5a; 4];
                    if tag & 1 == 0 {
                        rig.ide.write(2 * channel, 0, &data[..len]);
                    } else {
                        rig.ide.read(2 * channel, 0, &mut data[..len]);
                    }
                }
            }
            8 | 9 => rig.bus_master(u64::from(input.u8() & 15), input.u8()),
            // Guest memory, where tables are.
            10 => {
                let at = input.number() % (2 << 20);
                let len = usize::from(input.u8());
                let _ = rig.ram.write(input.bytes(len), GuestAddress(at));
            }
            11 => rig.ide.write_config(usize::from(input.u8()), &[input.u8()]),
            // A whole command.
            12 => {
                let mut registers = [0; 6];
                registers.iter_mut().for_each(|register| *register = input.u8());
                let code = input.u8();
                rig.command(channel, registers, code);
            }
            13 => *rig.disk.bad.lock().expect("a lock") = Some(input.number()),
            14 if tag == 0xfe => {
                // A reset waits for what is under way: nobody else does it here.
                rig.serve();
                rig.ide.reset();
                rig.enable();
            }
            15 if tag == 0xff => {
                rig.serve();
                rig.ide.unplug_disks(None);
            }
            _ if served < MAX_SERVED => {
                served += u32::from(rig.disk.serve()) + u32::from(rig.disc.serve());
            }
            _ => {}
        }
        for medium in [&rig.disk, &rig.disc] {
            assert!(medium.waiting.lock().expect("a lock").len() <= 1, "a drive has one request at a time");
        }
    }
});

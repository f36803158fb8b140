//! fw_cfg under a guest that reads its items in any order and way.
//!
//! Input: operations, each a tag byte and its arguments, see the match below. Guest memory is 64 KiB.

#![no_main]

use std::sync::Arc;

use devices::bus::Registers;
use devices::chipset::FwCfg;
use devices::memory::GuestRam;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use xvmm_fuzz::Input;

const RAM: usize = 64 << 10;
/// Where commands are put.
const COMMAND: u64 = 0x100;
/// Bit of a command: read.
const READ: u32 = 2;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).expect("64 KiB of memory"));
    let mut device = FwCfg::new(Arc::clone(&ram));
    device.add(5, [1, 0]);
    let file: Vec<u8> = (1..=255).collect();
    device.add_file("etc/some", file.clone()).expect("a short name");
    while !input.is_empty() {
        let tag = input.u8();
        match tag % 8 {
            0 => device.write(0, 0, &input.u16().to_le_bytes()),
            1 => {
                let mut data = [0xff; 4];
                device.read(0, u64::from(tag >> 3 & 15), &mut data[..1 << (tag >> 6).min(2)]);
            }
            2 => {
                let len = 1 << (tag >> 6).min(2);
                device.write(0, u64::from(tag >> 3 & 15), input.bytes(len));
            }
            // A command anywhere, as the guest left it in memory.
            3 => {
                let at = input.number();
                device.write(0, 4, &((at >> 32) as u32).to_be_bytes());
                device.write(0, 8, &(at as u32).to_be_bytes());
            }
            4 => {
                let at = GuestAddress(u64::from(input.u16()));
                let len = usize::from(tag >> 3);
                let _ = ram.write_slice(input.bytes(len), at);
            }
            5 => device.reset(),
            // A whole command: what a read of the file from its start says is the file and then zeros.
            _ => {
                let select = tag & 8 != 0;
                let control = if select { 0x20 << 16 | 8 | READ } else { input.u32() };
                let (len, to) = (input.number() as u32, u64::from(input.u16()) | 0x200);
                let _ = ram.write_slice(&control.to_be_bytes(), GuestAddress(COMMAND));
                let _ = ram.write_slice(&len.to_be_bytes(), GuestAddress(COMMAND + 4));
                let _ = ram.write_slice(&to.to_be_bytes(), GuestAddress(COMMAND + 8));
                device.write(0, 4, &[0; 4]);
                device.write(0, 8, &(COMMAND as u32).to_be_bytes());
                let mut result = [0xff; 4];
                ram.read_slice(&mut result, GuestAddress(COMMAND)).expect("memory");
                assert!(matches!(u32::from_be_bytes(result), 0 | 1), "the command is not answered");
                let end = to as usize + len as usize;
                if select && result == [0; 4] && end <= RAM {
                    let mut bytes = vec![0; len as usize];
                    ram.read_slice(&mut bytes, GuestAddress(to)).expect("memory");
                    let known = bytes.len().min(file.len());
                    assert_eq!(bytes[..known], file[..known]);
                    assert!(bytes[known..].iter().all(|byte| *byte == 0));
                }
            }
        }
    }
});

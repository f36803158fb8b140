//! The loader script, executed the way SeaBIOS does, from the bytes of fw_cfg alone.

use std::collections::HashMap;

use acpi::{HvmTopology, LOADER_SCRIPT, Profile};

use crate::guest::{F_SEGMENT, HIGH, Memory, board, sum, u32_at, u64_at};

/// SeaBIOS's zones. It allocates from the end, other blocks between; here: upwards, with gaps.
struct Firmware {
    files: HashMap<String, Vec<u8>>,
    /// Name, address, contents.
    memory: Vec<(String, u32, Vec<u8>)>,
    next: [u32; 2],
}

fn name(bytes: &[u8]) -> String {
    assert_eq!(bytes.len(), 56);
    let end = bytes.iter().position(|byte| *byte == 0).expect("a name ends with a zero");
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

impl Firmware {
    fn run(board: &HvmTopology, f_segment: u32, high: u32) -> Memory {
        let files: HashMap<_, _> = board
            .tables()
            .unwrap()
            .fw_cfg()
            .into_iter()
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect();
        let script = files[LOADER_SCRIPT].clone();
        assert_eq!(script.len() % 128, 0);
        let mut firmware = Self { files, memory: Vec::new(), next: [f_segment, high] };
        for command in script.chunks_exact(128) {
            firmware.execute(command);
        }
        Memory(firmware.memory.into_iter().map(|(_, gpa, bytes)| (gpa, bytes)).collect())
    }

    fn execute(&mut self, command: &[u8]) {
        match u32_at(command, 0) {
            1 => {
                let file = name(&command[4..60]);
                let align = u32_at(command, 60);
                assert!(align.is_power_of_two());
                let next = &mut self.next[match command[64] {
                    2 => 0,
                    1 => 1,
                    zone => panic!("zone {zone}"),
                }];
                let bytes = self.files[&file].clone();
                let gpa = next.next_multiple_of(align.max(16));
                *next = gpa + bytes.len() as u32 + 0x20;
                self.memory.push((file, gpa, bytes));
            }
            2 => {
                let (at, size) = (u32_at(command, 116) as usize, usize::from(command[120]));
                let (_, address, _) = *self.file(&name(&command[60..116]));
                let (_, _, bytes) = self.file(&name(&command[4..60]));
                let field = &mut bytes[at..at + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let value = u64::from_le_bytes(value) + u64::from(address);
                field.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            3 => {
                let [at, start, len] = [60, 64, 68].map(|at| u32_at(command, at) as usize);
                let (_, _, bytes) = self.file(&name(&command[4..60]));
                bytes[at] = bytes[at].wrapping_sub(sum(&bytes[start..start + len]));
            }
            other => panic!("command {other}"),
        }
    }

    fn file(&mut self, name: &str) -> &mut (String, u32, Vec<u8>) {
        self.memory.iter_mut().find(|(file, ..)| file == name).expect("allocated before it is used")
    }
}

#[test]
fn pointers_and_checksums_are_right_wherever_the_firmware_puts_the_files() {
    for profile in [Profile::Xp, Profile::Modern] {
        for (f_segment, high) in [(0xf_0010, 0x7fe_0000), (0xf_5b30, 0xbffd_1234)] {
            let mut board = board(4);
            board.profile = profile;
            board.hpet = Some(0x8086_a201);
            let memory = Firmware::run(&board, f_segment, high);
            let rsdp = memory.rsdp();
            assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
            // all() checks signatures and checksums on the way.
            assert_eq!(memory.all().len(), if profile == Profile::Xp { 6 } else { 7 });
            let fadt = memory.listed(b"FACP").unwrap();
            assert_eq!(u32_at(fadt, 36) % 64, 0, "the FACS is aligned");
            if profile == Profile::Modern {
                assert_eq!(memory.xsdt(), memory.rsdt());
                assert_eq!(u64_at(fadt, 140), u64::from(u32_at(fadt, 40)));
            }
        }
    }
}

#[test]
fn the_mp_table_is_found_after_the_script() {
    for vcpus in [1, 255] {
        let memory = Firmware::run(&HvmTopology { acpi: false, ..board(vcpus) }, 0xf_0000, HIGH);
        let pointer = memory.from(memory.find(b"_MP_").unwrap());
        assert_eq!(sum(&pointer[..16]), 0);
        assert_eq!(&memory.from(u32_at(pointer, 4))[..4], b"PCMP");
        assert_eq!(sum(memory.from(memory.find(b"$PIR").unwrap())), 0);
    }
}

#[test]
fn placing_by_hand_gives_what_the_script_gives() {
    for acpi in [true, false] {
        // One file in each zone, or few enough for the gaps not to matter: their addresses are taken from the script.
        let board = HvmTopology { acpi, apic: acpi, ..board(1) };
        let script = Firmware::run(&board, F_SEGMENT, HIGH);
        assert_eq!(script.0, Memory::of(&board).0);
    }
}

#[test]
fn a_files_name_fits_fw_cfg_and_the_script_comes_last() {
    for (acpi, apic) in [(true, true), (true, false), (false, true), (false, false)] {
        let files = HvmTopology { acpi, apic, ..board(1) }.tables().unwrap().fw_cfg();
        assert!(files.iter().all(|(name, bytes)| name.len() < 56 && !bytes.is_empty()));
        assert_eq!(files.last().unwrap().0, LOADER_SCRIPT);
    }
}

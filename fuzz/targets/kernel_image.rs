//! Kernel images from the owner of a guest: unpacked, checked against two memory maps, loaded.
//!
//! Input: the bytes of the file.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use devices::memory::GuestRam;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use xvmm::boot::{BootEntry, Kernel, LoadRequest, MemmapEntry, MemmapKind};

const RAM: u64 = 64 << 20;

/// Kept from run to run: what a kernel writes there does not change how the next one is loaded.
static GUEST: LazyLock<GuestRam> =
    LazyLock::new(|| GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("64 MiB"));

fn entry(addr: u64, size: u64, kind: MemmapKind) -> MemmapEntry {
    MemmapEntry { addr, size, kind }
}

/// What every accepted kernel must keep to.
fn assert_inside(entry: &BootEntry) {
    let ram = 0x1000..RAM;
    for range in entry.executable.iter().chain([&entry.kernel]) {
        assert!(range.start <= range.end, "{entry:x?}");
        assert!(ram.contains(&range.start) && range.end <= RAM, "{entry:x?}");
    }
    assert!(entry.kernel.contains(&entry.entry_gpa), "{entry:x?}");
    assert!(ram.contains(&entry.start_info) && !entry.kernel.contains(&entry.start_info), "{entry:x?}");
}

fuzz_target!(|data: &[u8]| {
    let Ok(kernel) = Kernel::from_bytes(Path::new("kernel"), data) else { return };
    let whole = [entry(0, RAM, MemmapKind::Ram)];
    // A hole where kernels are linked: only those that can be moved find a place.
    let holes = [
        entry(0, RAM, MemmapKind::Ram),
        entry(0x10_0000, 0x2f0_0000, MemmapKind::Reserved),
        entry(0x3ff_0000, 0x1_0000, MemmapKind::Acpi),
    ];
    for memmap in [&whole[..], &holes] {
        for ram_is_zero in [true, false] {
            let request = LoadRequest { memmap, initrd: None, cmdline: "console=hvc0", rsdp: 0, ram_is_zero };
            let checked = kernel.check(&request);
            let loaded = kernel.load_into(&GUEST, &request);
            match (checked, loaded) {
                (Ok(checked), Ok(loaded)) => {
                    assert_eq!(checked, loaded);
                    assert_inside(&loaded);
                }
                (Err(_), Err(_)) => {}
                (checked, loaded) => panic!("check says {checked:x?}, load_into {loaded:x?}"),
            }
        }
    }
});

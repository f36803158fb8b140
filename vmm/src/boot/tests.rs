//! Whole images: what is taken, what is refused, and with which words.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::path::{Path, PathBuf};

use devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{Image, LINKED, bzimage, sized};
use super::*;

const MIB: u64 = 1 << 20;

fn open(bytes: &[u8]) -> Result<Kernel, ImageError> {
    Kernel::from_bytes(Path::new("/boot/vmlinuz"), bytes).map_err(|error| match error {
        BootError::Image { error, .. } => error,
        other => panic!("{other}"),
    })
}

fn ram_map(memory: u64) -> [MemmapEntry; 1] {
    [MemmapEntry { addr: 0, size: memory, kind: MemmapKind::Ram }]
}

fn request(memmap: &[MemmapEntry]) -> LoadRequest<'_> {
    LoadRequest { memmap, initrd: None, cmdline: "quiet", rsdp: 0, ram_is_zero: true }
}

fn guest_ram(memory: u64) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), memory as usize)]).unwrap()
}

fn read(ram: &GuestRam, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

fn read_u32(ram: &GuestRam, gpa: u64) -> u32 {
    u32::from_le_bytes(read(ram, gpa, 4).try_into().unwrap())
}

fn read_u64(ram: &GuestRam, gpa: u64) -> u64 {
    u64::from_le_bytes(read(ram, gpa, 8).try_into().unwrap())
}

/// A file in a folder of its own, for an initrd.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd.img");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

// ELF images and bzImages

#[test]
fn elf64_and_elf32_images_load_as_they_are() {
    for (image, entry, class) in
        [(Image::linux(), LINKED + 0x50, Class::Elf64), (Image::grub(), 0x10_0000, Class::Elf32)]
    {
        let ram = guest_ram(32 * MIB);
        let loaded = open(&image.bytes()).unwrap().load_into(&ram, &request(&ram_map(32 * MIB))).unwrap();
        assert_eq!((loaded.entry_gpa, loaded.elf_class), (entry, class));
        for load in &image.loads {
            assert_eq!(read(&ram, load.paddr, load.data.len()), load.data);
        }
    }
}

#[test]
fn a_bzimage_and_a_gzipped_elf_image_unpack_to_the_same_kernel() {
    let elf = Image::linux().bytes();
    for bytes in [bzimage(&gzip(&elf)), gzip(&elf), bzimage(&elf)] {
        let kernel = open(&bytes).unwrap();
        assert_eq!(kernel.image.read(0..kernel.image_len()).unwrap(), elf);
    }
}

#[test]
fn a_signature_behind_a_bzimage_is_ignored() {
    let mut bytes = bzimage(&gzip(&Image::linux().bytes()));
    bytes.extend_from_slice(&[0x30; 1472]);
    open(&bytes).unwrap();
}

#[test]
fn a_bzimage_cut_off_anywhere_is_truncated_not_corrupt() {
    let bytes = bzimage(&gzip(&Image::linux().bytes()));
    let expected = bytes.len() as u64;
    for len in (0x200..bytes.len()).step_by(7).chain([0x201, 0x206, 0x24f, 0x250, bytes.len() - 1]) {
        match open(&bytes[..len]).unwrap_err() {
            ImageError::Truncated { what: "bzImage", expected: e, actual } => {
                assert_eq!(actual, len as u64);
                assert!(e == if len < 0x250 { 0x250 } else { expected }, "{len}: {e}");
            }
            other => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn an_elf_image_cut_off_anywhere_is_truncated() {
    let bytes = Image::linux().bytes();
    for len in (4..bytes.len()).step_by(5).chain([bytes.len() - 1]) {
        let error = open(&bytes[..len]).unwrap_err();
        assert!(matches!(error, ImageError::Truncated { what: "ELF image", .. }), "{len}: {error}");
    }
}

#[test]
fn other_files_are_not_kernels() {
    let mut boot_sector = vec![0; 4096];
    boot_sector[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    let script = b"#!/bin/sh\necho hello\n".to_vec();
    for bytes in [Vec::new(), script, vec![0; 100_000], boot_sector] {
        assert_eq!(open(&bytes).unwrap_err(), ImageError::NotAKernel);
    }
}

#[test]
fn a_bzimage_without_a_payload_field_is_too_old() {
    let mut bytes = bzimage(&gzip(&Image::linux().bytes()));
    bytes[0x206] = 7;
    let error = open(&bytes).unwrap_err();
    assert_eq!(error, ImageError::TooOld(0x207));
    assert!(error.to_string().contains("protocol 2.07"), "{error}");
}

#[test]
fn a_payload_outside_of_the_kernel_is_a_damaged_header() {
    let good = bzimage(&gzip(&Image::linux().bytes()));
    for (offset, length) in [(0xffff_ffffu32, 16u32), (716, 0xffff_ffff), (0, 0x10_0000), (716, 0)] {
        let mut bytes = good.clone();
        bytes[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        bytes[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(open(&bytes), Err(ImageError::DamagedHeader(_))), "{offset:#x} {length:#x}");
    }
}

#[test]
fn a_payload_that_is_no_elf_image_is_corrupt() {
    let elf = Image::linux().bytes();
    for inside in [b"something else".to_vec(), elf[..100].to_vec()] {
        let error = open(&bzimage(&gzip(&inside))).unwrap_err();
        assert!(matches!(error, ImageError::CorruptPayload { format: "gzip", .. }), "{error}");
    }
}

#[test]
fn an_unknown_compression_is_named_by_its_first_bytes() {
    let error = open(&bzimage(b"\x01\x02\x03\x04\x05\x06\x07")).unwrap_err();
    assert_eq!(error, ImageError::UnknownCompression([1, 2, 3, 4, 5, 6]));
}

#[test]
fn a_kernel_without_the_pvh_note_says_so() {
    let mut image = Image::linux();
    image.notes.retain(|(kind, _)| *kind != 18);
    for bytes in [image.bytes(), bzimage(&gzip(&image.bytes()))] {
        assert_eq!(open(&bytes).unwrap_err(), ImageError::NoPvhEntry);
    }
}

#[test]
fn a_kernel_for_another_machine_is_refused() {
    let image = Image { machine: 183, ..Image::linux() };
    assert_eq!(open(&image.bytes()).unwrap_err(), ImageError::OtherMachine(183));
}

#[test]
fn hostile_program_headers_are_refused() {
    let good = Image::linux().bytes();
    // Fields of the first program header, at 64: offset 8, paddr 24, filesz 32, memsz 40.
    let cases: [(&str, &[(usize, u64)]); 7] = [
        ("offset overflows", &[(8, u64::MAX - 1)]),
        ("offset beyond the file", &[(8, 1 << 40)]),
        ("size beyond the file", &[(32, 1 << 20), (40, 1 << 20)]),
        ("size overflows", &[(32, u64::MAX), (40, u64::MAX)]),
        ("larger in the file than in memory", &[(40, 1)]),
        ("address overflows", &[(24, u64::MAX - 0x100)]),
        ("overlaps the next", &[(40, 0x20_0001)]),
    ];
    for (name, fields) in cases {
        let mut bytes = good.clone();
        for (at, value) in fields {
            bytes[64 + at..64 + at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let error = open(&bytes).unwrap_err();
        assert!(matches!(error, ImageError::BadElf(_) | ImageError::Truncated { .. }), "{name}: {error}");
    }
}

#[test]
fn hostile_program_header_tables_are_refused() {
    let good = Image::linux().bytes();
    // e_phoff 32, e_phentsize 54, e_phnum 56.
    for (at, value) in [(32, &u64::MAX.to_le_bytes()[..]), (54, &[0, 0]), (54, &[55, 0]), (56, &[0xff, 0xff])]
    {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        let error = open(&bytes).unwrap_err();
        assert!(matches!(error, ImageError::BadElf(_) | ImageError::Truncated { .. }), "{at}: {error}");
    }
}

#[test]
fn hostile_notes_are_refused() {
    let entry_notes = [vec![], vec![0; 3], vec![0; 12], u64::MAX.to_le_bytes().to_vec(), vec![0; 4]];
    for desc in entry_notes {
        let mut image = Image::linux();
        image.notes = vec![(18, desc.clone())];
        assert!(matches!(open(&image.bytes()), Err(ImageError::BadElf(_))), "{desc:?}");
    }
    let mut bytes = Image::linux().bytes();
    let notes = bytes.len() - (12 + 4 + 8) - (12 + 4 + 8);
    for at in [notes, notes + 4] {
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(open(&bytes).unwrap_err(), ImageError::BadElf("a note is cut off"));
    }
    let unaligned = Image::linux().relocatable(3, 0, u32::MAX);
    assert!(matches!(open(&unaligned.bytes()), Err(ImageError::BadElf(_))));
}

#[test]
fn no_single_wrong_byte_makes_the_loader_panic() {
    let ram = guest_ram(32 * MIB);
    let map = ram_map(32 * MIB);
    for image in [Image::linux().relocatable(0x1000, 0, u32::MAX), Image::grub()] {
        let image = image.bytes();
        let headers = (0..400).chain(image.len() - 80..image.len());
        for at in headers {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = image.clone();
                bytes[at] = value;
                if let Ok(kernel) = open(&bytes) {
                    let _ = kernel.load_into(&ram, &request(&map));
                }
            }
        }
    }
}

#[test]
fn a_missing_kernel_is_named() {
    let error = Kernel::open(Path::new("/no/such/vmlinuz")).unwrap_err();
    assert!(matches!(error, BootError::KernelUnreadable { .. }));
    assert!(error.to_string().starts_with("kernel /no/such/vmlinuz cannot be read: "), "{error}");
}

#[test]
fn an_elf_file_is_loaded_as_its_bytes_are() {
    let image = Image::linux();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &image.bytes()).unwrap();
    let ram = guest_ram(32 * MIB);
    let kernel = Kernel::open(file.path()).unwrap();
    assert!(matches!(kernel.image, super::image::Image::File(..)));
    kernel.load_into(&ram, &request(&ram_map(32 * MIB))).unwrap();
    for load in &image.loads {
        assert_eq!(read(&ram, load.paddr, load.data.len()), load.data);
    }
}

#[test]
fn an_elf_file_that_is_cut_off_is_refused_before_and_after_it_was_opened() {
    let bytes = Image::linux().bytes();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let kernel = Kernel::open(file.path()).unwrap();
    file.as_file().set_len(bytes.len() as u64 / 2).unwrap();
    let error = Kernel::open(file.path()).unwrap_err();
    assert!(matches!(error, BootError::Image { error: ImageError::Truncated { .. }, .. }), "{error}");
    let error = kernel.load_into(&guest_ram(32 * MIB), &request(&ram_map(32 * MIB))).unwrap_err();
    assert!(matches!(error, BootError::KernelUnreadable { .. }), "{error}");
}

// Placing

#[test]
fn start_info_lists_everything_the_guest_needs() {
    let ram = guest_ram(32 * MIB);
    let memmap = [
        MemmapEntry { addr: 0, size: 31 * MIB, kind: MemmapKind::Ram },
        MemmapEntry { addr: 31 * MIB, size: MIB, kind: MemmapKind::Acpi },
        MemmapEntry { addr: 0xfeff_8000, size: 0x4000, kind: MemmapKind::Reserved },
    ];
    let (_folder, path) = file(&[0xab; 5000]);
    let initrd = Initrd::open(&path).unwrap();
    let request = LoadRequest {
        memmap: &memmap,
        initrd: Some(&initrd),
        cmdline: "console=hvc0 root=/dev/xvda1",
        rsdp: 31 * MIB,
        ram_is_zero: true,
    };
    let kernel = open(&Image::linux().bytes()).unwrap();
    let entry = kernel.load_into(&ram, &request).unwrap();
    assert_eq!(kernel.check(&request).unwrap(), entry);

    let info = entry.start_info;
    assert!(info < 1 << 30);
    assert_eq!(read_u32(&ram, info), 0x336e_c578, "magic");
    assert_eq!(read_u32(&ram, info + 4), 1, "version");
    assert_eq!(read_u32(&ram, info + 8), 0, "flags");
    assert_eq!(read_u32(&ram, info + 12), 1, "nr_modules");
    assert_eq!(read_u64(&ram, info + 32), 31 * MIB, "rsdp");
    assert_eq!(read_u32(&ram, info + 48), 3, "memmap_entries");

    let modlist = read_u64(&ram, info + 16);
    let (initrd_gpa, initrd_len) = (read_u64(&ram, modlist), read_u64(&ram, modlist + 8));
    assert_eq!(read_u64(&ram, modlist + 16), 0, "module command line");
    assert_eq!(entry.initrd, Some(initrd_gpa..initrd_gpa + 5000));
    assert_eq!((initrd_gpa, initrd_len), (31 * MIB - 0x2000, 5000));
    assert_eq!(read(&ram, initrd_gpa, 5001), [&[0xab; 5000][..], &[0]].concat());

    let memmap_gpa = read_u64(&ram, info + 40);
    let table: Vec<_> = (0..3)
        .map(|i| memmap_gpa + 24 * i)
        .map(|at| (read_u64(&ram, at), read_u64(&ram, at + 8), read_u32(&ram, at + 16)))
        .collect();
    assert_eq!(table, [(0, 31 * MIB, 1), (31 * MIB, MIB, 3), (0xfeff_8000, 0x4000, 2)]);

    let cmdline = read_u64(&ram, info + 24);
    assert_eq!(read(&ram, cmdline, 29), b"console=hvc0 root=/dev/xvda1\0");
}

#[test]
fn page_zero_and_the_isa_hole_stay_empty() {
    let ram = guest_ram(32 * MIB);
    let (_folder, path) = file(&vec![1; 12 << 20]);
    let initrd = Initrd::open(&path).unwrap();
    let map = ram_map(32 * MIB);
    let request = LoadRequest { initrd: Some(&initrd), ..request(&map) };
    open(&Image::linux().bytes()).unwrap().load_into(&ram, &request).unwrap();
    assert_eq!(read(&ram, 0, 0x1000), vec![0; 0x1000]);
    assert_eq!(read(&ram, 0xa_0000, 0x6_0000), vec![0; 0x6_0000]);
    let mut in_the_hole = Image::grub();
    in_the_hole.loads[0].paddr = 0xf_0000;
    in_the_hole.notes = vec![(18, 0xf_0000u32.to_le_bytes().to_vec())];
    let error = open(&in_the_hole.bytes()).unwrap().check(&super::tests::request(&map)).unwrap_err();
    assert!(matches!(error, BootError::NoPlaceForKernel { start: 0xf_0000, .. }), "{error}");
}

#[test]
fn bss_is_cleared_unless_ram_is_new() {
    let map = ram_map(32 * MIB);
    let image = Image::linux();
    let bss = image.loads[1].paddr + image.loads[1].data.len() as u64;
    for (ram_is_zero, expected) in [(false, 0), (true, 0x55)] {
        let ram = guest_ram(32 * MIB);
        ram.write_slice(&[0x55; 0x4000], GuestAddress(bss)).unwrap();
        let request = LoadRequest { ram_is_zero, ..request(&map) };
        open(&image.bytes()).unwrap().load_into(&ram, &request).unwrap();
        assert_eq!(read(&ram, bss, 0x3800), vec![expected; 0x3800]);
        assert_eq!(read(&ram, bss + 0x3800, 1), [0x55], "behind the bss");
    }
}

#[test]
fn a_relocatable_kernel_moves_where_ram_is() {
    let map = [
        MemmapEntry { addr: 0, size: 64 * MIB, kind: MemmapKind::Ram },
        MemmapEntry { addr: LINKED + 0x1000, size: 0x1000, kind: MemmapKind::Reserved },
    ];
    let ram = guest_ram(64 * MIB);
    let image = Image::linux().relocatable(0x20_0000, 0x100_0000, 0x3fff_ffff);
    let entry = open(&image.bytes()).unwrap().load_into(&ram, &request(&map)).unwrap();
    let moved = LINKED + 0x20_0000;
    assert_eq!((entry.entry_gpa, entry.kernel.start), (moved + 0x50, moved));
    assert!(entry.executable.iter().eq([&(moved..moved + 0x3000)]));
    assert_eq!(read(&ram, moved, 0x3000), image.loads[0].data);
    let data = &image.loads[1];
    assert_eq!(read(&ram, data.paddr + 0x20_0000, data.data.len()), data.data);
}

#[test]
fn relocation_respects_the_limits_of_the_note() {
    let map = ram_map(14 * MIB);
    let size = 0x20_4000;
    let last = |start: u32| start + size - 1;
    let place = |align, min, max| {
        let image = Image::linux().relocatable(align, min, max);
        open(&image.bytes()).unwrap().check(&request(&map)).map(|entry| entry.kernel.start)
    };
    assert_eq!(place(0x1000, 0x20_1000, last(0x20_1000)).unwrap(), 0x20_1000);
    assert_eq!(place(0x20_0000, 0x20_1000, u32::MAX).unwrap(), 0x40_0000);
    assert!(place(0x1000, 0x20_1000, last(0x20_1000) - 1).is_err());
    assert!(place(0x1000, u32::MAX, 0).is_err());
    assert!(place(1 << 31, 0x1000, u32::MAX).is_err());
}

#[test]
fn a_note_without_an_alignment_takes_two_mib() {
    let mut image = Image::linux();
    image.notes.push((19, Vec::new()));
    let entry = open(&image.bytes()).unwrap().check(&request(&ram_map(14 * MIB))).unwrap();
    assert_eq!(entry.kernel.start, 0x20_0000);
}

#[test]
fn too_little_memory_for_the_kernel_names_both_sizes() {
    let error = open(&Image::linux().bytes()).unwrap().check(&request(&ram_map(16 * MIB))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel /boot/vmlinuz needs 19 MiB of memory to be loaded, the guest has 16 MiB; raise --memory"
    );
    assert!(matches!(error, BootError::MemoryTooSmall { .. }));
}

#[test]
fn an_initrd_larger_than_memory_names_file_and_sizes() {
    let (_folder, path) = file(&[]);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(40 * MIB).unwrap();
    let initrd = Initrd::open(&path).unwrap();
    let map = ram_map(32 * MIB);
    let request = LoadRequest { initrd: Some(&initrd), ..request(&map) };
    let error = open(&Image::linux().bytes()).unwrap().check(&request).unwrap_err();
    let expected = format!(
        "initrd {} (40 MiB) does not fit into the guest's 32 MiB of memory beside the kernel; raise --memory",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn an_initrd_goes_below_the_limit_of_the_header_and_above_it_only_when_it_must() {
    let memory = 3 << 30;
    let map = ram_map(memory);
    let (_folder, path) = file(&[]);
    let start = |bytes: &[u8], size: u64| {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
        let initrd = Initrd::open(&path).unwrap();
        let request = LoadRequest { initrd: Some(&initrd), ..request(&map) };
        open(bytes).unwrap().check(&request).map(|entry| entry.initrd.unwrap().start)
    };
    let linux = bzimage(&gzip(&Image::linux().bytes()));
    assert_eq!(start(&linux, 4096).unwrap(), 0x7fff_f000);
    assert_eq!(start(&linux, 2 << 30).unwrap(), 1 << 30);
    assert_eq!(start(&Image::grub().bytes(), 4096).unwrap(), 0x37ff_f000);
    assert!(start(&Image::grub().bytes(), 1 << 30).is_err());
}

#[test]
fn an_initrd_that_cannot_be_read_is_refused_on_opening() {
    let (folder, empty) = file(&[]);
    for path in [Path::new("/no/such/initrd"), folder.path(), Path::new("/dev/null"), &empty] {
        let error = Initrd::open(path).unwrap_err();
        assert!(matches!(error, BootError::InitrdUnreadable { .. }), "{error}");
    }
}

#[test]
fn an_initrd_that_shrank_is_refused() {
    let (_folder, path) = file(&[1; 8192]);
    let initrd = Initrd::open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let map = ram_map(32 * MIB);
    let request = LoadRequest { initrd: Some(&initrd), ..request(&map) };
    let error = open(&Image::linux().bytes()).unwrap().load_into(&guest_ram(32 * MIB), &request);
    assert!(matches!(error, Err(BootError::InitrdUnreadable { .. })), "{error:?}");
}

#[test]
fn a_kernel_and_an_initrd_load_twice() {
    let (_folder, path) = file(&[9; 100]);
    let initrd = Initrd::open(&path).unwrap();
    let map = ram_map(32 * MIB);
    let request = LoadRequest { initrd: Some(&initrd), ..request(&map) };
    let kernel = open(&Image::linux().bytes()).unwrap();
    for _ in 0..2 {
        let ram = guest_ram(32 * MIB);
        let entry = kernel.load_into(&ram, &request).unwrap();
        assert_eq!(read(&ram, entry.initrd.unwrap().start, 100), [9; 100]);
    }
}

#[test]
fn command_lines_that_linux_would_cut_are_refused() {
    let kernel = open(&Image::linux().bytes()).unwrap();
    let map = ram_map(32 * MIB);
    let check = |cmdline: &str| kernel.check(&LoadRequest { cmdline, ..request(&map) });
    check(&"a".repeat(2047)).unwrap();
    assert!(matches!(check(&"a".repeat(2048)), Err(BootError::CommandLine(_))));
    assert!(matches!(check("a\0b"), Err(BootError::CommandLine(_))));
}

#[test]
fn a_memory_map_longer_than_linux_copies_is_refused() {
    let kernel = open(&Image::linux().bytes()).unwrap();
    let mut map = vec![MemmapEntry { addr: 0, size: 32 * MIB, kind: MemmapKind::Ram }];
    map.extend((1..127).map(|i| MemmapEntry { addr: i << 32, size: 1, kind: MemmapKind::Reserved }));
    kernel.check(&request(&map)).unwrap();
    map.push(MemmapEntry { addr: 1 << 40, size: 1, kind: MemmapKind::Reserved });
    assert!(matches!(kernel.check(&request(&map)), Err(BootError::MemmapTooLong(128))));
}

#[test]
fn strange_memory_maps_give_errors_not_panics() {
    let kernel = open(&Image::linux().relocatable(0x1000, 0, u32::MAX).bytes()).unwrap();
    let ram = guest_ram(MIB);
    let entry = |addr, size, kind| MemmapEntry { addr, size, kind };
    let maps = [
        vec![],
        vec![entry(u64::MAX, u64::MAX, MemmapKind::Ram)],
        vec![entry(0, u64::MAX, MemmapKind::Ram)],
        vec![entry(0, 64 * MIB, MemmapKind::Ram), entry(0, u64::MAX, MemmapKind::Unusable)],
        vec![entry(1 << 40, 64 * MIB, MemmapKind::Ram)],
    ];
    for map in maps {
        assert!(kernel.load_into(&ram, &request(&map)).is_err(), "{map:?}");
    }
}

/// Boots every kernel of a folder on paper: `XVMM_TEST_KERNELS=/path cargo test --release -- --ignored real`.
#[test]
#[ignore = "needs kernels of a distribution in XVMM_TEST_KERNELS"]
fn real_kernels_have_an_entry_in_their_text() {
    let folder = std::env::var_os("XVMM_TEST_KERNELS").unwrap();
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let start = std::time::Instant::now();
        let kernel = Kernel::open(&path).unwrap();
        let unpacked = start.elapsed();
        let ram = guest_ram(256 * MIB);
        let start = std::time::Instant::now();
        let entry = kernel.load_into(&ram, &request(&ram_map(256 * MIB))).unwrap();
        let (len, loaded) = (kernel.image_len(), start.elapsed());
        println!("{}: {len} bytes in {unpacked:?}, loaded in {loaded:?}: {entry:x?}", path.display());
        assert!(entry.executable.iter().any(|text| text.contains(&entry.entry_gpa)));
    }
}

/// See fixtures/make.sh.
#[test]
#[ignore = "writes the image of the fixtures to XVMM_TEST_FIXTURE"]
fn write_fixture_image() {
    std::fs::write(std::env::var_os("XVMM_TEST_FIXTURE").unwrap(), Image::fixture().bytes()).unwrap();
}

#[test]
fn a_size_field_beyond_the_limit_is_refused_before_unpacking() {
    let stream = zstd::bulk::compress(&[0; 1000], 1).unwrap();
    let error = open(&bzimage(&sized(stream, MAX_UNPACKED + 1))).unwrap_err();
    assert_eq!(error, ImageError::TooLarge { size: MAX_UNPACKED as u64 + 1, limit: MAX_UNPACKED as u64 });
}

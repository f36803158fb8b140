use std::sync::atomic::Ordering::SeqCst;

use vm_memory::{Bytes, GuestAddress};

use crate::ide::testing::{CD, DISK, Rig};
use crate::medium::{Op, SECTOR};
use crate::pci::PciFunction;

const LBA: u8 = 0xe0;
const TABLE: u32 = 0x1000;
const TO_MEMORY: u8 = 8;

/// Writes descriptors: address and bytes; the last one ends the table if `ends`.
fn table(rig: &Rig, at: u32, regions: &[(u32, u16)], ends: bool) {
    for (n, (address, len)) in regions.iter().enumerate() {
        let flags = if ends && n + 1 == regions.len() { 0x8000u16 } else { 0 };
        let bytes = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes()].concat();
        rig.ram.write_slice(&bytes, GuestAddress(u64::from(at) + n as u64 * 8)).unwrap();
    }
}

fn start(rig: &mut Rig, channel: u8, at: u32, direction: u8) {
    let base = u64::from(channel) * 8;
    rig.bus_master(base, 0);
    for (n, byte) in at.to_le_bytes().into_iter().enumerate() {
        rig.bus_master(base + 4 + n as u64, byte);
    }
    rig.bus_master(base + 2, 6);
    rig.bus_master(base, direction | 1);
}

fn memory(rig: &Rig, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rig.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn a_disk_is_read_into_fragments_and_written_from_them() {
    let mut rig = Rig::new(512);
    let regions = [(0x10_0000, 510), (0x2_0002, 2), (0x3_0000, 512)];
    table(&rig, TABLE, &regions, true);
    rig.command(DISK, [0, 2, 5, 0, 0, LBA], 0xc8);
    assert!(rig.disk.waiting.lock().unwrap().is_empty(), "nothing moves before the start");
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    assert_eq!((rig.bus_master_status(DISK), rig.rose(DISK)), (1, false));
    assert_eq!(rig.serve(), 1);
    assert_eq!((rig.bus_master_status(DISK), rig.rose(DISK)), (4, true));
    assert_eq!(rig.read(DISK, 7), 0x50);
    let read =
        [memory(&rig, 0x10_0000, 510), memory(&rig, 0x2_0002, 2), memory(&rig, 0x3_0000, 512)].concat();
    assert_eq!(read, [rig.disk.sector(5), rig.disk.sector(6)].concat());

    start(&mut rig, DISK, TABLE, 0);
    rig.command(DISK, [0, 2, 100, 0, 0, LBA], 0xca);
    rig.serve();
    assert_eq!(rig.bus_master_status(DISK), 4);
    assert_eq!([rig.disk.sector(100), rig.disk.sector(101)].concat(), read);
}

#[test]
fn a_flush_follows_a_write_with_fua() {
    let mut rig = Rig::new(512);
    table(&rig, TABLE, &[(0x2000, 512)], true);
    rig.command(DISK, [0; 6], 0x10);
    rig.command(DISK, [0, 1, 3, 0, 0, LBA], 0x3d);
    start(&mut rig, DISK, TABLE, 0);
    rig.rose(DISK);
    rig.disk.serve();
    assert!(!rig.rose(DISK));
    rig.disk.serve();
    assert!(rig.rose(DISK));
    assert_eq!(*rig.disk.log.lock().unwrap(), [(Op::Write, 3, 512), (Op::Flush, 0, 0)]);
}

#[test]
fn a_table_that_is_longer_leaves_the_bus_master_active() {
    let mut rig = Rig::new(512);
    table(&rig, TABLE, &[(0x2000, 0)], true);
    rig.command(DISK, [0, 1, 3, 0, 0, LBA], 0xc8);
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    rig.serve();
    assert_eq!(rig.bus_master_status(DISK), 5);
    rig.bus_master(0, 0);
    rig.bus_master(2, 4);
    assert_eq!((rig.bus_master_status(DISK), rig.read(DISK, 7)), (0, 0x50));
}

#[test]
fn a_table_that_is_shorter_stops_without_an_interrupt_and_can_be_followed_by_another() {
    let mut rig = Rig::new(512);
    table(&rig, TABLE, &[(0x2000, 1024)], true);
    rig.command(DISK, [0, 3, 0, 0, 0, LBA], 0xc8);
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    rig.serve();
    assert_eq!((rig.bus_master_status(DISK), rig.rose(DISK)), (0, false));
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    rig.serve();
    assert!(rig.rose(DISK));
    assert_eq!(memory(&rig, 0x2000, 512), rig.disk.sector(2));
    rig.bus_master(0, 0);
    // Less than a sector.
    table(&rig, TABLE, &[(0x2000, 510)], true);
    rig.read(DISK, 7);
    rig.rose(DISK);
    rig.command(DISK, [0, 1, 0, 0, 0, LBA], 0xc8);
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    assert_eq!((rig.serve(), rig.bus_master_status(DISK), rig.rose(DISK)), (0, 0, false));
    // The next command forgets it.
    rig.command(DISK, [0; 6], 0x10);
    assert_eq!(rig.read(DISK, 7), 0x50);
}

#[test]
fn a_table_without_an_end_is_walked_as_far_as_the_transfer_goes() {
    let mut rig = Rig::new(1 << 20);
    // 8192 descriptors of 64 KiB at most, around and around: to the same two bytes.
    let descriptor = [0, 0x40, 0, 0, 2, 0, 0, 0];
    for n in 0..8192 {
        rig.ram.write_slice(&descriptor, GuestAddress(0x1_0000 + n * 8)).unwrap();
    }
    for offset in 2..6 {
        rig.write(DISK, offset, 0);
    }
    rig.command(DISK, [0, 0, 0, 0, 0, LBA], 0x25);
    start(&mut rig, DISK, 0x1_fff8, TO_MEMORY);
    let served = rig.serve();
    assert_eq!(served, 65536 / 4, "1024 descriptors at a time");
    assert!(rig.rose(DISK));
}

#[test]
fn memory_that_is_not_there_and_the_wrong_direction_end_the_command() {
    let mut rig = Rig::new(512);
    let cases = [
        (TABLE, 0x20_0000, TO_MEMORY),
        (TABLE, 0x1f_ff00, TO_MEMORY),
        (0x20_0000, 0, TO_MEMORY),
        (TABLE, 0x2000, 0),
        (0xffff_fff8, 0, TO_MEMORY),
    ];
    for (at, address, direction) in cases {
        table(&rig, TABLE, &[(address, 512)], true);
        rig.rose(DISK);
        rig.command(DISK, [0, 1, 0, 0, 0, LBA], 0xc8);
        start(&mut rig, DISK, at, direction);
        assert_eq!(rig.serve(), 0, "{at:#x} {address:#x}");
        assert!(rig.rose(DISK));
        assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 4));
        assert_eq!(rig.bus_master_status(DISK) & 3, 2);
    }
    // Without the bit in the command register nothing moves; with it, it does.
    table(&rig, TABLE, &[(0x2000, 512)], true);
    rig.ide.write_config(4, &[1]);
    rig.command(DISK, [0, 1, 0, 0, 0, LBA], 0xc8);
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    assert_eq!(rig.serve(), 0);
    rig.ide.write_config(4, &[5]);
    assert_eq!(rig.serve(), 1);
}

#[test]
fn a_stop_ends_the_command_when_its_request_is_done() {
    let mut rig = Rig::new(512);
    table(&rig, TABLE, &[(0x2000, 512)], true);
    rig.command(DISK, [0, 1, 0, 0, 0, LBA], 0xc8);
    start(&mut rig, DISK, TABLE, TO_MEMORY);
    rig.bus_master(0, TO_MEMORY);
    assert_eq!((rig.bus_master_status(DISK), rig.alternate(DISK)), (0, 0x80));
    rig.serve();
    assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 4));
}

#[test]
fn a_transfer_that_fails_names_its_sector() {
    let mut rig = Rig::new(512);
    *rig.disk.bad.lock().unwrap() = Some(9);
    table(&rig, TABLE, &[(0x2000, 512)], true);
    for (code, direction, error) in [(0xc8, TO_MEMORY, 0x40), (0xca, 0, 4)] {
        rig.command(DISK, [0, 1, 9, 0, 0, LBA], code);
        start(&mut rig, DISK, TABLE, direction);
        rig.serve();
        assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1), rig.read(DISK, 3)), (0x51, error, 9));
    }
}

#[test]
fn a_disc_is_read_by_dma_and_so_are_answers() {
    let mut rig = Rig::new(64);
    rig.sense();
    rig.sense();
    table(&rig, TABLE, &[(0x2000, 2048), (0x5000, 2048)], true);
    start(&mut rig, CD, TABLE, TO_MEMORY);
    rig.packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2], 0, true);
    assert_eq!((rig.read(CD, 7), rig.read(CD, 2), rig.bus_master_status(CD)), (0x40, 3, 4));
    assert_eq!(memory(&rig, 0x2000, SECTOR), rig.disc.sector(12));
    assert_eq!(memory(&rig, 0x5000, SECTOR), rig.disc.sector(16));
    start(&mut rig, CD, TABLE, TO_MEMORY);
    rig.packet(&[0x12, 0, 0, 0, 36], 0, true);
    assert_eq!(memory(&rig, 0x2008, 11), b"XVMM    CD-");
    assert_eq!((rig.read(CD, 7), rig.bus_master_status(CD)), (0x40, 5));
    // A table in memory that is not there.
    start(&mut rig, CD, 0x20_0000, TO_MEMORY);
    rig.packet(&[0x12, 0, 0, 0, 36], 0, true);
    assert_eq!((rig.read(CD, 7), rig.read(CD, 1)), (0x41, 0xb4));
    assert!(rig.lines[1].rises.load(SeqCst) > 0);
}

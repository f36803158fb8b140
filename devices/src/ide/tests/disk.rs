use std::sync::atomic::Ordering::SeqCst;

use crate::bus::Registers;
use crate::ide::testing::{CD, DISK, Rig};
use crate::ide::{Attachment, Identity, Place};
use crate::medium::{Op, SECTOR};
use crate::pci::PciFunction;

const LBA: u8 = 0xe0;

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
}

fn text(words: &[u16]) -> String {
    words.iter().flat_map(|word| word.to_be_bytes()).map(char::from).collect()
}

fn identify(rig: &mut Rig, channel: u8, code: u8) -> Vec<u16> {
    rig.command(channel, [0; 6], code);
    assert_eq!(rig.alternate(channel) & 0x88, 0x08);
    words(&rig.data(channel, 512))
}

#[test]
fn the_function_is_a_piix3_ide_controller() {
    let mut rig = Rig::new(64);
    let config = rig.ide.config();
    assert_eq!((config.u32(0), config.class(), config.pin()), (0x7010_8086, 0x01_01_80, None));
    rig.ide.write_config(0x20, &[0xff; 4]);
    assert_eq!(rig.ide.config().u32(0x20), 0xffff_fff1);
    // Without the decode bit, or ports, nothing answers.
    rig.ide.write_config(0x40, &[0, 0]);
    assert_eq!((rig.read(DISK, 7), rig.read(CD, 7)), (0xff, 0));
    rig.ide.write_config(0x40, &[0, 0x80]);
    rig.ide.write_config(4, &[4]);
    assert_eq!((rig.read(DISK, 7), rig.read(CD, 7)), (0xff, 0xff));
}

#[test]
fn signatures_follow_resets_and_the_diagnostic() {
    let mut rig = Rig::new(64);
    let disk = [1, 1, 1, 0, 0, 0xa0, 0x50];
    let disc = [1, 1, 1, 0x14, 0xeb, 0xa0, 0];
    assert_eq!((rig.registers(DISK), rig.registers(CD)), (disk, disc));
    for channel in [DISK, CD] {
        for offset in 1..6 {
            rig.write(channel, offset, 0x77);
        }
        rig.control(channel, 4);
        assert_eq!(rig.alternate(channel), 0x80);
        rig.control(channel, 0);
    }
    assert_eq!((rig.registers(DISK), rig.registers(CD)), (disk, disc));
    rig.command(CD, [9; 6], 0x90);
    assert!(rig.rose(CD));
    assert_eq!(rig.registers(CD), disc);
    // DEVICE RESET is for packet devices.
    rig.command(CD, [9, 9, 9, 9, 9, 0], 0x08);
    assert_eq!(rig.registers(CD), disc);
    rig.command(DISK, [0; 6], 0x08);
    assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 4));
    // IDENTIFY DEVICE of a packet device fails with the signature.
    rig.command(CD, [0; 6], 0xec);
    assert_eq!(rig.registers(CD), [4, 1, 1, 0x14, 0xeb, 0xa0, 0x41]);
}

#[test]
fn identify_device_word_by_word() {
    let mut rig = Rig::new(0x1_2345_6789);
    let words = identify(&mut rig, DISK, 0xec);
    assert!(rig.rose(DISK));
    assert_eq!(rig.read(DISK, 7), 0x50);
    assert_eq!(text(&words[10..20]), "XV00001             ");
    assert_eq!(text(&words[23..27]), "1.0     ");
    assert_eq!(text(&words[27..47]), format!("{:40}", "XVMM HARDDISK"));
    let mut table = vec![0; 256];
    for (at, value) in [
        (0, 0x0040),
        (1, 16383),
        (3, 16),
        (6, 63),
        (47, 0x8010),
        (48, 1),
        (49, 0x2f00),
        (50, 0x4000),
        (51, 0x0200),
        (52, 0x0200),
        (53, 7),
        (54, 16383),
        (55, 16),
        (56, 63),
        (57, 0xfc10),
        (58, 0x00fb),
        (59, 0x0100),
        (60, 0xffff),
        (61, 0x0fff),
        (63, 0x0407),
        (64, 3),
        (65, 120),
        (66, 120),
        (67, 120),
        (68, 120),
        (80, 0x0078),
        (81, 0x0019),
        (82, 0x4069),
        (83, 0x7400),
        (84, 0x4040),
        (85, 0x4069),
        (86, 0x3400),
        (87, 0x4040),
        (88, 0x003f),
        (93, 0x600b),
        (100, 0x6789),
        (101, 0x2345),
        (102, 1),
    ] {
        table[at] = value;
    }
    for at in (0..10).chain(20..23).chain(47..255) {
        assert_eq!(words[at], table[at], "word {at}");
    }
    assert_eq!(words[255] & 0xff, 0xa5);
    let sum = words.iter().flat_map(|word| word.to_le_bytes()).fold(0u8, u8::wrapping_add);
    assert_eq!(sum, 0);
}

#[test]
fn identify_packet_device_word_by_word() {
    let mut rig = Rig::new(64);
    let words = identify(&mut rig, CD, 0xa1);
    for (at, value) in [
        (0, 0x85c0),
        (1, 0),
        (49, 0x0f00),
        (50, 0x4000),
        (53, 6),
        (63, 0x0407),
        (64, 3),
        (80, 0x0078),
        (82, 0x4218),
        (83, 0x4000),
        (84, 0x4000),
        (85, 0x4218),
        (86, 0),
        (87, 0x4000),
        (88, 0x003f),
    ] {
        assert_eq!(words[at], value, "word {at}");
    }
    assert_eq!(text(&words[27..47]), format!("{:40}", "XVMM CD-ROM"));
}

#[test]
fn settings_show_in_identify() {
    let mut rig = Rig::new(2016);
    // Feature, count; the word that shows it.
    for (feature, count, at, value) in [
        (0x03, 0x45, 88, 0x203f),
        (0x03, 0x45, 63, 0x0007),
        (0x03, 0x21, 63, 0x0207),
        (0x55, 0, 85, 0x4029),
        (0xaa, 0, 85, 0x4069),
        (0x82, 0, 85, 0x4049),
        (0x02, 0, 85, 0x4069),
    ] {
        rig.command(DISK, [feature, count, 0, 0, 0, 0], 0xef);
        rig.serve();
        assert_eq!(rig.read(DISK, 7), 0x50, "{feature:#x}");
        assert_eq!(identify(&mut rig, DISK, 0xec)[at], value, "{feature:#x} {count:#x}");
    }
    for (feature, count) in [(0x03, 0x46), (0x03, 0x23), (0x03, 0x0d), (0x99, 0)] {
        rig.command(DISK, [feature, count, 0, 0, 0, 0], 0xef);
        assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 4), "{feature:#x} {count:#x}");
    }
    // Eight heads of nine sectors: 28 cylinders.
    rig.command(DISK, [0, 9, 0, 0, 0, 7], 0x91);
    assert_eq!(identify(&mut rig, DISK, 0xec)[54..59], [28, 8, 9, 2016, 0]);
    rig.command(DISK, [0; 6], 0x91);
    assert_eq!(rig.read(DISK, 1), 4);
    rig.command(DISK, [0, 8, 0, 0, 0, 0], 0xc6);
    assert_eq!(identify(&mut rig, DISK, 0xec)[59], 0x0108);
    rig.command(DISK, [0, 3, 0, 0, 0, 0], 0xc6);
    assert_eq!(rig.read(DISK, 1), 4);
}

#[test]
fn cylinders_heads_and_sectors_name_sectors() {
    let mut rig = Rig::new(16 * 63 * 4);
    // Cylinder, head, sector; the logical sector, if there is one.
    for (c, h, s, lba) in [
        (0u16, 0u8, 1u8, Some(0)),
        (0, 0, 63, Some(62)),
        (0, 1, 1, Some(63)),
        (1, 0, 1, Some(1008)),
        (3, 15, 63, Some(4031)),
        (0, 0, 0, None),
        (0, 0, 64, None),
        (4, 0, 1, None),
    ] {
        let [low, high] = c.to_le_bytes();
        rig.command(DISK, [0, 1, s, low, high, 0xa0 | h], 0x20);
        match lba {
            Some(lba) => {
                rig.serve();
                assert_eq!(rig.disk.log.lock().unwrap().pop(), Some((Op::Read, lba, 512)), "{c} {h} {s}");
            }
            None => assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 0x10), "{c} {h} {s}"),
        }
    }
}

#[test]
fn sectors_are_read_by_pio() {
    let mut rig = Rig::new(512);
    rig.command(DISK, [0, 3, 5, 0, 0, LBA], 0x20);
    assert_eq!(rig.alternate(DISK), 0x80);
    assert!(!rig.rose(DISK));
    // A busy drive minds no writes.
    rig.command(DISK, [9; 6], 0xe7);
    assert_eq!(rig.serve(), 1, "read ahead at once");
    for sector in 5..8 {
        assert!(rig.rose(DISK), "{sector}");
        assert_eq!(rig.read(DISK, 7), 0x58);
        assert_eq!(rig.data(DISK, SECTOR), rig.disk.sector(sector));
    }
    assert!(!rig.rose(DISK));
    assert_eq!(rig.read(DISK, 7), 0x50);
    // Multiple: one interrupt for two sectors.
    rig.command(DISK, [0, 3, 0, 0, 0, LBA], 0xc4);
    assert_eq!(rig.read(DISK, 1), 4, "off");
    rig.command(DISK, [0, 2, 0, 0, 0, LBA], 0xc6);
    rig.command(DISK, [0, 3, 0, 0, 0, LBA], 0xc4);
    rig.serve();
    rig.rose(DISK);
    rig.read(DISK, 7);
    rig.data(DISK, 2 * SECTOR);
    assert!(rig.rose(DISK));
    assert_eq!(rig.data(DISK, SECTOR), rig.disk.sector(2));
    assert_eq!(rig.read(DISK, 7), 0x50);
}

#[test]
fn sectors_are_written_by_pio_and_are_on_the_disk_when_the_cache_is_off() {
    let mut rig = Rig::new(512);
    for (feature, log) in [
        (0x02, vec![(Op::Write, 9, 512), (Op::Write, 10, 512)]),
        (0x82, vec![(Op::Write, 9, 512), (Op::Write, 10, 512), (Op::Flush, 0, 0)]),
    ] {
        rig.command(DISK, [feature, 0, 0, 0, 0, 0], 0xef);
        rig.serve();
        rig.disk.log.lock().unwrap().clear();
        rig.rose(DISK);
        rig.read(DISK, 7);
        rig.command(DISK, [0, 2, 9, 0, 0, LBA], 0x30);
        assert_eq!((rig.rose(DISK), rig.alternate(DISK)), (false, 0x58));
        for value in [0x11, 0x22] {
            rig.put_data(DISK, &[value; SECTOR]);
            assert_eq!((rig.rose(DISK), rig.alternate(DISK)), (false, 0x80));
            rig.serve();
            assert!(rig.rose(DISK));
            rig.read(DISK, 7);
        }
        assert_eq!(rig.alternate(DISK), 0x50);
        assert_eq!(*rig.disk.log.lock().unwrap(), log);
        assert_eq!((rig.disk.sector(9), rig.disk.sector(10)), (vec![0x11; 512], vec![0x22; 512]));
    }
}

#[test]
fn errors_name_the_sector() {
    let mut rig = Rig::new(512);
    *rig.disk.bad.lock().unwrap() = Some(7);
    // The sectors before the bad one are read.
    rig.command(DISK, [0, 4, 5, 0, 0, LBA], 0x20);
    rig.serve();
    for sector in [5, 6] {
        assert_eq!(rig.data(DISK, SECTOR), rig.disk.sector(sector));
        rig.serve();
    }
    assert_eq!(rig.registers(DISK), [0x40, 4, 7, 0, 0, LBA, 0x51]);
    rig.command(DISK, [0, 4, 5, 0, 0, LBA], 0x40);
    rig.serve();
    assert_eq!(rig.read(DISK, 1), 0x40);
    rig.command(DISK, [0, 1, 7, 0, 0, LBA], 0x30);
    rig.put_data(DISK, &[1; SECTOR]);
    rig.serve();
    assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1), rig.read(DISK, 3)), (0x51, 4, 7));
    // Beyond the end: in both widths; wrap-around of the sum.
    for (registers, code) in
        [([0, 2, 0xff, 1, 0, LBA], 0x20), ([0, 1, 0, 2, 0, LBA], 0xc8), ([0, 0, 0, 1, 0, LBA], 0x40)]
    {
        let outside = code != 0x40;
        rig.command(DISK, registers, code);
        rig.serve();
        assert_eq!(rig.read(DISK, 7) & 1 == 1, outside, "{code:#x}");
    }
    for _ in 0..2 {
        for offset in 2..6 {
            rig.write(DISK, offset, 0xff);
        }
    }
    rig.write(DISK, 7, 0x24);
    assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 0x10));
    rig.disk.readonly.store(true, SeqCst);
    for code in [0x30, 0xca, 0x34, 0x35, 0x3d] {
        rig.command(DISK, [0, 1, 0, 0, 0, LBA], code);
        assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (0x51, 4), "{code:#x}");
    }
}

#[test]
fn addresses_of_48_bits_use_what_was_written_before() {
    let mut rig = Rig::new(1 << 40);
    // Count 0x0002, address 0x12_3456_789a.
    for (offset, previous, current) in [(2, 0, 2), (3, 0x34, 0x9a), (4, 0x12, 0x78), (5, 0, 0x56)] {
        rig.write(DISK, offset, previous);
        rig.write(DISK, offset, current);
    }
    rig.write(DISK, 6, 0x40);
    rig.control(DISK, 0x80);
    assert_eq!((rig.read(DISK, 3), rig.read(DISK, 4)), (0x34, 0x12));
    rig.write(DISK, 7, 0x24);
    assert_eq!(rig.read(DISK, 3), 0x9a, "a write clears HOB");
    rig.serve();
    assert_eq!(rig.disk.log.lock().unwrap()[0], (Op::Read, 0x12_3456_789a, 1024));
    rig.command(DISK, [0; 6], 0x90);
    rig.command(DISK, [0, 0, 0, 0, 0, 0x40], 0x27);
    assert_eq!((rig.read(DISK, 3), rig.read(DISK, 4), rig.read(DISK, 5)), (0xff, 0xff, 0xff));
    rig.control(DISK, 0x80);
    assert_eq!((rig.read(DISK, 3), rig.read(DISK, 4), rig.read(DISK, 5)), (0xff, 0xff, 0));
    rig.command(DISK, [0, 0, 0, 0, 0, 0x40], 0xf8);
    assert_eq!((rig.read(DISK, 3), rig.read(DISK, 6)), (0xfe, 0xef));
}

#[test]
fn commands_without_data_have_their_outcomes() {
    let mut rig = Rig::new(512);
    // Command, registers; status, error.
    for (code, registers, status, error) in [
        (0x00, [0; 6], 0x51, 4),
        (0x10, [0; 6], 0x50, 0),
        (0x70, [0, 0, 1, 0, 0, 0xa0], 0x50, 0),
        (0x70, [0, 0, 0, 0, 0, 0xa0], 0x51, 0x10),
        (0x70, [0, 0, 0, 2, 0, LBA], 0x51, 0x10),
        (0xe7, [0; 6], 0x50, 0),
        (0xea, [0; 6], 0x50, 0),
        (0xe1, [0; 6], 0x50, 0),
        (0xe3, [0; 6], 0x50, 0),
        (0xa0, [0; 6], 0x51, 4),
        (0xa1, [0; 6], 0x51, 4),
        (0xb0, [0xda, 0, 0, 0, 0, 0], 0x51, 4),
        (0xb0, [0xda, 0, 0, 0x4f, 0xc2, 0], 0x50, 0),
        (0xff, [0; 6], 0x51, 4),
    ] {
        rig.rose(DISK);
        rig.read(DISK, 7);
        rig.command(DISK, registers, code);
        rig.serve();
        assert!(rig.rose(DISK), "{code:#x}");
        assert_eq!((rig.read(DISK, 7), rig.read(DISK, 1)), (status, error), "{code:#x}");
    }
    let power = |rig: &mut Rig| {
        rig.command(DISK, [0; 6], 0xe5);
        rig.read(DISK, 2)
    };
    assert_eq!(power(&mut rig), 0xff);
    rig.command(DISK, [0; 6], 0xe0);
    rig.serve();
    assert_eq!(power(&mut rig), 0);
    // A sleeping drive wakes up by a reset.
    rig.command(DISK, [0; 6], 0xe6);
    rig.serve();
    rig.command(DISK, [0; 6], 0xec);
    assert_eq!(rig.read(DISK, 7), 0x50);
    rig.control(DISK, 4);
    rig.control(DISK, 0);
    identify(&mut rig, DISK, 0xec);
}

#[test]
fn smart_tells_of_a_healthy_disk() {
    let mut rig = Rig::new(64);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    rig.command(DISK, [0xd0, 0, 0, 0x4f, 0xc2, 0], 0xb0);
    let data = rig.data(DISK, 512);
    rig.command(DISK, [0xd1, 0, 0, 0x4f, 0xc2, 0], 0xb0);
    let thresholds = rig.data(DISK, 512);
    assert_eq!((sum(&data), sum(&thresholds)), (0, 0));
    for (value, threshold) in data[2..362].chunks(12).zip(thresholds[2..362].chunks(12)) {
        assert_eq!(value[0], threshold[0]);
        assert!(value[0] == 0 || value[3] > threshold[1], "{value:?}");
    }
    rig.command(DISK, [0xd9, 0, 0, 0x4f, 0xc2, 0], 0xb0);
    rig.command(DISK, [0xda, 0, 0, 0x4f, 0xc2, 0], 0xb0);
    assert_eq!(rig.read(DISK, 7), 0x51);
    rig.command(DISK, [0xd8, 0, 0, 0x4f, 0xc2, 0], 0xb0);
    rig.command(DISK, [0xda, 0, 0, 0x4f, 0xc2, 0], 0xb0);
    assert_eq!(rig.registers(DISK), [0, 0, 0, 0x4f, 0xc2, 0xa0, 0x50]);
}

#[test]
fn a_reset_waits_for_the_request_under_way_and_drops_its_result() {
    let mut rig = Rig::new(512);
    rig.command(DISK, [0, 1, 0, 0, 0, LBA], 0x20);
    rig.control(DISK, 4);
    rig.control(DISK, 0);
    assert_eq!((rig.alternate(DISK), rig.disk.cancels.load(SeqCst)), (0x80, 2));
    // However often: one request.
    for _ in 0..10 {
        rig.command(DISK, [0, 1, 0, 0, 0, LBA], 0x20);
        rig.control(DISK, 4);
        rig.control(DISK, 0);
    }
    assert_eq!(rig.serve(), 1);
    assert!(!rig.rose(DISK));
    assert_eq!(rig.registers(DISK), [1, 1, 1, 0, 0, 0xa0, 0x50]);
    identify(&mut rig, DISK, 0xec);
}

#[test]
fn drives_share_registers_and_the_line_follows_the_selected_one() {
    let mut rig = Rig::new(64);
    // There is no drive 1: its status is 0, the other registers are drive 0's.
    rig.write(DISK, 6, 0xb0);
    rig.write(DISK, 2, 0x55);
    assert_eq!((rig.read(DISK, 7), rig.read(DISK, 2), rig.read(DISK, 6)), (0, 0x55, 0xb0));
    rig.write(DISK, 7, 0xec);
    assert!(!rig.rose(DISK));
    let second = crate::ide::testing::Manual::new(128, 0);
    let identity = Identity { model: "x".into(), serial: "y".into(), firmware: "z".into() };
    let place = Place::of_hd(1).unwrap();
    assert!(rig.ide.attach(place, Attachment::Disk(second), identity.clone()));
    let third = crate::ide::testing::Manual::new(128, 0);
    assert!(!rig.ide.attach(place, Attachment::Disk(third), identity));
    rig.write(DISK, 6, 0xb0);
    rig.write(DISK, 7, 0xec);
    assert!(rig.rose(DISK));
    rig.write(DISK, 6, 0xa0);
    assert!(!rig.lines[0].high.load(SeqCst));
    rig.write(DISK, 6, 0xb0);
    assert!(rig.lines[0].high.load(SeqCst));
    assert_eq!(rig.alternate(DISK), 0x58);
    assert!(rig.lines[0].high.load(SeqCst), "the alternate status register leaves it");
    rig.read(DISK, 7);
    assert!(!rig.lines[0].high.load(SeqCst));
    assert_eq!(words(&rig.data(DISK, 512))[60], 128);
    rig.rose(DISK);
    // nIEN.
    rig.control(DISK, 2);
    rig.command(DISK, [0, 0, 0, 0, 0, 0xa0], 0x10);
    assert!(!rig.rose(DISK));
    rig.control(DISK, 0);
    assert!(rig.rose(DISK));
}

#[test]
fn unplugged_disks_are_gone_and_the_cd_stays() {
    let mut rig = Rig::new(64);
    rig.command(DISK, [0, 0, 0, 0, 0, 0], 0x10);
    rig.ide.unplug_disks(Place::of_hd(0));
    assert_ne!(rig.read(DISK, 7), 0xff, "the first drive is kept");
    rig.ide.unplug_disks(None);
    assert!(!rig.lines[0].high.load(SeqCst));
    assert_eq!((rig.read(DISK, 7), rig.alternate(DISK), rig.read(CD, 4)), (0xff, 0xff, 0x14));
    rig.ide.reset();
    rig.enable();
    assert_eq!((rig.read(DISK, 7), rig.read(CD, 4)), (0xff, 0x14));
}

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::ide::testing::{CD, Manual, Rig};
use crate::ide::{ChangeError, Place};

const DRIVE: Place = Place { channel: 1, unit: 0 };

/// A drive that has told of its reset and of its disc.
fn rig() -> Rig {
    let mut rig = Rig::new(64);
    assert_eq!(rig.sense(), (6, 0x29, 0));
    assert_eq!(rig.sense(), (6, 0x28, 0));
    assert_eq!(rig.sense(), (0, 0, 0));
    rig
}

#[test]
fn attention_is_told_once_by_the_first_commands() {
    let mut rig = Rig::new(64);
    assert!(rig.ask(&[0x12, 0, 0, 0, 36]).is_ok(), "INQUIRY works whatever happened");
    assert_eq!((rig.ask(&[0]), rig.sense()), (Err(6), (6, 0x29, 0)));
    assert_eq!((rig.ask(&[0]), rig.sense()), (Err(6), (6, 0x28, 0)));
    assert_eq!((rig.ask(&[0]), rig.sense()), (Ok(vec![]), (0, 0, 0)));
}

#[test]
fn a_packet_has_its_phases() {
    let mut rig = rig();
    rig.rose(CD);
    rig.command(CD, [0, 0, 0, 0x00, 0x08, 0], 0xa0);
    assert_eq!((rig.read(CD, 7), rig.read(CD, 2), rig.rose(CD)), (0x48, 1, false));
    rig.put_data(CD, &[0x28, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0]);
    assert_eq!(rig.alternate(CD), 0x80);
    rig.serve();
    for sectors in [4..8, 8..12] {
        assert!(rig.rose(CD));
        assert_eq!((rig.read(CD, 7), rig.read(CD, 2)), (0x48, 2));
        assert_eq!((rig.read(CD, 4), rig.read(CD, 5)), (0, 8));
        let expected: Vec<u8> = sectors.flat_map(|sector| rig.disc.sector(sector)).collect();
        assert_eq!(rig.data(CD, 2048), expected);
    }
    assert!(rig.rose(CD));
    assert_eq!((rig.read(CD, 7), rig.read(CD, 2)), (0x40, 3));
    // Overlap is refused.
    rig.command(CD, [2, 0, 0, 0, 8, 0], 0xa0);
    assert_eq!((rig.read(CD, 7), rig.read(CD, 1)), (0x41, 4));
}

#[test]
fn blocks_are_read_in_pieces_of_any_limit() {
    let mut rig = rig();
    let expected: Vec<u8> = (8..16).flat_map(|sector| rig.disc.sector(sector)).collect();
    for limit in [0u16, 3, 512, 1000, 2047, 4096, 0xffff] {
        rig.packet(&[0xa8, 0, 0, 0, 0, 2, 0, 0, 0, 2], limit, false);
        let mut read = Vec::new();
        while rig.read(CD, 7) & 8 != 0 {
            let len = usize::from(u16::from_le_bytes([rig.read(CD, 4), rig.read(CD, 5)]));
            assert!(len > 0 && (limit == 0 || len <= limit.into()), "{len} of {limit}");
            read.extend(rig.data(CD, len));
        }
        assert_eq!(read, expected, "{limit}");
    }
    assert_eq!(rig.ask(&[0xbe, 0, 0, 0, 0, 2, 0, 0, 2, 0x10]), Ok(expected));
}

#[test]
fn refusals_have_their_sense() {
    let mut rig = rig();
    // 16 blocks. Packet; sense.
    type Case<'a> = (&'a [u8], (u8, u8, u8));
    let table: &[Case] = &[
        (&[0x28, 0, 0, 0, 0, 16, 0, 0, 1], (5, 0x21, 0)),
        (&[0x28, 0, 0, 0, 0, 15, 0, 0, 2], (5, 0x21, 0)),
        (&[0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], (5, 0x21, 0)),
        (&[0x2b, 0, 0, 0, 1, 0], (5, 0x21, 0)),
        (&[0xff], (5, 0x20, 0)),
        (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], (5, 0x20, 0)),
        (&[0x43, 0, 3, 0, 0, 0, 0, 1], (5, 0x24, 0)),
        (&[0x43, 0, 0, 0, 0, 0, 2, 1], (5, 0x24, 0)),
        (&[0x5a, 0, 0x3e, 0, 0, 0, 0, 1], (5, 0x24, 0)),
        (&[0x5a, 0, 0xea, 0, 0, 0, 0, 1], (5, 0x39, 0)),
        (&[0x12, 1, 0, 0, 36], (5, 0x24, 0)),
        (&[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8], (5, 0x24, 0)),
        (&[0xbe, 4, 0, 0, 0, 0, 0, 0, 1, 0x10], (5, 0x64, 0)),
        (&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0xf8], (5, 0x24, 0)),
        (&[0x55, 0, 0, 0, 0, 0, 0, 0, 8], (5, 0x24, 0)),
    ];
    for (packet, sense) in table {
        assert_eq!((rig.ask(packet), rig.sense()), (Err(sense.0), *sense), "{packet:x?}");
        assert_eq!(rig.sense(), (0, 0, 0));
    }
    *rig.disc.bad.lock().unwrap() = Some(9);
    assert_eq!((rig.ask(&[0x28, 0, 0, 0, 0, 2, 0, 0, 1]), rig.sense()), (Err(3), (3, 0x11, 0)));
}

#[test]
fn the_table_of_contents_is_that_of_a_data_disc() {
    let mut rig = rig();
    // Sixteen blocks: the lead-out is at block 16, 00:02:16.
    let first = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let lead_out = [0, 0x14, 0xaa, 0, 0, 0, 0, 16];
    let all = [&[0, 18, 1, 1][..], &first, &lead_out].concat();
    assert_eq!(rig.ask(&[0x43, 0, 0, 0, 0, 0, 0, 1, 0]), Ok(all.clone()));
    assert_eq!(rig.ask(&[0x43, 0, 0, 0, 0, 0, 0, 0, 4]), Ok(all[..4].to_vec()));
    assert_eq!(rig.ask(&[0x43, 0, 0, 0, 0, 0, 0xaa, 1, 0]), Ok([&[0, 10, 1, 1][..], &lead_out].concat()));
    let msf = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xaa, 0, 0, 0, 2, 16];
    assert_eq!(rig.ask(&[0x43, 2, 0, 0, 0, 0, 0, 1, 0]), Ok(msf.to_vec()));
    let sessions = Ok(vec![0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    assert_eq!(rig.ask(&[0x43, 0, 1, 0, 0, 0, 0, 1, 0]), sessions);
    assert_eq!(rig.ask(&[0x43, 0, 0, 0, 0, 0, 0, 1, 0, 0x40]), sessions, "as Windows asks");
    let raw = rig.ask(&[0x43, 0, 2, 0, 0, 0, 0, 1, 0]).unwrap();
    let point = |n: usize| raw[4 + 11 * n..][..11].to_vec();
    assert_eq!((raw[..4].to_vec(), raw.len()), (vec![0, 46, 1, 1], 48));
    assert_eq!(point(0), [1, 0x14, 0, 0xa0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(point(1), [1, 0x14, 0, 0xa1, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(point(2), [1, 0x14, 0, 0xa2, 0, 0, 0, 0, 0, 2, 16]);
    assert_eq!(point(3), [1, 0x14, 0, 1, 0, 0, 0, 0, 0, 2, 0]);
}

#[test]
fn answers_have_the_lengths_that_they_say() {
    let mut rig = rig();
    assert_eq!(rig.ask(&[0x25]), Ok(vec![0, 0, 0, 15, 0, 0, 8, 0]));
    let inquiry = rig.ask(&[0x12, 0, 0, 0, 255]).unwrap();
    assert_eq!(
        (&inquiry[..5], &inquiry[8..]),
        (&[5, 0x80, 0, 0x21, 31][..], &b"XVMM    CD-ROM          1.0 "[..])
    );
    for (packet, header, extra) in [
        (&[0x46, 0, 0, 0, 0, 0, 0, 1, 0][..], 4, 0),
        (&[0x46, 2, 0, 0x10, 0, 0, 0, 1, 0], 4, 12),
        (&[0x51, 0, 0, 0, 0, 0, 0, 1, 0], 2, 32),
        (&[0x5a, 0, 1, 0, 0, 0, 0, 1, 0], 2, 6 + 8),
        (&[0x5a, 0, 0x0e, 0, 0, 0, 0, 1, 0], 2, 6 + 16),
        (&[0x5a, 0, 0x2a, 0, 0, 0, 0, 1, 0], 2, 6 + 20),
        (&[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0], 2, 6 + 44),
        (&[0x4a, 1, 0, 0, 0x10, 0, 0, 1, 0], 2, 6),
    ] {
        let answer = rig.ask(packet).unwrap();
        let len = answer[..header].iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        assert_eq!(answer.len(), header + len, "{packet:x?}");
        if extra > 0 {
            let expected = if header == 4 { extra + 4 } else { extra };
            assert_eq!(len, expected, "{packet:x?}");
        }
    }
    assert_eq!(rig.ask(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]), Ok(vec![0, 0, 0, 0, 0, 1, 0, 0]));
    // The current profile: CD-ROM, and DVD-ROM for a disc that is longer.
    assert_eq!(rig.ask(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8]).unwrap()[6..], [0, 8]);
    rig.disc.sectors.store(4 * 360_001, SeqCst);
    assert_eq!(rig.ask(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8]).unwrap()[6..], [0, 0x10]);
}

#[test]
fn mode_select_changes_what_can_be_changed() {
    let mut rig = rig();
    let mut select = |pages: &[u8]| {
        let list = [&[0; 8][..], pages].concat();
        rig.packet(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8], 0, false);
        assert_eq!((rig.read(CD, 7), rig.read(CD, 2)), (0x48, 0));
        rig.put_data(CD, &list);
        let ok = rig.read(CD, 7) & 1 == 0;
        (ok, rig.ask(&[0x5a, 0, 1, 0, 0, 0, 0, 1, 0]).unwrap()[10..12].to_vec())
    };
    assert_eq!(select(&[1, 6, 7, 9, 0, 0, 0, 0]), (true, vec![7, 9]));
    for bad in [&[1, 6, 1, 1][..], &[1, 4, 1, 1, 0, 0], &[0x2a, 2, 0, 0], &[1, 6, 1, 1, 0, 0, 0, 0, 1, 0xff]]
    {
        assert_eq!(select(bad), (false, vec![7, 9]), "{bad:x?}");
    }
}

#[test]
fn the_tray_is_opened_locked_and_closed() {
    let mut rig = rig();
    let event = |rig: &mut Rig| rig.ask(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]).unwrap()[4..6].to_vec();
    assert_eq!(event(&mut rig), [0, 2]);
    rig.ask(&[0x1e, 0, 0, 0, 1]).unwrap();
    assert_eq!((rig.ask(&[0x1b, 0, 0, 0, 2]), rig.sense()), (Err(5), (5, 0x53, 2)));
    assert_eq!(rig.ide.change_medium(DRIVE, None, false).err(), Some(ChangeError::Locked));
    assert_eq!(event(&mut rig), [1, 2], "the button was pressed");
    rig.ask(&[0x1e]).unwrap();
    rig.ask(&[0x1b, 0, 0, 0, 2]).unwrap();
    assert_eq!(rig.ide.tray(DRIVE).map(|tray| (tray.open, tray.disc)), Some((true, true)));
    assert_eq!((rig.ask(&[0]), rig.sense()), (Err(2), (2, 0x3a, 2)));
    assert_eq!(event(&mut rig), [3, 1]);
    rig.ask(&[0x1b, 0, 0, 0, 3]).unwrap();
    assert_eq!(event(&mut rig), [2, 2]);
    assert_eq!((rig.ask(&[0]), rig.sense(), rig.ask(&[0])), (Err(6), (6, 0x28, 0), Ok(vec![])));
    assert_eq!(rig.ide.tray(Place::of_hd(0).unwrap()), None);
}

#[test]
fn the_host_changes_the_disc() {
    let mut rig = rig();
    assert!(rig.ide.change_medium(DRIVE, None, false).is_ok());
    assert_eq!(rig.ask(&[0x25]), Err(2));
    let small: Arc<Manual> = Manual::new(8, 8);
    assert!(rig.ide.change_medium(DRIVE, Some(small), false).is_ok());
    assert_eq!((rig.ask(&[0x25]), rig.sense()), (Err(6), (6, 0x28, 0)));
    assert_eq!(rig.ask(&[0x25]), Ok(vec![0, 0, 0, 1, 0, 0, 8, 0]));
    // By force, while it is read: the request ends, and the old disc with it.
    rig.ask(&[0x1e, 0, 0, 0, 1]).unwrap();
    let next: Arc<Manual> = Manual::new(16, 16);
    assert!(rig.ide.change_medium(DRIVE, Some(next), true).is_ok());
    assert_eq!(rig.ide.change_medium(Place::of_hd(0).unwrap(), None, true).err(), Some(ChangeError::NoDrive));
    assert_eq!(rig.ide.change_medium(Place::of_hd(3).unwrap(), None, true).err(), Some(ChangeError::NoDrive));
}

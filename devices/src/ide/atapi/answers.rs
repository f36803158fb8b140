//! What a drive says of itself: INQUIRY, GET CONFIGURATION, events, disc information, mechanism.

use super::{Cdb, Event, Outcome, Reply, Sense, cut};
use crate::ide::drive::Drive;

/// Profiles (MMC-3, table 81).
const CD_ROM: u16 = 0x0008;
const DVD_ROM: u16 = 0x0010;
/// Blocks of the longest CD: 80 minutes. What is longer is a DVD.
const LONGEST_CD: u64 = 80 * 60 * 75;

/// `len` characters, with spaces behind.
fn text(text: &str, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.bytes().filter(|byte| (0x20..0x7f).contains(byte)).take(len).collect();
    bytes.resize(len, b' ');
    bytes
}

impl Drive {
    /// Standard data (SPC-2, 7.3.2). Vendor and product are the words of the model.
    pub(super) fn inquiry(&self, cdb: &Cdb) -> Outcome {
        // There are no pages of vital product data.
        if cdb.byte(1) & 3 != 0 || cdb.byte(2) != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let model = &self.identity.model;
        let (vendor, product) = model.split_once(' ').unwrap_or(("", model));
        // CD-ROM, removable, no standard claimed but ATAPI's response format.
        let mut bytes = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
        bytes.extend(text(vendor, 8));
        bytes.extend(text(product, 16));
        bytes.extend(text(&self.identity.firmware, 4));
        Ok(Reply::Bytes(cut(bytes, cdb.u16(3).into())))
    }

    fn profile(&self) -> u16 {
        match self.blocks() {
            Ok(blocks) if blocks > LONGEST_CD => DVD_ROM,
            Ok(_) => CD_ROM,
            Err(_) => 0,
        }
    }

    /// Features (MMC-3, 5.4): all, those that are current, or one.
    pub(super) fn get_configuration(&self, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
        let profile = self.profile();
        let current = |current: bool, version: u8| version << 2 | u8::from(current);
        let [cd, dvd] = [CD_ROM, DVD_ROM].map(|known| (known.to_be_bytes(), u8::from(profile == known)));
        // Code, version with "persistent" and "current", and data.
        let features: [(u16, u8, Vec<u8>); 8] = [
            // Profiles.
            (0x0000, 0x03, vec![dvd.0[0], dvd.0[1], dvd.1, 0, cd.0[0], cd.0[1], cd.1, 0]),
            // Core: ATAPI.
            (0x0001, 0x03, vec![0, 0, 0, 2]),
            // Removable medium: a tray that opens, and that the guest can lock.
            (0x0003, 0x03, vec![0x29, 0, 0, 0]),
            // Random readable: blocks of 2048 bytes, one at a time.
            (0x0010, current(profile != 0, 0), vec![0, 0, 8, 0, 0, 1, 0, 0]),
            // CD read.
            (0x001e, current(profile == CD_ROM, 0), vec![]),
            // DVD read.
            (0x001f, current(profile == DVD_ROM, 0), vec![]),
            // Power management.
            (0x0100, 0x03, vec![]),
            // Timeout.
            (0x0105, 0x03, vec![]),
        ];
        let (wanted, first) = (cdb.byte(1) & 3, cdb.u16(2));
        let mut rest = vec![0, 0];
        rest.extend(profile.to_be_bytes());
        for (code, flags, data) in features {
            let asked = match wanted {
                0 => code >= first,
                1 => code >= first && flags & 1 != 0,
                2 => code == first,
                _ => return Err(Sense::INVALID_FIELD),
            };
            if asked {
                rest.extend(code.to_be_bytes());
                rest.extend([flags, u8::try_from(data.len()).unwrap_or(0)]);
                rest.extend(data);
            }
        }
        let mut bytes = u32::try_from(rest.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        bytes.extend(rest);
        Ok(bytes)
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-3, 5.5), polled: of the medium.
    pub(super) fn event_status(&mut self, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
        const MEDIA: u8 = 4;
        if cdb.byte(1) & 1 == 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let supported = 1 << MEDIA;
        if cdb.byte(4) & supported == 0 {
            // No event of the classes that were asked for.
            return Ok(vec![0, 2, 0x80, supported]);
        }
        // What does not fit would be lost.
        let event = if cdb.u16(7) >= 8 { std::mem::take(&mut self.atapi.event) } else { Event::None };
        let present = u8::from(self.blocks().is_ok()) << 1;
        Ok(vec![0, 6, MEDIA, supported, event as u8, present | u8::from(self.atapi.tray_open), 0, 0])
    }

    /// READ DISC INFORMATION: a complete disc with one session of one track.
    pub(super) fn disc_information(&self, _: &Cdb) -> Result<Vec<u8>, Sense> {
        self.blocks()?;
        let mut bytes = vec![0, 32, 0x0e, 1, 1, 1, 1, 0x20, 0, 0, 0, 0, 0, 0, 0, 0];
        // Where the last session begins, and where one could begin: nowhere.
        bytes.extend([0xff; 8]);
        bytes.resize(34, 0);
        Ok(bytes)
    }

    /// MECHANISM STATUS: no changer. Bit 4 of the second byte: the door is open.
    pub(super) fn mechanism_status(&self) -> Vec<u8> {
        vec![0, u8::from(self.atapi.tray_open) << 4, 0, 0, 0, 1, 0, 0]
    }
}

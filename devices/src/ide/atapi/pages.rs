//! Mode pages (MMC-3, 6.3): error recovery, audio control, capabilities.

use super::{Cdb, Sense};
use crate::ide::drive::Drive;

/// kB/s of a drive with 48-fold speed.
const SPEED: u16 = 48 * 176;
/// Bytes of the header of MODE SENSE(10) and MODE SELECT(10).
const HEADER: usize = 8;

/// What MODE SELECT changes.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Error recovery parameters and read retry count of page 0x01.
    recovery: [u8; 2],
    /// Ports of page 0x0e: channel and volume of each.
    audio: [u8; 8],
}

impl Default for Settings {
    fn default() -> Self {
        Self { recovery: [0, 5], audio: [1, 0xff, 2, 0xff, 0, 0, 0, 0] }
    }
}

impl Settings {
    fn recovery_page([parameters, retries]: [u8; 2]) -> Vec<u8> {
        vec![0x01, 6, parameters, retries, 0, 0, 0, 0]
    }

    fn audio_page(first: u8, audio: [u8; 8]) -> Vec<u8> {
        let mut page = vec![0x0e, 14, first, 0, 0, 0, 0, 0];
        page.extend(audio);
        page
    }

    /// MODE SELECT: all pages are good, or none is taken.
    pub(super) fn select(&mut self, bytes: &[u8]) -> Result<(), Sense> {
        let header = bytes.get(..HEADER).ok_or(Sense::LIST_LENGTH)?;
        let descriptors = header.last_chunk::<2>().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
        let mut rest = bytes.get(HEADER + descriptors..).ok_or(Sense::LIST_LENGTH)?;
        let mut changed = self.clone();
        while let Some((&[code, len], tail)) = rest.split_first_chunk::<2>() {
            let (page, next) = tail.split_at_checked(len.into()).ok_or(Sense::LIST_LENGTH)?;
            match (code & 0x3f, page) {
                (0x01, [parameters, retries, ..]) if page.len() == 6 => {
                    changed.recovery = [*parameters, *retries];
                }
                (0x0e, _) if page.len() == 14 => {
                    changed.audio = *page.last_chunk().ok_or(Sense::INVALID_PARAMETER)?;
                }
                _ => return Err(Sense::INVALID_PARAMETER),
            }
            rest = next;
        }
        if !rest.is_empty() {
            return Err(Sense::LIST_LENGTH);
        }
        *self = changed;
        Ok(())
    }
}

impl Drive {
    fn capabilities_page(&self) -> Vec<u8> {
        let mut page = vec![
            0x2a,
            18, // CD-R, CD-RW and method 2 are read; nothing is written.
            0x07,
            0x00, // Mode 2 form 1 and 2, several sessions.
            0x70,
            0x00, // A tray that the guest can lock and open; bit 1: it is locked.
            0x29 | u8::from(self.atapi.locked) << 1,
            0x00,
        ];
        page.extend(SPEED.to_be_bytes());
        // No volume levels; a buffer of 512 kB; the speed now.
        page.extend([0, 0, 2, 0]);
        page.extend(SPEED.to_be_bytes());
        page.extend([0; 4]);
        page
    }

    /// MODE SENSE(10).
    pub(super) fn mode_sense(&self, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
        let (code, control) = (cdb.byte(2) & 0x3f, cdb.byte(2) >> 6);
        let initial = Settings::default();
        let now = &self.atapi.pages;
        let (recovery, audio) = match control {
            0 => (Settings::recovery_page(now.recovery), Settings::audio_page(4, now.audio)),
            1 => (Settings::recovery_page([0xff; 2]), Settings::audio_page(0, [0xff; 8])),
            2 => (Settings::recovery_page(initial.recovery), Settings::audio_page(4, initial.audio)),
            _ => return Err(Sense::SAVING),
        };
        let mut capabilities = self.capabilities_page();
        if control == 1 {
            capabilities.iter_mut().skip(2).for_each(|byte| *byte = 0);
        }
        let pages = match code {
            0x01 => recovery,
            0x0e => audio,
            0x2a => capabilities,
            0x3f => [recovery, audio, capabilities].concat(),
            _ => return Err(Sense::INVALID_FIELD),
        };
        let len = u16::try_from(HEADER - 2 + pages.len()).unwrap_or(u16::MAX);
        // Medium type: data disc of 120 mm, none, or tray open.
        let medium = match self.blocks() {
            Ok(_) => 0x01,
            Err(_) if self.atapi.tray_open => 0x71,
            Err(_) => 0x70,
        };
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend([medium, 0, 0, 0, 0, 0]);
        bytes.extend(pages);
        Ok(bytes)
    }
}

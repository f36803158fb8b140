//! A write load that says what must survive, and the check of what did.
//!
//! In the guest, numbered records are written to places that follow from their numbers. After each batch the disk
//! is flushed, and the last number is printed: from then on the batch is durable. When the power fails (xvmm is
//! killed), each place must hold the last durable record that went there, or a later one, sector by sector.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use crate::{Result, check, fail};

/// Bytes of a record.
const RECORD: usize = 16 << 10;
const SECTOR: usize = 512;
/// Records between two flushes.
const BATCH: u64 = 16;
/// The records are in the first part of the disk.
const PLACES: u64 = 1024;
/// Behind them, pieces of this size are written and discarded, for the metadata of images.
const PIECE: u64 = 128 << 10;
const PIECES: u64 = 64;
/// Bytes that are written to a piece.
const JUNK: usize = 64 << 10;
/// Bytes of a disk for all this.
pub const DISK: u64 = PLACES * RECORD as u64 + PIECES * PIECE;
/// What is printed in front of a durable number.
pub const DURABLE: &str = "@@DURABLE ";

const MAGIC: u64 = 0x6472_6f63_6572_2e31;
const BLKDISCARD: libc::c_ulong = 0x1277;

/// `records DISK FIRST`: writes records from the number FIRST on, for ever.
pub fn load(words: &[String]) -> Result<ExitCode> {
    let [disk, first] = words else {
        return fail!("{}", crate::USAGE);
    };
    let disk = File::options().read(true).write(true).open(disk)?;
    let mut number: u64 = first.parse()?;
    loop {
        for _ in 0..BATCH {
            disk.write_all_at(&record(number), place(number) * RECORD as u64)?;
            number += 1;
        }
        let piece = |choice: u64| (PLACES * RECORD as u64) + mix(choice) % PIECES * PIECE;
        disk.write_all_at(&[0x5a; JUNK], piece(number))?;
        let range = [piece(number + 1), PIECE];
        // SAFETY: the ioctl reads two numbers, which live until it returns. That it fails where the disk cannot
        // discard does not matter here.
        unsafe { libc::ioctl(disk.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        disk.sync_data()?;
        println!("{DURABLE}{}", number - 1);
        std::io::stdout().flush()?;
    }
}

/// One run of the load: the records from `first` to `last` are durable.
pub struct Run {
    /// Its first number.
    pub first: u64,
    /// The last number that was printed; `None`: it did not come so far.
    pub last: Option<u64>,
}

/// Fails if the disk in this file lacks a durable record of the runs; returns the number of places with one.
pub fn verify(disk: &Path, runs: &[Run]) -> Result<u64> {
    let mut durable = vec![None; usize::try_from(PLACES)?];
    for run in runs {
        for number in run.last.into_iter().flat_map(|last| run.first..=last) {
            if let Some(place) = durable.get_mut(usize::try_from(place(number))?) {
                *place = Some(number);
            }
        }
    }
    let file = File::open(disk)?;
    let mut bytes = vec![0; RECORD];
    let mut found = 0;
    for (place, wanted) in (0..).zip(durable) {
        file.read_exact_at(&mut bytes, place * RECORD as u64)?;
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            verify_sector(sector, place, index, wanted)
                .map_err(|error| format!("place {place}, sector {index}: {error}"))?;
        }
        found += u64::from(wanted.is_some());
    }
    Ok(found)
}

/// A sector must be of the wanted record or of a later one of its place.
fn verify_sector(sector: &[u8], at: u64, index: usize, wanted: Option<u64>) -> Result<()> {
    if sector.iter().all(|byte| *byte == 0) {
        check!(wanted.is_none(), "it is empty, but record {wanted:?} is durable");
        return Ok(());
    }
    let number = match sector.get(8..16).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) {
        Some(bytes) => u64::from_le_bytes(bytes),
        None => return fail!("it is too short"),
    };
    check!(sector == &sector_of(number, index)[..], "it is no sector of a record");
    check!(place(number) == at, "record {number} belongs to place {}", place(number));
    check!(
        wanted.is_none_or(|wanted| number >= wanted),
        "it is of record {number}, but {wanted:?} is durable"
    );
    Ok(())
}

fn record(number: u64) -> Vec<u8> {
    (0..RECORD / SECTOR).flat_map(|index| sector_of(number, index)).collect()
}

fn sector_of(number: u64, index: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let mut state = mix(number ^ (index as u64) << 48);
    for (word, value) in sector.chunks_mut(8).zip(0..) {
        let value = match value {
            0 => MAGIC,
            1 => number,
            _ => {
                state = mix(state);
                state
            }
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    sector
}

fn place(number: u64) -> u64 {
    mix(number) % PLACES
}

/// Spreads a number (the finaliser of splitmix64).
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_of_the_record_or_a_later_one_is_accepted() {
        let at = place(7);
        let later = (8..).find(|number| place(*number) == at).unwrap_or(0);
        assert!(verify_sector(&sector_of(7, 3), at, 3, Some(7)).is_ok());
        assert!(verify_sector(&sector_of(later, 3), at, 3, Some(7)).is_ok());
        assert!(verify_sector(&sector_of(7, 3), at, 3, None).is_ok());
        assert!(verify_sector(&[0; SECTOR], at, 3, None).is_ok());
    }

    #[test]
    fn lost_old_misplaced_and_damaged_sectors_are_found() {
        let at = place(7);
        let later = (8..).find(|number| place(*number) == at).unwrap_or(0);
        assert!(verify_sector(&[0; SECTOR], at, 3, Some(7)).is_err());
        assert!(verify_sector(&sector_of(7, 3), at, 3, Some(later)).is_err());
        assert!(verify_sector(&sector_of(7, 3), at + 1, 3, None).is_err());
        assert!(verify_sector(&sector_of(7, 3), at, 4, None).is_err());
        let mut damaged = sector_of(7, 3);
        damaged[100] ^= 1;
        assert!(verify_sector(&damaged, at, 3, Some(7)).is_err());
    }
}

//! Disks on real storage, in the nested host.

use std::time::Duration;

use super::Bench;
use crate::guest::Guest;
use crate::packages::run;
use crate::{Result, check, fail};

pub mod backends;
pub mod faults;
pub mod features;
mod host;
pub mod hotplug;
pub mod iscsi;
pub mod kills;

/// Time of one run of fio; generous, since processor and disk are emulated.
const FIO_LIMIT: Duration = Duration::from_secs(1200);

/// Bytes of the disks that fio writes.
const DISK: u64 = 16 << 20;

/// Writes half of a disk of [`DISK`] bytes in the guest (all of it in the full level) with requests of 512 bytes to
/// 1 MiB, four jobs at a time, each with up to four requests in flight, and reads it back. Each 512 bytes carry
/// their place and a checksum.
fn fio_verify(bench: &Bench, guest: &mut Guest, disk: &str, smallest: u32) -> Result<()> {
    let sizes = match smallest {
        512 => "512/25:4k/25:20k/20:64k/20:1m/10".to_owned(),
        _ => format!("{smallest}/40:20k/25:64k/25:1m/10"),
    };
    let jobs = 4;
    let part = DISK / jobs;
    let size = if bench.full { part } else { part / 2 };
    let command = format!(
        "fio --name=verify --filename=/dev/{disk} --direct=1 --ioengine=io_uring --iodepth=4 --thread \
         --numjobs={jobs} --size={size} --offset_increment={part} --rw=randwrite --bssplit={sizes} \
         --verify=crc32c --verify_interval={smallest} --verify_fatal=1 --do_verify=1 --end_fsync=1 \
         --group_reporting --minimal"
    );
    guest.sh_within(&command, FIO_LIMIT).map_err(|error| format!("fio on {disk}: {error}"))?;
    Ok(())
}

/// The sha256 sum of a disk as the guest reads it from the backend.
fn guest_checksum(guest: &mut Guest, disk: &str) -> Result<String> {
    let said = guest.sh(&format!("echo 3 > /proc/sys/vm/drop_caches; sha256sum < /dev/{disk}"))?;
    match said.split_whitespace().next() {
        Some(sum) if sum.len() == 64 => Ok(sum.to_owned()),
        _ => fail!("sha256sum says {said}"),
    }
}

/// The sum of a file or device of the host.
fn host_checksum(path: &std::path::Path) -> Result<String> {
    let said = run(std::process::Command::new("sha256sum").arg(path))?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Ends a guest and sees that nothing is left of it.
fn power_off(bench: &Bench, guest: &mut Guest) -> Result<()> {
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// What is wrong, by disk: one that fails hides no other.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn note(&mut self, what: &str, result: Result<()>) {
        match result {
            Ok(()) => println!("{what}: fine"),
            Err(error) => self.0.push(format!("{what}: {error}")),
        }
    }

    fn finish(self) -> Result<()> {
        check!(self.0.is_empty(), "{}", self.0.join("\n"));
        Ok(())
    }
}

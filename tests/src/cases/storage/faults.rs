//! Storage that fails: the guest gets an error or waits, and everything else goes on.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::host::{FileSystem, Loop, Mapped, ScsiDisk, allocated_kib, must_be_clean, qemu_img, wait_until};
use super::{Findings, power_off};
use crate::cases::{Bench, checksum};
use crate::guest::Guest;
use crate::packages::run;
use crate::{Result, check};

const MIB: u64 = 1 << 20;

/// Bad sectors, a disk that refuses writes for a while, one that is unplugged: errors for the guest on that disk,
/// and none on the other.
pub fn errors(bench: &Bench) -> Result<()> {
    let device = Loop::new(&bench.disk("a.img", 16 * MIB)?, &[])?;
    let whole = format!("0 32768 linear {} 0", device.path().display());
    let half_bad = format!("0 16384 linear {} 0\n16384 16384 error", device.path().display());
    // Up for no second, down for 100: reads are served, writes fail.
    let flaky = format!("0 32768 flakey {} 0 0 100 1 error_writes", device.path().display());
    let mapped = Mapped::new("xvmm-faulty", &half_bad)?;
    let unplugged = ScsiDisk::new(&["dev_size_mb=8", "delay=0"])?;
    let sound = bench.disk("sound.img", 8 * MIB)?;
    let mut guest = bench
        .guest()
        .disk(mapped.path().display())
        .disk(sound.display())
        .disk(unplugged.path().display())
        .start()?;
    let mut findings = Findings::default();

    findings.note("beside bad sectors", works(&mut guest, "xvda", 0));
    findings.note("bad sectors", fails(&mut guest, "xvda", 8));
    findings.note("reading bad sectors", fails_to_read(&mut guest, "xvda", 8));
    mapped.replace(&whole)?;
    findings.note("mended sectors", works(&mut guest, "xvda", 8));

    mapped.replace(&flaky)?;
    findings.note("a disk that refuses writes", fails(&mut guest, "xvda", 0));
    guest.sh("dd if=/dev/xvda of=/dev/null bs=64k count=16 iflag=direct")?;
    mapped.replace(&whole)?;
    findings.note("a disk that takes writes again", works(&mut guest, "xvda", 0));

    findings.note("before it is unplugged", works(&mut guest, "xvdc", 0));
    unplugged.unplug()?;
    findings.note("an unplugged disk", fails(&mut guest, "xvdc", 0));
    findings.note("the disk beside them", works(&mut guest, "xvdb", 0));
    power_off(bench, &mut guest)?;
    findings.finish()
}

/// 1 MiB at `mib` is written and read back.
pub fn works(guest: &mut Guest, disk: &str, mib: u64) -> Result<()> {
    guest.sh(&format!(
        "head -c 1048576 /dev/urandom > /tmp/piece && dd if=/tmp/piece of=/dev/{disk} bs=64k seek={} oflag=direct \
         && dd if=/dev/{disk} bs=64k skip={0} count=16 iflag=direct | cmp - /tmp/piece",
        mib * 16
    ))?;
    Ok(())
}

/// A write of 64 KiB at `mib` ends with an error.
pub fn fails(guest: &mut Guest, disk: &str, mib: u64) -> Result<()> {
    let (status, said) = guest
        .status(&format!("dd if=/dev/zero of=/dev/{disk} bs=64k count=1 seek={} oflag=direct", mib * 16))?;
    check!(status != 0, "a write succeeded: {said}");
    Ok(())
}

fn fails_to_read(guest: &mut Guest, disk: &str, mib: u64) -> Result<()> {
    let (status, said) = guest
        .status(&format!("dd if=/dev/{disk} of=/dev/null bs=64k count=1 skip={} iflag=direct", mib * 16))?;
    check!(status != 0, "a read succeeded: {said}");
    Ok(())
}

/// A file system of the host that is full: errors by default, on raw files and qcow2; with room again, writes
/// succeed and what was written before is there.
pub fn full(bench: &Bench) -> Result<()> {
    let folder = FileSystem::new(bench, "small", 32 * MIB)?;
    let raw = folder.sparse("raw.img", 24 * MIB)?;
    let qcow2 = folder.path("image.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &qcow2.display().to_string(), "24M"])?;
    let sound = bench.disk("sound.img", 8 * MIB)?;
    let mut guest = bench
        .guest()
        .disk(raw.display())
        .disk(format!("format=qcow2,vdev=xvdb,target={}", qcow2.display()))
        .disk(format!("{},vdev=xvdc", sound.display()))
        .start()?;
    let mut findings = Findings::default();
    guest.sh("head -c 2097152 /dev/urandom > /tmp/first && head -c 16777216 /dev/urandom > /tmp/data")?;
    for disk in ["xvda", "xvdb"] {
        guest.sh(&format!("dd if=/tmp/first of=/dev/{disk} bs=1M conv=fsync"))?;
    }
    let filler = Filler::new(&folder, 2 * MIB)?;
    for disk in ["xvda", "xvdb"] {
        let (status, said) = guest.status(&write(disk))?;
        findings
            .note(disk, if status == 0 { Err(format!("16 MiB found room: {said}").into()) } else { Ok(()) });
        findings.note(&format!("{disk}: what was there"), same(&mut guest, disk, "/tmp/first", 0));
    }
    findings.note("the disk beside them", works(&mut guest, "xvdc", 0));
    filler.remove()?;
    // There is room for one of them.
    guest.sh("blkdiscard /dev/xvda")?;
    guest.sh(&write("xvdb"))?;
    findings.note("xvdb: written when there was room", same(&mut guest, "xvdb", "/tmp/data", 2));
    findings.note("xvdb: what was there first", same(&mut guest, "xvdb", "/tmp/first", 0));
    power_off(bench, &mut guest)?;
    findings.note("qemu-img check", must_be_clean(&qcow2));
    findings.finish()
}

/// Writes 16 MiB from 2 MiB on.
fn write(disk: &str) -> String {
    format!("dd if=/tmp/data of=/dev/{disk} bs=256k seek=8 oflag=direct conv=fsync")
}

/// What is on the disk at `mib` is what is in a file of the guest.
fn same(guest: &mut Guest, disk: &str, file: &str, mib: u64) -> Result<()> {
    guest.sh(&format!(
        "echo 3 > /proc/sys/vm/drop_caches; \
         dd if=/dev/{disk} bs=1M skip={mib} count=$(($(stat -c %s {file}) / 1048576)) 2>/dev/null | cmp - {file}"
    ))?;
    Ok(())
}

/// A file that takes all but a little of a file system.
struct Filler(PathBuf);

impl Filler {
    fn new(folder: &FileSystem, room: u64) -> Result<Filler> {
        let path = folder.path("filler");
        // It ends by an error: there is no more room.
        let _ =
            run(Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", path.display())));
        run(&mut Command::new("sync"))?;
        let full = fs::metadata(&path)?.len();
        fs::File::options().write(true).open(&path)?.set_len(full.saturating_sub(room))?;
        run(&mut Command::new("sync"))?;
        check!(allocated_kib(&path)? > 0, "the filler takes no room");
        Ok(Filler(path))
    }

    fn remove(self) -> Result<()> {
        fs::remove_file(&self.0)?;
        run(&mut Command::new("sync"))?;
        Ok(())
    }
}

/// With `enospc=pause` a write that finds no room waits until there is some; the guest sees no error.
pub fn full_pause(bench: &Bench) -> Result<()> {
    let folder = FileSystem::new(bench, "small", 32 * MIB)?;
    let raw = folder.sparse("raw.img", 24 * MIB)?;
    let sound = bench.disk("sound.img", 8 * MIB)?;
    let mut guest = bench
        .guest()
        .disk(format!("format=raw,vdev=xvda,enospc=pause,target={}", raw.display()))
        .disk(format!("{},vdev=xvdb", sound.display()))
        .start()?;
    guest.sh("head -c 16777216 /dev/urandom > /tmp/data")?;
    let filler = Filler::new(&folder, 2 * MIB)?;
    let number = guest.send(&write("xvda"))?;
    // All the room there was is taken, and then nothing happens.
    wait_until("the file system is full", 300, || Ok(allocated_kib(&raw)? > 1024))?;
    let early = guest.answer_within(number, "dd", Duration::from_secs(10));
    check!(early.is_err(), "dd has ended on a full disk: {early:?}");
    filler.remove()?;
    let (status, said) = guest.answer(number, "dd")?;
    check!(status == 0, "dd has failed: {said}");
    same(&mut guest, "xvda", "/tmp/data", 2)?;
    works(&mut guest, "xvdb", 0)?;
    let sum = guest.sh("sha256sum < /tmp/data")?;
    power_off(bench, &mut guest)?;
    let tail = bench.folder.join("tail");
    run(Command::new("dd")
        .args(["bs=1M", "skip=2"])
        .args([format!("if={}", raw.display()), format!("of={}", tail.display())]))?;
    check!(sum.starts_with(&checksum(&tail, 16 * MIB)?), "the image holds something else");
    Ok(())
}

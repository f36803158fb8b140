//! iSCSI targets that go away and come back, passwords, and sessions of others.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::faults::{fails, works};
use super::host::{Export, Iscsi, PORTAL, allocated_kib, wait_until};
use super::{Findings, power_off};
use crate::cases::Bench;
use crate::guest::Guest;
use crate::{Result, check};

const OURS: &str = "iqn.2026-01.org.example:ours";
const THEIRS: &str = "iqn.2026-01.org.example:theirs";

/// A target is stopped in mid-transfer: the guest waits, and loses nothing when the target is back in time; it
/// gets errors when the time is over. A session that was there before stays.
pub fn iscsi(bench: &Bench) -> Result<()> {
    let ours = bench.disk("ours.img", 24 << 20)?;
    let theirs = bench.disk("theirs.img", 8 << 20)?;
    let mut host = Iscsi::start(
        bench,
        &[
            Export { iqn: OURS, file: ours.clone(), lun: 3, chap: Some(("xvmm", "secretsecret12")) },
            Export { iqn: THEIRS, file: theirs, lun: 1, chap: None },
        ],
    )?;
    host.log_in(THEIRS)?;
    let secret = bench.folder.join("chap");
    fs::write(&secret, "xvmm\nsecretsecret12\n")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let plain = bench.disk("plain.img", 8 << 20)?;
    let mut guest = bench
        .guest()
        .disk(plain.display())
        .disk(format!(
            "script=block-iscsi,vdev=xvdb,chap={},target=iqn={OURS},portal={PORTAL}",
            secret.display()
        ))
        .disk(format!("script=block-iscsi,vdev=xvdc,target=iqn={THEIRS},portal={PORTAL},lun=1"))
        .start()?;
    check!(Iscsi::sessions()? == [OURS, THEIRS], "the sessions are {:?}", Iscsi::sessions()?);

    let mut findings = Findings::default();
    findings.note("a disk of a session of somebody else", works(&mut guest, "xvdc", 0));
    findings.note("a target that comes back", back_in_time(&mut host, &mut guest, &ours));
    findings.note("a target that stays away", stays_away(&mut host, &mut guest));
    power_off(bench, &mut guest)?;
    check!(Iscsi::sessions()? == [THEIRS], "after the end the sessions are {:?}", Iscsi::sessions()?);
    findings.finish()
}

fn back_in_time(host: &mut Iscsi, guest: &mut Guest, file: &std::path::Path) -> Result<()> {
    let write = "dd if=/tmp/data of=/dev/xvdb bs=16k oflag=direct conv=fsync";
    guest.sh("head -c 25165824 /dev/urandom > /tmp/data")?;
    let number = guest.send(write)?;
    wait_until("the transfer is under way", 300, || Ok(allocated_kib(file)? > 1024))?;
    host.kill_target()?;
    let early = guest.answer_within(number, write, Duration::from_secs(5));
    check!(early.is_err(), "the transfer has ended without a target: {early:?}");
    host.start_target()?;
    let (status, said) = guest.answer(number, write)?;
    check!(status == 0, "the transfer has failed: {said}");
    guest.sh("echo 3 > /proc/sys/vm/drop_caches; cmp /dev/xvdb /tmp/data")?;
    Ok(())
}

fn stays_away(host: &mut Iscsi, guest: &mut Guest) -> Result<()> {
    Iscsi::give_up_after(OURS, 3)?;
    host.kill_target()?;
    fails(guest, "xvdb", 0)?;
    works(guest, "xvda", 0)?;
    host.start_target()?;
    wait_until("the session is there again", 300, || Iscsi::logged_in(OURS))?;
    works(guest, "xvdb", 0)
}

//! Disks that come and go while the guest runs.

use std::path::Path;

use super::{Bench, checksum};
use crate::guest::{Guest, xvmm};
use crate::{Result, check};

/// Exit statuses of xvmm.
const DISK_IN_USE: i32 = 25;
const SAME_VDEV: i32 = 26;
const NO_SUCH_DEVICE: i32 = 54;

/// What a guest does to a disk for ever, in two processes.
const LOAD: &str = "for i in 1 2; do (while dd if=/dev/zero of=/dev/xvdb bs=64k count=64 oflag=direct conv=notrunc; do :; done) \
                    > /dev/null 2>&1 & done; sleep 1";

/// A command of xvmm that is refused with this status.
fn refused(bench: &Bench, words: &[&str], status: i32) -> Result<String> {
    let output = xvmm(&bench.folder).args(words).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check!(output.status.code() == Some(status), "{words:?} ended with {:?}: {said}", output.status);
    Ok(said)
}

fn wait_for(guest: &mut Guest, condition: &str) -> Result<()> {
    guest.sh(&format!(
        "i=0; until {condition}; do [ $i -lt 150 ] || exit 1; i=$((i+1)); usleep 100000; done"
    ))?;
    Ok(())
}

/// The disk `vdev` comes, and is the image.
fn attach(bench: &Bench, guest: &mut Guest, image: &Path, words: &str, vdev: &str) -> Result<()> {
    let name = bench.xvmm(&["block-attach", "hot", &format!("{}{words}", image.display())])?;
    check!(name.trim() == vdev, "the disk is called {name}");
    wait_for(guest, &format!("[ -b /dev/{vdev} ]"))?;
    if words.contains("ro") {
        return Ok(());
    }
    guest.sh(&format!(
        "head -c 65536 /dev/urandom > /tmp/data && dd if=/tmp/data of=/dev/{vdev} bs=64k conv=fsync"
    ))?;
    let sum = guest.sh("sha256sum < /tmp/data")?;
    check!(sum.starts_with(&checksum(image, 65536)?), "after sync the image holds something else");
    Ok(())
}

/// The disk is gone in the guest and from the list, and the guest's own disk works. That the image is free shows
/// when it comes again.
fn is_gone(bench: &Bench, guest: &mut Guest, vdev: &str) -> Result<()> {
    wait_for(guest, &format!("[ ! -e /sys/block/{vdev} ]"))?;
    let list = bench.xvmm(&["block-list", "hot"])?;
    check!(!list.contains(vdev), "{vdev} is still in the list: {list}");
    guest.sh("dd if=/dev/urandom of=/dev/xvda bs=4k count=16 conv=fsync")?;
    Ok(())
}

/// Disks come and go: in good order, under load, while they are throttled, mounted, and by force.
pub fn hotplug(bench: &Bench) -> Result<()> {
    let first = bench.disk("a.img", 4 << 20)?;
    let image = bench.disk("b.img", 16 << 20)?;
    let mut guest = bench.guest().name("hot").disk(first.display()).start()?;

    attach(bench, &mut guest, &image, "", "xvdb")?;
    check!(guest.sh("cat /sys/block/xvdb/size")? == "32768", "the disk has another size");
    let list = bench.xvmm(&["block-list", "hot"])?;
    let line = list.lines().find(|line| line.starts_with("xvdb")).unwrap_or_default().to_owned();
    check!(line.contains("Connected") && line.contains("b.img"), "the list has: {list}");
    let spec = image.display().to_string();
    refused(bench, &["block-attach", "hot", &spec], DISK_IN_USE)?;
    let third = bench.disk("c.img", 1 << 20)?.display().to_string();
    refused(bench, &["block-attach", "hot", &format!("{third},vdev=xvdb")], SAME_VDEV)?;
    refused(bench, &["block-detach", "hot", "xvdc"], NO_SUCH_DEVICE)?;
    bench.xvmm(&["block-detach", "hot", "xvdb"])?;
    is_gone(bench, &mut guest, "xvdb")?;

    for (what, words, detach) in [
        ("under load", "", &["block-detach", "hot", "xvdb"][..]),
        ("under load, by force", "", &["block-detach", "hot", "xvdb", "--force"]),
        ("under load, at once", "", &["block-detach", "hot", "xvdb", "--force", "--timeout", "0"]),
        ("throttled, at once", ",iops=20", &["block-detach", "hot", "xvdb", "--force", "--timeout", "0"]),
        ("throttled", ",iops=20", &["block-detach", "hot", "51728"]),
    ] {
        attach(bench, &mut guest, &image, words, "xvdb").map_err(|e| format!("{what}: {e}"))?;
        guest.sh(LOAD)?;
        bench.xvmm(detach).map_err(|e| format!("{what}: {e}"))?;
        is_gone(bench, &mut guest, "xvdb").map_err(|e| format!("{what}: {e}"))?;
        guest.sh("killall dd || true; wait")?;
    }

    attach(bench, &mut guest, &image, "", "xvdb")?;
    guest.sh("mke2fs /dev/xvdb && mount -t ext4 /dev/xvdb /mnt && cp /bin/busybox /mnt/")?;
    bench.xvmm(&["block-detach", "hot", "xvdb", "--force"])?;
    guest.sh("cp /bin/busybox /mnt/more && sync -f /mnt/more || true; umount /mnt || umount -l /mnt")?;
    is_gone(bench, &mut guest, "xvdb")?;

    // What came stays through a reboot, what went does not come back.
    attach(bench, &mut guest, &image, "", "xvdb")?;
    attach(bench, &mut guest, Path::new(&third), ",vdev=xvdf", "xvdf")?;
    bench.xvmm(&["block-detach", "hot", "xvdb"])?;
    guest.send("reboot -f")?;
    guest.wait_boot(2)?;
    let disks = guest.sh("ls /sys/block | grep xvd")?;
    check!(disks == "xvda\nxvdf", "after the reboot there are {}", disks.replace('\n', " "));
    let console = guest.console();
    check!(!console.contains("blocked for more than"), "a task of the guest hangs: {console}");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// Media come into a drive and go.
pub fn media(bench: &Bench) -> Result<()> {
    let first = bench.disk("a.img", 4 << 20)?;
    let mut guest = bench.guest().name("hot").disk(first.display()).disk(",,xvdd,cdrom").start()?;
    check!(guest.status("ls /sys/block/xvdd")?.0 != 0, "an empty drive is a disk");
    for (name, sectors) in [("one.iso", 2048_u64), ("two.iso", 4096)] {
        let medium = bench.disk(name, sectors * 512)?;
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(usize::try_from(sectors * 512)?, 0);
        std::fs::write(&medium, bytes)?;
        bench.xvmm(&["cd-insert", "hot", "xvdd", &medium.display().to_string()])?;
        wait_for(&mut guest, &format!("[ \"$(cat /sys/block/xvdd/size)\" = {sectors} ]"))?;
        check!(guest.sh("head -c 7 /dev/xvdd")? == name, "the drive has another medium");
        check!(guest.sh("cat /sys/block/xvdd/ro /sys/block/xvdd/removable")? == "1\n1", "it is no CD-ROM");
    }
    bench.xvmm(&["cd-eject", "hot", "xvdd"])?;
    wait_for(&mut guest, "[ ! -e /sys/block/xvdd ]")?;
    check!(bench.xvmm(&["block-list", "hot"])?.contains("(empty)"), "the drive is not in the list");
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

//! Disks: what the guest writes is what the image holds.

use super::{Bench, checksum};
use crate::{Result, check};

/// Data that the guest writes is in the image after a sync, and still there after the power-off.
pub fn disk(bench: &Bench) -> Result<()> {
    let mib: u64 = if bench.full { 64 } else { 16 };
    let image = bench.disk("a.img", (mib + 1) << 20)?;
    let mut guest = bench.guest().disk(image.display()).start()?;
    let sum = guest.sh(&format!(
        "head -c {} /dev/urandom > /tmp/data && sha256sum < /tmp/data && dd if=/tmp/data of=/dev/xvda bs=1M && sync",
        mib << 20
    ))?;
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
    check!(checksum(&image, mib << 20)? == sum, "after sync the image holds something else");
    let read = guest
        .sh(&format!("echo 3 > /proc/sys/vm/drop_caches; head -c {} /dev/xvda | sha256sum", mib << 20))?;
    check!(read.starts_with(&sum), "the guest reads back something else");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    check!(checksum(&image, mib << 20)? == sum, "after the power-off the image holds something else");
    bench.nothing_is_left()
}

/// Several disks have the names and sizes they were given; a read-only one refuses writes.
pub fn disks(bench: &Bench) -> Result<()> {
    let first = bench.disk("first.img", 4 << 20)?;
    let fixed = bench.disk("fixed.img", 8 << 20)?;
    let named = bench.disk("named.img", 3 << 20)?;
    let mut guest = bench
        .guest()
        .disk(first.display())
        .disk(format!("{},ro", fixed.display()))
        .disk(format!("path={},vdev=xvdf", named.display()))
        .start()?;
    let sizes = guest.sh("for d in xvda xvdb xvdf; do cat /sys/block/$d/size; done")?;
    check!(sizes == "8192\n16384\n6144", "the disks have {} sectors", sizes.replace('\n', ", "));
    check!(guest.sh("cat /sys/block/xvdb/ro")? == "1", "the guest does not know that xvdb is read-only");
    let (status, said) = guest.status("dd if=/dev/urandom of=/dev/xvdb bs=4k count=1 conv=fsync")?;
    check!(status != 0, "a write to the read-only disk succeeded: {said}");
    guest.sh("echo marked | dd of=/dev/xvdf bs=512 seek=6143 conv=sync,fsync")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    let zeros = checksum(&bench.disk("zeros.img", 8 << 20)?, 8 << 20)?;
    check!(checksum(&fixed, 8 << 20)? == zeros, "the read-only image was changed");
    let end = std::fs::read(&named)?;
    check!(
        end.get(6143 * 512..).is_some_and(|sector| sector.starts_with(b"marked")),
        "the last sector is not written"
    );
    Ok(())
}

/// A file system made in the guest survives a power-off, and a second guest reads it.
pub fn file_system(bench: &Bench) -> Result<()> {
    let image = bench.disk("fs.img", 32 << 20)?;
    let spec = bench.guest().disk(image.display());
    let mut guest = spec.start()?;
    guest.sh("mke2fs /dev/xvda && mount -t ext4 /dev/xvda /mnt && cp -r /bin /mnt/ && sha256sum /bin/busybox > /mnt/sum && umount /mnt")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    let mut guest = spec.start()?;
    guest.sh("mount -t ext4 -o ro /dev/xvda /mnt && cd /mnt && sed -i s,/bin,bin, /dev/null; sed s,/bin,/mnt/bin, sum > /tmp/sum && sha256sum -c /tmp/sum")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

/// A disk that the host grows is larger in the guest from the next request on.
pub fn resize(bench: &Bench) -> Result<()> {
    let image = bench.disk("a.img", 4 << 20)?;
    let mut guest = bench.guest().disk(image.display()).start()?;
    check!(guest.sh("cat /sys/block/xvda/size")? == "8192", "the disk has another size to begin with");
    std::fs::File::options().write(true).open(&image)?.set_len(8 << 20)?;
    guest.sh("dd if=/dev/xvda of=/dev/null bs=512 count=1 iflag=direct")?;
    let grown =
        "for i in $(seq 50); do [ $(cat /sys/block/xvda/size) = 16384 ] && break; usleep 100000; done";
    guest.sh(&format!("{grown}; [ $(cat /sys/block/xvda/size) = 16384 ]"))?;
    guest.sh("echo end | dd of=/dev/xvda bs=512 seek=16383 conv=sync,fsync")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    let bytes = std::fs::read(&image)?;
    check!(
        bytes.get(16383 * 512..).is_some_and(|s| s.starts_with(b"end")),
        "the new last sector is not written"
    );
    Ok(())
}

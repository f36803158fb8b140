//! Disks that come and go while the guest runs.

use super::faults::works;
use super::host::{allocated_kib, must_be_clean, qemu_img, wait_until};
use super::power_off;
use crate::cases::Bench;
use crate::guest::Guest;
use crate::{Result, check};

const NAME: &str = "plugged";

/// A disk is attached, used, and detached; another one is taken away by surprise in the middle of a write.
pub fn hotplug(bench: &Bench) -> Result<()> {
    let first = bench.disk("first.img", 8 << 20)?;
    let second = bench.disk("second.img", 8 << 20)?;
    let image = bench.folder.join("image.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &image.display().to_string(), "8M"])?;
    let mut guest =
        bench.guest().name(NAME).disk(first.display()).disk(",,xvdc,,cdrom").with_fio()?.start()?;

    bench.xvmm(&["block-attach", NAME, &format!("{},raw,xvdb,w", second.display())])?;
    appears(&mut guest, "xvdb")?;
    check!(guest.sh("cat /sys/block/xvdb/size")? == "16384", "the attached disk has another size");
    works(&mut guest, "xvdb", 0)?;
    let list = bench.xvmm(&["block-list", NAME])?;
    check!(list.contains("xvda") && list.contains("xvdb"), "xvmm block-list says {list}");
    let again = bench.xvmm(&["block-attach", NAME, &format!("{},raw,xvdc,w", second.display())]);
    check!(again.is_err(), "an image in use was attached once more");
    let taken = bench.xvmm(&["block-attach", NAME, &format!("{},raw,xvda,ro", image.display())]);
    check!(taken.is_err(), "a second xvda was attached");

    bench.xvmm(&["block-detach", NAME, "xvdb"])?;
    goes(&mut guest, "xvdb")?;
    // Its lock went with it.
    qemu_img(&["resize", "-q", "-f", "raw", &second.display().to_string(), "16M"])?;

    let spec = format!("format=qcow2,vdev=xvdb,target={}", image.display());
    bench.xvmm(&["block-attach", NAME, &spec])?;
    appears(&mut guest, "xvdb")?;
    let load = "fio --name=load --filename=/dev/xvdb --direct=1 --ioengine=io_uring --iodepth=4 --rw=randwrite \
                --bs=64k --time_based --runtime=600 --minimal";
    let number = guest.send(load)?;
    wait_until("the load is under way", 300, || Ok(allocated_kib(&image)? > 1024))?;
    bench.xvmm(&["block-detach", NAME, "xvdb", "--force"])?;
    let (status, said) = guest.answer(number, load)?;
    check!(status != 0, "fio has seen no error on the removed disk: {said}");
    works(&mut guest, "xvda", 0)?;
    let list = bench.xvmm(&["block-list", NAME])?;
    check!(!list.contains("xvdb"), "xvmm block-list still says {list}");
    must_be_clean(&image)?;

    let medium = bench.disk("medium.iso", 4 << 20)?;
    bench.xvmm(&["cd-insert", NAME, "xvdc", &medium.display().to_string()])?;
    appears(&mut guest, "xvdc")?;
    check!(
        guest.sh("cat /sys/block/xvdc/ro /sys/block/xvdc/size")? == "1\n8192",
        "the medium is another one"
    );
    bench.xvmm(&["cd-eject", NAME, "xvdc"])?;
    goes(&mut guest, "xvdc")?;
    power_off(bench, &mut guest)
}

fn appears(guest: &mut Guest, disk: &str) -> Result<()> {
    guest.sh(&format!(
        "for i in $(seq 100); do [ -b /dev/{disk} ] && break; usleep 100000; done; [ -b /dev/{disk} ]"
    ))?;
    Ok(())
}

fn goes(guest: &mut Guest, disk: &str) -> Result<()> {
    guest.sh(&format!("for i in $(seq 100); do [ -e /sys/block/{disk} ] || break; usleep 100000; done; [ ! -e /sys/block/{disk} ]"))?;
    Ok(())
}

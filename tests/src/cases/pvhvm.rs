//! PV drivers on a PC: Debian boots from an IDE disk, unplugs what is emulated, and goes on with Xen's devices.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::{Bench, checksum, net, tool_file};
use crate::guest::{Guest, Spec, material};
use crate::{Result, check, pvhvm_images};

/// What the kernel says of what it does.
const UNPLUGS: [&str; 2] = [
    "Netfront and the Xen platform PCI driver have been compiled for this kernel: unplug emulated NICs",
    "Blkfront and the Xen platform PCI driver have been compiled for this kernel: unplug emulated disks",
];
const BY_VECTOR: &str = "Xen HVM callback vector for event delivery is enabled";

/// A PC with a copy of the disk, with these words on its kernel's command line.
fn computer(bench: &Bench, words: &str) -> Result<(Spec, PathBuf)> {
    let disk = bench.folder.join("pc.img");
    fs::copy(material("pvhvm").join(format!("{}.img", bench.config.kernel)), &disk)?;
    pvhvm_images::add_words(&disk, words)?;
    Ok((Spec::pc(&bench.folder, bench.config.vcpus).disk(disk.display()), disk))
}

/// It runs from xvda1, whose emulated twin is gone.
fn runs_on_xvda(guest: &mut Guest) -> Result<()> {
    let messages = guest.sh("dmesg")?;
    for line in UNPLUGS.iter().chain(&["blkfront: xvda: "]) {
        check!(messages.contains(line), "the kernel does not say `{line}`: {}", xen_lines(&messages));
    }
    let mounts = guest.sh("cat /proc/mounts; cat /etc/issue")?;
    check!(mounts.contains("/dev/xvda1 / ext4"), "the root file system is elsewhere: {mounts}");
    check!(mounts.contains("the root file system of a PC"), "it is another one: {mounts}");
    let blocks = guest.sh("ls /sys/block")?;
    check!(!blocks.contains("sd"), "emulated disks are still there: {blocks}");
    Ok(())
}

fn xen_lines(messages: &str) -> String {
    let words = ["Xen", "xen", "xvd", "unplug"];
    let lines = messages.lines().filter(|line| words.iter().any(|word| line.contains(word)));
    lines.collect::<Vec<_>>().join(" | ")
}

/// Random data on xvdb: what the guest wrote is what the image has, and what the host wrote is what the guest reads.
fn transfers(bench: &Bench, guest: &mut Guest, image: &std::path::Path, mib: u64) -> Result<()> {
    let sum = guest.sh(&format!(
        "head -c {} /dev/urandom > /tmp/data && sha256sum < /tmp/data && dd if=/tmp/data of=/dev/xvdb bs=1M && sync",
        mib << 20
    ))?;
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
    check!(checksum(image, mib << 20)? == sum, "the image holds something else than the guest wrote");
    let back = guest
        .sh(&format!("echo 3 > /proc/sys/vm/drop_caches; head -c {} /dev/xvdb | sha256sum", mib << 20))?;
    check!(back.starts_with(&sum), "the guest reads back something else");
    net::address(guest, "eth0", "10.0.0.2/24")?;
    guest.sh("ping -c 3 -W 10 10.0.0.1")?;
    net::transfer(bench, guest, "10.0.0.1", mib << 20)
}

/// Disk and network by PV drivers with vectors; the CD-ROM drive stays; a reboot plugs everything in again; the toolstack's
/// request to power off is heard.
pub fn pvhvm(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let mib = if bench.full { 16 } else { 4 };
    let second = bench.disk("b.img", mib << 20)?;
    let (spec, _) = computer(bench, "")?;
    let cdrom = tool_file("grub.iso");
    let spec = spec.name("pc").disk(second.display()).net("xenbr0").argument("--cdrom", cdrom.display());
    let mut guest = spec.start()?;
    runs_on_xvda(&mut guest)?;
    let messages = guest.sh("dmesg")?;
    check!(messages.contains(BY_VECTOR), "events come another way: {}", xen_lines(&messages));
    let vcpus = guest.sh("nproc")?;
    check!(vcpus == bench.config.vcpus.to_string(), "{vcpus} processors are online");
    let device = "cd /sys/bus/pci/drivers/xen-platform-pci/0000:*/ && cat vendor device class revision subsystem_vendor subsystem_device";
    let device = guest.sh(device)?;
    let expected = "0x5853 0x0001 0xff8000 0x01 0x5853 0x0001";
    check!(
        device.split_whitespace().collect::<Vec<_>>().join(" ") == expected,
        "the platform device is {device}"
    );
    let cards = guest.sh("cat /sys/bus/pci/devices/*/class")?;
    check!(!cards.contains("0x0200"), "an emulated network card is still there: {cards}");
    transfers(bench, &mut guest, &second, mib)?;
    let length = fs::metadata(&cdrom)?.len();
    let read = guest.sh(&format!(
        "for i in $(seq 100); do [ -b /dev/sr0 ] && break; usleep 100000; done; head -c {length} /dev/sr0 | sha256sum"
    ))?;
    check!(read.starts_with(&checksum(&cdrom, length)?), "the CD-ROM reads as something else");
    guest.sh("echo written > /root/file && sync")?;

    let before = bench.domains()?;
    guest.send("reboot -f")?;
    guest.wait_boot(2)?;
    check!(bench.domains()? != before, "the domain is still {before:?}");
    runs_on_xvda(&mut guest)?;
    check!(guest.sh("cat /root/file")? == "written", "the file is gone after a reboot");
    // The kernel's PV driver listens, and nobody to the power button.
    bench.xvmm(&["shutdown", "pc"])?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// The same by an interrupt line of the platform device, as older drivers want it.
pub fn intx(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let mib = if bench.full { 4 } else { 1 };
    let second = bench.disk("b.img", mib << 20)?;
    let (spec, _) = computer(bench, "xen_no_vector_callback")?;
    let mut guest = spec.disk(second.display()).net("xenbr0").start()?;
    runs_on_xvda(&mut guest)?;
    let messages = guest.sh("dmesg")?;
    check!(!messages.contains(BY_VECTOR), "events come by a vector: {}", xen_lines(&messages));
    transfers(bench, &mut guest, &second, mib)?;
    let count = guest.sh("awk '/xen-platform-pci/ {print $2}' /proc/interrupts")?;
    check!(count.parse().is_ok_and(|count: u64| count > 10), "the line was raised {count} times");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// A kernel that is told not to unplug anything goes on with the IDE disk; its PV twin is left alone.
pub fn not_unplugged(bench: &Bench) -> Result<()> {
    let (spec, _) = computer(bench, "xen_emul_unplug=never")?;
    let mut guest = spec.start()?;
    let mounts = guest.sh("cat /proc/mounts; ls /sys/block")?;
    check!(mounts.contains("/dev/sda1 / ext4"), "the root file system is elsewhere: {mounts}");
    check!(!mounts.contains("xvda"), "the disk is there twice: {mounts}");
    guest.sh("head -c 1048576 /dev/urandom > /root/file && sync && echo 3 > /proc/sys/vm/drop_caches && sha256sum /root/file")?;
    guest.send("poweroff -f")?;
    guest.wait(Duration::from_secs(300))?;
    bench.nothing_is_left()
}

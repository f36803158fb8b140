//! Guests boot and see what they were given.

use std::time::Duration;

use super::{Bench, interfaces, tool_file};
use crate::formats::FORMATS;
use crate::guest::material;
use crate::{Result, check};

/// The kernel finds itself in a PVH guest of Xen, with all its processors.
pub fn boot(bench: &Bench) -> Result<()> {
    let mut guest = bench.guest().start()?;
    let messages = guest.sh("dmesg")?;
    check!(messages.contains("kernel on Xen PVH"), "no Xen PVH: {}", xen_lines(&messages));
    let vcpus = guest.sh("nproc")?;
    check!(vcpus == bench.config.vcpus.to_string(), "{vcpus} processors are online");
    check!(guest.sh("cat /sys/hypervisor/type")? == "xen", "the guest's hypervisor is not xen");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// 33 vCPUs: one more than have a place in the shared info page.
pub fn many_vcpus(bench: &Bench) -> Result<()> {
    let mut guest = bench.guest().vcpus(33).memory("1G").words("lpj=1000000").start()?;
    let vcpus = guest.sh("nproc")?;
    check!(vcpus == "33", "{vcpus} of 33 processors are online");
    // The last ones do work: each runs a process that is bound to it.
    check!(
        guest.sh("taskset -c 32 cat /proc/self/stat | cut -d' ' -f39")? == "32",
        "processor 32 does not work"
    );
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

/// 6 GiB: RAM on both sides of the hole below 4 GiB.
pub fn much_memory(bench: &Bench) -> Result<()> {
    let mut guest = bench.guest().memory("6G").start()?;
    let total: u64 = guest.sh("awk '/^MemTotal:/ {print $2}' /proc/meminfo")?.parse()?;
    check!(total > 5_800_000, "the guest has only {total} KiB");
    let high = guest.sh("awk '/System RAM/ && /^1[0-9a-f]{8}-/ {print $1}' /proc/iomem")?;
    check!(!high.is_empty(), "there is no RAM above 4 GiB");
    // Pages come from the highest zone first: what is written here is above 4 GiB.
    guest.sh("head -c 33554432 /dev/urandom > /tmp/a && cp /tmp/a /tmp/b && cmp /tmp/a /tmp/b")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

/// Eight interfaces on one bridge, the last one in use.
pub fn eight_interfaces(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let mut spec = bench.guest();
    for _ in 0..8 {
        spec = spec.net("xenbr0");
    }
    let mut guest = spec.start()?;
    let inside = guest.sh("ls -d /sys/class/net/eth* | wc -l")?;
    check!(inside == "8", "the guest sees {inside} of 8 interfaces");
    let outside = interfaces()?;
    check!(outside.len() == 8, "the host has the interfaces {}", outside.join(" "));
    guest.sh("ip link set eth7 up && ip addr add 10.0.0.2/24 dev eth7 && ping -c 3 -W 10 10.0.0.1")?;
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// GRUB's image for PVH, a 32-bit ELF file, is loaded, entered and prints on hvc0.
pub fn grub(bench: &Bench) -> Result<()> {
    let guest = bench.guest().kernel(tool_file("grub-pvh")).initrd(None).spawn()?;
    guest.wait_console("GRUB", Duration::from_secs(300))?;
    guest.signal(libc::SIGKILL)
}

/// The same kernel boots from every payload format, and unpacked.
pub fn formats(bench: &Bench) -> Result<()> {
    for name in FORMATS.iter().map(|(name, _, _)| *name).chain(["elf"]) {
        let kernel = material("formats").join(name);
        let booted = bench.guest().kernel(kernel).start();
        let mut guest = booted.map_err(|error| format!("{name}: {error}"))?;
        guest.send("poweroff -f")?;
        guest.ends_with(0)?;
    }
    bench.nothing_is_left()
}

/// A guest boots every time, not only mostly.
pub fn again_and_again(bench: &Bench) -> Result<()> {
    let mut failures = Vec::new();
    for time in 1..=12 {
        match bench.guest().words("loglevel=8 earlyprintk=xen").start() {
            Ok(mut guest) => {
                guest.send("poweroff -f")?;
                guest.ends_with(0)?;
            }
            Err(error) => failures.push(format!("boot {time}: {error}")),
        }
    }
    check!(failures.is_empty(), "{} of 12 boots failed: {}", failures.len(), failures.join("; "));
    Ok(())
}

/// What the kernel says of Xen.
fn xen_lines(messages: &str) -> String {
    let lines = messages.lines().filter(|line| line.contains("Xen") || line.contains("xen"));
    lines.collect::<Vec<_>>().join(" | ")
}

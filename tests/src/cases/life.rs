//! How domains end and begin again, and that nothing is left of them.

use std::time::{Duration, Instant};

use super::net::address;
use super::{Bench, interfaces};
use crate::{Result, check};

/// The exit status after a crash of the guest.
const CRASHED: i32 = 4;
/// The exit status after the end of a guest by force.
const FORCED: i32 = 5;

/// A reboot gives the same domain the next id; its name, disks and interfaces are there again.
pub fn reboot(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 4 << 20)?;
    let mut guest = bench.guest().name("again").disk(image.display()).net("xenbr0").start()?;
    let before = bench.domains()?;
    let mac = guest.sh("cat /sys/class/net/eth0/address")?;
    guest.sh("echo kept | dd of=/dev/xvda conv=sync,fsync")?;
    for boots in 2..=3 {
        guest.send("reboot -f")?;
        guest.wait_boot(boots)?;
        let domains = bench.domains()?;
        let expected: Vec<u32> = before.iter().map(|id| id + boots - 1).collect();
        check!(domains == expected, "the ids {before:?} became {domains:?}");
        check!(
            interfaces()? == expected.iter().map(|id| format!("vif{id}.0")).collect::<Vec<_>>(),
            "the host has the interfaces {:?}",
            interfaces()?
        );
        check!(guest.sh("head -c 4 /dev/xvda")? == "kept", "the disk is another one");
        check!(guest.sh("cat /sys/class/net/eth0/address")? == mac, "eth0 has another address");
        address(&mut guest, "eth0", "10.0.0.2/24")?;
        guest.sh("ping -c 2 -W 10 10.0.0.1")?;
        let listed = bench.xvmm(&["list"])?;
        check!(
            listed.lines().any(|line| line.split_whitespace().any(|word| word == "again")),
            "xvmm list does not show the name: {listed}"
        );
    }
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// A panic ends the domain with a status of its own, after the last lines of the console.
pub fn panic(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let mut guest = bench.guest().net("xenbr0").start()?;
    guest.send("echo c > /proc/sysrq-trigger")?;
    guest.ends_with(CRASHED)?;
    let console = guest.console();
    check!(console.contains("Kernel panic - not syncing"), "the console ends without the panic: {console}");
    let errors = guest.errors();
    check!(errors.contains("Kernel panic - not syncing"), "xvmm does not repeat the last lines: {errors}");
    check!(
        errors.lines().last().is_some_and(|line| line.contains("crashed")),
        "xvmm does not tell of the crash: {errors}"
    );
    bench.nothing_is_left()
}

/// SIGTERM and SIGINT ask the guest to shut down.
pub fn signals(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut guest = bench.guest().net("xenbr0").start()?;
        // The kernel of the guest starts this when control/shutdown says poweroff.
        guest.sh(r"printf '#!/bin/busybox sh\necho @@ASKED > /dev/console\n/bin/busybox poweroff -f\n' > /sbin/poweroff")?;
        guest.signal(signal)?;
        guest.ends_with(0)?;
        check!(
            guest.console().contains("@@ASKED"),
            "after signal {signal} the guest was not asked to shut down"
        );
        bench.nothing_is_left()?;
    }
    Ok(())
}

/// A guest that does not shut down is ended after the time given, and so is one at the second signal.
pub fn shutdown_timeout(bench: &Bench) -> Result<()> {
    for (timeout, signals) in [("3", 1), ("600", 2)] {
        let mut guest = bench.guest().argument("--shutdown-timeout", timeout).start()?;
        guest.sh(r"printf '#!/bin/busybox sh\necho @@ASKED > /dev/console\n/bin/busybox sleep 1000\n' > /sbin/poweroff")?;
        guest.signal(libc::SIGTERM)?;
        guest.wait_console("@@ASKED", Duration::from_secs(300))?;
        let asked = Instant::now();
        for _ in 1..signals {
            guest.signal(libc::SIGTERM)?;
        }
        guest.ends_with(FORCED)?;
        check!(asked.elapsed() < Duration::from_secs(60), "the end came after {:?}", asked.elapsed());
        bench.nothing_is_left()?;
    }
    Ok(())
}

/// What a killed process leaves behind is gone after the next start.
pub fn killed(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 4 << 20)?;
    let spec = bench.guest().name("killed").disk(image.display()).net("xenbr0");
    let mut guest = spec.start()?;
    let before = bench.domains()?;
    guest.signal(libc::SIGKILL)?;
    guest.wait(Duration::from_secs(300))?;
    // The kernel takes down what a killed process had open, its rings among it, some time after the process.
    let end = Instant::now() + Duration::from_secs(30);
    while !interfaces()?.is_empty() {
        check!(Instant::now() < end, "interfaces are left: {:?}", interfaces()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut guest = spec.start()?;
    let domains = bench.domains()?;
    check!(domains.len() == 1 && domains > before, "the domains {before:?} became {domains:?}");
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

/// The drivers of disk and network are unloaded and loaded again, and work each time.
pub fn reload(bench: &Bench) -> Result<()> {
    let times = if bench.full { 20 } else { 3 };
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 4 << 20)?;
    let mut guest = bench.guest().disk(image.display()).net("xenbr0").start()?;
    for time in 0..times {
        if time > 0 {
            // A bound driver holds its module: it has to let go of its device first.
            guest.sh("cd /sys/bus/xen/drivers && echo vif-0 > vif/unbind && echo vbd-51712 > vbd/unbind && rmmod xen_netfront && rmmod xen_blkfront")?;
            guest.sh("insmod /lib/modules/xen_blkfront.ko && insmod /lib/modules/xen_netfront.ko")?;
            guest.sh("i=0; until [ -b /dev/xvda ] && [ -e /sys/class/net/eth0 ]; do [ $i -lt 100 ] || exit 1; i=$((i+1)); usleep 100000; done")
                .map_err(|error| format!("time {time}: the devices did not come back: {error}"))?;
        }
        guest.sh("head -c 1048576 /dev/urandom > /tmp/data && dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync && echo 3 > /proc/sys/vm/drop_caches; head -c 1048576 /dev/xvda | cmp - /tmp/data")
            .map_err(|error| format!("time {time}: the disk: {error}"))?;
        address(&mut guest, "eth0", "10.0.0.2/24")?;
        guest.sh("ping -c 2 -W 10 10.0.0.1").map_err(|error| format!("time {time}: the network: {error}"))?;
    }
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

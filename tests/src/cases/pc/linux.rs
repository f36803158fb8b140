//! A 32-bit Debian on the PC, from GRUB on an IDE disk on.

use std::fs;
use std::time::Duration;

use crate::cases::{Bench, checksum};
use crate::guest::{Guest, Spec, material};
use crate::{Result, check};

/// A state of `--acpi` and `--apic`, and the vCPUs that are tried with it.
type State = (bool, bool, usize);

const STATES: [State; 6] = [
    (true, true, 4),
    (false, false, 1),
    (true, false, 1),
    (false, true, 4),
    (true, true, 1),
    (false, true, 1),
];
/// Bytes of the second disk and the CD-ROM.
const DATA: u64 = 4 << 20;

fn spec(bench: &Bench, (acpi, apic, vcpus): State) -> Result<Spec> {
    let switch = |on| if on { "on" } else { "off" };
    let [disk, data, disc] = ["disk.img", "data.img", "disc.iso"].map(|name| bench.folder.join(name));
    fs::copy(material("pc").join("disk.img"), &disk)?;
    bench.disk("data.img", DATA)?;
    let pattern: Vec<u8> = (0..DATA / 4)
        .flat_map(|n| (u32::try_from(n).unwrap_or(0).wrapping_mul(0x9e37_79b1)).to_le_bytes())
        .collect();
    fs::write(&disc, pattern)?;
    let spec = Spec::pc(&bench.folder, vcpus)
        .name("pc")
        .argument("--acpi", switch(acpi))
        .argument("--apic", switch(apic));
    Ok(spec.disk(disk.display()).disk(data.display()).argument("--cdrom", disc.display()))
}

/// The kernel finds the tables of each state; disks, CD-ROM, clock, keyboard and mouse work; it powers off.
pub fn linux(bench: &Bench) -> Result<()> {
    let states = if bench.full { &STATES[..] } else { &STATES[..2] };
    for state in states {
        one(bench, *state).map_err(|error| format!("acpi, apic, vCPUs {state:?}: {error}"))?;
    }
    bench.nothing_is_left()
}

fn one(bench: &Bench, state: State) -> Result<()> {
    let mut guest = spec(bench, state)?.start()?;
    proves(&mut guest, state)?;
    drives(bench, &mut guest)?;
    let input = guest.sh("cat /proc/bus/input/devices")?;
    check!(input.contains("AT Translated Set 2 keyboard"), "no keyboard: {input}");
    check!(input.contains("Mouse"), "no mouse: {input}");
    let clock = guest.sh("cat /sys/class/rtc/rtc0/name; hwclock -r")?;
    check!(clock.contains("rtc_cmos"), "the clock is {clock}");
    if !state.0 {
        // It cannot power off.
        bench.xvmm(&["destroy", "pc"])?;
        guest.wait(Duration::from_secs(60))?;
        return Ok(());
    }
    tables(&mut guest, state.1)?;
    if state.2 == 1 {
        guest.send("poweroff -f")?;
    } else {
        // The power button is an input device; what it says is an event of 16 bytes.
        guest.send("head -c 16 /dev/input/$(ls -d /sys/class/input/event*/device/../event* > /dev/null; grep -A 5 LNXPWRBN /proc/bus/input/devices | grep -o 'event[0-9]*') > /dev/null; poweroff -f")?;
        std::thread::sleep(Duration::from_secs(2));
        bench.xvmm(&["shutdown", "pc"])?;
    }
    guest.ends_with(0)
}

/// The kernel's messages and interrupts are those of the state.
fn proves(guest: &mut Guest, (acpi, apic, vcpus): State) -> Result<()> {
    let cpus = guest.sh("grep -c ^processor /proc/cpuinfo")?;
    check!(cpus == vcpus.to_string(), "there are {cpus} processors");
    let messages = guest.sh("dmesg")?;
    let routed = "for interrupt routing";
    let marks = [
        ("ACPI: Using IOAPIC for interrupt routing", acpi && apic),
        ("ACPI: Using PIC for interrupt routing", acpi && !apic),
        ("Intel MultiProcessor Specification v1.4", !acpi && apic),
        (routed, acpi),
    ];
    for (mark, wanted) in marks {
        check!(messages.contains(mark) == wanted, "`{mark}` in the kernel's messages: {}", !wanted);
    }
    let interrupts = guest.sh("cat /proc/interrupts")?;
    check!(interrupts.contains("IO-APIC") == apic, "the interrupts are {interrupts}");
    check!(interrupts.contains("XT-PIC") != apic || apic, "the interrupts are {interrupts}");
    let flags = guest.sh("grep -c -w apic /proc/cpuinfo || true")?;
    check!((flags != "0") == apic, "{flags} processors have an APIC");
    let mut wrong =
        guest.sh("dmesg | grep -E 'ACPI (Error|Warning|BIOS Error)|Firmware Bug|BIOS bug' || true")?;
    if !acpi {
        // That there is no ACPI counts as an error there.
        let expected = |line: &&str| !line.contains("A valid RSDP was not found");
        wrong = wrong.lines().filter(expected).collect();
    }
    check!(wrong.is_empty(), "the kernel says: {wrong}");
    Ok(())
}

fn drives(bench: &Bench, guest: &mut Guest) -> Result<()> {
    // The kernel names disks in the order in which it is done with them, which is any.
    let written = guest.sh(
        "disk=/dev/$(ls /sys/bus/scsi/devices/0:0:1:0/block); dd if=/dev/urandom of=/tmp/r bs=64k count=64 2>/dev/null; \
         dd if=/tmp/r of=$disk bs=64k 2>/dev/null; sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum < /tmp/r; \
         sha256sum < $disk; rm /tmp/r",
    )?;
    let sums: Vec<&str> = written.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let [source, read] = sums[..] else { return Err(format!("the sums are {written}").into()) };
    let here = checksum(&bench.folder.join("data.img"), DATA)?;
    check!(source == read && source == here, "what was written is {source}, read {read}, here {here}");
    let disc = guest.sh("sha256sum < /dev/sr0")?;
    let here = checksum(&bench.folder.join("disc.iso"), DATA)?;
    check!(disc.starts_with(&here), "the disc is {disc}, here {here}");
    let ata = guest.sh("dmesg | grep -E 'ata[12].*(exception|failed|error)' || true")?;
    check!(ata.is_empty(), "the drives fail: {ata}");
    Ok(())
}

/// The tables that the guest has compile again from their disassembly: FADT, DSDT, FACS, and with APICs the MADT.
fn tables(guest: &mut Guest, apic: bool) -> Result<()> {
    let said = guest.sh(
        "mkdir /tmp/t; cd /tmp/t; acpidump -b > /dev/null; for t in *.dat; do iasl -d $t > log 2>&1 || cat log; done; \
         for t in *.dsl; do iasl -vw 3168 $t > log 2>&1; grep -q ' 0 Errors' log || { echo $t; cat log; }; \
         grep Warning log; done; ls *.dsl | wc -l",
    )?;
    let complains = |line: &str| line.contains("Error") || line.contains("Warning");
    let wrong = said.lines().any(|line| complains(line) && !line.contains(" 0 Errors, 0 Warnings"));
    check!(!wrong, "iasl says: {said}");
    let count = said.lines().last().unwrap_or_default();
    check!(count.parse::<u32>().is_ok_and(|count| count == 3 + u32::from(apic)), "there are {count} tables");
    Ok(())
}

/// Each of Linux's ways to reboot does.
pub fn reboots(bench: &Bench) -> Result<()> {
    let mut guest = spec(bench, (true, true, 1))?.start()?;
    for (round, way) in ["kbd", "cf9_force", "triple"].into_iter().enumerate() {
        guest.sh(&format!("echo {way} > /sys/kernel/reboot/type; cat /sys/kernel/reboot/type"))?;
        guest.send("reboot -f")?;
        guest.wait_boot(u32::try_from(round + 2)?).map_err(|error| format!("{way}: {error}"))?;
    }
    guest.send("poweroff -f")?;
    guest.ends_with(0)?;
    bench.nothing_is_left()
}

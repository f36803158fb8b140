//! What a guest costs its host, as counts and sizes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::Bench;
use super::net::{address, transfer};
use crate::packages::run;
use crate::{Result, check, fail};

/// What xvmm may have in memory beyond the guest's RAM.
const MEMORY_LIMIT_KIB: u64 = 5 * 1024;
/// Exit reason of a hypercall that the kernel gives to xvmm (`KVM_EXIT_XEN`).
const EXIT_XEN: &str = "reason == 34";

/// Disk and network transfers send their events without an exit to xvmm, and xvmm's own counters agree
/// with those of the kernel.
pub fn counters(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 16 << 20)?;
    let mut guest = bench.guest().name("counted").disk(image.display()).net("xenbr0").start()?;
    address(&mut guest, "eth0", "10.0.0.2/24")?;
    guest.sh("ping -c 1 -W 10 10.0.0.1; head -c 8388608 /dev/urandom > /tmp/data")?;

    let trace = Trace::start(&bench.folder.join("trace"))?;
    let before = Hypercalls::of(bench)?;
    guest.sh("dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync; echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/xvda of=/dev/null bs=64k")?;
    transfer(bench, &mut guest, "10.0.0.1", 8 << 20)?;
    let after = Hypercalls::of(bench)?;
    let (exits, sends) = trace.counts()?;

    let sent = after.sends - before.sends;
    check!(sent == 0, "{sent} event channel sends were exits to xvmm");
    check!(sends > 0, "the trace has no event channel send: it shows nothing");
    let counted = after.total - before.total;
    check!(
        counted.abs_diff(exits) <= 2 + exits / 50,
        "xvmm counted {counted} hypercalls, the kernel's trace {exits}"
    );
    println!(
        "{exits} hypercall exits and {sends} sends in the kernel for 24 MiB of disk and 16 MiB of network"
    );
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

struct Hypercalls {
    sends: u64,
    total: u64,
}

impl Hypercalls {
    fn of(bench: &Bench) -> Result<Hypercalls> {
        let text = bench.xvmm(&["info", "counted"])?;
        let info: serde_json::Value = serde_json::from_str(&text)?;
        let calls = info.get("hypercalls").cloned().unwrap_or_default();
        let count = |name: &str| calls.get(name).and_then(serde_json::Value::as_u64);
        match count("total") {
            Some(total) => Ok(Hypercalls { sends: count("event_channel_op.send").unwrap_or(0), total }),
            None => fail!("xvmm info has no hypercalls.total: {text}"),
        }
    }
}

/// A private instance of the kernel's trace.
struct Trace(PathBuf);

impl Trace {
    fn start(mount: &std::path::Path) -> Result<Trace> {
        fs::create_dir_all(mount)?;
        run(Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(mount))?;
        let instance = mount.join(format!("instances/xvmm-{}", std::process::id()));
        fs::create_dir(&instance)?;
        fs::write(instance.join("buffer_size_kb"), "16384")?;
        fs::write(instance.join("events/kvm/kvm_userspace_exit/filter"), EXIT_XEN)?;
        // Hypercall 32 is event_channel_op, its operation 4 is EVTCHNOP_send.
        fs::write(instance.join("events/kvm/kvm_xen_hypercall/filter"), "nr == 32 && a0 == 4")?;
        for event in ["kvm_userspace_exit", "kvm_xen_hypercall"] {
            fs::write(instance.join(format!("events/kvm/{event}/enable")), "1")?;
        }
        Ok(Trace(instance))
    }

    /// Hypercall exits to user space, and event channel sends of the guest.
    fn counts(&self) -> Result<(u64, u64)> {
        fs::write(self.0.join("tracing_on"), "0")?;
        let text = fs::read_to_string(self.0.join("trace"))?;
        let count = |event: &str| text.lines().filter(|line| line.contains(event)).count() as u64;
        Ok((count("kvm_userspace_exit:"), count("kvm_xen_hypercall:")))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// While the guest sleeps, no thread of xvmm wakes up but its vCPUs.
pub fn sleeping(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 16 << 20)?;
    let mut guest = bench.guest().disk(image.display()).net("xenbr0").start()?;
    address(&mut guest, "eth0", "10.0.0.2/24")?;
    guest.sh("ping -c 1 -W 10 10.0.0.1")?;
    // A disk that was flushed is one that has been at work.
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=64k count=4 conv=fsync")?;
    std::thread::sleep(Duration::from_secs(30));
    // What counts is a time without packets: neighbours and routers are still asked for now and then.
    let mut packets = (0, 1);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        packets.0 = vif_packets()?;
        before = switches(guest.pid())?;
        std::thread::sleep(Duration::from_secs(10));
        after = switches(guest.pid())?;
        packets.1 = vif_packets()?;
        if packets.0 == packets.1 {
            break;
        }
    }
    check!(packets.0 == packets.1, "the network is never quiet for ten seconds");
    check!(before == after, "threads woke up: before {before:?}, after {after:?}");
    check!(before.len() >= 3, "only the threads {before:?} were found");
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

/// Packets through all taps so far, both ways.
fn vif_packets() -> Result<u64> {
    let mut sum = 0;
    for vif in super::interfaces()? {
        for way in ["rx_packets", "tx_packets", "tx_dropped"] {
            let count = fs::read_to_string(format!("/sys/class/net/{vif}/statistics/{way}"))?;
            sum += count.trim().parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Name and voluntary context switches of each thread but the vCPUs'.
fn switches(pid: i32) -> Result<Vec<(String, u64)>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(entry?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        let name = field("Name:");
        // KVM's own helper for huge pages of the guest is a thread of this process, too.
        if !name.starts_with("vcpu") && !name.starts_with("kvm-nx-lpage") {
            threads.push((name, field("voluntary_ctxt_switches:").parse()?));
        }
    }
    threads.sort();
    Ok(threads)
}

/// The memory of xvmm beyond the guest's RAM stays below the limit.
pub fn memory(bench: &Bench) -> Result<()> {
    bench.bridge("xenbr0", "10.0.0.1/24")?;
    let image = bench.disk("a.img", 16 << 20)?;
    let mut guest = bench.guest().memory("256M").disk(image.display()).net("xenbr0").start()?;
    address(&mut guest, "eth0", "10.0.0.2/24")?;
    guest.sh("ping -c 1 -W 10 10.0.0.1; head -c 8388608 /dev/urandom > /tmp/data; dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync")?;
    transfer(bench, &mut guest, "10.0.0.1", 8 << 20)?;
    let (total, mut mappings) = private_memory(guest.pid(), 256 * 1024)?;
    println!("{total} KiB beyond the guest's RAM");
    mappings.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    mappings.truncate(8);
    check!(
        total <= MEMORY_LIMIT_KIB,
        "{total} KiB beyond the guest's RAM, more than {MEMORY_LIMIT_KIB}: {mappings:?}"
    );
    guest.send("poweroff -f")?;
    guest.ends_with(0)
}

/// The dirty private KiB of a process and its mappings, without what is the guest's RAM (a memfd, or a
/// mapping of at least half the RAM).
fn private_memory(pid: i32, ram_kib: u64) -> Result<(u64, Vec<(String, u64)>)> {
    let mut mappings: Vec<(String, u64)> = Vec::new();
    let mut is_ram = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Size:", size, _] => is_ram |= size.parse::<u64>()? >= ram_kib / 2,
            ["Private_Dirty:", size, _] => {
                if let Some(mapping) = mappings.last_mut() {
                    mapping.1 = if is_ram { 0 } else { size.parse()? };
                }
            }
            [range, rights, _, _, _, name @ ..] if range.contains('-') && rights.len() == 4 => {
                let name = name.first().copied().unwrap_or("anonymous");
                is_ram = name.starts_with("/memfd:");
                mappings.push((format!("{range} {name}"), 0));
            }
            _ => {}
        }
    }
    Ok((mappings.iter().map(|(_, size)| size).sum(), mappings))
}

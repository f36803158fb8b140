//! The KVM host's side: runs the peers one after the other and reads their figures.
//!
//! Times are those of the host's monotonic clock, and begin before the program is started. The first guest
//! instruction is the kernel's first `kvm_entry` event; marks are lines of the guest's console.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::load;
use super::peers::{BRIDGE, HOST_ADDRESS, Load, MEMORY_MIB, Peer, TAP};
use crate::kvm::Kvm;
use crate::packages::run;
use crate::{Result, fail};

/// Longest run. Emulated machines are slow, and QEMU's Xen emulation sometimes hangs under load.
const LIMIT: Duration = Duration::from_secs(180);
/// How long a VMM may take to end after its guest is done.
const END_LIMIT: Duration = Duration::from_secs(15);
const SETTLE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(10);

/// `bench-inside DISK boot|load ROUND PEER...`
pub fn inside(words: &[String]) -> Result<ExitCode> {
    let [disk, kind, round, names @ ..] = words else {
        return fail!("{}", crate::USAGE);
    };
    let peers: Vec<Peer> = names.iter().filter_map(|name| Peer::find(name)).collect();
    let _vm = Kvm::open()?.empty_vm()?;
    let bench = Bench::new(Path::new(disk))?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("@@ HOST {}", release.trim());
    for peer in &peers {
        if kind == super::BOOT {
            bench.run(*peer, Load::Nothing, &format!("boot {round}"));
        } else if peer.takes_load() {
            // A guest for each: QEMU's Xen emulation may hang under either, which must not cost both.
            for load in [Load::Disk, Load::Net] {
                bench.run(*peer, load, &format!("load {round}"));
            }
        }
    }
    println!("@@ END");
    Ok(ExitCode::SUCCESS)
}

/// What all runs share.
struct Bench {
    folder: PathBuf,
    disk: PathBuf,
    trace: Option<Trace>,
}

impl Bench {
    fn new(disk: &Path) -> Result<Bench> {
        let folder = std::env::temp_dir().join(format!("xvmm-bench-{}", std::process::id()));
        fs::create_dir_all(folder.join("debug"))?;
        run(Command::new("mount").args(["-t", "debugfs", "debugfs"]).arg(folder.join("debug")))?;
        run(Command::new("ip").args(["link", "add", BRIDGE, "type", "bridge"]))
            .or_else(|_| run(Command::new("brctl").args(["addbr", BRIDGE])))?;
        run(Command::new("ip").args(["addr", "add", &format!("{HOST_ADDRESS}/24"), "dev", BRIDGE]))?;
        run(Command::new("ip").args(["link", "set", BRIDGE, "up"]))?;
        load::serve()?;
        // Written once: the first write to a RAM disk allocates.
        fs::OpenOptions::new()
            .write(true)
            .open(disk)
            .and_then(|mut file| {
                std::io::copy(&mut std::io::repeat(0x11).take(super::DISK_MIB << 20), &mut file)
            })
            .map_err(|error| format!("{}: {error}", disk.display()))?;
        let trace = Trace::new(&folder.join("trace"));
        if let Err(error) = &trace {
            println!("@@ NOTE no time of the first guest instruction: {error}");
        }
        Ok(Bench { folder, disk: disk.to_owned(), trace: trace.ok() })
    }

    fn run(&self, peer: Peer, load: Load, what: &str) {
        let load_name = match load {
            Load::Nothing => "",
            Load::Disk => " disk",
            Load::Net => " net",
        };
        println!("@@ RUN {what}{load_name} {}", peer.name());
        if let Err(error) = self.measure(peer, load) {
            println!("@@ FAILED {what}{load_name} {}: {error}", peer.name());
        }
    }

    fn measure(&self, peer: Peer, load: Load) -> Result<()> {
        let figure = |metric: &str, value: f64| println!("@@ FIGURE {} {metric} {value:.6}", peer.name());
        let _tap = if peer.wants_tap() { Some(Tap::new()?) } else { None };
        if let Some(trace) = &self.trace {
            trace.arm()?;
        }
        let mut vmm = Vmm::start(peer.command(&self.folder, &self.disk, load))?;
        let mut before = None;
        loop {
            let (at, line) = vmm.line()?;
            let Some((_, message)) = line.split_once("@@") else {
                continue;
            };
            let words: Vec<&str> = message.split_whitespace().collect();
            match words.as_slice() {
                ["MARK", "user"] if load == Load::Nothing => {
                    figure("user_s", at - vmm.started);
                    figure("user_cpu_s", vmm.cpu());
                    if let Some(exits) = self.exits(&vmm) {
                        figure("user_exits", exits);
                    }
                }
                ["MARK", "devices"] if load == Load::Nothing => figure("devices_s", at - vmm.started),
                ["MARK", "idle"] => {
                    std::thread::sleep(SETTLE);
                    let (begun, cpu, exits) = (Instant::now(), vmm.cpu(), self.exits(&vmm));
                    std::thread::sleep(IDLE);
                    figure("idle_cpu_percent", 100.0 * (vmm.cpu() - cpu) / begun.elapsed().as_secs_f64());
                    if let (Some(before), Some(after)) = (exits, self.exits(&vmm)) {
                        figure("idle_exits", after - before);
                    }
                    let memory = vmm.memory()?;
                    figure("idle_dirty_kib", memory.dirty);
                    figure("idle_pss_kib", memory.pss);
                }
                ["MARK", "loaded"] => {
                    let memory = vmm.memory()?;
                    figure("loaded_dirty_kib", memory.dirty);
                    figure("loaded_pss_kib", memory.pss);
                }
                ["BEGIN", _] => before = self.exits(&vmm),
                ["COUNT", load, requests] => {
                    if let (Some(before), Some(after)) = (before, self.exits(&vmm)) {
                        figure(&format!("{load}_exits"), (after - before) / requests.parse::<f64>()?);
                    }
                }
                ["VALUE", metric, value] => figure(metric, value.parse()?),
                ["MARK", "done"] => break,
                _ => {}
            }
        }
        if load == Load::Nothing
            && let Some(trace) = &self.trace
            && let Some(at) = trace.first_entry()?
        {
            figure("first_instruction_s", at - vmm.started);
        }
        let end = Instant::now() + END_LIMIT;
        while Instant::now() < end {
            if let Some(status) = vmm.child.try_wait()? {
                // QEMU's Xen emulation dies of SIGSEGV at a power-off, with all figures taken.
                if peer.is_xvmm() && !status.success() {
                    return fail!("xvmm ended with {status}: {}", vmm.said.join(" | "));
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        fail!("it did not end after the guest's power-off")
    }

    /// KVM exits of the VM so far.
    fn exits(&self, vmm: &Vmm) -> Option<f64> {
        let prefix = format!("{}-", vmm.child.id());
        let folder = fs::read_dir(self.folder.join("debug/kvm"))
            .ok()?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
        fs::read_to_string(folder.path().join("exits")).ok()?.trim().parse().ok()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.trace = None;
        for folder in ["trace", "debug"] {
            let _ = run(Command::new("umount").arg(self.folder.join(folder)));
        }
        let _ = run(Command::new("ip").args(["link", "delete", BRIDGE]));
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A tap in the bridge; gone with the value.
struct Tap;

impl Tap {
    fn new() -> Result<Tap> {
        run(Command::new("ip").args(["tuntap", "add", TAP, "mode", "tap"]))
            .or_else(|_| run(Command::new("tunctl").args(["-t", TAP])))?;
        run(Command::new("ip").args(["link", "set", TAP, "master", BRIDGE]))
            .or_else(|_| run(Command::new("brctl").args(["addif", BRIDGE, TAP])))?;
        run(Command::new("ip").args(["link", "set", TAP, "up"]))?;
        Ok(Tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["link", "delete", TAP]))
            .or_else(|_| run(Command::new("tunctl").args(["-d", TAP])));
    }
}

/// A running VMM; killed with the value.
struct Vmm {
    child: Child,
    started: f64,
    limit: Instant,
    lines: Receiver<(f64, String)>,
    said: Vec<String>,
}

/// KiB of a process beyond its guest's RAM.
struct Memory {
    dirty: f64,
    pss: f64,
}

impl Vmm {
    fn start(mut command: Command) -> Result<Vmm> {
        let (mut output, writer) = std::io::pipe()?;
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let started = monotonic();
        let child = command.spawn()?;
        // The command holds the pipe's other end.
        drop(command);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut bytes, mut line) = ([0; 4096], Vec::new());
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                let at = monotonic();
                for byte in bytes.iter().take(length) {
                    if *byte != b'\n' {
                        line.push(*byte);
                        continue;
                    }
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    if sender.send((at, text)).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Vmm { child, started, limit: Instant::now() + LIMIT, lines, said: Vec::new() })
    }

    /// The next line of its output, with its time.
    fn line(&mut self) -> Result<(f64, String)> {
        match self.lines.recv_timeout(self.limit.saturating_duration_since(Instant::now())) {
            Ok((at, line)) => {
                self.said.push(line.clone());
                Ok((at, line))
            }
            Err(reason) => {
                let last = self.said.split_off(self.said.len().saturating_sub(8)).join(" | ");
                match reason {
                    RecvTimeoutError::Timeout => fail!("it hung; last lines: {last}"),
                    RecvTimeoutError::Disconnected => fail!("it ended early; last lines: {last}"),
                }
            }
        }
    }

    /// Seconds that its threads were on a processor (Documentation/scheduler/sched-stats.rst).
    fn cpu(&self) -> f64 {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else {
            return 0.0;
        };
        let of = |text: String| text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
        let times = threads.flatten().map(|thread| {
            fs::read_to_string(thread.path().join("schedstat")).ok().and_then(of).unwrap_or(0.0)
        });
        times.sum::<f64>() / 1e9
    }

    /// Without the guest's RAM: a memfd, or a mapping of at least half its size.
    fn memory(&self) -> Result<Memory> {
        let mut memory = Memory { dirty: 0.0, pss: 0.0 };
        let mut is_ram = false;
        for line in fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?.lines() {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["Size:", size, _] => is_ram |= size.parse::<u64>()? >= MEMORY_MIB * 1024 / 2,
                ["Private_Dirty:", size, _] if !is_ram => memory.dirty += size.parse::<f64>()?,
                ["Pss:", size, _] if !is_ram => memory.pss += size.parse::<f64>()?,
                [range, rights, _, _, _, name @ ..] if range.contains('-') && rights.len() == 4 => {
                    is_ram = name.first().is_some_and(|name| name.starts_with("/memfd:"));
                }
                _ => {}
            }
        }
        Ok(memory)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A private instance of the kernel's trace that keeps the first entry into a guest: the exit after it ends
/// the recording.
struct Trace(PathBuf);

impl Trace {
    fn new(mount: &Path) -> Result<Trace> {
        fs::create_dir_all(mount)?;
        run(Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(mount))?;
        let instance = mount.join(format!("instances/xvmm-bench-{}", std::process::id()));
        fs::create_dir(&instance)?;
        let trace = Trace(instance);
        trace.write("trace_clock", "mono")?;
        trace.write("events/kvm/kvm_exit/trigger", "traceoff")?;
        trace.write("events/kvm/kvm_entry/enable", "1")?;
        Ok(trace)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.0.join(file), text).map_err(|error| format!("{file}: {error}").into())
    }

    fn arm(&self) -> Result<()> {
        self.write("trace", "")?;
        self.write("tracing_on", "1")
    }

    fn first_entry(&self) -> Result<Option<f64>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let before = text.lines().find_map(|line| line.split_once(": kvm_entry:"));
        Ok(before.and_then(|(before, _)| before.split_whitespace().next_back()?.parse().ok()))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Seconds of `CLOCK_MONOTONIC`, which the trace has, too.
fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which lives here.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

//! Programs of our own on a PC: processor models, MSRs, Hyper-V's interfaces, lost ticks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Bench, tool_file};
use crate::program::{Program, lines};
use crate::{Result, check, fail, guest};

/// Firmware and program take so long at most.
const LIMIT: Duration = Duration::from_secs(300);
pub const NAME: &str = "program";
/// Local APIC: task priority.
const TPR: u32 = 0xfee0_0080;

pub type Lines = Vec<(char, Vec<u32>)>;

/// A running xvmm, which does not outlive this value.
pub struct Pc<'a> {
    child: Child,
    bench: &'a Bench,
}

impl Drop for Pc<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Pc<'a> {
    pub fn start(bench: &'a Bench, program: &Program, arguments: &[&str]) -> Result<Pc<'a>> {
        let disk = bench.disk("program.img", 1 << 20)?;
        let mut bytes = program.sectors()?;
        bytes.resize(1 << 20, 0);
        fs::write(&disk, bytes)?;
        let mut command = guest::xvmm(&bench.folder);
        command.args(["--hvm", "--name", NAME, "--memory", "64M", "--boot", "c", "--console", "null"]);
        command.args(["-vv", "--on-reboot", "destroy"]).args(arguments).arg("--disk").arg(&disk);
        command.arg("--bios").arg(tool_file("bios.bin")).arg("--vgabios").arg(tool_file("vgabios.bin"));
        let log = File::create(bench.folder.join("program.log"))?;
        Ok(Pc { child: command.stdin(Stdio::null()).stderr(log).spawn()?, bench })
    }

    fn lines(&self) -> Result<Lines> {
        Ok(lines(&fs::read_to_string(self.bench.folder.join("program.log"))?))
    }

    /// Waits for the program's end.
    fn finish(mut self) -> Result<Lines> {
        let end = Instant::now() + LIMIT;
        while self.child.try_wait()?.is_none() {
            check!(Instant::now() < end, "the program did not end: {:x?}", self.lines()?);
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = self.child.wait()?;
        let lines = self.lines()?;
        check!(status.success(), "xvmm ended with {status} after {lines:x?}");
        check!(
            lines.last().is_some_and(|(letter, _)| *letter == 'e'),
            "the program was cut short: {lines:x?}"
        );
        Ok(lines)
    }

    /// Waits until the program has stopped.
    pub fn stopped(&self) -> Result<Lines> {
        let end = Instant::now() + LIMIT;
        loop {
            let lines = self.lines()?;
            if lines.iter().any(|(letter, _)| *letter == 's') {
                return Ok(lines);
            }
            check!(Instant::now() < end, "the program did not stop: {lines:x?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn run(bench: &Bench, program: &Program, arguments: &[&str]) -> Result<Lines> {
    Pc::start(bench, program, arguments)?.finish()
}

/// The results of the step with this letter and these operands.
fn result<const N: usize>(lines: &Lines, letter: char, operands: &[u32]) -> Result<[u32; N]> {
    let found = lines.iter().find_map(|(step, numbers)| {
        let results = numbers.strip_prefix(operands).filter(|_| *step == letter)?;
        <[u32; N]>::try_from(results).ok()
    });
    match found {
        Some(results) => Ok(results),
        None => fail!("no line {letter} {operands:x?} with {N} results in {lines:x?}"),
    }
}

/// The processor that Windows XP likes; MSRs that nobody knows; no APIC where there is to be none; and what the priority of
/// tasks costs.
pub fn processor(bench: &Bench) -> Result<()> {
    let program = Program::default()
        .cpuid(0, 0)
        .cpuid(1, 0)
        .cpuid(0xb, 1)
        .cpuid(0x8000_0000, 0)
        .write_msr(0xdead, 0x1234)
        .read_msr(0xdead);
    let xp = run(bench, &program, &["--cpu", "xp", "--vcpus", "2"])?;
    let [last, ..] = result::<4>(&xp, 'c', &[0, 0])?;
    let [signature, topology, ecx, edx] = result(&xp, 'c', &[1, 0])?;
    check!(last <= 0xb, "the last leaf is {last:#x}");
    check!(signature >> 8 & 0xf == 6 && signature >> 20 == 0, "the signature is {signature:#x}");
    check!(topology >> 16 & 0xff == 2 && edx & 1 << 9 != 0, "leaf 1 tells of {topology:#x}, {edx:#x}");
    // PCLMUL, VMX, SSE4.2, x2APIC, POPCNT, AES, XSAVE, AVX.
    let later = 1 << 1 | 1 << 5 | 1 << 20 | 1 << 21 | 1 << 23 | 1 << 25 | 1 << 26 | 1 << 28;
    check!(ecx & later == 0, "leaf 1 has features of later years: {:#x}", ecx & later);
    let [_, cores, ..] = result::<4>(&xp, 'c', &[0xb, 1])?;
    check!(last < 0xb || cores == 2, "leaf 0xb tells of {cores} cores");
    let [last, ..] = result::<4>(&xp, 'c', &[0x8000_0000, 0])?;
    check!(last <= 0x8000_0008, "the last extended leaf is {last:#x}");
    check!(result(&xp, 'r', &[0xdead])? == [0, 0], "an unknown MSR has a value: {xp:x?}");

    // Nor can the program switch one on.
    let program = Program::default().cpuid(1, 0).write_msr(0x1b, 0xfee0_0900).read_msr(0x1b).peek(TPR - 0x50);
    let without = run(bench, &program, &["--apic", "off"])?;
    let [.., edx] = result::<4>(&without, 'c', &[1, 0])?;
    check!(edx & 1 << 9 == 0, "CPUID tells of an APIC");
    check!(result(&without, 'r', &[0x1b])? == [0, 0], "the APIC has an MSR: {without:x?}");
    let [version] = result(&without, 'k', &[TPR - 0x50])?;
    check!(version == u32::MAX, "the APIC answers {version:#x}");

    // The firmware, too, writes to memory that devices have: it clears the screen.
    let (few, many) = (priority(bench, 1)?, priority(bench, ACCESSES)?);
    check!(few > 0, "there are no counters of exits");
    check!(
        many < few + u64::from(ACCESSES) / 100,
        "{ACCESSES} accesses to the APIC are {few} to {many} exits"
    );
    eprintln!("exits by memory: {few} with one access to the task priority, {many} with {ACCESSES}");
    bench.nothing_is_left()
}

/// Exits by memory of the firmware, and of so many writes of the task priority.
fn priority(bench: &Bench, writes: u32) -> Result<u64> {
    let pc = Pc::start(bench, &Program::default().poke(TPR, 0x20, writes).peek(TPR).stop(), &[])?;
    let lines = pc.stopped()?;
    check!(result(&lines, 'k', &[TPR])? == [0x20], "the priority was not written: {lines:x?}");
    let info: serde_json::Value = serde_json::from_str(&bench.xvmm(&["info", NAME])?)?;
    let exits = ["memory_read", "memory_write"].map(|name| info["exits"][name].as_u64());
    let [Some(reads), Some(writes)] = exits else { return fail!("there are no counters: {info}") };
    // Destroyed, it ends with its own status.
    bench.xvmm(&["destroy", NAME])?;
    drop(pc);
    Ok(reads + writes)
}

const ACCESSES: u32 = 100_000;

/// Hyper-V's leaves come first and Xen's behind them; its clock runs, and its interrupt controller takes settings.
pub fn viridian(bench: &Bench) -> Result<()> {
    const TIME: u32 = 0x4000_0020;
    const SIMP: u32 = 0x4000_0083;
    let program = Program::default()
        .cpuid(0x4000_0000, 0)
        .cpuid(0x4000_0001, 0)
        .cpuid(0x4000_0003, 0)
        .cpuid(0x4000_0100, 0)
        .read_msr(TIME)
        .wait(2)
        .write_msr(SIMP, 0x9001)
        .read_msr(SIMP)
        .read_msr(TIME);
    let on = run(bench, &program, &["--viridian", "on"])?;
    let [last, name @ ..] = result::<4>(&on, 'c', &[0x4000_0000, 0])?;
    let text = |name: [u32; 3]| name.map(u32::to_le_bytes).concat();
    check!(last == 0x4000_0005 && text(name) == b"Microsoft Hv", "the first leaf is {last:#x} {name:x?}");
    let [interface, ..] = result::<4>(&on, 'c', &[0x4000_0001, 0])?;
    check!(interface.to_le_bytes() == *b"Hv#1", "the interface is {interface:#x}");
    let [features, _, _, more] = result(&on, 'c', &[0x4000_0003, 0])?;
    check!((features, more) == (0x87e, 0x500), "the features are {features:#x} and {more:#x}");
    let [_, xen @ ..] = result::<4>(&on, 'c', &[0x4000_0100, 0])?;
    check!(text(xen) == b"XenVMMXenVMM", "Xen's leaf is {xen:x?}");
    check!(
        result(&on, 'r', &[SIMP])? == [0, 0x9001],
        "the page of messages is not where it was put: {on:x?}"
    );
    let times: Vec<u64> = on
        .iter()
        .filter(|(step, numbers)| *step == 'r' && numbers.first() == Some(&TIME))
        .filter_map(|(_, numbers)| Some(u64::from(*numbers.get(1)?) << 32 | u64::from(*numbers.get(2)?)))
        .collect();
    // In units of 100 ns, with more than a second of the clock in between.
    let apart = matches!(times.as_slice(), [first, second] if second.saturating_sub(*first) > 8_000_000);
    check!(apart, "the time was {times:?}");

    let program = Program::default().cpuid(0x4000_0000, 0).cpuid(0x4000_0003, 0);
    let some = run(bench, &program, &["--viridian", "base,freq"])?;
    let [features, _, _, more] = result(&some, 'c', &[0x4000_0003, 0])?;
    check!((features, more) == (0x860, 0x100), "the features are {features:#x} and {more:#x}");
    let off = run(bench, &program, &[])?;
    let [_, name @ ..] = result::<4>(&off, 'c', &[0x4000_0000, 0])?;
    check!(text(name) == b"XenVMMXenVMM", "without Hyper-V the first leaf is {name:x?}");
    bench.nothing_is_left()
}

/// The disc of a drive that is empty at first changes by command, while the machine runs; the image is free again when it is
/// out.
pub fn discs(bench: &Bench) -> Result<()> {
    let pc = Pc::start(bench, &Program::default().stop(), &["--cdrom", ""])?;
    pc.stopped()?;
    let drive = || -> Result<String> {
        let info: serde_json::Value = serde_json::from_str(&bench.xvmm(&["info", NAME])?)?;
        let [drive] = info["drives"].as_array().map_or([].as_slice(), Vec::as_slice) else {
            return fail!("the drives are {}", info["drives"]);
        };
        let medium = drive["medium"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or("nothing");
        Ok(format!(
            "{} {medium} {}",
            drive["vdev"].as_str().unwrap_or_default(),
            drive["tray"].as_str().unwrap_or_default()
        ))
    };
    let image = |name: &str| Ok::<_, crate::Error>(bench.disk(name, 1 << 20)?.display().to_string());
    let (first, second) = (image("first.iso")?, image("second.iso")?);
    let before = drive()?;
    check!(before.starts_with("hdc nothing"), "the empty drive has: {before}");
    bench.xvmm(&["cd-insert", NAME, &first])?;
    check!(drive()? == "hdc first.iso closed", "the drive has: {}", drive()?);
    bench.xvmm(&["cd-insert", NAME, "hdc", &second])?;
    check!(drive()? == "hdc second.iso closed", "the drive has: {}", drive()?);
    for (words, status) in [
        (["cd-insert", NAME, "none.iso"].as_slice(), 20),
        (["cd-insert", NAME, "hdd", &first].as_slice(), 54),
        (["cd-eject", NAME, "hda"].as_slice(), 54),
        (["cd-eject", NAME, "cdrom"].as_slice(), 27),
    ] {
        let output = guest::xvmm(&bench.folder).args(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        check!(output.status.code() == Some(status), "{words:?} ended with {}: {said}", output.status);
        check!(said.lines().count() == 1, "{words:?} says: {said}");
    }
    check!(drive()? == "hdc second.iso closed", "the drive has: {}", drive()?);
    bench.xvmm(&["cd-eject", NAME])?;
    check!(drive()? == "hdc nothing open", "the drive has: {}", drive()?);
    bench.xvmm(&["destroy", NAME])?;
    drop(pc);
    bench.nothing_is_left()
}

/// Ticks that a program does not take for some seconds come later, of both clocks.
pub fn ticks(bench: &Bench) -> Result<()> {
    let timer = run(bench, &Program::default().timer_ticks(3, 3), &[])?;
    let [ticks] = result(&timer, 't', &[])?;
    // All: 109. Without those of the first seconds: 55.
    check!(ticks >= 98, "of 109 ticks of the interval timer {ticks} came");
    let clock = run(bench, &Program::default().clock_ticks(3, 3), &[])?;
    let [ticks] = result(&clock, 'i', &[])?;
    // All: 192. Without those of the first seconds: 97.
    check!(ticks >= 172, "of 192 ticks of the clock {ticks} came");
    bench.nothing_is_left()
}

/// A PC that halts, with ticks of both clocks of a BIOS, and that nobody watches: no thread but that of the vCPU wakes more
/// than twice a second, and the vCPU's seldom leaves the kernel.
pub fn idle(bench: &Bench) -> Result<()> {
    let socket = format!("unix:{}", bench.folder.join("vnc").display());
    let pc = Pc::start(bench, &Program::default().stop(), &["--vnc", &socket, "--cdrom", ""])?;
    pc.stopped()?;
    // What the firmware began comes to its end.
    std::thread::sleep(Duration::from_secs(3));
    let (before, started) = (Wakes::of(&pc)?, Instant::now());
    std::thread::sleep(SPAN);
    let (after, seconds) = (Wakes::of(&pc)?, started.elapsed().as_secs() + 1);
    check!(before.threads.len() > 1, "there is no thread but {:?}", before.threads);
    for (thread, (name, wakes)) in &after.threads {
        // A thread that is new was never there before.
        let woken = wakes - before.threads.get(thread).map_or(0, |(_, wakes)| *wakes);
        eprintln!("{name}: woken {woken} times in {seconds} s");
        check!(
            name.starts_with("vcpu") || woken <= 2 * seconds,
            "the thread {name} was woken {woken} times in {seconds} s"
        );
    }
    let exits = after.exits - before.exits;
    eprintln!("the vCPU left the kernel {exits} times in {seconds} s");
    check!(exits <= 2 * seconds, "the vCPU left the kernel {exits} times in {seconds} s");
    bench.xvmm(&["destroy", NAME])?;
    drop(pc);
    bench.nothing_is_left()
}

/// So long an idle PC is looked at.
const SPAN: Duration = Duration::from_secs(20);

struct Wakes {
    /// How often each thread began to wait, by its id, with its name.
    threads: BTreeMap<String, (String, u64)>,
    /// How often the vCPU left the kernel.
    exits: u64,
}

impl Wakes {
    fn of(pc: &Pc<'_>) -> Result<Wakes> {
        let info: serde_json::Value = serde_json::from_str(&pc.bench.xvmm(&["info", NAME])?)?;
        let exits = info["exits"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64());
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/task", pc.child.id()))? {
            let entry = entry?;
            let status = fs::read_to_string(entry.path().join("status"))?;
            let of = |key| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
            let wakes = of("voluntary_ctxt_switches:").parse()?;
            threads.insert(entry.file_name().to_string_lossy().into_owned(), (of("Name:").to_owned(), wakes));
        }
        Ok(Wakes { threads, exits: exits.sum() })
    }
}
